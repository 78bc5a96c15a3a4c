"""Where a step's time on the card goes, from a trace that `amoeba train --profiling.num_steps 1` wrote.

Usage: step_times.py TRACE [--kernels N] [--json]

Adds up the kernels of each part, forward and backward. "routed experts" is all between the router and
the layer's output: gather, products, activation, combine, and the weight gradients' way into their
buffers. A kernel belongs to the part whose scope, or whose node of the backward, launched it.
"""

import argparse
import json

SCOPES = ("routed experts", "router", "attention", "feed forward", "norm", "loss", "optimizer")
# Names of nodes of the backward.
NODES = {
    "FusedTokens": "routed experts",
    "ExpertFunction": "routed experts",
    "GatherRows": "routed experts",
    "SumRows": "routed experts",
    "CombineRows": "routed experts",
    "UseParameter": "routed experts",
    "RmsNorm": "norm",
    "SwiGlu": "feed forward",
    "Linear": "dense products",
    "Rope": "attention",
    "KeysAndValues": "attention",
    "SplitColumns": "attention",
    "ScaledDotProduct": "attention",
    "Transpose": "attention",
    "Embedding": "embedding",
    "Softmax": "router",
    "Sigmoid": "router",
    "GatherBackward": "router",
    "Logsumexp": "router",
}
PRODUCTS = ("gemm", "nvjet", "cutlass", "xmma", "cublas")  # in names of vendors' kernels


def part_of(stack, kernel):
    """The part of a launch under `stack`, names from the outermost to the innermost."""
    for name in reversed(stack):
        part = name if name in SCOPES else None
        if name.startswith("autograd::engine::evaluate_function"):
            part = next((value for key, value in NODES.items() if key in name.split(": ", 1)[1]), None)
        if part in ("attention", "feed forward") and any(word in kernel.lower() for word in PRODUCTS):
            return "attention kernel" if "flash" in kernel.lower() else "dense products"
        if part:
            return part
    return "other"


def launches(events):
    """Of each correlation id: (names around its launch, kernel event)."""
    spans, calls, kernels = {}, {}, {}
    for event in events:
        if event.get("ph") != "X":
            continue
        kind = event.get("cat")
        if kind in ("cpu_op", "user_annotation"):
            spans.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"], event["name"]))
        elif kind in ("cuda_runtime", "cuda_driver"):
            calls[event["args"]["correlation"]] = event
        elif kind in ("kernel", "gpu_memcpy", "gpu_memset"):
            kernels.setdefault(event["args"]["correlation"], []).append(event)
    for list_of in spans.values():
        list_of.sort(key=lambda span: (span[0], -span[1]))
    order = sorted((call["tid"], call["ts"], id_) for id_, call in calls.items() if id_ in kernels)
    position, open_spans, last = 0, [], None
    for tid, at, id_ in order:
        if tid != last:
            position, open_spans, last = 0, [], tid
        list_of = spans.get(tid, [])
        while position < len(list_of) and list_of[position][0] <= at:
            open_spans.append(list_of[position])
            position += 1
        open_spans = [span for span in open_spans if span[1] >= at]
        for kernel in kernels[id_]:
            yield [span[2] for span in open_spans], kernel


def busy(intervals):
    """Length of the union."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def summarize(path):
    """Parts, kernels, busy and whole milliseconds, launches of a trace."""
    with open(path, encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    parts, kernels, intervals = {}, {}, []
    for stack, kernel in launches(events):
        part = part_of(stack, kernel["name"])
        for table, key in ((parts, part), (kernels, (part, kernel["name"]))):
            count, time = table.get(key, (0, 0.0))
            table[key] = (count + 1, time + kernel["dur"] / 1000)
        intervals.append((kernel["ts"], kernel["ts"] + kernel["dur"]))
    span = max(stop for _, stop in intervals) - min(start for start, _ in intervals)
    return parts, kernels, busy(intervals) / 1000, span / 1000, len(intervals)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("trace")
    parser.add_argument("--kernels", type=int, default=0, help="also the N kernels that take longest")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    parts, kernels, total, span, num_launches = summarize(options.trace)
    if options.json:
        print(json.dumps({"parts": parts, "busy_ms": total, "span_ms": span, "launches": num_launches}))
        return
    print(f"{span:.1f} ms from the first kernel to the last, {total:.1f} ms of them busy, {num_launches} launches")
    for name, (count, time) in sorted(parts.items(), key=lambda item: -item[1][1]):
        print(f"{name:18s} {time:8.2f} ms {100 * time / total:5.1f} % {count:6d} launches")
    for (part, name), (count, time) in sorted(kernels.items(), key=lambda item: -item[1][1])[: options.kernels]:
        print(f"{time:8.2f} ms x{count:<5d} {part:16s} {name[:110]}")


if __name__ == "__main__":
    main()
