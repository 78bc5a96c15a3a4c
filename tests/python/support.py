"""What the Python tests share: cases as data, their seeded inputs, a plain computation to be held to, and
the comparator of design rule: a row's error is at most 2x the largest row error of the plain same-dtype
computation, + 2 ulp of the row's largest fp64 value; in fp64 1e-12 of the largest value.

Legend: T tokens, D model width, H expert hidden width, E experts, K choices.
"""

import dataclasses
import importlib.util
import sys
import unittest

import torch

SKIPPED = 77


def main(*packages):
    """Runs the tests of the calling file; exits 77 when a package they need is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: not installed: {', '.join(missing)}")
        sys.exit(SKIPPED)
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN: what nobody writes is seen
    unittest.main(module="__main__")


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    ids: tuple  # [T][K]
    num_experts: int = 5
    layout: str = "separate"
    transposed: bool = False
    bias: bool = False
    activation: str = "swiglu"
    score_before: bool = False
    scored: bool = True
    model_dim: int = 20
    hidden_dim: int = 12
    seed: int = 1

    @property
    def options(self):
        return dict(
            layout=self.layout,
            transposed=self.transposed,
            activation=self.activation,
            alpha=1.702,
            limit=0.75,
            score_before=self.score_before,
        )


# Expert 3 is empty, one token repeats an expert, three slots are skipped, one token has none left.
MIXED = ((0, 4, 1), (2, 2, 0), (-1, 1, 5), (4, 0, 2), (5, -1, -1), (0, 1, 0), (2, 4, 0)) * 3
HOT = ((1, 1),) * 9
CASES = [
    Case("separate", MIXED),
    Case("concatenated", MIXED, layout="concatenated"),
    Case("interleaved", MIXED, layout="interleaved"),
    Case("separate transposed with bias", MIXED, transposed=True, bias=True),
    Case("concatenated transposed", MIXED, layout="concatenated", transposed=True),
    Case("gpt-oss", MIXED, layout="interleaved", transposed=True, bias=True, activation="swiglu_clamped"),
    Case("clamped, separate", MIXED, activation="swiglu_clamped"),
    Case("scores before", MIXED, score_before=True, bias=True, layout="concatenated"),
    Case("no scores", MIXED, scored=False),
    Case("one hot expert", HOT, num_experts=3),
    Case("one token", ((3,),), bias=True),
    Case("all skipped", ((-1, 5), (5, -1))),
]

NAMES = ("x", "scores", "gate", "up", "gate_up", "gate_bias", "up_bias", "gate_up_bias", "down", "down_bias")


def make_inputs(case, dtype, device="cpu"):
    """name -> leaf tensor: normal values by the seed, rounded to dtype; scores fp32 (fp64 with fp64)."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape, scale=1.0):
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        return values.to(device=device, dtype=dtype).requires_grad_()

    tokens, choices = len(case.ids), len(case.ids[0])
    e, d, h = case.num_experts, case.model_dim, case.hidden_dim
    inputs = {"x": normal(tokens, d)}
    if case.scored:
        values = torch.rand(tokens, choices, generator=generator, dtype=torch.float64)
        score_dtype = dtype if dtype == torch.float64 else torch.float32
        inputs["scores"] = values.to(device=device, dtype=score_dtype).requires_grad_()

    def stored(rows, columns):
        return normal(e, *((columns, rows) if case.transposed else (rows, columns)), scale=0.5)

    separate = case.layout == "separate"
    for name in ("gate", "up") if separate else ("gate_up",):
        inputs[name] = stored(h if separate else 2 * h, d)
        if case.bias:
            inputs[name + "_bias"] = normal(e, h if separate else 2 * h)
    inputs["down"] = stored(d, h)
    if case.bias:
        inputs["down_bias"] = normal(e, d)
    return {name: inputs[name] for name in NAMES if name in inputs}


def pack(inputs, dtype=None):
    """The tensors as amoeba.experts takes them: (x, scores, gate_up, down), biases."""

    def of(*names):
        found = [inputs[name] for name in names if name in inputs]
        return (found[0] if len(found) == 1 else tuple(found)) if found else None

    biases = dict(gate_up_bias=of("gate_bias", "up_bias", "gate_up_bias"), down_bias=of("down_bias"))
    return (inputs["x"], inputs.get("scores"), of("gate", "up", "gate_up"), inputs["down"]), biases


def ids_of(case, device="cpu", dtype=torch.int64):
    return torch.tensor(case.ids, device=device, dtype=dtype)


def split_rows(case, inputs, suffix=""):
    """Gate and up of the stored parameter(s), as [E, H, D] or [E, H]."""
    if case.layout == "separate":
        parts = [inputs["gate" + suffix], inputs["up" + suffix]]
        return [p.mT if case.transposed and not suffix else p for p in parts]
    stored = inputs["gate_up" + suffix]
    if case.transposed and not suffix:
        stored = stored.mT
    if case.layout == "interleaved":
        return [stored[:, 0::2], stored[:, 1::2]]
    return list(stored.chunk(2, dim=1))


def product(matrix, vector):
    """matrix @ vector; in fp32 one term after the other, as plain code sums, where torch keeps 16 partial sums."""
    if matrix.dtype != torch.float32:
        return matrix @ vector
    total = 0
    for column, value in zip(matrix.unbind(1), vector.unbind()):
        total = total + column * value
    return total


def plain_expert(case, inputs, e, x):
    """[D] through expert e, in the dtype of x."""
    gate, up = (product(w[e], x) for w in split_rows(case, inputs))
    if case.bias:
        gate_bias, up_bias = split_rows(case, inputs, "_bias")
        gate, up = gate + gate_bias[e], up + up_bias[e]
    if case.activation == "swiglu":
        hidden = torch.nn.functional.silu(gate) * up
    else:
        limit, alpha = case.options["limit"], case.options["alpha"]
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        hidden = gate * torch.sigmoid(alpha * gate) * (up + 1)
    down = inputs["down"].mT if case.transposed else inputs["down"]
    row = product(down[e], hidden)
    return row + inputs["down_bias"][e] if case.bias else row


def plain_experts(case, inputs):
    """y [T, D] one slot after the other, through autograd."""
    rows = []
    for t, choices in enumerate(case.ids):
        y = inputs["x"][t] * 0
        for k, e in enumerate(choices):
            if not 0 <= e < case.num_experts:
                continue
            score = inputs["scores"][t, k].to(y.dtype) if case.scored else 1
            x = inputs["x"][t]
            y = y + (plain_expert(case, inputs, e, score * x) if case.score_before else score * plain_expert(case, inputs, e, x))
        rows.append(y)
    return torch.stack(rows)


def run_plain(case, inputs, dtype, dy):
    copies = {n: t.detach().to(dtype).requires_grad_() for n, t in inputs.items()}
    return results_of(plain_experts(case, copies), copies, dy.to(dtype))


def results_of(y, inputs, dy):
    """name -> y and every gradient. An input that is not reached has a gradient of zero."""
    gradients = torch.autograd.grad(y, list(inputs.values()), dy, allow_unused=True)
    pairs = zip(inputs, gradients)
    return {"y": y.detach()} | {"d" + n: torch.zeros_like(inputs[n]) if g is None else g for n, g in pairs}


def drawn_plain_errors(case, dtype, dy, num_draws=40):
    """name -> the largest error of plain computations over other inputs: one draw of few rows samples it badly."""
    errors = {}
    for draw in range(1, num_draws + 1):
        inputs = make_inputs(dataclasses.replace(case, seed=case.seed + 1000 * draw), dtype)
        plain, exact = (run_plain(case, inputs, d, dy) for d in (dtype, torch.float64))
        for name, want in exact.items():
            if want.numel() > 0:
                error = float((plain[name].double() - want).abs().max())
                errors[name] = max(errors.get(name, 0.0), error)
    return errors


def assert_rows(test, actual, plain, exact, drawn_errors=None):
    """Every tensor of `actual` against the plain same-dtype and the fp64 computation.

    drawn_errors() -> name -> plain error: asked when the plain error of these inputs is exceeded."""
    test.assertEqual(list(actual), list(exact))
    for name, want in exact.items():
        got = actual[name]
        test.assertEqual(got.shape, want.shape, name)
        test.assertTrue(bool(torch.isfinite(got).all()), f"{name} is not finite")
        if got.numel() == 0:
            continue
        dtype = got.dtype
        if dtype == torch.float64:
            error = (got - want).abs().max()
            test.assertLessEqual(float(error), 1e-12 * float(want.abs().max()), name)
            continue
        width = want.shape[-1]
        got, same, want = (t.detach().double().reshape(-1, width) for t in (got, plain[name], want))
        largest = want.abs().amax(1)
        finfo = torch.finfo(dtype)
        ulp = torch.where(largest > 0, finfo.eps * torch.exp2(torch.floor(torch.log2(largest))), 0)
        bound = 2 * (same - want).abs().max() + 2 * ulp
        error = (got - want).abs().amax(1)
        if drawn_errors is not None and bool((error > bound).any()):
            bound = 2 * drawn_errors()[name] + 2 * ulp
        worst = int((error - bound).argmax())
        test.assertTrue(bool((error <= bound).all()), f"{name} row {worst}: error {error[worst]:g}, bound {bound[worst]:g}")
        zero = (largest == 0) & (same.abs().amax(1) == 0)
        test.assertTrue(bool((got[zero] == 0).all()), f"{name}: a row that must be zero is not")
