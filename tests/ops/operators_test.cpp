// The registered operators through the dispatcher: for every case of the kernels the very bits that
// the kernels give for the same memory; and what is refused before any work.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "base/error_word.h"
#include "support/kernels/cases.h"
#include "support/kernels/stored.h"

namespace amoeba::test {
namespace {

using kernels::DType;
using Stack = torch::jit::Stack;

// LibTorch moves the tensors out of a list that it hands to an operator of the stable ABI, so every
// call gets lists of its own.
Stack call(const char* name, Stack stack, const char* overload = "") {
  for (c10::IValue& value : stack)
    if (value.isTensorList()) value = value.toTensorVector();
  c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).callBoxed(&stack);
  return stack;
}

at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return at::kDouble;
    case DType::kF32:
      return at::kFloat;
    case DType::kF16:
      return at::kHalf;
    case DType::kBF16:
      return at::kBFloat16;
    case DType::kI32:
      return at::kInt;
    case DType::kI64:
      return at::kLong;
  }
  return at::kFloat;
}

// The memory of a view, not a copy.
at::Tensor tensor_of(const kernels::View& view, int64_t rank) {
  const at::IntArrayRef size(view.size, static_cast<size_t>(rank));
  if (view.data == nullptr) return at::empty(size, scalar_type(view.dtype));
  return at::from_blob(view.data, size, at::IntArrayRef(view.stride, static_cast<size_t>(rank)),
                       at::TensorOptions(scalar_type(view.dtype)));
}

at::Tensor int32_tensor(const int32_t* data, at::IntArrayRef size) {
  if (data == nullptr) return at::empty(size, at::kInt);
  return at::from_blob(const_cast<int32_t*>(data), size, at::TensorOptions(at::kInt));
}

const char* name_of(kernels::GateUpLayout layout) {
  switch (layout) {
    case kernels::GateUpLayout::kSeparate:
      return "separate";
    case kernels::GateUpLayout::kConcatenated:
      return "concatenated";
    case kernels::GateUpLayout::kInterleaved:
      return "interleaved";
  }
  return "";
}

const char* name_of(kernels::Save save) {
  switch (save) {
    case kernels::Save::kPreActivations:
      return "pre_activations";
    case kernels::Save::kPreActivationsFp8:
      return "pre_activations_fp8";
    case kernels::Save::kNothing:
      return "nothing";
  }
  return "";
}

// A case's memory as the arguments of the operators.
struct Operands {
  Operands(const KernelCase& c, StoredExperts& stored) {
    const kernels::ExpertsArguments a = stored.arguments();
    const size_t num_parts = c.options.layout == kernels::GateUpLayout::kSeparate ? 2 : 1;
    const at::Tensor x = tensor_of(a.x, 2);
    std::optional<at::Tensor> scores, row_slot, slot_row, down_bias;
    if (c.has_slots && c.has_scores) scores = tensor_of(a.scores, 2);
    if (c.has_slots) {
      row_slot = int32_tensor(a.row_slot, {c.num_rows()});
      slot_row = int32_tensor(a.slot_row, {c.num_tokens(), c.num_choices});
    }
    if (c.has_biases) down_bias = tensor_of(a.down_bias, 2);
    std::vector<at::Tensor> gate_up, gate_up_bias;
    for (size_t part = 0; part < num_parts; ++part) {
      gate_up.push_back(tensor_of(a.gate_up[part], 3));
      if (c.has_biases) gate_up_bias.push_back(tensor_of(a.gate_up_bias[part], 2));
    }
    inputs = {x,
              scores,
              int32_tensor(a.offsets, {c.num_experts() + 1}),
              row_slot,
              slot_row,
              gate_up,
              gate_up_bias,
              tensor_of(a.down, 3),
              down_bias,
              std::string(name_of(c.options.layout)),
              c.options.transposed,
              std::string(c.options.activation == kernels::Activation::kSwiglu ? "swiglu"
                                                                               : "swiglu_clamped"),
              c.options.alpha,
              c.options.limit,
              c.options.score_before,
              std::string(name_of(c.options.save))};
  }

  Stack backward(const at::Tensor& dy, const at::Tensor& saved) const {
    Stack stack = {dy, saved};
    stack.insert(stack.end(), inputs.begin(), inputs.end());
    return stack;
  }

  Stack inputs;
};

void copy(const kernels::View& to, int64_t rank, const at::Tensor& from) {
  if (to.data == nullptr) {
    EXPECT_EQ(from.numel(), 0);
    return;
  }
  tensor_of(to, rank).copy_(from);
}

// Leaves the operators' results where the kernels would have written them.
void run_operators(const KernelCase& c, StoredExperts& stored) {
  const Operands operands(c, stored);
  const kernels::ExpertsGradients g = stored.gradients();
  const Stack forward = call("amoeba::experts_forward", operands.inputs);
  copy(stored.y(), 2, forward[0].toTensor());
  EXPECT_EQ(forward[2].toTensor().item<int32_t>(), 0) << c;

  const size_t num_parts = c.options.layout == kernels::GateUpLayout::kSeparate ? 2 : 1;
  const at::Tensor dy = tensor_of(stored.dy(), 2);
  Stack stack = operands.backward(dy, forward[1].toTensor());
  const bool has_scores = c.has_slots && c.has_scores;
  if (!g.accumulate) {
    const bool biases = c.has_biases;
    stack.push_back(std::vector<bool>{true, has_scores, true, biases, true, biases});
    const Stack results = call("amoeba::experts_backward", stack);
    copy(g.dx, 2, results[0].toTensor());
    copy(g.dscores, 2, results[1].toTensor());
    for (size_t part = 0; part < num_parts; ++part) {
      copy(g.dgate_up[part], 3, results[2].toTensorList()[part]);
      if (biases) copy(g.dgate_up_bias[part], 2, results[3].toTensorList()[part]);
    }
    copy(g.ddown, 3, results[4].toTensor());
    if (biases) copy(g.ddown_bias, 2, results[5].toTensor());
    return;
  }
  std::vector<at::Tensor> dgate_up, dgate_up_bias;
  for (size_t part = 0; part < num_parts; ++part) {
    dgate_up.push_back(tensor_of(g.dgate_up[part], 3));
    if (c.has_biases) dgate_up_bias.push_back(tensor_of(g.dgate_up_bias[part], 2));
  }
  std::optional<at::Tensor> ddown_bias;
  if (c.has_biases) ddown_bias = tensor_of(g.ddown_bias, 2);
  for (const c10::IValue& value : Stack{dgate_up, dgate_up_bias, tensor_of(g.ddown, 3), ddown_bias})
    stack.push_back(value);
  const Stack results = call("amoeba::experts_backward", stack, "accumulate");
  copy(g.dx, 2, results[0].toTensor());
  copy(g.dscores, 2, results[1].toTensor());
}

TEST(Operators, GiveTheBitsOfTheKernels) {
  constexpr DType kDTypes[] = {DType::kF64, DType::kF32, DType::kBF16, DType::kF16};
  for (size_t i = 0; i < kernel_cases().size(); ++i) {
    const KernelCase& c = kernel_cases()[i];
    for (size_t j = i; j < i + 2; ++j) {  // two dtypes a case
      const DType dtype = kDTypes[j % std::size(kDTypes)];
      const KernelValues values = make_values(c, dtype);
      const KernelValues previous = make_previous(c, c.gradient_dtype(dtype));
      const KernelResults expected = run_cpu("auto", c, dtype, values, previous);
      StoredExperts stored(c, dtype, values, previous);
      run_operators(c, stored);
      EXPECT_EQ(stored.damage(), "") << c;
      EXPECT_EQ(compare_exact(c, dtype, stored.results(), expected), "") << c;
    }
  }
}

TEST(Operators, RouteAsANaiveSearchDoes) {
  for (const KernelCase& c : kernel_cases()) {
    if (!c.has_slots) continue;
    const KernelValues values = make_values(c, DType::kF32);
    StoredExperts stored(c, DType::kF32, values, make_previous(c, DType::kF32));
    const Routing want = naive_routing(c, values);
    const Stack got = call("amoeba::route", {tensor_of(stored.expert_ids(), 2), c.num_experts()});
    const auto expect_list = [&](size_t i, const std::vector<int32_t>& list) {
      const at::Tensor tensor = got[i].toTensor().reshape(-1);
      EXPECT_TRUE(at::equal(tensor, int32_tensor(list.data(), {static_cast<int64_t>(list.size())})))
          << "result " << i << " " << c;
    };
    expect_list(0, want.counts);
    expect_list(1, want.offsets);
    expect_list(2, want.row_slot);
    expect_list(3, want.slot_row);
    EXPECT_EQ(got[4].toTensor().item<int32_t>(), c.num_bad > 0 ? kErrorBadId : 0) << c;
  }
}

TEST(Operators, SetTheErrorWordForOffsetsThatContradictTheRows) {
  const at::Tensor weight = at::zeros({2, 4, 3}), x = at::zeros({5, 3});
  at::Tensor offsets = at::zeros({3}, at::kInt);
  offsets[2] = 6;
  const Stack results = call(
      "amoeba::experts_forward",
      {x, c10::IValue(), offsets, c10::IValue(), c10::IValue(), std::vector<at::Tensor>{weight},
       std::vector<at::Tensor>{}, at::zeros({2, 3, 2}), c10::IValue(), std::string("concatenated"),
       false, std::string("swiglu"), 1.0, 7.0, false, std::string("nothing")});
  EXPECT_EQ(results[2].toTensor().item<int32_t>(), kErrorCounts);
  EXPECT_TRUE(at::equal(results[0].toTensor(), at::zeros({5, 3})));
}

TEST(Operators, ListEveryVariantWithItsReason) {
  const KernelCase& c = kernel_cases().front();
  StoredExperts stored(c, DType::kF64, make_values(c, DType::kF64), make_previous(c, DType::kF64));
  const Stack results = call("amoeba::experts_variants", Operands(c, stored).inputs);
  const auto lines = results[0].toList();
  ASSERT_EQ(lines.size(), kernels::cpu::variants().size());
  for (size_t i = 0; i < lines.size(); ++i) {
    const kernels::Variant& variant = kernels::cpu::variants()[i];
    EXPECT_EQ(lines.get(i).toStringRef(), std::string(variant.name) + "\t" +
                                              std::string(variant.summary) + "\t" +
                                              variant.supports(stored.arguments(), c.options));
  }
}

// -- Refusals -------------------------------------------------------------------------------------

struct Refusal {
  size_t argument;  // of experts_forward
  c10::IValue value;
  const char* message;
};

TEST(Operators, RefuseWithTheOperationWhatWasGotAndWhatWasWanted) {
  const at::Tensor x = at::zeros({5, 3});
  const Stack good = {x,
                      at::zeros({5, 2}),
                      at::zeros({5}, at::kInt),
                      at::zeros({10}, at::kInt),
                      at::zeros({5, 2}, at::kInt),
                      std::vector<at::Tensor>{at::zeros({4, 14, 3})},
                      std::vector<at::Tensor>{at::zeros({4, 14})},
                      at::zeros({4, 3, 7}),
                      at::zeros({4, 3}),
                      std::string("concatenated"),
                      false,
                      std::string("swiglu"),
                      1.0,
                      7.0,
                      false,
                      std::string("nothing")};
  EXPECT_NO_THROW(call("amoeba::experts_forward", good));
  const Refusal refusals[] = {
      {0, at::zeros({5, 3}, at::kInt), "x is int32 [5, 3] on cpu, want float64 or float32"},
      {0, at::zeros({3}), "x is float32 [3] on cpu, want"},
      {1, at::zeros({5, 2}, at::kHalf),
       "scores is float16 [5, 2] on cpu, want float32 or bfloat16"},
      {2, at::zeros({5}, at::kLong), "offsets is int64 [5] on cpu, want int32 [*] on cpu"},
      {3, at::zeros({9}, at::kInt), "row_slot is int32 [9] on cpu, want int32 [10] on cpu"},
      {3, c10::IValue(), "only slot_row is given, want both row_slot and slot_row, or neither"},
      {5, std::vector<at::Tensor>{at::zeros({4, 13, 3})},
       "gate_up[0] is float32 [4, 13, 3] on cpu, want float32 [4, 14, 3] on cpu"},
      {5, std::vector<at::Tensor>{}, "gate_up holds 0 tensors, want 1 for layout \"concatenated\""},
      {6, std::vector<at::Tensor>{at::zeros({4, 7})},
       "gate_up_bias[0] is float32 [4, 7] on cpu, want float32 [4, 14] on cpu"},
      {7, at::zeros({4, 3, 7}, at::kBFloat16),
       "down is bfloat16 [4, 3, 7] on cpu, want float32 [4, 3, *] on cpu"},
      {8, at::zeros({4, 3}, at::kDouble), "down_bias is float64 [4, 3] on cpu, want float32"},
      {9, std::string("stacked"), "layout is \"stacked\", want one of separate, concatenated"},
  };
  for (const Refusal& refusal : refusals) {
    Stack bad = good;
    bad[refusal.argument] = refusal.value;
    std::string message = "nothing was thrown";
    try {
      call("amoeba::experts_forward", bad);
    } catch (const std::exception& error) {
      message = error.what();
    }
    const std::string want = std::string("experts_forward: ") + refusal.message;
    EXPECT_EQ(message.substr(0, want.size()), want);
  }
}

}  // namespace
}  // namespace amoeba::test
