#!/usr/bin/env python3
"""Amoeba against its twin: the same model, data and optimizer in plain PyTorch, fp32, on the CPU.

They run in turns, A B A B, with the same number of threads, so that a machine that slows down slows
all. Tokens/s are of whole optimizer steps, one value for every LOG_INTERVAL steps; those of the first
steps of a round are left out. Nothing else should run on the machine meanwhile.

    bench/twin.py --data TEXT                      tokens/s of amoeba and twin
    bench/twin.py --data TEXT --runs amoeba amoeba_bf16 twin twin_onednn
    bench/twin.py --data TEXT --train --steps 500  trains the twin, prints validation bits per byte

The settings are those of the preset (--config) over the defaults of amoeba; see `amoeba config show`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from twin_model import LOG_INTERVAL, Text, bits_per_byte, load_settings, train_twin

ROOT = Path(__file__).resolve().parent.parent


# What can run. oneDNN computes in fp32 under its setting "bf16" where the CPU has no AMX.
AMOEBA_DTYPES = {"amoeba": "float32", "amoeba_bf16": "bfloat16"}
TWIN_PRECISIONS = {"twin": "none", "twin_onednn": "bf16"}


def run_amoeba(arguments, steps, dtype):
    """(the start record, tokens/s of every LOG_INTERVAL steps after the skipped ones) of one run."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "data.path": arguments.data, "run.folder": folder, "training.steps": steps,
            "training.num_threads": arguments.threads, "training.device": "cpu",
            "training.dtype": dtype, "metrics.log_interval": LOG_INTERVAL,
            "metrics.report": "false", "checkpoint.enable": "false", "sample.prompt": "",
            "validation.interval": 0, "validation.max_windows": 1,
        }
        command = [str(arguments.amoeba), "train", "--config", str(arguments.config)]
        command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"twin.py: {command[0]} failed: {done.stderr.strip()}")
        lines = Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    start = next(r for r in records if r["kind"] == "start")
    logged = [r for r in records if r["kind"] == "step" and r["step"] > arguments.skip]
    return start, [r["tokens_per_second"] for r in logged]


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def compare(arguments, c, text):
    steps, skipped = arguments.steps or 60, -(-arguments.skip // LOG_INTERVAL)
    speeds = {name: [] for name in arguments.runs}
    start = {}
    for round_number in range(arguments.rounds):
        for name in arguments.runs:
            if name in AMOEBA_DTYPES:
                start, values = run_amoeba(arguments, steps, AMOEBA_DTYPES[name])
            else:
                torch.backends.mkldnn.matmul.fp32_precision = TWIN_PRECISIONS[name]
                values = train_twin(c, text, steps)[1][skipped:]
            speeds[name] += values
        print(f"round {round_number + 1} of {arguments.rounds} done", file=sys.stderr)
    table = {name: {"median": statistics.median(v), "min": min(v), "max": max(v), "values": v}
             for name, v in speeds.items()}
    facts = {"cpu": cpu_name(), "threads": arguments.threads, "torch": torch.__version__,
             "amoeba": start.get("version"), "backend": start.get("backend"), "rounds": arguments.rounds,
             "steps": steps, "skipped_steps": arguments.skip}
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    last = arguments.runs[-1]
    print(f"{'tokens/s':14}{'median':>10}{'min':>10}{'max':>10}{'to ' + last:>16}")
    for name, row in table.items():
        row["ratio"] = row["median"] / table[last]["median"]
        print(f"{name:14}{row['median']:10.0f}{row['min']:10.0f}{row['max']:10.0f}{row['ratio']:16.2f}")
    if arguments.json:
        result = facts | {"tokens_per_second": table, "ratios_to": last}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="text file")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/demo.toml")
    parser.add_argument("--amoeba", type=Path, default=ROOT / "build/amoeba", help="the binary")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, help="of a round (60), or of --train (the preset's)")
    parser.add_argument("--runs", nargs="+", choices=[*AMOEBA_DTYPES, *TWIN_PRECISIONS],
                        default=["amoeba", "twin"], help="what runs in turns (amoeba twin)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip", type=int, default=10, help="first steps of a round left out")
    parser.add_argument("--json", type=Path, help="write the comparison here too")
    parser.add_argument("--train", action="store_true", help="train the twin alone and evaluate it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    c = load_settings(arguments.config)
    text = Text(arguments.data, c)
    if not arguments.train:
        compare(arguments, c, text)
        return
    steps, started = arguments.steps or c.steps, time.perf_counter()
    model, _ = train_twin(c, text, steps, lambda step, loss, speed: step % 50 == 0 and print(
        f"step {step}/{steps}  loss {loss:.4f}  tokens/s {speed:.0f}", flush=True))
    print(f"trained {steps} steps in {time.perf_counter() - started:.0f} s")
    print(f"validation: {bits_per_byte(model, text):.4f} bits per byte")


if __name__ == "__main__":
    main()
