"""The experts as functions of tensors.

Legend: T tokens, D model width, H expert hidden width, E experts, K choices, R = T*K rows.

Autocast: where it is on for the device of x, x, the weights and the biases are cast to its dtype (fp64
stays), scores are not: they weigh fp32 sums. Gradients come back in the dtype each tensor had.
"""

import torch

from . import errors

_INT32_MAX = 2**31 - 1


def experts(
    x,
    expert_ids,
    scores,
    gate_up,
    down,
    *,
    layout="separate",
    transposed=False,
    gate_up_bias=None,
    down_bias=None,
    activation="swiglu",
    alpha=1.702,
    limit=7.0,
    score_before=False,
    save="pre_activations",
):
    """y [T, D]: for each token, the sum over its K experts of score * expert(x). Differentiable in x,
    scores and every parameter.

    x            [T, D] fp64, fp32, fp16 or bf16; any strides, here and below
    expert_ids   [T, K] int32 or int64; -1 and E skip the slot, other ids outside [0, E) are skipped and
                 reported by check_errors()
    scores       [T, K], or None for weights of 1
    gate_up      the stored parameter, or the pair (gate, up) of layout "separate", in the dtype of x:
                 separate      two of [E, H, D]
                 concatenated  [E, 2H, D], gate rows first
                 interleaved   [E, 2H, D], gate and up rows alternate
    down         [E, D, H]
    transposed   the last two dimensions of gate_up and down are swapped
    gate_up_bias [E, 2H], or a pair of [E, H] for "separate"; down_bias [E, D]
    activation   "swiglu", or "swiglu_clamped" with alpha and limit (gpt-oss)
    score_before weighs the inputs of the experts instead of their outputs
    save         what backward finds: "pre_activations", "pre_activations_fp8" or "nothing" (recompute)
    """
    options = _options(layout, transposed, activation, alpha, limit, score_before, save)
    x, gate_up, down, gate_up_bias, down_bias = _prepare(x, gate_up, down, gate_up_bias, down_bias)
    if scores is not None and scores.dtype == torch.float16:
        scores = scores.float()
    _, offsets, row_slot, slot_row, error = torch.ops.amoeba.route(expert_ids, down.shape[0])
    return _forward(
        (x, scores, offsets, row_slot, slot_row, gate_up, gate_up_bias, down, down_bias), options, error
    )


def experts_rows(
    x,
    counts,
    gate_up,
    down,
    *,
    layout="separate",
    transposed=False,
    gate_up_bias=None,
    down_bias=None,
    activation="swiglu",
    alpha=1.702,
    limit=7.0,
    save="pre_activations",
):
    """y [R, D] of rows already grouped by expert: x [R, D], counts [E] int32 or int64 rows per expert.
    Rows past sum(counts) give zeros. Parameters and options as in experts()."""
    options = _options(layout, transposed, activation, alpha, limit, False, save)
    x, gate_up, down, gate_up_bias, down_bias = _prepare(x, gate_up, down, gate_up_bias, down_bias)
    offsets = offsets_of(counts)
    return _forward((x, None, offsets, None, None, gate_up, gate_up_bias, down, down_bias), options)


def variants(x, expert_ids, scores, gate_up, down, *, gate_up_bias=None, down_bias=None, **options):
    """Which implementations the device of x has for this problem, best first: a list of
    (name, summary, reason); the first whose reason is "" runs. Arguments as in experts()."""
    _, offsets, row_slot, slot_row, _ = torch.ops.amoeba.route(expert_ids, down.shape[0])
    lines = torch.ops.amoeba.experts_variants(
        x, scores, offsets, row_slot, slot_row, _list_of(gate_up), _list_of(gate_up_bias), down, down_bias,
        **_options(**options),
    )
    return [tuple(line.split("\t")) for line in lines]


def offsets_of(counts):
    """[E] rows per expert -> [E + 1] int32 first rows, kept in range so that bad counts stay visible."""
    ends = counts.to(torch.int64).cumsum(0).clamp(-_INT32_MAX, _INT32_MAX)
    return torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)


def _forward(inputs, options, error=None):
    differentiable = torch.is_grad_enabled() and _any_requires_grad(inputs)
    if not differentiable:
        options = options | {"save": "nothing"}
    y, _, own_error = torch.ops.amoeba.experts_forward(*inputs, **options)
    errors.record(own_error if error is None else error | own_error)
    return y


def _any_requires_grad(inputs):
    for value in inputs:
        for tensor in value if isinstance(value, list) else [value]:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def _prepare(x, gate_up, down, gate_up_bias, down_bias):
    gate_up, gate_up_bias = _list_of(gate_up), _list_of(gate_up_bias)
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return x, gate_up, down, gate_up_bias, down_bias
    dtype = torch.get_autocast_dtype(kind)

    def cast(tensor):
        return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)

    return cast(x), [cast(t) for t in gate_up], cast(down), [cast(t) for t in gate_up_bias], cast(down_bias)


def _list_of(tensors):
    if tensors is None:
        return []
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)


def _options(
    layout="separate",
    transposed=False,
    activation="swiglu",
    alpha=1.702,
    limit=7.0,
    score_before=False,
    save="pre_activations",
):
    return {
        "layout": layout,
        "transposed": transposed,
        "activation": activation,
        "alpha": alpha,
        "limit": limit,
        "score_before": score_before,
        "save": save,
    }
