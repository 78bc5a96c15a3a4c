"""Damaged safetensors files: our reader and the Python package's (in Rust) take and refuse the same ones.

Usage: safetensors_test.py DRIVER [COUNT]. Exits 77 without the package.
"""

import collections
import json
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import safetensors
except ImportError:
    print("skipped: the Python package `safetensors` is not installed")
    sys.exit(77)

DRIVER = Path(sys.argv[1]).resolve()
COUNT = int(sys.argv[2]) if len(sys.argv) > 2 else 3000

# Where ours is stricter, by what its error says, and why.
STRICTER = {
    "appears twice": "a name twice: theirs keeps the last one",
    "unknown key": "a key of a tensor that the format does not have: theirs ignores it",
    "does not begin with '{'": "white space before the header, which the format forbids: theirs takes it",
    "is not supported": "packed types of less than a byte are not taken",
    "key '": "metadata that is no text, or a key of a tensor twice",
}


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def seeds():
    tensor = lambda dtype, shape, begin, end: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    data = bytes(range(32))
    return [
        file_of({"a": tensor("F32", [2, 3], 0, 24)}, data[:24]),
        file_of({"__metadata__": {"format": "pt"}, "a": tensor("BF16", [], 4, 6),
                 "b": tensor("U8", [4], 0, 4)}, data[:6]),
        file_of({"e": tensor("I64", [0, 7], 0, 0)}),
        file_of({}),
        file_of({"x": tensor("I32", [1], 0, 4), "y": tensor("F64", [2], 4, 20), "z": tensor("BOOL", [3], 20, 23)},
                data[:23]),
    ]


def damaged(seed, draw):
    """One to three edits: of bytes, of numbers in the header, of the length."""
    data = bytearray(seed)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(data)) if data else 0
        kind = draw.randrange(8)
        if kind == 0 and data:
            data[at] = draw.randrange(256)
        elif kind == 1:
            del data[at:at + draw.randint(1, 8)]
        elif kind == 2:
            data[at:at] = data[at:at + draw.randint(1, 8)]
        elif kind == 3:
            data[at:at] = draw.choice([b"{", b"}", b"[", b"]", b",", b":", b'"', b"-", b"0", b"\xff", b" ", b"\0"])
        elif kind == 4 and data:
            digits = [i for i in range(8, len(data)) if 48 <= data[i] <= 57]
            if digits:
                data[draw.choice(digits)] = draw.choice(b"0123456789")
        elif kind == 5:
            data += bytes(draw.randint(1, 4))
        elif kind == 6 and len(data) > 8:
            data[0:8] = struct.pack("<Q", max(0, len(data) - 8 - draw.randint(-2, 30)))
        elif len(data) >= 8 and draw.random() < 0.5:  # the length put right again
            end = data.rfind(b"}") + 1
            data[0:8] = struct.pack("<Q", max(0, end - 8))
    return bytes(data)


def read_theirs(data):
    """None when refused, else the tensors sorted as ours are compared."""
    try:
        tensors = safetensors.deserialize(data)
    except Exception:
        return None
    return sorted((name.encode("utf-8", "surrogatepass").hex(), value["dtype"], tuple(value["shape"]),
                   bytes(value["data"]).hex()) for name, value in tensors)


def read_ours(files, folder):
    (folder / "in").write_bytes(b"".join(struct.pack("<Q", len(data)) + data for data in files))
    subprocess.run([DRIVER, "-", "safetensors", folder / "in", folder / "out"], check=True)
    out, at, answers = (folder / "out").read_bytes(), 0, []
    while at < len(out):
        (size,) = struct.unpack_from("<Q", out, at)
        answers.append(out[at + 8:at + 8 + size].decode())
        at += 8 + size
    return answers


def tensors_of(answer):
    tensors = []
    for line in answer.split("\n")[1:]:
        name, dtype, shape, data = line.split(" ")
        tensors.append((name, dtype, tuple(int(size) for size in shape.split(",")[:-1]), data))
    return sorted(tensors)


def main():
    draw = random.Random(1)
    files = [damaged(seed, draw) for seed in seeds() for _ in range(COUNT // 5)] + seeds()
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        answers = read_ours(files, Path(folder))
    assert len(answers) == len(files)
    disagreements = []
    for data, answer in zip(files, answers):
        theirs = read_theirs(data)
        if answer.startswith("ok"):
            if theirs is None or tensors_of(answer) != theirs:
                disagreements.append((data, answer, theirs))
            counts["taken by both"] += 1
        elif theirs is None:
            counts["refused by both"] += 1
        else:
            reason = next((why for words, why in STRICTER.items() if words in answer), None)
            if reason is None:
                disagreements.append((data, answer, theirs))
            counts[f"refused by ours only: {reason}"] += 1
    for what, count in sorted(counts.items()):
        print(f"{count:8d} {what}")
    for data, answer, theirs in disagreements[:10]:
        print("DISAGREE", data, "ours:", answer, "theirs:", theirs)
    assert counts["taken by both"] > len(files) / 50 and counts["refused by both"] > len(files) / 2, counts
    assert not disagreements, f"{len(disagreements)} disagreements"
    print(f"{len(files)} files, no other disagreement")


main()
