"""Text for the agreement tests: what a Debian machine has, generated scripts, and hostile strings."""

import os
import random
import sys
import sysconfig
import unicodedata
from pathlib import Path

TEXT_SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt", ".html", ".json", ".h", ".c", ".cpp", ".js", ".po", ".pl", ".pm",
                 ".tcl", ".xml", ".css", ".cmake", ".el", ".vim", ".gz", ".mo", ""}


def local_texts(num_bytes, seed):
    """Documents of at most 64 KiB from the system's documents and Python's packages, mixed."""
    roots = ["/usr/share/doc", "/usr/share/man", "/usr/share/perl", "/usr/share/locale", "/usr/share/cmake",
             "/usr/share/vim", sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/include"]
    by_root = [sorted(all_files(root)) for root in roots]
    rng = random.Random(seed)
    for names in by_root:
        rng.shuffle(names)
    total = 0
    while total < num_bytes and any(by_root):
        for names in by_root:
            text = read_text(names.pop()) if names else ""
            for at in range(0, min(len(text), 1 << 18), 1 << 16):
                piece = text[at:at + (1 << 16)]
                total += len(piece.encode())
                yield piece
            if total >= num_bytes:
                return


def all_files(root):
    for folder, _, names in os.walk(root):
        for name in names:
            if Path(name).suffix in TEXT_SUFFIXES:
                yield os.path.join(folder, name)


def read_text(path):
    try:
        with open(path, "rb") as file:
            data = file.read(1 << 20)
        if path.endswith(".gz"):
            import zlib
            data = zlib.decompressobj(31).decompress(data, 1 << 20)
    except (OSError, zlib_error()):
        return ""
    text = data.decode("utf-8", "replace")
    # Compiled translations are texts between NUL bytes; other binaries are left out.
    return text if path.endswith(".mo") or text.count("\ufffd") + text.count("\0") < len(text) / 100 else ""


def zlib_error():
    import zlib
    return zlib.error


# Before this version of Unicode every character has its class in every library concerned.
KNOWN = [chr(c) for c in range(sys.maxunicode + 1)
         if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) not in ("Cn", "Co")]


def generated_texts(count, seed):
    """Random words of every script, marks, numbers and separators of each kind."""
    rng = random.Random(seed)
    kinds = {}
    for c in KNOWN:
        kinds.setdefault(unicodedata.category(c), []).append(c)
    marks = kinds["Mn"] + kinds["Mc"]
    for _ in range(count):
        out = []
        for _ in range(rng.randrange(1, 60)):
            kind = rng.choice(list(kinds))
            base = rng.randrange(len(kinds[kind]))
            for _ in range(rng.randrange(1, 8)):
                near = min(max(base + rng.randrange(-20, 20), 0), len(kinds[kind]) - 1)
                out.append(kinds[kind][near])
                if rng.random() < 0.1:
                    out += rng.choices(marks, k=rng.randrange(1, 4))
            out.append(rng.choice(["", " ", "  ", "\n", "\r\n", "\t", " \n \n", "'", "'S", "'ll", "\u3000"]))
        yield "".join(out)


def hostile_texts(special):
    """Named in the order of what they attack; `special` are texts of the tokenizer's own added tokens."""
    spaces = [c for c in KNOWN if c.isspace()] + ["\u180e", "\u200b", "\ufeff", "\x00", "\x1c"]
    yield ""
    yield from spaces
    for a in spaces:
        yield f"x{a}{a}{a}y {a} z{a}"
        yield a * 17 + "\n" + a
        yield from (a + b + "w" for b in spaces)
    yield "a" * 20000
    yield "ab" * 9999 + " " + "é" * 3000
    yield "😀" * 2000 + "👩‍👩‍👧‍👦" * 300 + "🏳️‍🌈🇩🇪🇫🇷👍🏽"
    yield " " * 3000 + "x" + "\n" * 3000 + "\r\n" * 500 + "\t" * 500
    yield "e" + "\u0301" * 2000 + "\u0323" * 200 + "a\u0323\u0302\u0302\u0323"
    yield "\u1100\u1161\u11a8\u1100\u1161" * 50 + "가\u11a8각\u11a8" + "\u0344\u0958\u2126\u212b\u1e9b\u0323\ufb1d"
    yield "I'LL we'Re it'\u017f don't 'S's'" * 20 + "\u212aelvin \u0130stanbul \u1e9e \u03a3\u03c2"
    yield "0123456789" * 100 + "٠١٢٣ ½ Ⅷ ① 千九百"
    yield "▁▁a ▁ b▁ ▁<0x41><0x0A> <0xZZ> ▁" + "▁" * 99
    yield "<unk> < s> <s >\u2581</s>" * 3
    yield from ("\ud7ff", "\ue000", "\U0010ffff", "\ufffe\uffff", "\ufffd" * 9)
    for t in special:
        yield from (t, t * 3, f" {t} ", f"x{t}y", f"\n\t {t} \n", t[:-1], t[1:], t[:-1] + " " + t[-1:], t.upper(), t + t[:3])
        yield from (f"{t}\u3000{u}{t[:2]}  {u}" for u in special)


def broken_bytes(seed):
    """Bytes that are no UTF-8: lone surrogates, overlong forms, cut and stray bytes, mutations."""
    yield from (b"\xff", b"\xed\xa0\x80", b"\xed\xb0\x80x", b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80",
                b"\xe4\xb8", b"ab\xe4\xb8\x20c", b"\xf0\x9f\x98", b"\xf0\x9f\x98x\xf0\x9f\xff", b"\x80\x80\x80", b"\xc3", b"\xf8\x88\x80\x80\x80")
    rng = random.Random(seed)
    for text in generated_texts(200, seed):
        data = bytearray(text.encode())
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if all(unicodedata.category(c) != "Cn" for c in data.decode("utf-8", "replace")):
            yield bytes(data)
