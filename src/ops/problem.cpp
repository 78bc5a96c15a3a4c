#include "ops/problem.h"

#include <cmath>
#include <limits>

#include "amoeba/error.h"

namespace amoeba::ops {
namespace {

using kernels::DType;
using kernels::GateUpLayout;

template <typename Enum>
struct Named {
  const char* name;
  Enum value;
};

constexpr Named<GateUpLayout> kLayouts[] = {
    {"separate", GateUpLayout::kSeparate},
    {"concatenated", GateUpLayout::kConcatenated},
    {"interleaved", GateUpLayout::kInterleaved},
};
constexpr Named<kernels::Activation> kActivations[] = {
    {"swiglu", kernels::Activation::kSwiglu},
    {"swiglu_clamped", kernels::Activation::kSwigluClamped},
};
constexpr Named<kernels::Save> kSaves[] = {
    {"pre_activations", kernels::Save::kPreActivations},
    {"pre_activations_fp8", kernels::Save::kPreActivationsFp8},
    {"nothing", kernels::Save::kNothing},
};

template <typename Enum, size_t kCount>
Enum find_name(const char* operation, const char* option, const std::string& name,
               const Named<Enum> (&table)[kCount]) {
  std::string names;
  for (const auto& entry : table) {
    if (name == entry.name) return entry.value;
    if (!names.empty()) names += ", ";
    names += entry.name;
  }
  fail(ErrorKind::kUsage, cat(operation, ": ", option, " is \"", name, "\", want one of ", names));
}

kernels::ExpertsOptions check_options(const char* operation, const ExpertsInputs& inputs) {
  kernels::ExpertsOptions options;
  options.layout = find_name(operation, "layout", inputs.layout, kLayouts);
  options.transposed = inputs.transposed;
  options.activation = find_name(operation, "activation", inputs.activation, kActivations);
  options.alpha = inputs.alpha;
  options.limit = inputs.limit;
  options.score_before = inputs.score_before;
  options.save = find_name(operation, "save", inputs.save, kSaves);
  if (options.activation == kernels::Activation::kSwigluClamped) {
    AMOEBA_CHECK(std::isfinite(options.alpha), operation, ": alpha is ", options.alpha,
                 ", want a finite number");
    AMOEBA_CHECK(options.limit > 0, operation, ": limit is ", options.limit, ", want > 0");
  }
  return options;
}

// [E, rows, columns] as it is stored.
std::vector<int64_t> stored_shape(int64_t num_experts, int64_t rows, int64_t columns,
                                  bool transposed) {
  if (transposed) return {num_experts, columns, rows};
  return {num_experts, rows, columns};
}

void check_lists(const char* operation, const ExpertsInputs& inputs, GateUpLayout layout) {
  const size_t want = layout == GateUpLayout::kSeparate ? 2 : 1;
  AMOEBA_CHECK(inputs.gate_up.size() == want, operation, ": gate_up holds ", inputs.gate_up.size(),
               " tensors, want ", want, " for layout \"", inputs.layout, "\"");
  AMOEBA_CHECK(inputs.gate_up_bias.empty() || inputs.gate_up_bias.size() == want, operation,
               ": gate_up_bias holds ", inputs.gate_up_bias.size(), " tensors, want 0 or ", want,
               " for layout \"", inputs.layout, "\"");
}

const int32_t* index_data(const Tensor& tensor) {
  return static_cast<const int32_t*>(tensor.data_ptr());
}

// Offsets, and in the tokens entry the two index tensors: E, R and the rows of x.
void check_routing(const char* operation, const ExpertsInputs& inputs,
                   kernels::ExpertsArguments& arguments) {
  check_tensor(operation, "offsets", inputs.offsets, {{DType::kI32}, {kAny}}, inputs.x);
  check_contiguous(operation, "offsets", inputs.offsets);
  arguments.num_experts = inputs.offsets.numel() - 1;
  AMOEBA_CHECK(arguments.num_experts >= 0, operation, ": offsets is empty, want [E + 1]");
  arguments.offsets = index_data(inputs.offsets);

  AMOEBA_CHECK(inputs.row_slot.has_value() == inputs.slot_row.has_value(), operation, ": only ",
               inputs.row_slot ? "row_slot" : "slot_row",
               " is given, want both row_slot and slot_row, or neither");
  if (!inputs.slot_row) {
    AMOEBA_CHECK(!inputs.scores, operation,
                 ": scores is given without row_slot and slot_row, want none for grouped rows");
    arguments.num_rows = inputs.x.sizes()[0];
  } else {
    check_tensor(operation, "slot_row", *inputs.slot_row,
                 {{DType::kI32}, {inputs.x.sizes()[0], kAny}}, inputs.x);
    check_contiguous(operation, "slot_row", *inputs.slot_row);
    arguments.num_rows = inputs.slot_row->numel();
    check_tensor(operation, "row_slot", *inputs.row_slot, {{DType::kI32}, {arguments.num_rows}},
                 inputs.x);
    check_contiguous(operation, "row_slot", *inputs.row_slot);
    arguments.slot_row = index_data(*inputs.slot_row);
    arguments.row_slot = index_data(*inputs.row_slot);
  }
  AMOEBA_CHECK(arguments.num_rows <= std::numeric_limits<int32_t>::max(), operation, ": R is ",
               arguments.num_rows, ", want less than 2^31 rows: their indices are int32");
}

}  // namespace

ExpertsInputs read_inputs(StackReader& reader) {
  using OptionalTensor = std::optional<Tensor>;
  using Tensors = std::vector<Tensor>;
  // The order of a braced list is the order of evaluation.
  return ExpertsInputs{
      reader.read<Tensor>(),         reader.read<OptionalTensor>(), reader.read<Tensor>(),
      reader.read<OptionalTensor>(), reader.read<OptionalTensor>(), reader.read<Tensors>(),
      reader.read<Tensors>(),        reader.read<Tensor>(),         reader.read<OptionalTensor>(),
      reader.read<std::string>(),    reader.read<bool>(),           reader.read<std::string>(),
      reader.read<double>(),         reader.read<double>(),         reader.read<bool>(),
      reader.read<std::string>()};
}

ExpertsProblem check_inputs(const char* operation, const ExpertsInputs& inputs) {
  ExpertsProblem problem;
  kernels::ExpertsArguments& arguments = problem.arguments;
  problem.options = check_options(operation, inputs);
  const bool transposed = problem.options.transposed;

  check_tensor(operation, "x", inputs.x,
               {{DType::kF64, DType::kF32, DType::kF16, DType::kBF16}, {kAny, kAny}}, inputs.x);
  problem.dtype = dtype_of(operation, "x", inputs.x);
  const DType dtype = problem.dtype;
  const int64_t model_dim = inputs.x.sizes()[1];
  arguments.x = view_of(inputs.x, dtype);
  check_routing(operation, inputs, arguments);
  const int64_t num_experts = arguments.num_experts;

  problem.scores_dtype = DType::kF32;
  if (inputs.scores) {
    std::vector<DType> dtypes = {DType::kF32, DType::kBF16};
    if (dtype == DType::kF64) dtypes.push_back(DType::kF64);
    check_tensor(operation, "scores", *inputs.scores, {dtypes, shape_of(*inputs.slot_row)},
                 inputs.x);
    problem.scores_dtype = dtype_of(operation, "scores", *inputs.scores);
    arguments.scores = view_of(*inputs.scores, problem.scores_dtype);
  }

  const std::vector<int64_t> open_down = stored_shape(num_experts, model_dim, kAny, transposed);
  check_tensor(operation, "down", inputs.down, {{dtype}, open_down}, inputs.x);
  arguments.hidden_dim = inputs.down.sizes()[transposed ? 1 : 2];
  arguments.down = view_of(inputs.down, dtype);
  if (inputs.down_bias) {
    check_tensor(operation, "down_bias", *inputs.down_bias, {{dtype}, {num_experts, model_dim}},
                 inputs.x);
    arguments.down_bias = view_of(*inputs.down_bias, dtype);
  }

  check_lists(operation, inputs, problem.options.layout);
  const bool separate = problem.options.layout == GateUpLayout::kSeparate;
  const int64_t gate_up_rows = (separate ? 1 : 2) * arguments.hidden_dim;
  for (size_t i = 0; i < inputs.gate_up.size(); ++i) {
    check_tensor(operation, cat("gate_up[", i, "]"), inputs.gate_up[i],
                 {{dtype}, stored_shape(num_experts, gate_up_rows, model_dim, transposed)},
                 inputs.x);
    arguments.gate_up[i] = view_of(inputs.gate_up[i], dtype);
  }
  for (size_t i = 0; i < inputs.gate_up_bias.size(); ++i) {
    check_tensor(operation, cat("gate_up_bias[", i, "]"), inputs.gate_up_bias[i],
                 {{dtype}, {num_experts, gate_up_rows}}, inputs.x);
    arguments.gate_up_bias[i] = view_of(inputs.gate_up_bias[i], dtype);
  }
  AMOEBA_CHECK(model_dim > 0 && arguments.hidden_dim > 0, operation, ": D is ", model_dim,
               " and H is ", arguments.hidden_dim, ", want both at least 1");
  return problem;
}

}  // namespace amoeba::ops
