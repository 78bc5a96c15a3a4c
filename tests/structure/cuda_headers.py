"""Compiles (syntax only) the engine's sources against the headers of another torch wheel.

Usage: cuda_headers.py BUILD_FOLDER TORCH_FOLDER OTHER_TORCH_FOLDER. The commands are those of
BUILD_FOLDER/compile_commands.json with TORCH_FOLDER replaced. Exits 77 (skipped) when the other torch
is not there: scripts/package_gpu.sh downloads it.
"""

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SKIPPED = 77


def syntax_commands(build, torch, other):
    """(source, command) of every source of the product that is compiled against torch."""
    for entry in json.loads((build / "compile_commands.json").read_text(encoding="utf-8")):
        words = shlex.split(entry["command"])
        source = os.path.relpath(entry["file"], Path(__file__).parents[2])
        if not source.startswith(("src/", "apps/")) or f"{torch}/include" not in words:
            continue
        if Path(words[0]).name == "ccache":
            del words[0]
        output = words.index("-o")
        del words[output : output + 2]
        yield source, [word.replace(torch, other) for word in words] + ["-fsyntax-only"]


def main():
    build, torch, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    if not Path(other, "version.py").exists():
        print(f"skipped: no torch in {other}; scripts/package_gpu.sh downloads it")
        return SKIPPED
    commands = list(syntax_commands(build, torch, other))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = list(pool.map(lambda c: subprocess.run(c[1], cwd=build, check=False), commands))
    failed = [c[0] for c, result in zip(commands, results) if result.returncode]
    print(f"{len(commands)} sources against {other}; failed: {', '.join(failed) or 'none'}")
    return 1 if failed or not commands else 0


if __name__ == "__main__":
    sys.exit(main())
