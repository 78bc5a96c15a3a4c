"""The operators on a GPU: values and every gradient of bf16 and fp16 cases, autograd, compile, capture."""

import sys
import unittest

import support
import torch

import amoeba

# Widths that the GPU kernels take; everything else as in the shared cases.
CASES = [support.dataclasses.replace(case, model_dim=64, hidden_dim=32) for case in support.CASES]


class Cuda(unittest.TestCase):
    def test_every_case_agrees_with_the_plain_computation(self):
        for case in CASES:
            for dtype in (torch.bfloat16, torch.float16):
                with self.subTest(case=case.name, dtype=dtype):
                    inputs = support.make_inputs(case, dtype)
                    dy = torch.randn(len(case.ids), case.model_dim, generator=torch.Generator().manual_seed(7)).to(dtype)
                    plain, exact = (support.run_plain(case, inputs, d, dy) for d in (dtype, torch.float64))
                    placed = {n: t.detach().cuda().requires_grad_() for n, t in inputs.items()}
                    (x, scores, gate_up, down), biases = support.pack(placed)
                    y = amoeba.experts(x, support.ids_of(case, "cuda"), scores, gate_up, down, **biases, **case.options)
                    actual = support.results_of(y, placed, dy.cuda())
                    support.assert_rows(self, {n: t.cpu() for n, t in actual.items()}, plain, exact)

    def layer(self):
        case = CASES[0]
        inputs = {n: t.detach().cuda().requires_grad_() for n, t in support.make_inputs(case, torch.bfloat16).items()}
        (x, scores, gate_up, down), _ = support.pack(inputs)
        return support.ids_of(case, "cuda"), x, scores, gate_up, down

    def test_compiles_to_one_graph(self):
        ids, x, scores, gate_up, down = self.layer()
        for mode in ("default", "reduce-overhead"):
            function = torch.compile(lambda x: amoeba.experts(x, ids, scores, gate_up, down), fullgraph=True, mode=mode)
            for _ in range(3):
                self.assertTrue(torch.equal(function(x), amoeba.experts(x, ids, scores, gate_up, down)))

    def test_forward_and_backward_are_captured_in_a_graph(self):
        ids, x, scores, gate_up, down = self.layer()

        def step():
            return torch.autograd.grad(amoeba.experts(x, ids, scores, gate_up, down).float().sum(), (x, *gate_up, down))

        want = step()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            got = step()
        graph.replay()
        for a, b in zip(got, want):
            self.assertTrue(torch.equal(a, b))

    def test_nothing_waits_for_the_gpu(self):
        for case in CASES:
            with self.subTest(case=case.name):
                inputs = {n: t.detach().cuda().requires_grad_() for n, t in support.make_inputs(case, torch.bfloat16).items()}
                (x, scores, gate_up, down), biases = support.pack(inputs)
                ids, leaves = support.ids_of(case, "cuda"), list(inputs.values())
                counts = torch.full((case.num_experts,), len(case.ids) // case.num_experts, device="cuda")

                def step():
                    tokens = amoeba.experts(x, ids, scores, gate_up, down, **biases, **case.options)
                    options = {n: v for n, v in case.options.items() if n != "score_before"}
                    rows = amoeba.experts_rows(x, counts, gate_up, down, **biases, **options)
                    torch.autograd.grad((tokens.float() + rows).sum(), leaves)

                step()  # first uses allocate
                torch.cuda.set_sync_debug_mode("error")
                try:
                    step()
                finally:
                    torch.cuda.set_sync_debug_mode("default")

    def test_bad_ids_are_reported(self):
        ids, x, scores, gate_up, down = self.layer()
        amoeba.experts(x, ids + 77, scores, gate_up, down)
        self.assertRaisesRegex(RuntimeError, "an expert id was outside", amoeba.check_errors)
        amoeba.check_errors()


if __name__ == "__main__":
    if not torch.cuda.is_available():
        print("skipped: no GPU is visible to torch")
        sys.exit(support.SKIPPED)
    support.main()
