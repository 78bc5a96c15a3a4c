"""amoeba.torchtitan: every backend against one expert after the other, as a function, as a module, with
DTensor parameters, through torchtitan's override registry; nothing upstream changes."""

import copy
import subprocess
import sys
import tempfile
import unittest

import support
import torch
import torch.nn.functional as F

BACKENDS = ("auto", "fused", "for_loop", "batched_mm_padded")
PARAMETERS = ("w1_EFD", "w2_EDF", "w3_EFD")


def plain(x, counts, w1, w2, w3):
    """The oracle, in fp64, gradients of everything by autograd."""
    y, start = [], 0
    for e, count in enumerate(counts.tolist()):
        rows = x[start : start + count]
        y.append((F.silu(rows @ w1[e].T) * (rows @ w3[e].T)) @ w2[e].T)
        start += count
    return torch.cat([*y, torch.zeros_like(x[start:])])


def make(num_experts, dim, hidden_dim, num_rows, backend, dtype=torch.float32, scale=0.02):
    from amoeba.torchtitan import make_experts_config

    generator = torch.Generator().manual_seed(5)
    module = make_experts_config(dim=dim, hidden_dim=hidden_dim, num_experts=num_experts, compute_backend=backend).build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    x = torch.randn(num_rows, dim, generator=generator).to(dtype)
    return module.to(dtype), x, torch.randn(num_rows, dim, generator=generator).to(dtype)


def run(module, x, counts, dy):
    """y and the gradients of x, w1, w2, w3; a missing gradient fails."""
    x = x.detach().requires_grad_()
    module.zero_grad(set_to_none=True)
    y = module(x, counts)
    y.backward(dy)
    return [y.detach(), x.grad] + [getattr(module, name).grad for name in PARAMETERS]


def expected(module, x, counts, dy):
    leaves = [t.detach().double().requires_grad_() for t in (x, *(getattr(module, n) for n in PARAMETERS))]
    y = plain(leaves[0], counts, *leaves[1:]) + 0 * sum(t.sum() for t in leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.double())]


class Values(unittest.TestCase):
    # (experts, dim, hidden, counts, rows after the last expert)
    SHAPES = [
        (6, 16, 24, [0, 3, 5, 1, 0, 7], 0),
        (4, 12, 20, [4, 0, 3, 2], 0),
        (4, 12, 20, [4, 0, 3, 2], 3),
        (4, 64, 128, [8, 0, 5, 3], 0),
        (5, 7, 11, [3, 0, 2, 1, 4], 1),
        (4, 12, 20, [0, 0, 0, 0], 0),
        (4, 12, 20, [0, 0, 0, 0], 2),
        (3, 12, 20, [], 0),
    ]

    def test_every_backend_agrees_with_the_loop_in_output_and_every_gradient(self):
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            for experts, dim, hidden, counts, tail in self.SHAPES:
                for backend in BACKENDS:
                    with self.subTest(backend=backend, counts=counts, tail=tail, dtype=dtype):
                        scale = 0.02 if dtype == torch.float32 else 0.2
                        module, x, dy = make(experts, dim, hidden, sum(counts) + tail, backend, dtype, scale)
                        counts_E = torch.tensor(counts, dtype=torch.int64)
                        want = expected(module, x, counts_E, dy)
                        x[sum(counts) :] = float("nan")  # tail rows are harmless
                        for got, exact in zip(run(module, x, counts_E, dy), want):
                            self.assertEqual(got.dtype, dtype)
                            atol = tolerance * max(1.0, float(exact.abs().max()) if exact.numel() else 1.0)
                            torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=atol)

    def test_grouped_mm_is_torchtitans_own_to_the_bit(self):
        from torchtitan.models.common.moe import GroupedExperts

        module, x, dy = make(6, 16, 24, 16, "grouped_mm")
        upstream = GroupedExperts.Config(dim=16, hidden_dim=24, num_experts=6).build()
        upstream.load_state_dict(module.state_dict())
        counts = torch.tensor([0, 3, 5, 1, 0, 7])
        for got, want in zip(run(module, x, counts, dy), run(upstream, x, counts, dy)):
            self.assertTrue(torch.equal(got, want))

    def test_the_backend_that_is_named_runs(self):
        from unittest import mock

        from amoeba import torchtitan as adapter

        calls = []
        spies = {name: (lambda *args, name=name, f=f: calls.append(name) or f(*args)) for name, f in adapter.ROW_BACKENDS.items()}
        counts = torch.tensor([4, 0, 3, 2])
        with mock.patch.dict(adapter.ROW_BACKENDS, spies):
            for backend in BACKENDS:
                module, x, _ = make(4, 12, 20, 9, backend)
                module(x, counts)
            self.assertEqual(calls, ["fused", "fused", "for_loop", "batched_mm_padded"])
            with mock.patch.object(adapter, "serves", lambda x: False):
                module, x, _ = make(6, 16, 24, 16, "auto")
                module(x, torch.tensor([0, 3, 5, 1, 0, 7]))
        self.assertEqual(len(calls), 4)

    def test_fused_compiles_to_one_graph(self):
        module, x, dy = make(4, 12, 20, 9, "fused")
        counts = torch.tensor([4, 0, 3, 2])
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for got, want in zip(run_compiled(compiled, module, x, counts, dy), run(module, x, counts, dy)):
            self.assertTrue(torch.equal(got, want))

    def test_weights_are_cast_to_the_dtype_of_x(self):
        module, x, dy = make(4, 12, 20, 9, "fused", scale=0.2)
        got = run(module, x.bfloat16(), torch.tensor([4, 0, 3, 2]), dy.bfloat16())
        self.assertEqual([t.dtype for t in got], [torch.bfloat16, torch.bfloat16] + 3 * [torch.float32])


def run_compiled(compiled, module, x, counts, dy):
    x = x.detach().requires_grad_()
    module.zero_grad(set_to_none=True)
    y = compiled(x, counts)
    y.backward(dy)
    return [y.detach(), x.grad] + [getattr(module, name).grad for name in PARAMETERS]


class Configuration(unittest.TestCase):
    def test_an_unknown_name_is_an_error_that_lists_the_names(self):
        from amoeba.torchtitan import make_experts_config

        message = "compute_backend is 'grouped', want one of auto, fused, grouped_mm, for_loop, batched_mm_padded"
        with self.assertRaisesRegex(ValueError, message):
            make_experts_config(dim=4, hidden_dim=8, num_experts=2, compute_backend="grouped")

    def test_auto_is_the_default(self):
        from amoeba.torchtitan import make_experts_config

        self.assertEqual(make_experts_config(dim=4, hidden_dim=8, num_experts=2).compute_backend, "auto")

    def routed(self):
        from torchtitan.models.common.config_utils import make_routed_experts_config
        from torchtitan.models.common.moe import RoutedExperts
        from torchtitan.models.common.token_dispatcher import LocalTokenDispatcher

        full = make_routed_experts_config(dim=12, hidden_dim=20, num_experts=4, top_k=2, param_init={}, comm_backend="standard")
        return RoutedExperts.Config(inner_experts=full.inner_experts, token_dispatcher=LocalTokenDispatcher.Config(num_experts=4, top_k=2))

    def test_one_override_line_selects_a_backend(self):
        from torchtitan.config.override import OverrideConfig, apply_overrides, parse_cli_imports

        from amoeba.torchtitan import AmoebaGroupedExperts

        for line, backend in (
            ("amoeba.torchtitan.experts", "auto"),
            ('amoeba.torchtitan.experts={"compute_backend": "for_loop"}', "for_loop"),
        ):
            config = self.routed()
            notes = apply_overrides(OverrideConfig(imports=parse_cli_imports([line])), config)
            self.assertEqual(len(notes), 1)
            self.assertIs(type(config.inner_experts), AmoebaGroupedExperts.Config)
            self.assertEqual(config.inner_experts.compute_backend, backend)
        config = self.routed()
        with self.assertRaisesRegex(ValueError, "want one of auto"):
            apply_overrides(OverrideConfig(imports=[("amoeba.torchtitan.experts", {"compute_backend": "x"})]), config)

    def test_the_routed_layer_of_torchtitan_gives_the_same_with_every_backend(self):
        from torchtitan.config.override import OverrideConfig, apply_overrides

        torch.manual_seed(0)
        x, scores, ids = torch.randn(2, 5, 12), torch.rand(2, 5, 2), torch.randint(0, 4, (2, 5, 2))
        counts = torch.bincount(ids.flatten(), minlength=4)
        outputs, state = [], None
        for backend in BACKENDS:
            config = self.routed()
            apply_overrides(OverrideConfig(imports=[("amoeba.torchtitan.experts", {"compute_backend": backend})]), config)
            layer = config.build()
            if state is None:
                state = {n: torch.randn_like(t) * 0.3 for n, t in layer.state_dict().items()}
            layer.load_state_dict(state)
            outputs.append(layer(x, scores, ids, counts))
        for output in outputs[1:]:
            torch.testing.assert_close(output, outputs[0], rtol=1e-5, atol=1e-6)

    def test_names_of_the_state_are_unchanged(self):
        from torchtitan.models.common.moe import GroupedExperts

        module, _, _ = make(4, 12, 20, 9, "fused")
        upstream = GroupedExperts.Config(dim=12, hidden_dim=20, num_experts=4).build()
        self.assertEqual({n: t.shape for n, t in module.state_dict().items()}, {n: t.shape for n, t in upstream.state_dict().items()})
        upstream.load_state_dict(module.state_dict())

    def test_importing_amoeba_changes_nothing_upstream(self):
        code = """
import sys
import amoeba
assert "torchtitan" not in sys.modules and "transformers" not in sys.modules, "amoeba imports a framework"
import torchtitan.models.common.moe as moe
before = {name: dict(vars(value)) for name, value in vars(moe).items() if isinstance(value, type)}
import amoeba.torchtitan
after = {name: dict(vars(value)) for name, value in vars(moe).items() if isinstance(value, type)}
assert before == after, "a class of torchtitan changed"
from torchtitan.config import override
assert [*sys.modules["torchtitan.config.override"]._REGISTRY] == ["amoeba.torchtitan.experts"]
"""
        subprocess.run([sys.executable, "-c", code], check=True)


class DebugModel(unittest.TestCase):
    """torchtitan's DeepSeek-V3 debug model on the CPU, its attention replaced by SDPA (flex attention has no
    CPU backward)."""

    def losses(self, backend, steps=4):
        from torchtitan.config.override import OverrideConfig, apply_overrides
        from torchtitan.models.common.attention import ScaledDotProductAttention
        from torchtitan.models.deepseek_v3 import model_registry

        config = model_registry("debugmodel").model
        for layer in config.layers:
            layer.attention.inner_attention = ScaledDotProductAttention.Config()
        if backend is not None:
            imports = [("amoeba.torchtitan.experts", {"compute_backend": backend})]
            self.assertGreater(len(apply_overrides(OverrideConfig(imports=imports), config)), 1)
        torch.manual_seed(0)
        model = config.build()
        with torch.no_grad():
            model.init_weights(buffer_device=None)
        optimizer = torch.optim.AdamW(model.parameters(), lr=8e-4)
        tokens = torch.randint(0, 64, (2, 33), generator=torch.Generator().manual_seed(1))
        positions = torch.arange(32).repeat(2, 1)
        losses = []
        for _ in range(steps):
            logits = model(tokens[:, :-1], positions)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def test_it_trains_with_every_backend_and_the_losses_agree(self):
        upstream = self.losses(None)
        self.assertEqual(self.losses("grouped_mm"), upstream)
        loop = self.losses("for_loop")
        self.assertLess(loop[-1], 0.9 * loop[0])
        for got, want in zip(loop, upstream):
            self.assertAlmostEqual(got, want, delta=0.01 * want)  # upstream's experts compute in bf16
        for backend in ("fused", "batched_mm_padded"):
            for got, want in zip(self.losses(backend), loop):
                self.assertAlmostEqual(got, want, delta=1e-4 * want)


class Distributed(unittest.TestCase):
    def test_dtensor_parameters_on_a_mesh_of_one_rank(self):
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard, distribute_tensor

        with tempfile.TemporaryDirectory() as folder:
            dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
            try:
                mesh = init_device_mesh("cpu", (1,))
                for experts, dim, hidden, counts in ((4, 12, 20, [4, 0, 3, 2]), (4, 12, 20, [0, 0, 0, 0]), (3, 12, 20, [])):
                    for backend in BACKENDS:
                        with self.subTest(backend=backend, counts=counts):
                            module, x, dy = make(experts, dim, hidden, sum(counts), backend)
                            counts_E = torch.tensor(counts, dtype=torch.int64)
                            want = run(copy.deepcopy(module), x, counts_E, dy)
                            for name in PARAMETERS:
                                sharded = distribute_tensor(getattr(module, name).detach(), mesh, [Shard(0)])
                                setattr(module, name, torch.nn.Parameter(sharded))
                            got = run(module, x, counts_E, dy)
                            self.assertFalse(isinstance(got[0], DTensor))
                            for gradient, other in zip(got[2:], want[2:]):
                                self.assertIsInstance(gradient, DTensor)
                                self.assertTrue(torch.equal(gradient.full_tensor(), other))
                            self.assertTrue(torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]))
            finally:
                dist.destroy_process_group()

    def test_type_checking_passes_with_every_backend(self):
        import spmd_types as spmd
        import torch.distributed as dist
        from torchtitan.distributed.parallel_dims import ParallelDims
        from torchtitan.distributed.utils import get_spmd_context

        counts = [4, 0, 3, 2]
        dist.init_process_group("fake", rank=0, world_size=4)
        try:
            dims = ParallelDims(dp_replicate=1, dp_shard=4, cp=1, tp=1, pp=1, ep=1, world_size=4, spmd_backend="spmd_types")
            checked = get_spmd_context(parallel_dims=dims, spmd_typechecking=True)
            for backend in (*BACKENDS, "grouped_mm"):
                with self.subTest(backend=backend):
                    module, x, dy = make(4, 16, 24, sum(counts), backend)
                    want = run(copy.deepcopy(module), x, torch.tensor(counts), dy)
                    counts_E = torch.tensor(counts)
                    x.requires_grad_()
                    with checked(), spmd.local():
                        for tensor in (x, dy):
                            spmd.assert_type(tensor, {"dp": spmd.V})
                        for parameter in module.parameters():
                            spmd.assert_type(parameter, {"dp": spmd.R})
                        spmd.assert_type(counts_E, {"dp": spmd.P})
                        y = module(x, counts_E)
                        self.assertEqual([*spmd.get_local_type(y).values()], [spmd.V])
                        self.assertEqual([*spmd.get_local_type(counts_E).values()], [spmd.P])
                        y.backward(dy)
                    got = [y.detach(), x.grad] + [getattr(module, name).grad for name in PARAMETERS]
                    for one, other in zip(got, want):
                        self.assertTrue(torch.equal(one, other))
        finally:
            dist.destroy_process_group()


if __name__ == "__main__":
    support.main("torchtitan")
