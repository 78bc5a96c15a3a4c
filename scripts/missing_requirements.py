"""Prints the lines of a requirements file that this Python does not meet, one a line.

Knows `name`, `name>=version` and `name==version`, all that requirements.txt here uses. Any torch from
2.11 on is accepted: the engine is built against the one that is installed.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version

MINIMUM_TORCH = (2, 11)


def release(text):
    """(2, 13, 0) of "2.13.0+cpu"."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", text)[0].split("."))


def is_met(requirement):
    name, relation, wanted = re.fullmatch(r"([\w-]+)(?:(==|>=)([\w.]+))?", requirement).groups()
    try:
        installed = release(version(name))
    except PackageNotFoundError:
        return False
    if name == "torch":
        return installed >= MINIMUM_TORCH
    if relation == "==":
        return installed == release(wanted)
    return relation is None or installed >= release(wanted)


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        lines = [line.partition("#")[0].strip() for line in file]
    for requirement in filter(None, lines):
        if not is_met(requirement):
            print(requirement)


if __name__ == "__main__":
    main()
