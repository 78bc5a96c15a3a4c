"""Files of tokens between numpy, an independent writer of Megatron's and llm.c's formats, and formats/.

Usage: dataset_test.py DRIVER. Exits 77 without numpy.
"""

import json
import random
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import numpy as np
except ImportError:
    print("skipped: the Python package `numpy` is not installed")
    sys.exit(77)

DRIVER = Path(sys.argv[1]).resolve()
CODES = {1: np.uint8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}


def run(mode, path, output, tokenizer="bytes"):
    done = subprocess.run([DRIVER, tokenizer, mode, path, output], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_ours(path, folder):
    """Tokens, first tokens of the documents, bytes of text."""
    num_bytes = int(run("data", path, folder / "out"))
    data = (folder / "out").read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    tokens = np.frombuffer(data, "<i4", size // 4, 8)
    return tokens.tolist(), np.frombuffer(data, "<i8", offset=16 + size).tolist(), num_bytes


def write_megatron(prefix, sequences, bounds, code):
    data = [np.array(s, CODES[code]).tobytes() for s in sequences]
    Path(f"{prefix}.bin").write_bytes(b"".join(data))
    with open(f"{prefix}.idx", "wb") as file:
        file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(sequences), len(bounds)))
        np.array([len(s) for s in sequences], np.int32).tofile(file)
        np.cumsum([0] + [len(d) for d in data[:-1]], dtype=np.int64).tofile(file)
        np.array(bounds, np.int64).tofile(file)


def read_megatron(prefix):
    data = Path(f"{prefix}.idx").read_bytes()
    assert data[:9] == b"MMIDIDX\0\0"
    version, code, num, num_bounds = struct.unpack_from("<QBQQ", data, 9)
    assert version == 1
    lengths = np.frombuffer(data, np.int32, num, 34)
    pointers = np.frombuffer(data, np.int64, num, 34 + lengths.nbytes)
    bounds = np.frombuffer(data, np.int64, num_bounds, 34 + lengths.nbytes + pointers.nbytes)
    assert bounds.tolist() == list(range(num + 1))
    size = np.dtype(CODES[code]).itemsize
    tokens = np.fromfile(f"{prefix}.bin", CODES[code])
    assert len(tokens) == lengths.sum()
    return [tokens[p // size:p // size + n].tolist() for p, n in zip(pointers, lengths)], CODES[code]


def starts_after_ends(tokens, listed=()):
    ends = {i + 1 for i, t in enumerate(tokens) if t == 256}
    return sorted(i for i in {0, *listed} | ends if i < len(tokens))


def check_arrays(folder, rng):
    for kind in ("u1", "<u2", "<i2", "<u4", "<i4", "<i8"):
        for n in (1, 2, 1000):
            top = 256 if kind == "u1" else 257
            array = np.array([rng.randrange(top) for _ in range(n)], kind)
            np.save(folder / "a.npy", array)
            tokens, documents, num_bytes = read_ours(folder / "a.npy", folder)
            assert tokens == array.tolist(), kind
            assert documents == starts_after_ends(tokens), kind
            assert num_bytes == sum(t != 256 for t in tokens), kind
    for name, kind in (("a.u16", np.uint16), ("a.bin", np.uint16), ("a.u32", np.uint32)):
        array = np.array([rng.randrange(257) for _ in range(333)], kind)
        array.tofile(folder / name)
        assert read_ours(folder / name, folder)[0] == array.tolist(), name


def check_llmc(folder, rng):
    for magic, version, kind in ((20240520, 1, np.uint16), (20240801, 7, np.uint32)):
        array = np.array([256] + [rng.randrange(256) for _ in range(500)], kind)
        header = np.zeros(256, np.int32)
        header[:3] = magic, version, len(array)
        (folder / "shard.bin").write_bytes(header.tobytes() + array.tobytes())
        tokens, documents, _ = read_ours(folder / "shard.bin", folder)
        assert tokens == array.tolist() and documents == [0, 1]


def check_megatron(folder, rng):
    for code in CODES:
        sequences = [[rng.randrange(128) for _ in range(rng.randrange(6))] for _ in range(40)] + [[1, 2]]
        bounds = sorted({0, len(sequences), *rng.sample(range(len(sequences)), 12)})
        write_megatron(folder / "m", sequences, bounds, code)
        flat = [t for s in sequences for t in s]
        listed = [sum(len(s) for s in sequences[:b]) for b in bounds]
        for name in ("m", "m.bin", "m.idx"):
            tokens, documents, num_bytes = read_ours(folder / name, folder)
            assert tokens == flat and num_bytes == len(flat), (code, name)
            assert documents == starts_after_ends(tokens, listed), (code, name)


def check_prepare(folder, rng):
    texts = ["".join(rng.choices("abc é\n☃", k=rng.randrange(1, 400))).strip() or "x" for _ in range(200)]
    texts = [re.sub("\n+", "\n", t) for t in texts]  # no separator inside
    (folder / "t.txt").write_text("\n\n".join(texts), newline="")
    (folder / "t.jsonl").write_text("\n".join(json.dumps({"id": i, "text": t}) for i, t in enumerate(texts)))
    for name in ("t.txt", "t.jsonl"):
        out = folder / f"prepared-{name}"
        run("prepare", folder / name, out)
        documents, kind = read_megatron(out / "tokens")
        assert kind is np.uint16
        assert documents == [list(t.encode()) + [256] for t in texts], name
        tokens, starts, num_bytes = read_ours(out, folder)
        assert tokens == [t for d in documents for t in d] and starts == starts_after_ends(tokens)
        assert num_bytes == sum(len(t.encode()) for t in texts)
        assert read_ours(folder / name, folder) == (tokens, starts, num_bytes), name


def check_prepare_bpe(folder, rng):
    """Tokens and bytes of text with a tokenizer that puts a space before each text, and one that does not."""
    try:
        import tokenizers
        from families import FAMILIES
    except ImportError:
        return "without tokenizers"
    words = ["the", "amoeba", "eats", "été", "☃", "日本", "a-b", "42"]
    texts = [" ".join(rng.choices(words, k=rng.randrange(1, 60))) for _ in range(150)]
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    for family in ("mixtral", "mixtral_newer", "qwen3"):
        tokenizer = FAMILIES[family](texts, 400)
        path, out = folder / f"{family}.json", folder / f"prepared-{family}"
        tokenizer.save(str(path))
        tokenizer.encode_special_tokens = True
        end = tokenizer.token_to_id("</s>" if "mixtral" in family else "<|endoftext|>")
        want = [tokenizer.encode(t).ids + [end] for t in texts]  # with <s> where the template has it
        run("prepare", folder / "b.jsonl", out, path)
        assert read_megatron(out / "tokens")[0] == want, family
        for source in (out, folder / "b.jsonl"):
            assert int(run("data", source, folder / "out", path)) == sum(len(t.encode()) for t in texts), family
    return "with tokenizers"


def main():
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        check_arrays(folder, rng)
        check_llmc(folder, rng)
        check_megatron(folder, rng)
        check_prepare(folder, rng)
        print("npy, bare, llm.c, Megatron, prepared text and JSONL: equal;", check_prepare_bpe(folder, rng))


if __name__ == "__main__":
    main()
