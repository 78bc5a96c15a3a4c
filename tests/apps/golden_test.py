"""Three small runs of 500 steps, held to what they gave before: golden_test.py BINARY COMPILER.

golden.json keeps, for each run, the mean loss of its last 50 steps, and for each platform (CPU, torch, compiler)
a hash of every step's loss and gradient norm and of all final tensors. On a platform that it knows the bits must
be the same; on another one the mean loss must be within 2 %, and the test says so. After a change that is meant
to change numbers, golden_test.py BINARY COMPILER --record writes this platform's hashes anew: say why in the commit.
"""

import hashlib
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile

FILE = pathlib.Path(__file__).with_name("golden.json")
STEPS, LAST = 500, 50
COMMON = ["--training.steps", STEPS, "--training.seq_len", 64, "--training.local_batch_size", 4, "--model.dim", 32,
          "--model.num_layers", 2, "--moe.num_experts", 6, "--moe.hidden_dim", 40, "--training.num_threads", 1,
          "--metrics.log_interval", 1, "--metrics.report", "false", "--validation.interval", 0, "--checkpoint.interval", 0]
RUNS = {
    "grouped queries, fused, fp32": ["--moe.compute_backend", "fused", "--model.qk_norm", "true"],
    "latent attention, for_loop, fp32, accumulation": [
        "--moe.compute_backend", "for_loop", "--model.attention", "mla", "--model.kv_lora_rank", 16,
        "--model.qk_nope_head_dim", 8, "--model.qk_rope_head_dim", 8, "--model.v_head_dim", 8,
        "--moe.score_function", "sigmoid", "--training.global_batch_size", 8],
    "grouped queries, batched_mm_padded, bf16": ["--moe.compute_backend", "batched_mm_padded", "--training.dtype", "bfloat16"],
}


def text():
    """Sentences of a small grammar, the same everywhere."""
    draw = random.Random(7)
    words = ["".join(draw.choice("abcdefghilmnoprstu") for _ in range(draw.randint(2, 7))) for _ in range(120)]
    return "".join(" ".join(draw.choices(words, weights=range(120, 0, -1), k=draw.randint(4, 9))) + ".\n" for _ in range(6000))


def platform(binary, compiler):
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    field = lambda name: (re.search(rf"^{name}\s*:\s*(.*)$", cpu, re.M) or [None, "?"])[1]
    flags = set(field("flags").split())
    best = next((name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags), "none")
    return f"{field('vendor_id')} {field('cpu family')}/{field('model')}, cache {field('cache size')}, {best}, torch {torch_version(binary)}, {compiler}"


def torch_version(binary):
    doctor = subprocess.run([binary, "doctor"], capture_output=True, text=True, check=True).stdout
    return re.search(r"torch\D*([\d.]+)", doctor)[1]


def run(binary, folder, name, settings):
    out = folder / re.sub(r"\W+", "-", name)
    subprocess.run([binary, "train", "--data.path", "text.txt", "--run.folder", out, *map(str, COMMON + settings)],
                   cwd=folder, check=True, capture_output=True)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1)), "a step is missing"
    digest = hashlib.sha256()
    for record in steps:
        digest.update(f"{record['loss']!r} {record['grad_norm']!r}\n".encode())
    for path in sorted((out / "checkpoints" / f"step-{STEPS:08d}").glob("*.safetensors")):
        digest.update(path.read_bytes())
    return sum(record["loss"] for record in steps[-LAST:]) / LAST, digest.hexdigest()[:32]


def main():
    binary, compiler = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
    recording = sys.argv[3:] == ["--record"]
    golden = json.loads(FILE.read_text()) if FILE.exists() else {"loss": {}, "platforms": {}}
    here = platform(binary, compiler)
    known = golden["platforms"].get(here)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="amoeba_golden_") as name:
        folder = pathlib.Path(name)
        (folder / "text.txt").write_text(text())
        for title, settings in RUNS.items():
            loss, digest = run(binary, folder, title, settings)
            if recording:
                golden["loss"][title] = round(loss, 6)
                golden["platforms"].setdefault(here, {})[title] = digest
                print(f"{title}: loss {loss:.6f}, {digest}")
                continue
            want = golden["loss"][title]
            verdict = "ok"
            if abs(loss - want) > 0.02 * want:
                verdict = f"FAILED: want a loss within 2 % of {want}"
            elif known is not None and known[title] != digest:
                verdict = f"FAILED: other bits than before, {digest}, want {known[title]}"
            failures += verdict != "ok"
            print(f"{title}: loss {loss:.6f}: {verdict}")
    if recording:
        FILE.write_text(json.dumps(golden, indent=2) + "\n")
    elif known is None:
        print(f"{here} is not in golden.json: losses are compared, bits are not")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
