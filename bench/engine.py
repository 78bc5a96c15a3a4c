"""Trains one model with several expert backends and compares them: speed, memory, loss, time of the
routed experts.

Usage: engine.py PROGRAM TEXT [--preset moe_2b] [--batch 8] [--seq-len 2048] [--runs fused:200,...]
                 [--folder DIR] [--out NAME] [-- OPTION ...]

PROGRAM is `amoeba` (or run.sh of a bundle). A run is BACKEND:STEPS or BACKEND:STEPS:SEED; further
options go to `amoeba train` as they are. Speed is the median over the steps after the tenth, without
the traced one; the routed experts' time comes from a trace of the last step but one (step_times.py).
Prints a markdown table; --out writes NAME.md and NAME.json.
"""

import argparse
import glob
import json
import shutil
import statistics
import subprocess
import sys

import step_times
from results import publish

WARM_UP = 10  # steps
TAIL = 50  # last steps whose mean loss is compared


def arguments(options, backend, steps, seed, folder):
    settings = {
        "data.path": options.text,
        "data.validation_fraction": 0,
        "run.folder": folder,
        "training.seq_len": options.seq_len,
        "training.local_batch_size": options.batch,
        "training.activation_checkpoint": "none",
        "training.steps": steps,
        "training.seed": seed,
        "training.device": "cuda",
        "checkpoint.enable": "false",
        "metrics.report": "false",
        "metrics.log_interval": 1,
        "lr_scheduler.warmup_steps": 50,
        "moe.compute_backend": backend,
        "profiling.start_step": steps - 1,
        "profiling.num_steps": 1,
    }
    words = [options.program, "train", "--config", options.preset]
    for key, value in settings.items():
        words += [f"--{key}", str(value)]
    return words + options.more


def run(options, spec):
    backend, steps, seed = (spec.split(":") + ["1"])[:3]
    folder = f"{options.folder}/{spec.replace(':', '-')}"
    shutil.rmtree(folder, ignore_errors=True)
    done = subprocess.run(
        arguments(options, backend, int(steps), seed, folder), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"run": spec, "failed": reason[:200]}
    with open(f"{folder}/metrics.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    records = [record for record in records if record["kind"] == "step"]
    quiet = [record for record in records if WARM_UP < record["step"] < int(steps) - 1]
    [trace] = glob.glob(f"{folder}/traces/*.json")
    parts, _, busy, span, launches = step_times.summarize(trace)

    def median(key):
        return statistics.median(record[key] for record in quiet)

    return {
        "run": spec,
        "tokens_per_second": median("tokens_per_second"),
        "step_ms": 1000 * median("step_seconds"),
        "mfu": median("mfu"),
        "peak_bytes": max(record["memory_peak_bytes"] for record in records),
        "host_syncs": median("host_syncs"),
        "first_loss": records[0]["loss"],
        "last_losses": statistics.mean(record["loss"] for record in records[-TAIL:]),
        "losses": [record["loss"] for record in records],
        "parts_ms": {name: time for name, (_, time) in parts.items()},
        "busy_ms": busy,
        "span_ms": span,
        "launches": launches,
    }


def table(results):
    lines = [
        f"| backend:steps:seed | tokens/s | step ms | MFU | peak GiB | routed experts ms | launches | host waits | loss of step 1 | mean loss of the last {TAIL} |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if "failed" in result:
            lines.append(f"| {result['run']} | {result['failed']} |")
            continue
        row = [result["run"], f"{result['tokens_per_second']:,.0f}", f"{result['step_ms']:.1f}", f"{result['mfu']:.1f} %"]
        row += [f"{result['peak_bytes'] / 2**30:.1f}", f"{result['parts_ms']['routed experts']:.1f}"]
        row += [str(result["launches"]), f"{1 + result['host_syncs']:.0f}"]
        row += [f"{result['first_loss']:.5f}", f"{result['last_losses']:.4f}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("text")
    parser.add_argument("--preset", default="moe_2b")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--runs", default="fused:200,grouped_mm:200,grouped_mm:200:2,batched_mm_padded:20,batched_mm_capacity:20,for_loop:20")
    parser.add_argument("--folder", default="/tmp/engine")
    parser.add_argument("--out")
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:at])
    options.more = sys.argv[at + 1 :]
    results = []
    for spec in options.runs.split(","):
        results.append(run(options, spec))
        print(table(results[-1:]).splitlines()[-1], flush=True)
    text = f"{options.preset}, {options.batch} sequences of {options.seq_len}\n\n" + table(results)
    publish(text, results, options.out)


if __name__ == "__main__":
    main()
