"""Compares formats::Tokenizer with the `tokenizers` package, id by id and byte by byte.

Usage: tokenizer_test.py DRIVER [--megabytes N] [--vocab-size V] [--families a,b]. Exits 77 without the package.
`--megabytes 50 --vocab-size 30000` is the long campaign.
"""

import argparse
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    import tokenizers
except ImportError:
    print("skipped: the Python package `tokenizers` is not installed")
    sys.exit(77)

import corpus
from families import FAMILIES


def run_driver(driver, tokenizer, mode, records, folder):
    (folder / "in").write_bytes(b"".join(struct.pack("<Q", len(r)) + r for r in records))
    done = subprocess.run([driver, tokenizer, mode, folder / "in", folder / "out"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{tokenizer} {mode}: {done.stderr}")
    data, out, at = (folder / "out").read_bytes(), [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        out.append(data[at + 8:at + 8 + size])
        at += 8 + size
    assert len(out) == len(records), (len(out), len(records))
    return out, float(done.stdout.split()[0])


def ids_of(record):
    return list(struct.unpack(f"<{len(record) // 4}i", record))


def compare(what, texts, ours, theirs):
    for text, a, b in zip(texts, ours, theirs, strict=True):
        if a != b:
            first = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            near = slice(max(first - 3, 0), first + 5)
            sys.exit(f"{what}: {text[:200]!r} ({len(text)} long): at {first} got {a[near]!r}, want {b[near]!r}")


def check_encode(driver, tokenizer, path, texts, folder, modes):
    """Text as data (encode) or from a user (prompt), and back. Returns the CPU seconds of both sides."""
    records = [t if isinstance(t, bytes) else t.encode() for t in texts]
    texts = [r.decode("utf-8", "replace") for r in records]
    for mode in modes:
        tokenizer.encode_special_tokens = mode == "encode"
        ours, our_seconds = run_driver(driver, path, mode, records, folder)
        start = time.thread_time()
        theirs = [tokenizer.encode(t, add_special_tokens=mode == "prompt").ids for t in texts]
        their_seconds = time.thread_time() - start
        compare(f"{path.name} {mode}", texts, [ids_of(o) for o in ours], theirs)
        ids = [struct.pack(f"<{len(t)}i", *t) for t in theirs]
        decoded, _ = run_driver(driver, path, "decode", ids, folder)
        want = [tokenizer.decode(t, skip_special_tokens=True) for t in theirs]
        compare(f"{path.name} decode of {mode}", texts, [d.decode("utf-8", "replace") for d in decoded], want)
    return our_seconds, their_seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("driver", type=Path)
    parser.add_argument("--megabytes", type=float, default=1)
    parser.add_argument("--vocab-size", type=int, default=3000)
    parser.add_argument("--families", default=",".join(FAMILIES))
    options = parser.parse_args()
    num_bytes = int(options.megabytes * 1e6)
    training = list(corpus.local_texts(max(num_bytes // 4, 300_000), seed=1))
    training += list(corpus.generated_texts(200, seed=2))
    real = list(corpus.local_texts(num_bytes, seed=3))
    generated = list(corpus.generated_texts(int(300 * max(1, options.megabytes / 5)), seed=4))
    broken = list(corpus.broken_bytes(seed=5))
    for name in options.families.split(","):
        tokenizer = FAMILIES[name](training, options.vocab_size)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            path = folder / f"{name}.json"
            tokenizer.save(str(path))
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
            special = [str(t.content) for t in tokenizer.get_added_tokens_decoder().values()][:12]
            hostile = list(corpus.hostile_texts(special))
            odd = hostile + generated + broken + corpus.KNOWN[::50]
            check_encode(options.driver.resolve(), tokenizer, path, odd, folder, ["encode", "prompt"])
            ours, theirs = check_encode(options.driver.resolve(), tokenizer, path, real, folder, ["encode"])
        size = sum(len(t.encode()) for t in real)
        print(f"{name}: vocabulary {tokenizer.get_vocab_size()}; {size / 1e6:.1f} MB of real text, {len(hostile)} hostile, "
              f"{len(generated)} generated, {len(broken)} broken: equal; "
              f"{size / ours / 1e6:.1f} MB/s, tokenizers {size / theirs / 1e6:.1f} MB/s of CPU time", flush=True)


if __name__ == "__main__":
    main()
