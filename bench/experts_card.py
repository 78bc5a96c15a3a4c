"""The part of experts.py for a GPU: the expert layer against its peers, in one process, interleaved.

Needs the amoeba package with its CUDA library; peers that are not installed are named with the reason.
Every path computes y and the gradients of x, scores and all weights in bf16, its sorting of the rows
included. Times are medians of interleaved rounds, each on a card that is busy until the host is ahead.
Useful work is 6 R D H forward and 12 R D H backward. "ceiling" is that work alone as balanced batched
products of cuBLAS, without gather, activation or combine.

Legend: T tokens, D model width, H expert width, E experts, K choices, R = T*K rows.
"""

import importlib.metadata
import statistics
import time
import warnings

import amoeba
import experts as shared
import torch
import torch.nn.functional as F
from results import publish

SHAPES = {  # T, (D, H, E, K)
    "10B_2B-8k": (8192, (2048, 1408, 36, 3)),
    "10B_2B-32k": (32768, (2048, 1408, 36, 3)),
    "DSv3-16B": (32768, (2048, 1408, 64, 6)),
    "Qwen3-30B-A3B": (32768, (2048, 768, 128, 8)),
    "OLMoE": (32768, (2048, 1024, 64, 8)),
    "Mixtral": (8192, (4096, 14336, 8, 2)),
    "gpt-oss-20b": (8192, (2880, 2880, 32, 4)),
    "7B-fine": (24576, (1536, 256, 128, 8)),
}
BIASED = "gpt-oss-20b bias+clamp"  # as gpt-oss stores and computes it
ALPHA, LIMIT = 1.702, 7.0
# The card is kept busy so long before each timing that the host is ahead, as it is in a training step.
FILL_CYCLES = 10_000_000  # about 5 ms


# -- Problems ------------------------------------------------------------------------------------------


def route(T, E, K, routing, generator):
    """[T, K] distinct ids of each token: experts equally likely, or the e-th with weight 1/e."""
    weights = torch.ones(E, device="cuda")
    if routing == "zipf":
        weights = 1 / torch.arange(1, E + 1, device="cuda")
    return torch.multinomial(weights.expand(T, E), K, generator=generator)


class Problem(shared.Problem):
    """x, ids, scores and dy of T tokens."""

    def __init__(self, weights, T, routing):
        D, H, E, K = weights.shape
        g = torch.Generator(device="cuda").manual_seed(2)
        self.weights, self.num_rows = weights, T * K
        self.ids = route(T, E, K, routing, g)
        self.x = torch.randn(T, D, generator=g, device="cuda").bfloat16().requires_grad_()
        self.scores = (torch.rand(T, K, generator=g, device="cuda") / K).requires_grad_()
        self.dy = torch.randn(T, D, generator=g, device="cuda").bfloat16()


class BiasedWeights(shared.Weights):
    """gpt-oss: gate and up interleaved, both parameters transposed, a bias on each."""

    def __init__(self, shape):
        super().__init__(shape, torch.bfloat16, "cuda")
        with torch.no_grad():
            self.gate_up = torch.stack([self.gate, self.up], 2).flatten(1, 2).mT.contiguous().requires_grad_()
            self.down = self.down.mT.contiguous().requires_grad_()
        D, H, E, K = shape
        self.gate_up_bias = torch.randn(E, 2 * H, device="cuda").bfloat16().mul_(0.1).requires_grad_()
        self.down_bias = torch.randn(E, D, device="cuda").bfloat16().mul_(0.1).requires_grad_()


class BiasedProblem(Problem):
    def leaves(self):
        w = self.weights
        return [self.x, self.scores, w.gate_up, w.gate_up_bias, w.down, w.down_bias]

    def exact(self, num_tokens=2):
        x = self.x.detach()[:num_tokens].double().requires_grad_()
        w, y = self.weights, []
        for t in range(num_tokens):
            parts = []
            for e, score in zip(self.ids[t].tolist(), self.scores[t].tolist()):
                stored = [p[e].detach().double() for p in (w.gate_up, w.gate_up_bias, w.down, w.down_bias)]
                hidden = clamped(x[t] @ stored[0] + stored[1])
                parts.append(score * (hidden @ stored[2] + stored[3]))
            y.append(sum(parts))
        y = torch.stack(y)
        y.backward(self.dy[:num_tokens].double())
        return y.detach(), x.grad


def clamped(gate_up):
    gate, up = gate_up[..., ::2].clamp(max=LIMIT), gate_up[..., 1::2].clamp(-LIMIT, LIMIT)
    return (up + 1) * gate * torch.sigmoid(ALPHA * gate)


# -- The paths -----------------------------------------------------------------------------------------


class Path:
    """A function of a problem under autograd."""

    def __init__(self, run):
        self.run = run

    def prepare(self, problem):
        """What a user has done before a step: parameters as this path stores them."""

    def forward(self, problem):
        shared.clear_gradients(problem)
        self.y = self.run(problem)

    def backward(self, problem):
        self.y.backward(problem.dy)


def composed(experts):
    """Gather, experts(rows, counts, weights, expert of each row) -> rows, weighted sum."""

    def run(problem):
        flat = problem.ids.flatten()
        order = torch.argsort(flat, stable=True)
        num_experts = problem.weights.shape[2]
        counts = torch.zeros(num_experts, dtype=torch.int64, device="cuda").scatter_add_(0, flat, torch.ones_like(flat))
        rows = problem.x.index_select(0, order // problem.ids.shape[1])
        rows = experts(rows, counts, problem.weights, flat[order])
        rows = rows.index_select(0, torch.argsort(order)).view(*problem.ids.shape, -1)
        return torch.bmm(problem.scores.to(rows.dtype).unsqueeze(1), rows).squeeze(1)

    return run


def plain(experts):
    return composed(lambda rows, counts, w, _: experts(rows, counts, w.gate, w.up, w.down))


def biased_grouped_mm(rows, counts, w, expert):
    offsets = counts.cumsum(0).int()
    gate_up = torch._grouped_mm(rows, w.gate_up, offs=offsets) + w.gate_up_bias.index_select(0, expert)
    return torch._grouped_mm(clamped(gate_up), w.down, offs=offsets) + w.down_bias.index_select(0, expert)


def biased_ours(problem):
    w = problem.weights
    return amoeba.experts(
        problem.x, problem.ids, problem.scores, w.gate_up, w.down, layout="interleaved", transposed=True,
        gate_up_bias=w.gate_up_bias, down_bias=w.down_bias, activation="swiglu_clamped", alpha=ALPHA, limit=LIMIT,
    )


class Compiled(Path):
    def prepare(self, problem):
        torch._dynamo.reset()
        self.run = torch.compile(plain(shared.grouped_mm), dynamic=False)


class Stored(Path):
    """A path over gate and up in one parameter, as transformers holds them."""

    def prepare(self, problem):
        if not hasattr(problem.weights, "stored"):
            problem.weights.stored = shared.Transformers("grouped_mm").module(problem.weights)


def liger():
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    def run(problem):
        stored = problem.weights.stored
        ids, scores = problem.ids.int(), problem.scores.to(problem.x.dtype)
        return LigerFusedMoEFunction.apply(problem.x, stored.gate_up_proj, stored.down_proj, ids, scores)

    return Stored(run)


def scattermoe():
    from scattermoe.parallel_experts import flatten_sort_count, parallel_linear

    def run(problem):
        E, K = problem.weights.shape[2:]
        stored = problem.weights.stored
        routes = flatten_sort_count(problem.ids, num_experts=E)
        hidden = parallel_linear(problem.x, stored.gate_up_proj.mT, K, *routes, grouped_out=True)
        gate, up = hidden.chunk(2, dim=-1)
        scores = problem.scores.to(problem.x.dtype)
        return parallel_linear(F.silu(gate) * up, stored.down_proj.mT, 1, *routes, grouped_in=True, gates=scores)

    return Stored(run)


def sonicmoe():
    import sonicmoe

    raise ImportError(f"sonicmoe {sonicmoe.__file__} is there, but has no path here")


class Ceiling(Path):
    def __init__(self):
        super().__init__(None)

    def prepare(self, problem):
        D, H, E, K = problem.weights.shape
        rows = problem.num_rows // E

        def new(*size):
            return torch.randn(*size, device="cuda").bfloat16()

        self.rows, self.hidden, self.pre, self.dy = new(E, rows, D), new(E, rows, H), new(E, rows, 2 * H), new(E, rows, D)
        self.up, self.down = new(E, 2 * H, D), new(E, D, H)

    def forward(self, problem):
        torch.bmm(self.rows, self.up.mT)
        torch.bmm(self.hidden, self.down.mT)

    def backward(self, problem):
        torch.bmm(self.dy, self.down)
        torch.bmm(self.dy.mT, self.hidden)
        torch.bmm(self.pre, self.up)
        torch.bmm(self.pre.mT, self.rows)


def paths(is_biased):
    """Name -> function that makes the path, or raises ImportError with the reason."""
    if is_biased:
        return {
            "ours": lambda: Path(biased_ours),
            "grouped_mm": lambda: Path(composed(biased_grouped_mm)),
            "ceiling": Ceiling,
        }
    return {
        "ours": lambda: Path(shared.ours),
        "padded_bmm": lambda: Path(plain(shared.padded_bmm)),
        "for_loop": lambda: Path(plain(shared.loop)),
        "grouped_mm": lambda: Path(plain(shared.grouped_mm)),
        "grouped_mm compiled": lambda: Compiled(None),
        "transformers grouped_mm": lambda: Stored(shared.Transformers("grouped_mm")),
        "Liger": liger,
        "ScatterMoE": scattermoe,
        "SonicMoE": sonicmoe,
        "ceiling": Ceiling,
    }


# -- Measuring -----------------------------------------------------------------------------------------


def timed(path, problem):
    events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    torch.cuda._sleep(FILL_CYCLES)
    events[0].record()
    path.forward(problem)
    events[1].record()
    path.backward(problem)
    events[2].record()
    return events


def once(path, problem):
    path.forward(problem)
    path.backward(problem)


def peak_bytes(path, problem):
    """The most that a forward and a backward take beyond what is there before, gradients included."""
    shared.clear_gradients(problem)
    path.y = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    once(path, problem)
    return torch.cuda.max_memory_allocated() - before


def host_waits(path, problem):
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        once(path, problem)
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in met)


def launches(path, problem):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as result:
        once(path, problem)
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in result.events())


def saved_and_error(path, problem, exact):
    """As the CPU's benchmark measures them."""
    if path.run is None:
        return {}
    peer = shared.Peer(path.run)
    saved, error = shared.saved_bytes_and_error(peer, problem, exact)
    return {"saved_bytes": saved, "error": error}


def measure(problem, makers, options, reasons):
    """Name -> cell, for every path that can be made and run."""
    exact, active, cells = problem.exact(), {}, {}
    for name, make in makers.items():
        if name in reasons:
            continue
        begin = time.perf_counter()
        try:
            path = make()
            path.prepare(problem)
            for _ in range(2):
                once(path, problem)
            cells[name] = {
                "peak_bytes": peak_bytes(path, problem),
                "host_waits": host_waits(path, problem),
                "launches": launches(path, problem),
            } | saved_and_error(path, problem, exact)
            active[name] = path
        except Exception as error:  # a peer's failure is a result, not the end of the run
            reasons[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
            torch.cuda.set_sync_debug_mode("default")
        print(f"    {name}: {time.perf_counter() - begin:.1f} s", flush=True)
    times = {name: [] for name in active}
    for _ in range(options.rounds):
        events = {name: timed(path, problem) for name, path in active.items()}
        torch.cuda.synchronize()
        for name, (a, b, c) in events.items():
            times[name].append((a.elapsed_time(b), a.elapsed_time(c)))
    for name, measured in times.items():
        for index, kind in enumerate(("forward", "both")):
            values = [t[index] for t in measured]
            cells[name][f"{kind}_ms"] = statistics.median(values)
            cells[name][f"{kind}_min_ms"] = min(values)
            cells[name][f"{kind}_max_ms"] = max(values)
    return cells


# -- Reporting -----------------------------------------------------------------------------------------


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def table(group):
    lines = ["| path | forward ms | forward+backward ms | ours is faster | TFLOP/s | of ceiling | saved MiB | peak MiB | launches | host waits | error |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|---|"]
    cells = group["cells"]
    mine, top = cells.get("ours"), cells.get("ceiling")
    for name, cell in cells.items():
        if "both_ms" not in cell:
            continue
        row = [name, f"{cell['forward_ms']:.2f}", f"{cell['both_ms']:.2f}"]
        row += [f"{cell['both_ms'] / mine['both_ms']:.2f}x" if mine and name != "ceiling" else ""]
        row += [f"{18e-9 * group['rows'] * group['size'][0] * group['size'][1] / cell['both_ms']:.0f}"]
        row += [f"{100 * top['both_ms'] / cell['both_ms']:.0f} %" if top else ""]
        row += [f"{cell['saved_bytes'] / 2**20:.0f}" if "saved_bytes" in cell else ""]
        row += [f"{cell['peak_bytes'] / 2**20:.0f}", str(cell["launches"]), str(cell["host_waits"])]
        row += [f"{cell['error']:.1e}" if "error" in cell else ""]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def report(result):
    packages = ", ".join(f"{name} {found}" for name, found in result["versions"].items())
    lines = [f"{result['device']}; {packages}; medians of {result['rounds']} interleaved rounds, bf16.", ""]
    for group in result["groups"]:
        D, H, E, K = group["size"]
        lines += [f"### {group['shape']} (T {group['tokens']}, D {D}, H {H}, E {E}, K {K}), {group['routing']}", ""]
        lines += table(group) + [""]
    for name, reason in result["not_run"].items():
        lines.append(f"- {name} did not run: {reason}")
    return "\n".join(lines) + "\n"


def run(options):
    names = [*SHAPES, BIASED]
    begin = time.perf_counter()
    packages = ("torch", "triton", "transformers", "liger_kernel")
    result = {"device": torch.cuda.get_device_name(), "versions": {name: version(name) for name in packages}}
    result |= {"rounds": options.rounds, "groups": [], "not_run": {}}
    for name in shared.choose(options.shapes, dict.fromkeys(names)):
        is_biased = name == BIASED
        T, size = SHAPES["gpt-oss-20b" if is_biased else name]
        makers = paths(True) if is_biased else shared.choose(options.peers, paths(False))
        weights = BiasedWeights(size) if is_biased else shared.Weights(size, torch.bfloat16, "cuda")
        for routing in options.routing.split(","):
            if time.perf_counter() - begin > options.budget:
                result["not_run"][f"{name}, {routing}"] = "the budget was spent"
                continue
            problem = (BiasedProblem if is_biased else Problem)(weights, T, routing)
            reasons = dict(result["not_run"])
            cells = measure(problem, makers, options, reasons)
            result["not_run"] = reasons
            group = {"shape": name, "tokens": T, "size": size, "rows": problem.num_rows, "routing": routing, "cells": cells}
            result["groups"].append(group)
            mine = ", ".join(f"{n} {c['both_ms']:.2f}" for n, c in cells.items() if "both_ms" in c)
            print(f"{time.perf_counter() - begin:5.0f} s  {name}, {routing}: {mine}", flush=True)
            del problem
            torch.cuda.empty_cache()
        del weights
        torch.cuda.empty_cache()
    publish(report(result), result, options.out)
