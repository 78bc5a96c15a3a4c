"""The expert layer against torch's and transformers' ways, in one process, interleaved.

Usage: experts.py [--device cpu] [--shapes A,B] [--peers A,B] [--budget S] [--out NAME]
                  [--rows 1,4,...] [--dtypes fp32,bf16] [--threads N] [--clock wall|cpu] [--cell-seconds S] [--slow-seconds S]
       experts.py --device cuda [--shapes A,B] [--peers A,B] [--budget S] [--out NAME]
                  [--routing uniform,zipf] [--rounds N]
       experts.py --merge A.json,B.json --out NAME

Needs the amoeba package (PYTHONPATH=build/python, or installed). Prints markdown; --out also writes NAME.md
and NAME.json. Each run is a forward and a backward with fresh gradients of x, scores and weights; both
are medians, minima in JSON. Useful work is 6 R D H forward and 12 R D H backward. A run's first pass
only warms up, unless it took longer than --cell-seconds: then it is the only one. Paths slower than
--slow-seconds are left out at further row counts of the shape, everything after --budget seconds.
The default device is cuda where torch sees a GPU; what is measured there is said in experts_card.py.
On a machine that does other work, `--threads 1 --clock cpu` measures the CPU time of one thread.
Runs of some shapes or dtypes at a time, each with ceilings of its own, become one report by --merge.

Legend: T tokens, D model width, H expert width, E experts, K choices, R = T*K rows, m = R/E rows an expert.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import time

import amoeba
import torch
import torch.nn.functional as F
from results import publish

# -- What is measured ----------------------------------------------------------------------------------

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS = (1, 4, 16, 64, 256, 512)


def shapes(device):
    """Name -> (D, H, E, K)."""
    return {
        "1024x512": (1024, 512, 32, 4),
        "2048x768": (2048, 768, 32, 4),
        "2048x1408": (2048, 1408, 16, 4),
        "OLMoE": (2048, 1024, 64, 8),
        "gpt-oss": (2880, 2880, 32, 4),
    }


class Weights:
    """The parameters of one shape and dtype, shared by every row count."""

    def __init__(self, shape, dtype, device):
        D, H, E, K = self.shape = shape
        self.dtype, self.device = dtype, device
        g = torch.Generator(device=device).manual_seed(1)

        def uniform(*size, scale):
            return torch.empty(size, device=device).uniform_(-scale, scale, generator=g).to(dtype).requires_grad_()

        self.gate = uniform(E, H, D, scale=D**-0.5)
        self.up = uniform(E, H, D, scale=D**-0.5)
        self.down = uniform(E, D, H, scale=H**-0.5)


class Problem:
    """x, ids, scores and dy for m rows an expert: every expert gets exactly m."""

    def __init__(self, weights, m):
        D, H, E, K = weights.shape
        device, g = weights.device, torch.Generator(device=weights.device).manual_seed(2)
        self.weights, self.m, self.num_rows = weights, m, m * E
        T = m * E // K
        # Shuffled blocks of E/K tokens, each block naming every expert once.
        blocks = [torch.randperm(E, generator=g, device=device) for _ in range(m)]
        self.ids = torch.cat(blocks).view(T, K)
        self.x = torch.randn(T, D, generator=g, device=device).to(weights.dtype).requires_grad_()
        self.scores = (torch.rand(T, K, generator=g, device=device) / K).requires_grad_()
        self.dy = torch.randn(T, D, generator=g, device=device).to(weights.dtype)

    def forward_flops(self):
        D, H, E, K = self.weights.shape
        return 6 * self.num_rows * D * H

    def leaves(self):
        return [self.x, self.scores, self.weights.gate, self.weights.up, self.weights.down]

    def exact(self, num_tokens=2):
        """y and dx of the first tokens in fp64."""
        x = self.x.detach()[:num_tokens].double().requires_grad_()
        w, y = self.weights, []
        for t in range(num_tokens):
            parts = []
            for e, score in zip(self.ids[t].tolist(), self.scores[t].tolist()):
                gate, up, down = (p[e].detach().double() for p in (w.gate, w.up, w.down))
                parts.append(score * (down @ (F.silu(gate @ x[t]) * (up @ x[t]))))
            y.append(sum(parts))
        y = torch.stack(y)
        y.backward(self.dy[:num_tokens].double())
        return y.detach(), x.grad


# -- The paths -----------------------------------------------------------------------------------------


class Sorted:
    """Rows in order of experts, as torch's paths need them; part of the measured work."""

    def __init__(self, problem):
        D, H, E, K = problem.weights.shape
        flat = problem.ids.flatten()
        self.order = torch.argsort(flat, stable=True)
        self.inverse = torch.argsort(self.order)
        self.token = self.order // K
        self.counts = torch.bincount(flat, minlength=E)


def composed(experts):
    """Gather, experts(rows, counts) -> rows, weighted sum over each token's choices."""

    def run(problem):
        w, x = problem.weights, problem.x
        layout = Sorted(problem)
        rows = experts(x.index_select(0, layout.token), layout.counts, w.gate, w.up, w.down)
        rows = rows.index_select(0, layout.inverse).view(*problem.ids.shape, -1)
        return torch.bmm(problem.scores.to(rows.dtype).unsqueeze(1), rows).squeeze(1)

    return run


def loop(rows, counts, gate, up, down):
    parts = zip(rows.split(counts.tolist()), gate.unbind(), up.unbind(), down.unbind())
    return torch.cat([(F.silu(r @ g.T) * (r @ u.T)) @ d.T for r, g, u, d in parts])


def padded_bmm(rows, counts, gate, up, down):
    num_experts, longest = len(counts), int(counts.max())
    starts = counts.cumsum(0) - counts
    expert = torch.repeat_interleave(torch.arange(num_experts, device=rows.device), counts, output_size=len(rows))
    place = expert * longest + torch.arange(len(rows), device=rows.device) - starts[expert]
    padded = rows.new_zeros(num_experts * longest, rows.shape[1]).index_copy(0, place, rows)
    padded = padded.view(num_experts, longest, -1)
    hidden = F.silu(torch.bmm(padded, gate.transpose(1, 2))) * torch.bmm(padded, up.transpose(1, 2))
    out = torch.bmm(hidden, down.transpose(1, 2))
    return out.view(num_experts * longest, -1).index_select(0, place)


def grouped_mm(rows, counts, gate, up, down):
    offsets = counts.cumsum(0).int()
    g = torch._grouped_mm(rows, gate.transpose(1, 2), offs=offsets)
    u = torch._grouped_mm(rows, up.transpose(1, 2), offs=offsets)
    return torch._grouped_mm(F.silu(g) * u, down.transpose(1, 2), offs=offsets)


def ours(problem):
    w = problem.weights
    return amoeba.experts(problem.x, problem.ids, problem.scores, (w.gate, w.up), w.down)


class Transformers:
    """The experts module of transformers' Qwen3-MoE, with one of its implementations."""

    def __init__(self, implementation):
        self.implementation = implementation

    def module(self, weights):
        from transformers import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

        D, H, E, K = weights.shape
        config = Qwen3MoeConfig(hidden_size=D, moe_intermediate_size=H, num_experts=E, num_experts_per_tok=K)
        config._experts_implementation = self.implementation
        with torch.device("meta"):
            module = Qwen3MoeExperts(config)
        module.gate_up_proj = torch.nn.Parameter(torch.cat([weights.gate.detach(), weights.up.detach()], 1))
        module.down_proj = torch.nn.Parameter(weights.down.detach())
        return module

    def __call__(self, problem):
        if not hasattr(problem.weights, "stored"):  # one copy for both implementations
            problem.weights.stored = self.module(problem.weights)
        module = problem.weights.stored
        module.config._experts_implementation = self.implementation
        return module(problem.x, problem.ids, problem.scores.to(problem.x.dtype))


@contextlib.contextmanager
def onednn_fp32():
    """fp32 products by oneDNN instead of MKL. Without AMX they stay fp32; with AMX they are bf16."""
    settings = torch.backends.mkldnn.matmul
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


class Peer:
    def __init__(self, run, context=contextlib.nullcontext, dtypes=tuple(DTYPES), family="torch"):
        self.run, self.context, self.dtypes, self.family = run, context, dtypes, family


def peers(device):
    """Name -> Peer, ours first. `family` torch: what the bars compare with."""
    found = {"ours": Peer(ours, family="ours")}
    torch_paths = {"loop": loop, "padded_bmm": padded_bmm, "grouped_mm": grouped_mm}
    for name, experts in torch_paths.items():
        found[name] = Peer(composed(experts))
    if device == "cpu":
        for name, experts in torch_paths.items():
            found[f"{name} oneDNN"] = Peer(composed(experts), onednn_fp32, ("fp32",))
    found["transformers eager"] = Peer(Transformers("eager"), family="transformers")
    found["transformers grouped_mm"] = Peer(Transformers("grouped_mm"), family="transformers")
    return found


# -- Measuring -----------------------------------------------------------------------------------------


class Cpu:
    """Clock and ceilings of the CPU."""

    name = "cpu"

    def __init__(self, clock):
        self.clock = clock

    def describe(self):
        return f"{cpu_model()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"

    def timed(self, run, problem):
        """Seconds of forward, and of forward and backward."""
        begin = self.clock()
        y = run(problem)
        middle = self.clock()
        y.backward(problem.dy)
        return middle - begin, self.clock() - begin

    def ceilings(self):
        """GF/s of each dtype and GB/s of reading: the best square product of torch, of either library; bf16
        may be widened, so fp32's peak is a bound that it can reach too. Reads are sums over 1 GiB."""
        size = 2048
        peaks = {}
        for dtype_name, dtype in DTYPES.items():
            a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
            for context in (contextlib.nullcontext, onednn_fp32):
                with context():
                    seconds = self.best_seconds(lambda: torch.mm(a, b))
                peaks[dtype_name] = max(peaks.get(dtype_name, 0), 2e-9 * size**3 / seconds)
        peaks["bf16"] = max(peaks.values())
        data = torch.ones(2**28)
        return peaks, 1e-9 * data.nbytes / self.best_seconds(data.sum)

    def best_seconds(self, run, total=0.7):
        best, begin = float("inf"), self.clock()
        while self.clock() - begin < total:
            start = self.clock()
            run()
            best = min(best, self.clock() - start)
        return best


def cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor()


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def clear_gradients(problem):
    for leaf in problem.leaves():
        leaf.grad = None
    for parameter in getattr(problem.weights, "stored", torch.nn.Module()).parameters():
        parameter.grad = None


def once(device, peer, problem):
    clear_gradients(problem)
    with peer.context():
        return device.timed(peer.run, problem)


def saved_bytes_and_error(peer, problem, exact):
    """What autograd keeps of a forward beyond inputs and parameters, and the largest error of y and dx
    as a share of the largest exact value."""
    clear_gradients(problem)
    known = {tensor.untyped_storage().data_ptr() for tensor in problem.leaves() + [problem.ids]}
    stored = getattr(problem.weights, "stored", None)
    known |= {p.untyped_storage().data_ptr() for p in stored.parameters()} if stored is not None else set()
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with peer.context(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = peer.run(problem)
        y.backward(problem.dy)
    errors = []
    for got, want in zip((y.detach(), problem.x.grad), exact):
        errors.append(((got[: len(want)].double() - want).abs().max() / want.abs().max()).item())
    return sum(kept.values()), max(errors)


def measure(device, problem, chosen, dtype_name, options, slow):
    """Name -> one cell of the result, for every peer not in `slow`."""
    exact = problem.exact()
    cells, times = {}, {}
    active = [n for n, peer in chosen.items() if dtype_name in peer.dtypes and n not in slow]
    for name in active:
        if not hasattr(problem.weights, "stored") and chosen[name].family == "transformers":
            chosen[name].run(problem)  # stores its parameters
        seconds = once(device, chosen[name], problem)
        times[name] = [seconds] if seconds[1] > options.cell_seconds else []
        cells[name] = {"first_ms": 1e3 * seconds[1]}
        if seconds[1] > options.slow_seconds and chosen[name].family != "ours":
            slow.add(name)
        else:
            saved, error = saved_bytes_and_error(chosen[name], problem, exact)
            cells[name] |= {"saved_bytes": saved, "error": error}
    waiting = {name for name in active if not times[name]}
    while waiting:
        for name in [n for n in active if n in waiting]:
            times[name].append(once(device, chosen[name], problem))
            if sum(t[1] for t in times[name]) > options.cell_seconds:
                waiting.remove(name)
    for name in active:
        for index, kind in enumerate(("forward", "both")):
            seconds = [t[index] for t in times[name]]
            cells[name][f"{kind}_ms"] = 1e3 * statistics.median(seconds)
            cells[name][f"{kind}_min_ms"] = 1e3 * min(seconds)
        cells[name]["num_runs"] = len(times[name])
    clear_gradients(problem)
    return cells


# -- Reporting -----------------------------------------------------------------------------------------


def bars(m, dtype_name):
    """Name -> bar of the CPU: shares of the bound and of the peak, ratios to the best torch path."""
    found = {"forward / min(peak, reading weights)": 0.80}
    if m >= 256:
        found["forward / peak"] = 0.85 if dtype_name == "fp32" else 0.75
    elif m >= 64:
        found["forward / peak"] = 0.80 if dtype_name == "fp32" else 0.70
    if m <= 16:
        found["speed-up forward+backward"] = 2.0
    elif m <= 64:
        found["speed-up forward+backward"] = 1.5
    else:
        found["speed-up forward+backward"] = 1.1 if dtype_name == "fp32" else 1.35
    found["speed-up forward"] = 1.0
    return found


def figures(group, ceilings, families):
    """What the bars ask of one group of cells: {shape, rows, dtype, flops, weight_bytes, cells}."""
    peaks, bandwidth = ceilings
    cells, peak = group["cells"], peaks[group["dtype"]]
    mine = cells.get("ours")
    rivals = [c for n, c in cells.items() if families[n] == "torch"]
    if mine is None:
        return {}
    speed = 1e-6 * group["flops"] / mine["forward_ms"]
    bound = min(peak, group["flops"] / (group["weight_bytes"] / bandwidth))
    found = {"forward / min(peak, reading weights)": speed / bound, "forward / peak": speed / peak}
    if rivals:
        found["speed-up forward"] = min(c["forward_ms"] for c in rivals) / mine["forward_ms"]
        found["speed-up forward+backward"] = min(c["both_ms"] for c in rivals) / mine["both_ms"]
    return found


def report(results, families):
    """Markdown of some runs."""
    lines, verdicts, left_out = [], [], []
    for result in results:
        peaks, bandwidth = result["ceilings"]
        left_out += result["left_out"]
        lines += [
            f"{result['device']}; torch {result['torch']}. Square products of torch, the better of MKL and oneDNN: "
            + ", ".join(f"{n} {p:.0f} GF/s" for n, p in peaks.items())
            + f"; reads {bandwidth:.1f} GB/s.",
            "",
        ]
        for group in result["groups"]:
            lines += table(group, peaks[group["dtype"]])
            got = figures(group, result["ceilings"], families)
            for name, bar in bars(group["rows"], group["dtype"]).items():
                if name in got:
                    verdict = "met" if got[name] >= bar else "NOT MET"
                    where = f"{group['shape']} | {group['dtype']} | {group['rows']}"
                    verdicts.append(f"| {where} | {name} | {bar:.2f} | {got[name]:.2f} | {verdict} |")
    lines += ["### Bars", "", "| shape | dtype | rows | what | bar | got | |", "|---|---|---|---|---|---|---|"] + verdicts
    if left_out:
        lines += ["", "Left out, the budget was spent: " + "; ".join(left_out)]
    return "\n".join(lines) + "\n"


def table(group, peak):
    """Lines of markdown of one group of cells."""
    size = ", ".join(map(str, group["size"]))
    lines = [f"### {group['shape']} (D, H, E, K = {size}), {group['dtype']}, {group['rows']} rows an expert", ""]
    lines += ["| path | forward ms | GF/s | of peak | forward+backward ms | GF/s | of peak | saved MB | error |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for name, cell in group["cells"].items():
        row = [name]
        for kind, work in (("forward", 1), ("both", 3)):
            speed = 1e-6 * work * group["flops"] / cell[f"{kind}_ms"]
            row += [f"{cell[f'{kind}_ms']:.1f}", f"{speed:.0f}", f"{100 * speed / peak:.0f} %"]
        row += [f"{1e-6 * cell['saved_bytes']:.1f}", f"{cell['error']:.1e}"] if "error" in cell else ["", ""]
        lines.append("| " + " | ".join(row) + " |")
    return lines + [""]


# -- Main ----------------------------------------------------------------------------------------------


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default_device)
    parser.add_argument("--shapes", help="names, all by default")
    parser.add_argument("--peers", help="names, all by default")
    parser.add_argument("--budget", type=float, default=1500.0, help="seconds after which no group is begun")
    parser.add_argument("--out")
    parser.add_argument("--routing", default="uniform,zipf", help="cuda only")
    parser.add_argument("--rounds", type=int, default=9, help="cuda only")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--cell-seconds", type=float, default=0.8)
    parser.add_argument("--slow-seconds", type=float, default=4.0)
    parser.add_argument("--merge", help="JSON files of earlier runs on a CPU, to report instead of measuring")
    return parser.parse_args()


def choose(names, known):
    if names is None:
        return dict(known)
    for name in names.split(","):
        if name not in known:
            raise SystemExit(f"experts.py: {name} is unknown, want one of: {', '.join(known)}")
    return {name: known[name] for name in names.split(",")}


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def main():
    options = parse()
    if options.device == "cuda" and not options.merge:
        import experts_card  # which imports this file

        experts_card.run(options)
        return
    if options.merge:
        results = [run for path in options.merge.split(",") for run in read_json(path)]
    else:
        results = [measure_all(options)]
    families = {name: peer.family for name, peer in peers("cpu").items()}
    publish(report(results, families), results, options.out)


def measure_all(options):
    """Every chosen shape, dtype and row count: what one run found."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = Cpu(CLOCKS[options.clock])
    chosen = choose(options.peers, peers(device.name))
    begin = time.perf_counter()
    result = {"device": device.describe(), "torch": torch.__version__, "ceilings": device.ceilings()}
    result |= {"groups": [], "left_out": []}
    for shape_name, size in choose(options.shapes, shapes(device.name)).items():
        D, H, E, K = size
        for dtype_name in options.dtypes.split(","):
            weights, slow = Weights(size, DTYPES[dtype_name], device.name), set()
            for m in map(int, options.rows.split(",")):
                where = f"{shape_name} {dtype_name} {m} rows"
                if time.perf_counter() - begin > options.budget:
                    result["left_out"].append(where)
                    continue
                problem = Problem(weights, m)
                cells = measure(device, problem, chosen, dtype_name, options, slow)
                group = {"shape": shape_name, "size": size, "dtype": dtype_name, "rows": m, "cells": cells}
                group |= {"flops": problem.forward_flops(), "weight_bytes": 3 * E * H * D * DTYPES[dtype_name].itemsize}
                result["groups"].append(group)
                mine = ", ".join(f"{n} {c['forward_ms']:.0f}/{c['both_ms']:.0f} ms" for n, c in cells.items())
                print(f"{time.perf_counter() - begin:5.0f} s  {where}: {mine}", flush=True)
    return result


if __name__ == "__main__":
    main()
