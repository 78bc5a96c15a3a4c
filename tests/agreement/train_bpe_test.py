"""Trains the same byte-level BPE here and with the `tokenizers` package: equal vocabularies and merges.

Usage: train_bpe_test.py DRIVER [--megabytes N] [--vocab-size V]. Exits 77 without the package.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
except ImportError:
    print("skipped: the Python package `tokenizers` is not installed")
    sys.exit(77)

import corpus
from families import QWEN, byte_level, split


def merges_of(model):
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("driver", type=Path)
    parser.add_argument("--megabytes", type=float, default=1)
    parser.add_argument("--vocab-size", type=int, default=4000)
    options = parser.parse_args()
    texts = list(corpus.local_texts(int(options.megabytes * 1e6), seed=7)) + list(corpus.generated_texts(200, seed=8))
    texts += ["aaaa aaa aaaaaaaa " * 20, "abababab babababa " * 20]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "t.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
        start = time.time()
        subprocess.run([options.driver.resolve(), str(options.vocab_size), "train", folder / "t.jsonl", folder / "ours.json"],
                       check=True)
        ours_seconds = time.time() - start
        ours = Tokenizer.from_file(str(folder / "ours.json"))
        model = json.loads((folder / "ours.json").read_text())["model"]

    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split(QWEN), byte_level()])
    start = time.time()
    theirs.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=options.vocab_size, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    their_seconds = time.time() - start
    want = json.loads(theirs.to_str())["model"]
    for rank, (a, b) in enumerate(zip(merges_of(model), merges_of(want))):
        assert a == b, f"merge {rank} is {a}, want {b}"
    assert len(model["merges"]) == len(want["merges"])
    assert model["vocab"] == want["vocab"]
    for text in texts:
        assert ours.encode(text).ids == theirs.encode(text).ids
        assert ours.decode(ours.encode(text).ids) == text
    print(f"{len(model['merges'])} merges of {sum(len(t.encode()) for t in texts) / 1e6:.1f} MB equal; "
          f"{ours_seconds:.1f} s, tokenizers {their_seconds:.1f} s of wall time")


if __name__ == "__main__":
    main()
