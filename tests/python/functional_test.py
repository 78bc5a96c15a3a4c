"""amoeba.experts and amoeba.experts_rows: values and every gradient, refusals, errors, determinism."""

import functools
import unittest

import support
import torch

import amoeba

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def make_dy(case, dtype):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(len(case.ids), case.model_dim, generator=generator, dtype=torch.float64).to(dtype)


def run(case, inputs, dy, **changes):
    (x, scores, gate_up, down), biases = support.pack(inputs)
    ids = support.ids_of(case)
    y = amoeba.experts(x, ids, scores, gate_up, down, **biases, **(case.options | changes))
    return support.results_of(y, inputs, dy)


def spread(tensor):
    """The same values in memory with gaps and reversed order of dimensions."""
    reverse = tuple(range(tensor.dim()))[::-1]
    room = torch.full([size * 2 for size in tensor.permute(reverse).shape], float("nan"), dtype=tensor.dtype)
    view = room[tuple(slice(None, None, 2) for _ in reverse)].permute(reverse)
    return view.copy_(tensor.detach()).requires_grad_()


class Values(unittest.TestCase):
    def test_every_case_and_dtype_agrees_with_the_plain_computation(self):
        for case in support.CASES:
            for dtype in DTYPES:
                with self.subTest(case=case.name, dtype=dtype):
                    inputs, dy = support.make_inputs(case, dtype), make_dy(case, dtype)
                    plain, exact = (support.run_plain(case, inputs, d, dy) for d in (dtype, torch.float64))
                    drawn = functools.partial(support.drawn_plain_errors, case, dtype, dy)
                    support.assert_rows(self, run(case, inputs, dy), plain, exact, drawn)

    def test_any_strides(self):
        for case in support.CASES:
            with self.subTest(case=case.name):
                inputs = {n: spread(t) for n, t in support.make_inputs(case, torch.float32).items()}
                dy = spread(make_dy(case, torch.float32)).detach()
                plain, exact = (support.run_plain(case, inputs, d, dy) for d in (torch.float32, torch.float64))
                support.assert_rows(self, run(case, inputs, dy), plain, exact)

    def test_expanded_dy_and_int32_ids(self):
        case = support.CASES[0]
        inputs = support.make_inputs(case, torch.float64)
        (x, scores, gate_up, down), _ = support.pack(inputs)
        y = amoeba.experts(x, support.ids_of(case, dtype=torch.int32), scores, gate_up, down)
        dy = torch.ones((), dtype=torch.float64).expand(y.shape)
        exact = support.run_plain(case, inputs, torch.float64, dy)
        support.assert_rows(self, support.results_of(y, inputs, dy), exact, exact)

    def test_what_is_saved_changes_nothing(self):
        for case in support.CASES:
            inputs, dy = support.make_inputs(case, torch.float32), make_dy(case, torch.float32)
            plain, exact = (support.run_plain(case, inputs, d, dy) for d in (torch.float32, torch.float64))
            with self.subTest(case=case.name):
                drawn = functools.partial(support.drawn_plain_errors, case, torch.float32, dy)
                support.assert_rows(self, run(case, inputs, dy, save="nothing"), plain, exact, drawn)

    def test_backward_clears_no_memory(self):
        case = support.CASES[0]
        (x, scores, gate_up, down), _ = support.pack(support.make_inputs(case, torch.float32))
        y = amoeba.experts(x, support.ids_of(case), scores, gate_up, down)
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)
        try:
            with torch.autograd.profiler.profile() as profile:
                y.backward(make_dy(case, torch.float32))
        finally:
            torch.use_deterministic_algorithms(deterministic)
        names = {event.name for event in profile.function_events}
        self.assertIn("amoeba::experts_backward", names)
        self.assertNotIn("aten::zeros", names)

    def test_no_gradient_of_the_output_gives_none(self):
        class Cut(torch.autograd.Function):
            forward = staticmethod(lambda ctx, y: y.sum())
            backward = staticmethod(lambda ctx, _: None)

        case = support.CASES[0]
        inputs = support.make_inputs(case, torch.float32)
        (x, scores, gate_up, down), _ = support.pack(inputs)
        Cut.apply(amoeba.experts(x, support.ids_of(case), scores, gate_up, down)).backward()
        self.assertEqual([name for name, tensor in inputs.items() if tensor.grad is not None], [])

    def test_threads_change_no_bit(self):
        case = support.Case("many", tuple((i % 5, (i * 3 + 1) % 5) for i in range(97)), model_dim=33, hidden_dim=17)
        inputs, dy = support.make_inputs(case, torch.float32), make_dy(case, torch.float32)
        before = torch.get_num_threads()
        try:
            results = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(run(case, inputs, dy))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            for name, tensor in other.items():
                self.assertTrue(torch.equal(tensor, results[0][name]), name)

    def test_large_gradients_take_their_memory_again_and_alias_nothing(self):
        generator = torch.Generator().manual_seed(3)
        gate, up, down = (torch.randn(2, 2048, 2048, generator=generator).requires_grad_() for _ in range(3))
        x, ids = torch.randn(5, 2048, generator=generator), torch.tensor([[0], [1], [1], [0], [1]])

        def gradients():
            y = amoeba.experts(x, ids, torch.ones(5, 1), (gate, up), down)
            return torch.autograd.grad(y.sum(), (gate, up, down))

        first = gradients()
        expected, places = [g.clone() for g in first], {g.data_ptr() for g in first}
        second = gradients()
        self.assertFalse(places & {g.data_ptr() for g in second})
        for got, want in zip(first + second, expected + expected):
            self.assertTrue(torch.equal(got, want))
        del first, got
        third = gradients()
        self.assertLessEqual({g.data_ptr() for g in third}, places)
        for got, want in zip(third, expected):
            self.assertTrue(torch.equal(got, want))

    def test_empty_problems(self):
        for num_experts, tokens in ((0, 3), (4, 0), (0, 0)):
            with self.subTest(experts=num_experts, tokens=tokens):
                x, scores = torch.randn(tokens, 3, requires_grad=True), torch.rand(tokens, 2, requires_grad=True)
                gate_up, down = (torch.randn(num_experts, *s, requires_grad=True) for s in ((10, 3), (3, 5)))
                ids = torch.full((tokens, 2), -1)
                y = amoeba.experts(x, ids, scores, gate_up, down, layout="concatenated")
                inputs = dict(x=x, scores=scores, gate_up=gate_up, down=down)
                for name, result in support.results_of(y, inputs, torch.randn(tokens, 3)).items():
                    self.assertTrue(bool((result == 0).all()), name)


class Rows(unittest.TestCase):
    COUNTS = (3, 0, 2, 1)

    def rows_case(self, counts, tail):
        """The tokens entry that computes the same: one slot a row, tail rows skipped."""
        ids = [(e,) for e, count in enumerate(counts) for _ in range(count)] + [(-1,)] * tail
        return support.Case("rows", tuple(ids), num_experts=len(counts), scored=False, layout="concatenated", bias=True)

    def test_grouped_rows_and_their_tail(self):
        for dtype in (torch.int32, torch.int64):
            case = self.rows_case(self.COUNTS, tail=2)
            inputs, dy = support.make_inputs(case, torch.float32), make_dy(case, torch.float32)
            inputs["x"].data[-2:] = float("nan")  # harmless
            (x, _, gate_up, down), biases = support.pack(inputs)
            y = amoeba.experts_rows(x, torch.tensor(self.COUNTS, dtype=dtype), gate_up, down, layout=case.layout, **biases)
            actual = support.results_of(y, inputs, dy)
            clean = {n: t.detach().nan_to_num() for n, t in inputs.items()}
            plain, exact = (support.run_plain(case, clean, d, dy) for d in (torch.float32, torch.float64))
            support.assert_rows(self, actual, plain, exact)
        amoeba.check_errors()

    def test_bad_counts_are_reported_and_give_zeros(self):
        case = self.rows_case(self.COUNTS, tail=0)
        (x, _, gate_up, down), biases = support.pack(support.make_inputs(case, torch.float32))
        for counts in ([3, 0, 2, 2], [-1, 0, 2, 1], [2**40, 0, 0, 0], [2**62, 2**62, 2**62, 2**62]):
            with self.subTest(counts=counts):
                y = amoeba.experts_rows(x, torch.tensor(counts), gate_up, down, layout=case.layout, **biases)
                self.assertTrue(bool((y == 0).all()))
                self.assertRaisesRegex(RuntimeError, "counts were negative or summed to more", amoeba.check_errors)
                amoeba.check_errors()  # once


class Errors(unittest.TestCase):
    def test_bad_ids_are_skipped_and_reported_when_asked(self):
        case = support.Case("bad", ((0, 1), (99, 2), (-2, 0)))
        skipped = support.Case("skipped", ((0, 1), (-1, 2), (-1, 0)))
        inputs, dy = support.make_inputs(case, torch.float64), make_dy(case, torch.float64)
        actual = run(case, inputs, dy)
        for name, want in run(skipped, inputs, dy).items():
            self.assertTrue(torch.equal(actual[name], want), name)
        self.assertRaisesRegex(RuntimeError, r"an expert id was outside \[-1, E\]", amoeba.check_errors)
        amoeba.check_errors()

    def call(self, device="cpu", bad=0):
        x, weight, down = (torch.zeros(shape, device=device) for shape in ((3, 4), (2, 6, 4), (2, 4, 3)))
        ids = torch.zeros(3, 1, dtype=torch.int64, device=device) + bad
        return amoeba.experts(x, ids, None, weight, down, layout="concatenated")

    def test_a_first_call_without_gradients_does_not_spoil_later_ones(self):
        amoeba.errors._words.clear()
        with torch.inference_mode():
            self.call()
        self.call(bad=9)
        self.assertRaisesRegex(RuntimeError, "an expert id was outside", amoeba.check_errors)

    def test_tensors_without_data_give_shapes_and_no_errors(self):
        from torch._subclasses.fake_tensor import FakeTensorMode

        amoeba.errors._words.clear()
        self.assertEqual(self.call("meta").shape, (3, 4))
        with FakeTensorMode():
            self.assertEqual(self.call().shape, (3, 4))
        self.assertEqual(amoeba.errors._words, {})
        self.call()
        amoeba.check_errors()

    def test_every_bit_of_the_engine_has_a_meaning(self):
        import pathlib
        import re

        header = pathlib.Path(__file__).parents[2] / "src/base/error_word.h"
        bits = {1 << int(shift) for shift in re.findall(r"= 1 << (\d+)", header.read_text())}
        self.assertEqual(set(amoeba.errors.MEANINGS), bits)

    REFUSALS = [
        (dict(down=(5, 12, 20)), r"down is float32 \[5, 12, 20\] on cpu, want float32 \[5, 20, \*\] on cpu"),
        (dict(gate=(5, 5, 20)), r"gate_up\[0\] is float32 \[5, 5, 20\] on cpu, want float32 \[5, 12, 20\] on cpu"),
        (dict(up=(4, 12, 20)), r"gate_up\[1\] is .* want float32 \[5, 12, 20\]"),
        (dict(x=(21, 20, 1)), r"x is float32 \[21, 20, 1\] on cpu, want float64 or float32 or float16 or bfloat16 \[\*, \*\]"),
        (dict(scores=(21, 2)), r"scores is float32 \[21, 2\] on cpu, want float32 or bfloat16 \[21, 3\]"),
        (dict(x=(6, 20)), r"slot_row is int32 \[21, 3\] on cpu, want int32 \[6, \*\]"),
    ]

    def test_shapes_are_refused_before_any_work(self):
        case = support.CASES[0]
        for change, message in self.REFUSALS:
            with self.subTest(change=change):
                inputs = support.make_inputs(case, torch.float32)
                inputs |= {name: torch.zeros(shape) for name, shape in change.items()}
                (x, scores, gate_up, down), _ = support.pack(inputs)
                with self.assertRaisesRegex(RuntimeError, "experts_forward: " + message):
                    amoeba.experts(x, support.ids_of(case), scores, gate_up, down)

    def test_options_and_dtypes_are_refused(self):
        case = support.CASES[0]
        (x, scores, gate_up, down), _ = support.pack(support.make_inputs(case, torch.float32))
        ids = support.ids_of(case)
        refusals = [
            (dict(layout="fused"), 'layout is "fused", want one of separate, concatenated, interleaved'),
            (dict(layout="concatenated"), 'gate_up holds 2 tensors, want 1 for layout "concatenated"'),
            (dict(activation="gelu"), 'activation is "gelu", want one of swiglu, swiglu_clamped'),
            (dict(save="all"), 'save is "all", want one of pre_activations, pre_activations_fp8, nothing'),
            (dict(activation="swiglu_clamped", limit=0.0), "limit is 0, want > 0"),
            (dict(gate_up_bias=torch.zeros(5, 12)), "gate_up_bias holds 1 tensors, want 0 or 2"),
            (dict(down_bias=torch.zeros(5, 12)), r"down_bias is float32 \[5, 12\] on cpu, want float32 \[5, 20\]"),
        ]
        for change, message in refusals:
            with self.subTest(change=change), self.assertRaisesRegex(RuntimeError, message):
                amoeba.experts(x, ids, scores, gate_up, down, **change)
        with self.assertRaisesRegex(RuntimeError, r"down is float64 .*, want bfloat16"):
            amoeba.experts(x.bfloat16(), ids, scores, [w.bfloat16() for w in gate_up], down.double())
        with self.assertRaisesRegex(RuntimeError, r"route: expert_ids is float32 \[21, 3\] on cpu, want int32 or int64"):
            amoeba.experts(x, ids.float(), scores, gate_up, down)


if __name__ == "__main__":
    support.main()
