"""What LibTorch's stable ABI leaves to Python: shapes without data, and derivatives.

Legend: T tokens, D model width, H expert hidden width, E experts, K choices, R = T*K rows.
"""

import torch

# Inputs of experts_forward by position.
X, SCORES, OFFSETS, ROW_SLOT, SLOT_ROW, GATE_UP, GATE_UP_BIAS, DOWN, DOWN_BIAS = range(9)


# -- Shapes ------------------------------------------------------------------------------------------


EXTRA_ROWS = {"cpu": 15}


def saved_bytes(num_rows, num_experts, hidden_dim, x, save):
    """Size of `saved`, whichever variant wrote it: as in src/ops/operators.cpp."""
    if save == "nothing":
        return 0
    columns = 2 * hidden_dim
    row_bytes = columns + (columns + 31) // 32 if save == "pre_activations_fp8" else columns * x.dtype.itemsize
    return (num_rows + EXTRA_ROWS.get(x.device.type, 0) * num_experts) * row_bytes + 512


@torch.library.register_fake("amoeba::route")
def _(expert_ids, num_experts):
    def new(*shape):
        return expert_ids.new_empty(shape, dtype=torch.int32)

    return new(num_experts), new(num_experts + 1), new(expert_ids.numel()), new(*expert_ids.shape), new(1)


@torch.library.register_fake("amoeba::experts_forward")
def _(x, scores, offsets, row_slot, slot_row, gate_up, gate_up_bias, down, down_bias, *, transposed, save, **_options):
    num_rows = x.shape[0] if slot_row is None else slot_row.numel()
    size = saved_bytes(num_rows, down.shape[0], down.shape[1 if transposed else 2], x, save)
    return (
        x.new_empty(x.shape),
        x.new_empty((size,), dtype=torch.uint8),
        x.new_empty((1,), dtype=torch.int32),
    )


def _gradient(of, like, wanted):
    """Contiguous in the shape of its tensor; of size 0 when it is not wanted."""
    return like.new_empty((0,)) if of is None else of.new_empty(of.shape if wanted else (0,))


@torch.library.register_fake("amoeba::experts_backward")
def _(dy, saved, x, scores, offsets, row_slot, slot_row, gate_up, gate_up_bias, down, down_bias, *, output_mask, **_options):
    no_scores = x.new_empty((0,), dtype=torch.float32)
    return (
        _gradient(x, x, output_mask[0]),
        no_scores if scores is None else _gradient(scores, x, output_mask[1]),
        [_gradient(tensor, x, True) for tensor in gate_up if output_mask[2]],
        [_gradient(tensor, x, True) for tensor in gate_up_bias if output_mask[3]],
        _gradient(down, x, output_mask[4]),
        _gradient(down_bias, x, output_mask[5]),
    )


@torch.library.register_fake("amoeba::experts_backward.accumulate")
def _(dy, saved, x, scores, *_inputs, **_options):
    no_scores = x.new_empty((0,), dtype=torch.float32)
    return x.new_empty(x.shape), no_scores if scores is None else scores.new_empty(scores.shape)


# -- Derivatives -------------------------------------------------------------------------------------


def _setup_context(ctx, inputs, keyword_only_inputs, output):
    ctx.options = keyword_only_inputs
    ctx.num_gate_up = len(inputs[GATE_UP])
    ctx.num_bias = len(inputs[GATE_UP_BIAS])
    _, saved, error = output
    ctx.mark_non_differentiable(saved, error)
    ctx.set_materialize_grads(False)  # else backward gets zeros as large as `saved`
    ctx.save_for_backward(
        saved, *inputs[:GATE_UP], *inputs[GATE_UP], *inputs[GATE_UP_BIAS], *inputs[DOWN:]
    )


def _backward(ctx, dy, _dsaved, _derror):
    if dy is None:
        return *[None] * GATE_UP, [None] * ctx.num_gate_up, [None] * ctx.num_bias, None, None
    saved, *inputs = ctx.saved_tensors
    bias_at = GATE_UP + ctx.num_gate_up
    down_at = bias_at + ctx.num_bias
    gate_up, gate_up_bias = inputs[GATE_UP:bias_at], inputs[bias_at:down_at]
    needs = ctx.needs_input_grad
    mask = [needs[X], needs[SCORES], any(needs[GATE_UP]), any(needs[GATE_UP_BIAS]), needs[DOWN], needs[DOWN_BIAS]]
    dx, dscores, dgate_up, dgate_up_bias, ddown, ddown_bias = torch.ops.amoeba.experts_backward(
        dy, saved, *inputs[:GATE_UP], gate_up, gate_up_bias, *inputs[down_at:], **ctx.options, output_mask=mask
    )

    def given(wanted, gradient):
        return gradient if wanted else None

    return (
        given(mask[0], dx),
        given(mask[1], dscores),
        None,
        None,
        None,
        dgate_up if mask[2] else [None] * ctx.num_gate_up,
        dgate_up_bias if mask[3] else [None] * ctx.num_bias,
        given(mask[4], ddown),
        given(mask[5], ddown_bias),
    )


def _refuse_double_backward(ctx, *_gradients):
    raise NotImplementedError(
        "amoeba: the gradient of experts_backward is not implemented, want no double backward through the "
        "experts (create_graph, gradient penalties)"
    )


torch.library.register_autograd("amoeba::experts_forward", _backward, setup_context=_setup_context)
torch.library.register_autograd("amoeba::experts_backward", _refuse_double_backward)
