"""Grouped experts in plain torch: what amoeba.experts_rows computes, on any device and dtype.

    f(x [R, D], counts [E], w1 [E, H, D], w2 [E, D, H], w3 [E, H, D]) -> [R, D]

Rows past sum(counts) give zeros, and every input gets a gradient (zeros, never None) even when there is
nothing to compute: sharded training reduces a gradient on every rank.
"""

import torch
import torch.nn.functional as F


def for_loop(x, counts, w1, w2, w3):
    """One expert after the other; waits for the counts."""
    sizes = counts.tolist()
    *groups, tail = x.split([*sizes, x.shape[0] - sum(sizes)])
    rows = [(F.silu(g @ gate.T) * (g @ up.T)) @ down.T for g, gate, down, up in zip(groups, w1.unbind(), w2.unbind(), w3.unbind())]
    return torch.cat([*rows, torch.zeros_like(tail)]) + nothing_of(x, w1, w2, w3)


def batched_mm_padded(x, counts, w1, w2, w3):
    """Every expert padded to the largest count, three batched products; waits for two numbers."""
    num_experts, width = w1.shape[0], int(counts.max()) if counts.numel() else 0
    total = int(counts.sum())
    place = padded_places(counts, total, width)
    padded = x.new_zeros(num_experts * width, x.shape[1]).index_copy(0, place, x[:total])
    padded = padded.view(num_experts, width, x.shape[1])
    hidden = F.silu(torch.bmm(padded, w1.mT)) * torch.bmm(padded, w3.mT)
    rows = torch.bmm(hidden, w2.mT).flatten(0, 1).index_select(0, place)
    return torch.cat([rows, torch.zeros_like(x[total:])]) + nothing_of(x, w1, w2, w3)


def padded_places(counts, total, width):
    """[total] place of each grouped row among E groups of `width` rows."""
    experts = torch.repeat_interleave(torch.arange(counts.numel(), device=counts.device), counts, output_size=total)
    starts = counts.cumsum(0) - counts
    return experts * width + torch.arange(total, device=counts.device) - starts[experts]


def nothing_of(*tensors):
    """A zero that depends on every tensor and, unlike 0 * tensor, on no value in them."""
    return sum(tensor[:0].sum() for tensor in tensors)
