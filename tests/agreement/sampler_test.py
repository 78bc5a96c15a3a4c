"""Compares the tokens that may be drawn with those that transformers' logits warpers leave.

Usage: sampler_test.py SAMPLER_DRIVER. Random logits without ties (with ties transformers keeps every token
as likely as the k-th, Amoeba exactly k). A token whose border to top_p is closer than fp32 sums tell apart
may differ. Exits 77 (skipped) when transformers is not installed.
"""

import json
import subprocess
import sys

SKIPPED = 77
try:
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(SKIPPED)

BORDER = 1e-5  # of a cumulative probability


def random_cases():
    generator = torch.Generator().manual_seed(4)
    for case in range(400):
        size = int(torch.randint(2, 1500, (1,), generator=generator))
        logits = torch.randn(size, generator=generator) * float(torch.rand(1, generator=generator) * 6)
        logits = logits.unique()
        size = logits.numel()
        logits = logits[torch.randperm(size, generator=generator)]
        draw = torch.rand(3, generator=generator).tolist()
        yield {"logits": logits.tolist(), "temperature": 0.2 + 2 * draw[0],
               "top_k": int(draw[1] * size) if case % 3 else 0,
               "top_p": 0.02 + 0.97 * draw[2] if case % 4 else 1.0}


def warped(case):
    """The ids left in order of likelihood, and the probability before each of all."""
    scores = torch.tensor([case["logits"]], dtype=torch.float32)
    warpers = [TemperatureLogitsWarper(case["temperature"])]
    if case["top_k"] > 0:
        warpers.append(TopKLogitsWarper(case["top_k"]))
    for warper in warpers:
        scores = warper(None, scores)
    probabilities = scores[0].double().softmax(0)
    order = probabilities.argsort(descending=True, stable=True)
    before = probabilities[order].cumsum(0) - probabilities[order]
    if case["top_p"] < 1:
        scores = TopPLogitsWarper(case["top_p"])(None, scores)
    left = set(torch.isfinite(scores[0]).nonzero().flatten().tolist())
    return left, dict(zip(order.tolist(), before.tolist()))


def main():
    cases = list(random_cases())
    text = "".join(json.dumps(case) + "\n" for case in cases)
    lines = subprocess.run([sys.argv[1]], input=text, capture_output=True, text=True,
                           check=True).stdout.splitlines()
    assert len(lines) == len(cases)
    num_ids = num_borders = num_wrong = 0
    for case, line in zip(cases, lines):
        ours = [int(word) for word in line.split()]
        theirs, before = warped(case)
        assert len(set(ours)) == len(ours)
        different = set(ours) ^ theirs
        border = {id for id in different if abs(before[id] - case["top_p"]) < BORDER}
        num_ids, num_borders = num_ids + len(ours), num_borders + len(border)
        num_wrong += len(different - border)
        if case["top_k"] > 0 or case["top_p"] < 1:  # likeliest first
            logits = [case["logits"][id] for id in ours]
            assert logits == sorted(logits, reverse=True)
    print(f"{len(cases)} cases, {num_ids} kept ids, {num_wrong} differ, {num_borders} at the border of top_p")
    assert num_wrong == 0 and num_borders * 1000 < num_ids
    # A comparison that cannot fail shows nothing: another top_k is seen.
    theirs, _ = warped({"logits": [3.0, 2.0, 1.0], "temperature": 1.0, "top_k": 2, "top_p": 1.0})
    assert theirs == {0, 1}


if __name__ == "__main__":
    main()
