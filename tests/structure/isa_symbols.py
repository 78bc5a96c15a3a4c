"""Checks that files compiled for one instruction set share no inline function with other code.

The linker keeps one copy of a weak function; were it the one from such a file, CPUs without the
instruction set would run it.

Usage: isa_symbols.py NM ARCHIVE OBJECT... Prints the weak symbols of the named objects of the archive
and exits 1 when there are any, or when an object is missing.
"""

import re
import subprocess
import sys


def weak_symbols(listing, objects):
    """Object -> its weak symbols, from what nm prints for an archive."""
    found = {}
    current = None
    for line in listing.splitlines():
        if line.endswith(".o:"):
            current = line[:-1]
            if current in objects:
                found[current] = []
        elif current in found and re.search(r" [WVu] ", line) and "__asan" not in line:
            found[current].append(line.split(maxsplit=2)[-1])
    return found


def main():
    nm, archive, *objects = sys.argv[1:]
    listing = subprocess.run([nm, "-C", archive], capture_output=True, text=True, check=True).stdout
    found = weak_symbols(listing, objects)
    problems = [f"{name}: not in {archive}" for name in objects if name not in found]
    problems += [f"{name}: {symbol}" for name, symbols in found.items() for symbol in symbols]
    print("\n".join(problems))
    print(f"{len(found)} objects, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
