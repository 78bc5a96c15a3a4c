// Order inside an operator: read, check, allocate, run, write. Every result is fresh memory, so
// none aliases an argument or another result.
#include "ops/operators.h"

#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <string_view>

#include "amoeba/error.h"
#include "ops/problem.h"
#include "ops/stack.h"

namespace amoeba::ops {
namespace {

using kernels::DType;

int32_t* int32_data(const Tensor& tensor) { return static_cast<int32_t*>(tensor.data_ptr()); }

Tensor new_error_word(const Tensor& like) {
  Tensor error = new_tensor(like, {1}, DType::kI32);
  return torch::stable::zero_(error);
}

// A gradient: contiguous in the shape of the tensor, or of size 0 when it is not wanted.
struct Gradient {
  Tensor tensor;
  kernels::View view;
};

Gradient new_gradient(const Tensor& of, DType dtype, bool wanted) {
  if (!wanted) return {new_tensor(of, {0}, dtype), {}};
  Tensor tensor = new_tensor(of, shape_of(of), dtype);
  return {tensor, view_of(tensor, dtype)};
}

// One result for each tensor of a list, or an empty list when it is not wanted.
std::vector<Tensor> new_gradients(const std::vector<Tensor>& of, DType dtype, bool wanted,
                                  kernels::View* views) {
  std::vector<Tensor> tensors;
  for (size_t i = 0; wanted && i < of.size(); ++i) {
    const Gradient gradient = new_gradient(of[i], dtype, true);
    tensors.push_back(gradient.tensor);
    views[i] = gradient.view;
  }
  return tensors;
}

// `saved` has one size for all variants of a device, so that a compiler knows it from the shapes
// (as python/amoeba/operators.py does): the 2H pre-activations of each row in the dtype of x, or in
// fp8 with a scale for every 32, and what variants add for tiles and alignment.
int64_t saved_bytes(const Device& device, const ExpertsProblem& problem) {
  constexpr int64_t kColumnsOfScale = 32, kTail = 512;
  const kernels::Save save = problem.options.save;
  if (save == kernels::Save::kNothing) return 0;
  const int64_t columns = 2 * problem.arguments.hidden_dim;
  const int64_t row_bytes = save == kernels::Save::kPreActivationsFp8
                                ? columns + (columns + kColumnsOfScale - 1) / kColumnsOfScale
                                : columns * bytes_of(problem.dtype);
  const int64_t num_rows =
      problem.arguments.num_rows + device.extra_rows * problem.arguments.num_experts;
  return num_rows * row_bytes + kTail;
}

// Where memory is the host's, `saved` ends with the variant that wrote it: backward may see other
// strides (a hook stored and restored x) and must not read one variant's bytes as another's.
// Its place has no alignment: sizes may be odd.
char* variant_mark(const Tensor& saved) {
  return static_cast<char*>(saved.data_ptr()) + saved.numel() - sizeof(int64_t);
}

// A variant and its workspace.
struct Plan {
  const kernels::Variant* variant;
  kernels::WorkspaceSizes sizes;
};

Plan make_plan(const Device& device, const ExpertsProblem& problem, std::string_view name) {
  const kernels::Variant& variant = device.choose_variant(problem.arguments, problem.options, name);
  const Plan plan{&variant, device.workspace(variant, problem.arguments, problem.options)};
  const int64_t mark_bytes = device.is_host ? sizeof(int64_t) : 0;
  AMOEBA_ASSERT(plan.sizes.saved_bytes == 0 ||
                plan.sizes.saved_bytes + mark_bytes <= saved_bytes(device, problem));
  return plan;
}

Tensor new_saved(const Device& device, const ExpertsProblem& problem, const Plan& plan,
                 const Tensor& like) {
  const Tensor saved = new_bytes(like, saved_bytes(device, problem));
  if (device.is_host && saved.numel() > 0) {
    const int64_t index = plan.variant - device.variants().data();
    std::memcpy(variant_mark(saved), &index, sizeof(index));
  }
  return saved;
}

std::string_view saved_variant(const Device& device, const char* operation, const Tensor& saved) {
  if (!device.is_host || saved.numel() == 0) return "auto";
  const auto num_variants = static_cast<int64_t>(device.variants().size());
  int64_t index = 0;
  std::memcpy(&index, variant_mark(saved), sizeof(index));
  AMOEBA_CHECK(index >= 0 && index < num_variants, operation, ": saved ends with variant ", index,
               ", want what experts_forward returned");
  return device.variants()[static_cast<size_t>(index)].name;
}

// What backward takes besides the inputs, checked.
struct Backward {
  Tensor dy, saved;
  ExpertsInputs inputs;
  ExpertsProblem problem;
  const kernels::Variant* variant = nullptr;
  kernels::View dy_view;
  Tensor error;
  int64_t scratch_bytes = 0;
};

Backward read_backward(StackReader& reader) {
  Backward backward;
  backward.dy = reader.read<Tensor>();
  backward.saved = reader.read<Tensor>();
  backward.inputs = read_inputs(reader);
  return backward;
}

// Gradients come in any form, as what `.sum()` expands: variants may ask for rows in order.
Tensor in_order(const Tensor& dy, DType dtype) {
  constexpr uintptr_t kAlignment = 16;  // of vector and TMA loads
  if (dy.is_contiguous() && reinterpret_cast<uintptr_t>(dy.data_ptr()) % kAlignment == 0) return dy;
  Tensor copy = new_tensor(dy, shape_of(dy), dtype);
  return torch::stable::copy_(copy, dy);
}

void check_backward(const Device& device, const char* operation, Backward& backward) {
  const ExpertsInputs& inputs = backward.inputs;
  backward.problem = check_inputs(operation, inputs);
  ExpertsProblem& problem = backward.problem;
  check_tensor(operation, "dy", backward.dy, {{problem.dtype}, shape_of(inputs.x)}, inputs.x);
  backward.dy = in_order(backward.dy, problem.dtype);
  backward.dy_view = view_of(backward.dy, problem.dtype);
  backward.error = new_error_word(inputs.x);
  problem.arguments.error = int32_data(backward.error);
  check_bytes(operation, "saved", backward.saved, saved_bytes(device, problem), inputs.x);
  const Plan plan = make_plan(device, problem, saved_variant(device, operation, backward.saved));
  backward.variant = plan.variant;
  backward.scratch_bytes = plan.sizes.backward_scratch_bytes;
}

void run_backward(const Device& device, const Backward& backward,
                  const kernels::ExpertsGradients& gradients) {
  const Tensor scratch = new_bytes(backward.inputs.x, backward.scratch_bytes);
  device.experts_backward(*backward.variant, backward.problem.arguments, backward.problem.options,
                          backward.dy_view, backward.saved.data_ptr(), gradients,
                          scratch.data_ptr());
}

// Gradient buffers of the accumulating form: fp32 or the weights' dtype.
void check_buffers(const char* operation, const std::string& name,
                   const std::vector<Tensor>& buffers, const std::vector<Tensor>& of, DType dtype,
                   kernels::View* views) {
  AMOEBA_CHECK(buffers.size() == of.size(), operation, ": ", name, " holds ", buffers.size(),
               " tensors, want ", of.size());
  const std::vector<DType> dtypes =
      dtype == DType::kF32 ? std::vector{dtype} : std::vector{DType::kF32, dtype};
  for (size_t i = 0; i < of.size(); ++i) {
    const std::string element = buffers.size() == 1 ? name : cat(name, "[", i, "]");
    check_tensor(operation, element, buffers[i], {dtypes, shape_of(of[i])}, of[i]);
    check_no_overlap(operation, element, buffers[i]);
    views[i] = view_of(buffers[i], dtype_of(operation, element, buffers[i]));
  }
}

std::vector<Tensor> list_of(const std::optional<Tensor>& tensor) {
  if (tensor) return {*tensor};
  return {};
}

}  // namespace

void route(const Device& device, StableIValue* stack) {
  StackReader reader(stack);
  const Tensor expert_ids = reader.read<Tensor>();
  const int64_t num_experts = reader.read<int64_t>();
  const auto current = device.enter(expert_ids);

  check_tensor("route", "expert_ids", expert_ids, {{DType::kI32, DType::kI64}, {kAny, kAny}},
               expert_ids);
  AMOEBA_CHECK(num_experts >= 0 && num_experts < INT32_MAX, "route: num_experts is ", num_experts,
               ", want 0 to 2^31 - 2");
  const int64_t num_rows = expert_ids.numel();
  AMOEBA_CHECK(num_rows <= INT32_MAX, "route: expert_ids has ", num_rows,
               " slots, want less than 2^31");

  const Tensor counts = new_tensor(expert_ids, {num_experts}, DType::kI32);
  const Tensor offsets = new_tensor(expert_ids, {num_experts + 1}, DType::kI32);
  const Tensor row_slot = new_tensor(expert_ids, {num_rows}, DType::kI32);
  const Tensor slot_row = new_tensor(expert_ids, shape_of(expert_ids), DType::kI32);
  const Tensor error = new_error_word(expert_ids);

  kernels::RouteArguments arguments;
  arguments.expert_ids = view_of(expert_ids, dtype_of("route", "expert_ids", expert_ids));
  arguments.num_experts = num_experts;
  arguments.counts = int32_data(counts);
  arguments.offsets = int32_data(offsets);
  arguments.row_slot = int32_data(row_slot);
  arguments.slot_row = int32_data(slot_row);
  arguments.error = int32_data(error);
  device.route(arguments, expert_ids);
  write_results(stack, counts, offsets, row_slot, slot_row, error);
}

void experts_forward(const Device& device, StableIValue* stack) {
  StackReader reader(stack);
  const ExpertsInputs inputs = read_inputs(reader);
  const auto current = device.enter(inputs.x);

  ExpertsProblem problem = check_inputs("experts_forward", inputs);
  const Tensor error = new_error_word(inputs.x);
  problem.arguments.error = int32_data(error);
  const Plan plan = make_plan(device, problem, "auto");

  const Tensor y = new_tensor(inputs.x, shape_of(inputs.x), problem.dtype);
  const Tensor saved = new_saved(device, problem, plan, inputs.x);
  const Tensor scratch = new_bytes(inputs.x, plan.sizes.forward_scratch_bytes);
  device.experts_forward(*plan.variant, problem.arguments, problem.options,
                         view_of(y, problem.dtype), saved.data_ptr(), scratch.data_ptr());
  write_results(stack, y, saved, error);
}

void experts_backward(const Device& device, StableIValue* stack) {
  constexpr const char* kName = "experts_backward";
  StackReader reader(stack);
  Backward backward = read_backward(reader);
  const std::vector<bool> mask = reader.read<std::vector<bool>>();
  const auto current = device.enter(backward.inputs.x);

  check_backward(device, kName, backward);
  const ExpertsInputs& inputs = backward.inputs;
  AMOEBA_CHECK(mask.size() == 6, kName, ": output_mask has ", mask.size(),
               " elements, want 6: x, scores, gate_up, gate_up_bias, down, down_bias");
  const auto check_given = [&](size_t i, const char* name, bool given) {
    AMOEBA_CHECK(given || !mask[i], kName, ": output_mask[", i, "] asks for d", name, ", but ",
                 name, " is not given");
  };
  check_given(1, "scores", inputs.scores.has_value());
  check_given(3, "gate_up_bias", !inputs.gate_up_bias.empty());
  check_given(5, "down_bias", inputs.down_bias.has_value());

  const DType dtype = backward.problem.dtype;
  kernels::ExpertsGradients views;
  const Gradient dx = new_gradient(inputs.x, dtype, mask[0]);
  const Gradient dscores =
      new_gradient(inputs.scores.value_or(inputs.x), backward.problem.scores_dtype, mask[1]);
  const std::vector<Tensor> dgate_up =
      new_gradients(inputs.gate_up, dtype, mask[2], views.dgate_up);
  const std::vector<Tensor> dgate_up_bias =
      new_gradients(inputs.gate_up_bias, dtype, mask[3], views.dgate_up_bias);
  const Gradient ddown = new_gradient(inputs.down, dtype, mask[4]);
  const Gradient ddown_bias = new_gradient(inputs.down_bias.value_or(inputs.x), dtype, mask[5]);
  views.dx = dx.view;
  views.dscores = dscores.view;
  views.ddown = ddown.view;
  views.ddown_bias = ddown_bias.view;
  run_backward(device, backward, views);
  write_results(stack, dx.tensor, dscores.tensor, dgate_up, dgate_up_bias, ddown.tensor,
                ddown_bias.tensor);
}

void experts_backward_accumulate(const Device& device, StableIValue* stack) {
  constexpr const char* kName = "experts_backward.accumulate";
  StackReader reader(stack);
  Backward backward = read_backward(reader);
  const auto dgate_up = reader.read<std::vector<Tensor>>();
  const auto dgate_up_bias = reader.read<std::vector<Tensor>>();
  const auto ddown = reader.read<Tensor>();
  const auto ddown_bias = reader.read<std::optional<Tensor>>();
  const auto current = device.enter(backward.inputs.x);

  check_backward(device, kName, backward);
  const ExpertsInputs& inputs = backward.inputs;
  const DType dtype = backward.problem.dtype;
  kernels::ExpertsGradients views;
  check_buffers(kName, "dgate_up", dgate_up, inputs.gate_up, dtype, views.dgate_up);
  check_buffers(kName, "dgate_up_bias", dgate_up_bias, inputs.gate_up_bias, dtype,
                views.dgate_up_bias);
  check_buffers(kName, "ddown", {ddown}, {inputs.down}, dtype, &views.ddown);
  check_buffers(kName, "ddown_bias", list_of(ddown_bias), list_of(inputs.down_bias), dtype,
                &views.ddown_bias);

  const Gradient dx = new_gradient(inputs.x, dtype, true);
  const Gradient dscores = new_gradient(inputs.scores.value_or(inputs.x),
                                        backward.problem.scores_dtype, inputs.scores.has_value());
  views.dx = dx.view;
  views.dscores = dscores.view;
  views.accumulate = true;
  run_backward(device, backward, views);
  write_results(stack, dx.tensor, dscores.tensor);
}

void experts_variants(const Device& device, StableIValue* stack) {
  StackReader reader(stack);
  const ExpertsInputs inputs = read_inputs(reader);
  const auto current = device.enter(inputs.x);

  ExpertsProblem problem = check_inputs("experts_variants", inputs);
  const Tensor error = new_error_word(inputs.x);
  problem.arguments.error = int32_data(error);
  std::vector<std::string> lines;
  for (const kernels::Variant& variant : device.variants())
    lines.push_back(cat(variant.name, "\t", variant.summary, "\t",
                        variant.supports(problem.arguments, problem.options)));
  write_results(stack, lines);
}

}  // namespace amoeba::ops
