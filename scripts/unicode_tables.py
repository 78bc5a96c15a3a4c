"""Prints the C++ source of src/formats/unicode.h's tables, from this Python's unicodedata.

Usage: unicode_tables.py. cmake/unicode_tables.cmake runs it while configuring.
"""

import sys
import unicodedata

CODE_POINTS = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)  # composed by arithmetic

# `tokenizers` normalizes by Unicode 9, and models have learned the ids it gives: marks that are newer
# (first, last) neither move nor compose.
NEWER_MARKS = [
    (0x7FD, 0x7FD), (0x898, 0x89F), (0x8CA, 0x8D3), (0x9FE, 0x9FE), (0xC3C, 0xC3C), (0xD3B, 0xD3C),
    (0xEBA, 0xEBA), (0x1715, 0x1715), (0x1ABF, 0x1ACE), (0x1DF6, 0x1DFA), (0xA82C, 0xA82C),
    (0x10D24, 0x10D27), (0x10EAB, 0x10EAC), (0x10EFD, 0x10EFF), (0x10F46, 0x10F85), (0x11070, 0x11070),
    (0x1133B, 0x1133B), (0x1145E, 0x1145E), (0x11839, 0x1183A), (0x11930, 0x11943), (0x119E0, 0x119E0),
    (0x11A34, 0x11A34), (0x11A47, 0x11A47), (0x11A99, 0x11A99), (0x11D42, 0x11D45), (0x11D97, 0x11D97),
    (0x16FF0, 0x16FF1), (0x1E130, 0x1E136), (0x1E2AE, 0x1E2AE), (0x1E2EC, 0x1E2EF),
]


def is_newer(c):
    return any(first <= c <= last for first, last in NEWER_MARKS)


def decompositions():
    """(code point, first, second or 0, whether NFC composes it again)."""
    for c in CODE_POINTS:
        parts = unicodedata.decomposition(chr(c))
        if not parts or parts.startswith("<") or c in HANGUL or is_newer(c):
            continue
        first, second = [int(p, 16) for p in (parts.split() + ["0"])[:2]]
        yield c, first, second, int(unicodedata.normalize("NFC", chr(c)) == chr(c))


def combining_classes():
    """(first, last, class) of runs with a class other than 0."""
    runs = []
    for c in CODE_POINTS:
        number = 0 if is_newer(c) else unicodedata.combining(chr(c))
        if number and runs and runs[-1][1] == c - 1 and runs[-1][2] == number:
            runs[-1][1] = c
        elif number:
            runs.append([c, c, number])
    return runs


def lower_cases():
    """(code point, first, second or 0) of characters whose lower case is another text."""
    for c in CODE_POINTS:
        lower = chr(c).lower()
        if lower != chr(c):
            first, second = ([ord(x) for x in lower] + [0])[:2]
            yield c, first, second


def table(type_name, function, rows):
    lines = ["{" + ", ".join(f"0x{number:X}" for number in row) + "}," for row in rows]
    return (
        f"std::span<const {type_name}> {function}() {{\n"
        f"  static constexpr {type_name} kTable[] = {{\n    " + "\n    ".join(lines) + "\n  };\n"
        f"  return kTable;\n}}\n"
    )


print(f"""// Generated from Unicode {unicodedata.unidata_version} by scripts/unicode_tables.py.
#include "formats/unicode.h"

namespace amoeba::formats {{

{table("Decomposition", "decompositions", decompositions())}
{table("CombiningClass", "combining_classes", combining_classes())}
{table("LowerCase", "lower_cases", lower_cases())}
}}  // namespace amoeba::formats""")
