"""torch.ops.amoeba.* as PyTorch sees them: opcheck, gradcheck, output_mask, aliasing, accumulation,
double backward, and what a call that needs less does not pay."""

import unittest

import support
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import amoeba

OPS = torch.ops.amoeba
GPT_OSS = next(case for case in support.CASES if case.name == "gpt-oss")
CONCATENATED = next(case for case in support.CASES if case.name == "concatenated")


class Calls(TorchDispatchMode):
    """Records the arguments and results of the operators that are called inside."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "amoeba":
            self.seen.append((func, kwargs or {}, result))
        return result

    def of(self, name):
        return [entry for entry in self.seen if entry[0]._opname == name]


def detached(value):
    if isinstance(value, torch.Tensor):
        return value.detach()
    return [detached(item) for item in value] if isinstance(value, (list, tuple)) else value


def forward_arguments(case, dtype=torch.float32, save="pre_activations", requires_grad=True):
    inputs = support.make_inputs(case, dtype)
    (x, scores, gate_up, down), biases = support.pack(inputs)

    def listed(tensors):
        return [] if tensors is None else list(tensors) if isinstance(tensors, tuple) else [tensors]

    _, offsets, row_slot, slot_row, _ = OPS.route(support.ids_of(case), case.num_experts)
    args = (x, scores, offsets, row_slot, slot_row, listed(gate_up), listed(biases["gate_up_bias"]), down, biases["down_bias"])
    return args if requires_grad else tuple(detached(a) for a in args), case.options | {"save": save}


def backward_arguments(case, dtype=torch.float32):
    args, options = forward_arguments(case, dtype, requires_grad=False)
    _, saved, _ = OPS.experts_forward(*args, **options)
    return (torch.randn_like(args[0]), saved, *args), options


def storages(value):
    if isinstance(value, torch.Tensor):
        return {value.untyped_storage().data_ptr()} - {0}
    return set().union(*map(storages, value)) if isinstance(value, (list, tuple)) else set()


class Registration(unittest.TestCase):
    def check(self, op, args, kwargs):
        results = torch.library.opcheck(op, args, kwargs)
        self.assertEqual(set(results.values()), {"SUCCESS"})
        self.assertEqual(len(results), 4)

    def test_opcheck_route(self):
        self.check(OPS.route.default, (support.ids_of(GPT_OSS), 5), {})

    def test_opcheck_forward(self):
        for case in support.CASES:
            for save in ("pre_activations", "nothing"):
                with self.subTest(case=case.name, save=save):
                    self.check(OPS.experts_forward.default, *forward_arguments(case, save=save))

    def test_opcheck_backward(self):
        for case in (GPT_OSS, CONCATENATED):
            args, options = backward_arguments(case)
            for mask in ([True] * 6, [False, True, False, False, True, False]):
                mask = [wanted and (case.bias or i not in (3, 5)) for i, wanted in enumerate(mask)]
                self.check(OPS.experts_backward.default, args, options | {"output_mask": mask})

    def test_opcheck_accumulate(self):
        args, options = backward_arguments(GPT_OSS)
        buffers = dict(
            dgate_up=[torch.zeros_like(t) for t in args[7]],
            dgate_up_bias=[torch.zeros_like(t) for t in args[8]],
            ddown=torch.zeros_like(args[9]),
            ddown_bias=torch.zeros_like(args[10]),
        )
        self.check(OPS.experts_backward.accumulate, args, options | buffers)


class Derivatives(unittest.TestCase):
    def test_gradcheck(self):
        for case in support.CASES:
            if case.name == "one hot expert":
                continue  # as many slots of one kind
            case = support.dataclasses.replace(case, ids=case.ids[:7], model_dim=4, hidden_dim=3)
            inputs = support.make_inputs(case, torch.float64)

            def function(*tensors, case=case, names=tuple(inputs)):
                (x, scores, gate_up, down), biases = support.pack(dict(zip(names, tensors)))
                return amoeba.experts(x, support.ids_of(case), scores, gate_up, down, **biases, **case.options)

            with self.subTest(case=case.name):
                self.assertTrue(torch.autograd.gradcheck(function, tuple(inputs.values())))

    def test_double_backward_is_refused(self):
        args, options = forward_arguments(GPT_OSS)
        y, _, _ = OPS.experts_forward(*args, **options)
        (dx,) = torch.autograd.grad(y.sum(), args[0], create_graph=True)
        with self.assertRaisesRegex(NotImplementedError, "no double backward through the experts"):
            dx.sum().backward()

    def test_two_backwards_of_one_graph_agree(self):
        args, options = forward_arguments(GPT_OSS)
        y, _, _ = OPS.experts_forward(*args, **options)
        first, second = (torch.autograd.grad(y.sum(), args[7], retain_graph=True) for _ in range(2))
        self.assertTrue(torch.equal(first[0], second[0]))


class WhatIsNotPaid(unittest.TestCase):
    def run_with(self, frozen):
        case = GPT_OSS
        inputs = support.make_inputs(case, torch.float32)
        for name in frozen:
            inputs[name].requires_grad_(False)
        (x, scores, gate_up, down), biases = support.pack(inputs)
        with Calls() as calls:
            y = amoeba.experts(x, support.ids_of(case), scores, gate_up, down, **biases, **case.options)
            y.sum().backward()
        return inputs, calls

    def test_frozen_tensors_have_no_gradient_computed(self):
        full, _ = self.run_with(())
        order = ["x", "scores", "gate_up", "gate_up_bias", "down", "down_bias"]
        for frozen in (order[2:], ["x"], ["scores", "gate_up"], ["down"], ["gate_up_bias", "x"]):
            with self.subTest(frozen=frozen):
                inputs, calls = self.run_with(frozen)
                [(_, kwargs, results)] = calls.of("experts_backward")
                self.assertEqual(list(kwargs["output_mask"]), [name not in frozen for name in order])
                for name, result in zip(order, results):
                    sizes = [t.numel() for t in result] if isinstance(result, (list, tuple)) else [result.numel()]
                    want = 0 if name in frozen else inputs[name].numel()
                    self.assertEqual(sum(sizes), want, name)
                    if name in frozen:
                        self.assertIsNone(inputs[name].grad)
                    else:
                        self.assertTrue(torch.equal(inputs[name].grad, full[name].grad), name)

    def test_nothing_is_saved_without_gradients(self):
        case = GPT_OSS
        inputs = support.make_inputs(case, torch.float32)
        (x, scores, gate_up, down), biases = support.pack(inputs)
        with Calls() as calls, torch.no_grad():
            amoeba.experts(x, support.ids_of(case), scores, gate_up, down, **biases, **case.options)
        [(_, _, (_, saved, _))] = calls.of("experts_forward")
        self.assertEqual(saved.numel(), 0)

    def test_size_of_saved(self):
        for dtype, bytes_each in ((torch.float32, 4), (torch.bfloat16, 2)):
            args, options = forward_arguments(GPT_OSS, dtype)
            _, saved, _ = OPS.experts_forward(*args, **options)
            rows = args[4].numel() + 15 * GPT_OSS.num_experts
            self.assertEqual(saved.numel(), rows * 2 * GPT_OSS.hidden_dim * bytes_each + 512)
            _, saved, _ = OPS.experts_forward(*args, **(options | {"save": "nothing"}))
            self.assertEqual(saved.numel(), 0)


class Memory(unittest.TestCase):
    def test_no_result_aliases_an_argument_or_another_result(self):
        args, options = forward_arguments(GPT_OSS, requires_grad=False)
        calls = [
            (args, OPS.experts_forward(*args, **options)),
            ((support.ids_of(GPT_OSS),), OPS.route(support.ids_of(GPT_OSS), 5)),
        ]
        args, options = backward_arguments(GPT_OSS)
        calls.append((args, OPS.experts_backward(*args, **options, output_mask=[True] * 6)))
        for inputs, results in calls:
            found = [storages(result) for result in results]
            self.assertEqual(len(set().union(*found)), sum(map(len, found)))
            self.assertFalse(set().union(*found) & storages(inputs))

    def test_accumulate_adds_to_the_buffers_in_fp32_or_their_dtype(self):
        for dtype, buffer_dtype in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)):
            args, options = backward_arguments(GPT_OSS, dtype)
            want = OPS.experts_backward(*args, **options, output_mask=[True] * 6)
            start = 3.0
            buffers = [torch.full(t.shape, start, dtype=buffer_dtype) for t in (args[7][0], args[8][0], args[9], args[10])]
            dx, dscores = OPS.experts_backward.accumulate(
                *args, **options, dgate_up=[buffers[0]], dgate_up_bias=[buffers[1]], ddown=buffers[2], ddown_bias=buffers[3]
            )
            self.assertTrue(torch.equal(dx, want[0]) and torch.equal(dscores, want[1]))
            step = torch.finfo(torch.bfloat16 if torch.bfloat16 in (dtype, buffer_dtype) else dtype).eps
            for buffer, gradient in zip(buffers, (want[2][0], want[3][0], want[4], want[5])):
                error = (buffer.double() - start - gradient.double()).abs()
                self.assertTrue(bool((error <= 2 * step * (start + gradient.double().abs())).all()))
                self.assertTrue(bool((buffer[3] == start).all()))  # an expert without rows adds nothing

    BACKWARD_REFUSALS = [
        (dict(dy=torch.zeros(3, 20)), r"dy is float32 \[3, 20\] on cpu, want float32 \[21, 20\]"),
        (dict(saved=torch.zeros(5, dtype=torch.uint8)), r"saved is uint8 \[5\] on cpu, want uint8 \[13760\]"),
        (dict(output_mask=[True] * 5), "output_mask has 5 elements, want 6"),
        (dict(scores=None), r"output_mask\[1\] asks for dscores, but scores is not given"),
        (dict(down_bias=None), r"output_mask\[5\] asks for ddown_bias, but down_bias is not given"),
        (dict(row_slot=None), "only slot_row is given, want both row_slot and slot_row, or neither"),
        (dict(offsets=torch.zeros(12, dtype=torch.int32)[::2]), r"offsets has strides \[2\], want contiguous memory"),
        (dict(offsets=torch.zeros(0, dtype=torch.int32)), r"offsets is empty, want \[E \+ 1\]"),
    ]

    def test_saved_names_the_variant_that_wrote_it(self):
        args, options = backward_arguments(GPT_OSS)
        args[1].view(torch.int64)[-1] = 99
        with self.assertRaisesRegex(RuntimeError, "saved ends with variant 99, want what experts_forward returned"):
            OPS.experts_backward(*args, **options, output_mask=[True] * 6)

    def test_x_restored_with_other_strides_gives_the_same_gradients(self):
        """What saved-tensor hooks do: x comes back contiguous, where another variant would be chosen."""
        args, options = forward_arguments(GPT_OSS, requires_grad=False)
        x = args[0].mT.contiguous().mT
        self.assertNotEqual(x.stride(), args[0].stride())
        _, saved, _ = OPS.experts_forward(x, *args[1:], **options)
        dy, mask = torch.randn_like(args[0]), [True] * 6
        want = OPS.experts_backward(dy, saved, x, *args[1:], **options, output_mask=mask)
        got = OPS.experts_backward(dy, saved, *args, **options, output_mask=mask)
        for a, b in zip(torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want)):
            self.assertTrue(torch.equal(a, b))

    def test_backward_refusals(self):
        names = ["dy", "saved", "x", "scores", "offsets", "row_slot", "slot_row", "gate_up", "gate_up_bias", "down", "down_bias"]
        args, options = backward_arguments(GPT_OSS)
        given = dict(zip(names, args)) | options | {"output_mask": [True] * 6}
        for change, message in self.BACKWARD_REFUSALS:
            with self.subTest(message=message), self.assertRaisesRegex(RuntimeError, "experts_backward: " + message):
                OPS.experts_backward(**(given | change))

    def test_accumulate_refusals(self):
        args, options = backward_arguments(GPT_OSS)
        good = dict(zip(("dgate_up", "dgate_up_bias", "ddown", "ddown_bias"), ([torch.zeros_like(args[7][0])], [torch.zeros_like(args[8][0])], torch.zeros_like(args[9]), torch.zeros_like(args[10]))))
        refusals = [
            (dict(ddown=good["ddown"].half()), r"ddown is float16 .*, want float32"),
            (dict(ddown_bias=None), "ddown_bias holds 0 tensors, want 1"),
            (dict(dgate_up_bias=[]), "dgate_up_bias holds 0 tensors, want 1"),
            (dict(ddown=torch.zeros(()).expand(args[9].shape)), r"ddown has strides \[0, 0, 0\], want elements that do not overlap"),
            (dict(dgate_up=[good["dgate_up"][0].mT]), r"dgate_up is float32 \[5, 24, 20\] on cpu, want float32 \[5, 20, 24\]"),
        ]
        for change, message in refusals:
            with self.subTest(message=message), self.assertRaisesRegex(RuntimeError, "experts_backward.accumulate: " + message):
                OPS.experts_backward.accumulate(*args, **options, **(good | change))


class Variants(unittest.TestCase):
    def test_reasons(self):
        for dtype in (torch.float64, torch.bfloat16):
            (x, scores, gate_up, down), biases = support.pack(support.make_inputs(GPT_OSS, dtype))
            options = {n: v for n, v in GPT_OSS.options.items()}
            found = amoeba.variants(x, support.ids_of(GPT_OSS), scores, gate_up, down, **biases, **options)
            self.assertEqual(found[-1][0], "reference")
            self.assertEqual(found[-1][2], "")
            self.assertTrue(all(summary for _, summary, _ in found))


if __name__ == "__main__":
    support.main()
