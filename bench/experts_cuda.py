"""Times the CUDA experts against torch's ways and the plain products, interleaved, in one run.

Usage: experts_cuda.py LIBRARY[,LIBRARY] [--shapes A,B] [--variants sm90,sm80] [--layouts separate,concatenated_t]
                       [--gradients bf16,bf16_add,fp32,fp32_add] [--rounds N] [--out FILE] [--skew uniform|zipf]
                       [--profile] [--only-ours]

LIBRARY is libbench_experts_cuda.so; with several, each is timed (the second as "#2", and so on). A layout
with _t has the last two dimensions of the weights swapped; _add adds to the weights' gradients. Prints the median milliseconds of forward, backward and both for
each way at each shape, and the share of the ceiling: the useful products alone, balanced, by cuBLAS
(torch.bmm). Checks every way against an fp32 computation of a few tokens first.
"""

import argparse
import ctypes
import json
import statistics

import torch
import torch.nn.functional as F

SHAPES = {  # T, D, H, E, K
    "10B_2B-8k": (8192, 2048, 1408, 36, 3),
    "10B_2B-32k": (32768, 2048, 1408, 36, 3),
    "DSv3-16B": (32768, 2048, 1408, 64, 6),
    "Qwen3-30B": (32768, 2048, 768, 128, 8),
    "OLMoE": (32768, 2048, 1024, 64, 8),
    "Mixtral-8k": (8192, 4096, 14336, 8, 2),
    "gpt-oss-8k": (8192, 2880, 2880, 32, 4),
    "7B-fine": (24576, 1536, 256, 128, 8),
}
# The GPU waits so long before a round: the first way's launches are enqueued by then, as the others' are.
FILL_CYCLES = 4_000_000
POINTERS = """ids x scores gate up down counts offsets row_slot slot_row error y dy dx dscores dgate
dup ddown saved scratch stream""".split()


class Problem(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_int64) for name in "TDHEK"]
        + [("variant", ctypes.c_char_p)]
        + [(name, ctypes.c_int64) for name in "save layout transposed fp32_gradients accumulate".split()]
        + [(name, ctypes.c_void_p) for name in POINTERS]
    )


class Inputs:
    def __init__(self, shape, skew):
        self.shape = T, D, H, E, K = shape
        g = torch.Generator(device="cuda").manual_seed(1)
        normal = lambda *size, scale: (torch.randn(*size, generator=g, device="cuda") * scale).bfloat16()
        weights = torch.ones(E, device="cuda")
        if skew == "zipf":
            weights = 1 / torch.arange(1, E + 1, device="cuda").float()
        self.ids = torch.multinomial(weights.expand(T, E), K, generator=g).int()
        self.x = normal(T, D, scale=1.0)
        self.dy = normal(T, D, scale=1.0)
        self.scores = torch.rand(T, K, generator=g, device="cuda") / K
        self.gate = normal(E, H, D, scale=D**-0.5)
        self.up = normal(E, H, D, scale=D**-0.5)
        self.down = normal(E, D, H, scale=H**-0.5)


class Ours:
    def __init__(self, library, variant, inputs, layout="separate", gradients="bf16", save=0):
        T, D, H, E, K = inputs.shape
        self.library = library
        self.transposed = layout.endswith("_t")
        self.concatenated = layout.startswith("concatenated")
        stored = lambda w: w.transpose(1, 2).contiguous() if self.transposed else w
        gate, up, down = stored(inputs.gate), stored(inputs.up), stored(inputs.down)
        if self.concatenated:
            gate = torch.cat([gate, up], 2 if self.transposed else 1)
        dtype = torch.bfloat16 if gradients.startswith("bf16") else torch.float32
        like = lambda w: torch.zeros_like(w, dtype=dtype)
        empty = lambda *size, dtype=torch.bfloat16: torch.empty(*size, dtype=dtype, device="cuda")
        ints = lambda n: torch.zeros(n, dtype=torch.int32, device="cuda")
        self.keep = dict(
            ids=inputs.ids, x=inputs.x, scores=inputs.scores, gate=gate, up=up,
            down=down, dy=inputs.dy, counts=ints(E), offsets=ints(E + 1), row_slot=ints(T * K),
            slot_row=ints(T * K), error=ints(1), y=empty(T, D), dx=empty(T, D),
            dscores=empty(T, K, dtype=torch.float32), dgate=like(gate), dup=like(up), ddown=like(down),
        )
        self.p = Problem(
            T, D, H, E, K, variant.encode(), save, self.concatenated, self.transposed,
            gradients.startswith("fp32"), gradients.endswith("_add"),
        )
        for name, tensor in self.keep.items():
            setattr(self.p, name, tensor.data_ptr())
        sizes = (ctypes.c_int64 * 4)()
        self.call("workspace", sizes)
        self.saved_bytes = sizes[0]
        for name, size in (("saved", sizes[0]), ("scratch", max(sizes[1:]))):
            self.keep[name] = empty(size + 1, dtype=torch.uint8)
            setattr(self.p, name, self.keep[name].data_ptr())
        self.p.stream = torch.cuda.current_stream().cuda_stream
        self.call("route")

    def call(self, name, *more):
        if getattr(self.library, f"bench_{name}")(ctypes.byref(self.p), *more):
            raise RuntimeError(name)

    def forward(self):
        self.call("forward")

    def backward(self):
        self.call("backward")

    def results(self):
        results = {n: self.keep[n] for n in "y dx dscores dgate dup ddown".split()}
        if self.transposed:
            results |= {n: results[n].transpose(1, 2) for n in "dgate dup ddown".split()}
        if self.concatenated:
            results["dgate"], results["dup"] = results["dgate"].chunk(2, 1)
        return results


class Torch:
    """One of torch's ways under autograd: gather, experts(rows, counts) -> rows, weighted sum."""

    def __init__(self, inputs, experts):
        T, D, H, E, K = inputs.shape
        self.inputs = inputs
        self.leaves = [
            t.detach().clone().requires_grad_() for t in
            (inputs.x, inputs.scores, inputs.gate, inputs.up, inputs.down)
        ]
        order = torch.argsort(inputs.ids.flatten(), stable=True)
        self.token, self.order = order // K, order
        self.counts = torch.bincount(inputs.ids.flatten(), minlength=E)
        self.offsets = torch.cumsum(self.counts, 0).int()
        self.list = self.counts.tolist()
        self.inverse = torch.argsort(order)
        self.experts = experts

    def forward(self):
        T, D, H, E, K = self.inputs.shape
        x, scores, gate, up, down = self.leaves
        rows = self.experts(self, x.index_select(0, self.token), gate, up, down)
        rows = rows.index_select(0, self.inverse).view(T, K, D)
        self.y = torch.bmm(scores.bfloat16().unsqueeze(1), rows).squeeze(1)

    def backward(self):
        for leaf in self.leaves:
            leaf.grad = None
        self.y.backward(self.inputs.dy)

    def results(self):
        return dict(zip("y dx dscores dgate dup ddown".split(), [self.y] + [t.grad for t in self.leaves]))


def grouped_mm(way, rows, gate, up, down):
    g = torch._grouped_mm(rows, gate.transpose(1, 2), offs=way.offsets)
    u = torch._grouped_mm(rows, up.transpose(1, 2), offs=way.offsets)
    return torch._grouped_mm(F.silu(g) * u, down.transpose(1, 2), offs=way.offsets)


def for_loop(way, rows, gate, up, down):
    parts = zip(rows.split(way.list), gate.unbind(), up.unbind(), down.unbind())
    return torch.cat([(F.silu(r @ g.T) * (r @ u.T)) @ d.T for r, g, u, d in parts])


def padded_bmm(way, rows, gate, up, down):
    longest = max(way.list)
    E = len(way.list)
    starts = way.offsets - way.counts
    expert = torch.repeat_interleave(torch.arange(E, device="cuda"), way.counts, output_size=len(rows))
    place = expert * longest + torch.arange(len(rows), device="cuda") - starts[expert]
    padded = rows.new_zeros(E * longest, rows.shape[1]).index_copy(0, place, rows).view(E, longest, -1)
    g, u = torch.bmm(padded, gate.transpose(1, 2)), torch.bmm(padded, up.transpose(1, 2))
    out = torch.bmm(F.silu(g) * u, down.transpose(1, 2))
    return out.view(E * longest, -1).index_select(0, place)


class Ceiling:
    """The useful products, balanced, without gather, activation or combine."""

    def __init__(self, inputs):
        T, D, H, E, K = inputs.shape
        rows = T * K // E
        new = lambda *size: torch.randn(*size, device="cuda").bfloat16()
        self.rows, self.hidden, self.pre, self.dy = new(E, rows, D), new(E, rows, H), new(E, rows, 2 * H), new(E, rows, D)
        self.up, self.down = new(E, 2 * H, D), new(E, D, H)

    def forward(self):
        torch.bmm(self.rows, self.up.transpose(1, 2))
        torch.bmm(self.hidden, self.down.transpose(1, 2))

    def backward(self):
        torch.bmm(self.dy, self.down)
        torch.bmm(self.dy.transpose(1, 2), self.hidden)
        torch.bmm(self.pre, self.up)
        torch.bmm(self.pre.transpose(1, 2), self.rows)


def relative_errors(got, want):
    return {n: ((got[n].float() - want[n].float()).norm() / want[n].float().norm()).item() for n in want}


def timed(way):
    events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
    events[0].record()
    way.forward()
    events[1].record()
    way.backward()
    events[2].record()
    return events


def profile(way):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as result:
        for _ in range(3):
            way.forward()
            way.backward()
        torch.cuda.synchronize()
    totals = {}
    for event in result.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            totals.setdefault(event.name, []).append(event.device_time)
    for name, times in totals.items():
        short = name.replace("amoeba::kernels::cuda::", "").replace("device::", "")
        print(f"    {sum(times) / 3000:8.3f} ms  x{len(times) // 3}  {short[:190]}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--variants", default="sm90,sm80")
    parser.add_argument("--layouts", default="separate")
    parser.add_argument("--gradients", default="bf16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--skew", default="uniform")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args()
    libraries = [ctypes.CDLL(path) for path in options.library.split(",")]
    print(torch.cuda.get_device_name(), "torch", torch.__version__, options.skew)
    raw = {}
    for name in options.shapes.split(","):
        inputs = Inputs(SHAPES[name], options.skew)
        T, D, H, E, K = inputs.shape
        ways = {}
        for v in options.variants.split(","):
            for layout in options.layouts.split(","):
                for gradients in options.gradients.split(","):
                    for i, library in enumerate(libraries):
                        words = [v + (f"#{i + 1}" if i else "")]
                        words += [w for w in (layout, gradients) if w not in ("separate", "bf16")]
                        ways[" ".join(words)] = Ours(library, v, inputs, layout, gradients)
        ours = list(ways)
        ways["ceiling"] = Ceiling(inputs)
        if not options.only_ours:
            ways["grouped_mm"] = Torch(inputs, grouped_mm)
            if options.skew == "uniform":
                ways["padded_bmm"] = Torch(inputs, padded_bmm)
            ways["for_loop"] = Torch(inputs, for_loop)
        for way in ways.values():
            for _ in range(2):
                way.forward()
                way.backward()
        torch.cuda.synchronize()
        if not options.only_ours:
            want = ways["for_loop"].results()
            for v in ours:
                if v.endswith("_add"):
                    continue
                errors = relative_errors(ways[v].results(), want)
                print(f"  {v} against for_loop:", {n: f"{e:.1e}" for n, e in errors.items()})
        for v in ours if options.profile else ():
            print(f"  {name} {v}:")
            profile(ways[v])
        times = {way: [] for way in ways}
        for _ in range(options.rounds):
            torch.cuda._sleep(FILL_CYCLES)
            events = {n: timed(way) for n, way in ways.items()}
            torch.cuda.synchronize()
            for n, (a, b, c) in events.items():
                times[n].append((a.elapsed_time(b), b.elapsed_time(c)))
        raw[name] = times
        flop = 6 * T * K * D * H
        median = lambda n, f: statistics.median(f(t) for t in times[n])
        top = median("ceiling", sum)
        for n in ways:
            fwd, bwd, both = median(n, lambda t: t[0]), median(n, lambda t: t[1]), median(n, sum)
            print(
                f"{name:11s} {n:28s} fwd {fwd:7.3f} bwd {bwd:7.3f} both {both:7.3f} ms  "
                f"{flop / fwd / 1e9:4.0f} / {2 * flop / bwd / 1e9:4.0f} TFLOP/s  {100 * top / both:3.0f} % of ceiling"
                + (f"  saved {ways[n].saved_bytes / 2**20:.0f} MiB" if isinstance(ways[n], Ours) else ""),
                flush=True,
            )
        del ways, inputs
        torch.cuda.empty_cache()
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(raw, file)


main()
