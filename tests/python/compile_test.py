"""torch.compile, autocast and activation checkpointing around the experts."""

import functools
import gc
import unittest
import weakref

import support
import torch
import torch._inductor.config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import amoeba

# The cache on disk knows a graph by its operators' names: shapes of an older build would be taken.
torch._inductor.config.force_disable_caches = True
T, D, H, E, K = 12, 8, 5, 4, 3


class Layer(torch.nn.Module):
    """A router and its experts, as small as they can be."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def normal(*shape):
            return torch.nn.Parameter(torch.randn(shape, generator=generator).mul(0.3).to(dtype))

        self.router, self.gate_up, self.down = normal(E, D), normal(E, 2 * H, D), normal(E, D, H)

    def forward(self, x):
        scores, ids = (x @ self.router.T).float().softmax(-1).topk(K)
        return x + amoeba.experts(x, ids, scores, self.gate_up, self.down, layout="concatenated")


def tokens(count=T, dtype=torch.float32):
    return torch.randn(count, D, generator=torch.Generator().manual_seed(count)).to(dtype)


def train(layer, step_function, steps=4):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    losses = []
    for step in range(steps):
        loss = step_function(tokens(T + step % 2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


class Compile(unittest.TestCase):
    def setUp(self):
        torch.compiler.reset()

    def test_training_compiles_to_one_graph_and_learns_the_same(self):
        for dynamic in (False, True):
            for backend in ("aot_eager", "inductor"):
                with self.subTest(dynamic=dynamic, backend=backend):
                    eager, compiled = Layer(), Layer()
                    function = torch.compile(compiled, fullgraph=True, dynamic=dynamic, backend=backend)
                    want, got = train(eager, eager), train(compiled, function)
                    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
                    self.assertLess(got[-1], got[0])

    def test_grouped_rows_compile(self):
        layer, counts = Layer(), torch.tensor([3, 0, 5, 2])

        def function(x):
            return amoeba.experts_rows(x, counts, layer.gate_up, layer.down, layout="concatenated")

        x = tokens()
        got = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
        self.assertTrue(torch.equal(got, function(x)))

    def test_errors_are_recorded_from_a_graph_even_as_the_first_call(self):
        layer = Layer()

        def function(x, ids):
            return amoeba.experts(x, ids, None, layer.gate_up, layer.down, layout="concatenated")

        amoeba.errors._words.clear()
        compiled = torch.compile(function, fullgraph=True, backend="inductor")
        ids = torch.zeros(T, K, dtype=torch.int64)
        compiled(tokens(), ids)
        amoeba.check_errors()
        compiled(tokens(), ids + 77)
        self.assertRaisesRegex(RuntimeError, "an expert id was outside", amoeba.check_errors)
        compiled(tokens(), ids)
        amoeba.check_errors()


class Autocast(unittest.TestCase):
    def test_x_and_weights_are_cast_and_scores_are_not(self):
        layer, x = Layer(), tokens().requires_grad_()
        ids = torch.arange(T * K).reshape(T, K) % E
        scores = torch.rand(T, K, requires_grad=True)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype=dtype):
                y = amoeba.experts(x, ids, scores, layer.gate_up, layer.down, layout="concatenated")
            self.assertEqual(y.dtype, dtype)
            cast = [t.detach().to(dtype).requires_grad_() for t in (x, layer.gate_up, layer.down)]
            own_scores = scores.detach().requires_grad_()
            want = amoeba.experts(cast[0], ids, own_scores, *cast[1:], layout="concatenated")
            self.assertTrue(torch.equal(y, want))
            dy = torch.randn(T, D).to(dtype)
            leaves = (x, scores, layer.gate_up, layer.down)
            got = torch.autograd.grad(y, leaves, dy)
            expected = torch.autograd.grad(want, (cast[0], own_scores, *cast[1:]), dy)
            for leaf, gradient, other in zip(leaves, got, expected):
                self.assertEqual(gradient.dtype, leaf.dtype)
                self.assertTrue(torch.equal(gradient, other.to(leaf.dtype)))

    def test_fp64_is_left_alone(self):
        layer = Layer(torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = amoeba.experts(tokens(dtype=torch.float64), torch.zeros(T, K, dtype=torch.int64), None, layer.gate_up, layer.down, layout="concatenated")
        self.assertEqual(y.dtype, torch.float64)

    def test_autocast_compiles(self):
        layer = Layer()

        def function(x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return layer(x)

        got = torch.compile(function, fullgraph=True, backend="aot_eager")(tokens())
        self.assertTrue(torch.equal(got, function(tokens())))


class Forwards(TorchDispatchMode):
    """Counts forward calls of the experts and watches which of their results stay alive."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.results = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.amoeba.experts_forward.default:
            self.count += 1
            self.results += [(weakref.ref(t.untyped_storage()), t.untyped_storage().nbytes()) for t in result[:2]]
        return result

    def bytes_alive(self):
        gc.collect()
        return sum(size for storage, size in self.results if storage() is not None)


def save_experts(context, op, *args, **kwargs):
    kept = (torch.ops.amoeba.experts_forward.default, torch.ops.amoeba.route.default)
    return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE


class Checkpointing(unittest.TestCase):
    SAVED = amoeba.operators.saved_bytes(T * K, E, H, torch.empty(0), "pre_activations")
    Y = T * D * 4

    def run_once(self, wrap):
        layer, x = Layer(), tokens().requires_grad_()
        with Forwards() as forwards:
            y = wrap(lambda x: layer(x.tanh()), x)
            alive = forwards.bytes_alive()
            gradients = torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))
        return forwards.count, alive, gradients

    def test_selective_checkpointing_saves_the_experts_and_recomputes_the_rest(self):
        contexts = functools.partial(create_selective_checkpoint_contexts, save_experts)
        plain = self.run_once(lambda function, x: function(x))
        full = self.run_once(lambda function, x: checkpoint(function, x, use_reentrant=False))
        chosen = self.run_once(lambda function, x: checkpoint(function, x, use_reentrant=False, context_fn=contexts))
        self.assertEqual([plain[0], full[0], chosen[0]], [1, 2, 1])
        self.assertEqual([plain[1], full[1], chosen[1]], [self.SAVED, 0, self.Y + self.SAVED])
        for run in (full, chosen):
            for got, want in zip(run[2], plain[2]):
                self.assertTrue(torch.equal(got, want))

    def test_selective_checkpointing_compiles(self):
        layer, x = Layer(), tokens().requires_grad_()
        contexts = functools.partial(create_selective_checkpoint_contexts, save_experts)

        def function(x):
            return checkpoint(layer, x, use_reentrant=False, context_fn=contexts)

        want = torch.autograd.grad(layer(x).square().sum(), x)[0]
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), x)[0], want)


if __name__ == "__main__":
    support.main()
