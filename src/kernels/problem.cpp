#include "kernels/problem.h"

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "amoeba/error.h"

namespace amoeba::kernels {
namespace {

using Shape = std::vector<int64_t>;

std::string text_of(const int64_t* size, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) text += cat(i > 0 ? ", " : "", size[i]);
  return text + "]";
}

void check_view(std::string_view operation, std::string_view name, const View& view,
                const Shape& shape, std::initializer_list<DType> dtypes) {
  AMOEBA_CHECK(std::equal(shape.begin(), shape.end(), view.size), operation, ": ", name, " is ",
               text_of(view.size, shape.size()), ", want ", text_of(shape.data(), shape.size()));
  std::string wanted;
  for (const DType dtype : dtypes) wanted += cat(wanted.empty() ? "" : " or ", name_of(dtype));
  AMOEBA_CHECK(std::find(dtypes.begin(), dtypes.end(), view.dtype) != dtypes.end(), operation, ": ",
               name, " has dtype ", name_of(view.dtype), ", want ", wanted);
  const bool is_empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  AMOEBA_CHECK(view.data != nullptr || is_empty, operation, ": ", name, " is a null pointer, want ",
               text_of(shape.data(), shape.size()));
}

// Shapes of the stored parameters; `parts` of gate_up and its bias are stored.
struct StoredShapes {
  int parts;
  Shape gate_up, gate_up_bias, down, down_bias;
};

StoredShapes stored_shapes(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  const auto [num_rows, num_tokens, num_choices, e, d, h, has_slots] = sizes_of(arguments);
  const bool separate = options.layout == GateUpLayout::kSeparate;
  const int64_t width = separate ? h : 2 * h;
  const bool transposed = options.transposed;
  return {separate ? 2 : 1,
          transposed ? Shape{e, d, width} : Shape{e, width, d},
          {e, width},
          transposed ? Shape{e, h, d} : Shape{e, d, h},
          {e, d}};
}

Matrix matrix_of(const View& view, bool transposed) {
  return {view.data,
          view.dtype,
          {view.stride[0], view.stride[transposed ? 2 : 1], view.stride[transposed ? 1 : 2]}};
}

Matrix bias_of(const View& view) {
  return {view.data, view.dtype, {view.stride[0], view.stride[1], 0}};
}

struct GateUp {
  Matrix gate, up;
};

// Splits the rows of the stored parameter(s) into those of gate and up.
GateUp split_rows(const Matrix& first, const Matrix& second, GateUpLayout layout, int64_t hidden) {
  if (layout == GateUpLayout::kSeparate) return {first, second};
  GateUp result{first, first};
  const bool interleaved = layout == GateUpLayout::kInterleaved;
  const int64_t offset = first.stride[1] * (interleaved ? 1 : hidden);
  if (first.data != nullptr) {
    result.up.data = static_cast<char*>(first.data) + offset * bytes_of(first.dtype);
  }
  if (interleaved) result.gate.stride[1] = result.up.stride[1] = 2 * first.stride[1];
  return result;
}

Matrices split(const View* gate_up, const View* gate_up_bias, const View& down,
               const View& down_bias, int64_t hidden, const ExpertsOptions& options) {
  const GateUp weight =
      split_rows(matrix_of(gate_up[0], options.transposed),
                 matrix_of(gate_up[1], options.transposed), options.layout, hidden);
  const GateUp bias =
      split_rows(bias_of(gate_up_bias[0]), bias_of(gate_up_bias[1]), options.layout, hidden);
  return {weight.gate, weight.up, matrix_of(down, options.transposed),
          bias.gate,   bias.up,   bias_of(down_bias)};
}

void check_pair(std::string_view operation, std::string_view name, const View* views,
                const Shape& shape, int parts, std::initializer_list<DType> dtypes) {
  for (int i = 0; i < parts; ++i) {
    check_view(operation, cat(name, "[", i, "]"), views[i], shape, dtypes);
  }
  AMOEBA_CHECK(parts == 2 || views[1].data == nullptr, operation, ": ", name,
               "[1] is given, want one parameter: only the separate layout has two");
}

}  // namespace

int64_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
  }
  fail(ErrorKind::kInternal, "bytes_of: unknown dtype");
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return "fp64";
    case DType::kF32:
      return "fp32";
    case DType::kF16:
      return "fp16";
    case DType::kBF16:
      return "bf16";
    case DType::kI32:
      return "int32";
    case DType::kI64:
      return "int64";
  }
  return "unknown";
}

Sizes sizes_of(const ExpertsArguments& arguments) {
  const bool has_slots = arguments.row_slot != nullptr || arguments.slot_row != nullptr;
  const int64_t num_tokens = arguments.x.size[0];
  int64_t num_choices = 0;
  if (has_slots) {
    num_choices = num_tokens > 0 ? arguments.num_rows / num_tokens : arguments.scores.size[1];
  }
  return {arguments.num_rows,  num_tokens,           num_choices, arguments.num_experts,
          arguments.x.size[1], arguments.hidden_dim, has_slots};
}

Matrices parameters_of(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  return split(arguments.gate_up, arguments.gate_up_bias, arguments.down, arguments.down_bias,
               arguments.hidden_dim, options);
}

Matrices gradients_of(const ExpertsGradients& gradients, const ExpertsArguments& arguments,
                      const ExpertsOptions& options) {
  return split(gradients.dgate_up, gradients.dgate_up_bias, gradients.ddown, gradients.ddown_bias,
               arguments.hidden_dim, options);
}

void check_route(const RouteArguments& arguments) {
  const View& ids = arguments.expert_ids;
  AMOEBA_CHECK(ids.size[0] >= 0 && ids.size[1] >= 0, "route: expert_ids is ", text_of(ids.size, 2),
               ", want [T, K]");
  check_view("route", "expert_ids", ids, {ids.size[0], ids.size[1]}, {DType::kI32, DType::kI64});
  AMOEBA_CHECK(arguments.num_experts >= 0 && arguments.num_experts < INT32_MAX,
               "route: num_experts is ", arguments.num_experts, ", want 0 to 2^31 - 2");
  AMOEBA_CHECK(ids.size[0] * ids.size[1] <= INT32_MAX, "route: expert_ids has ",
               ids.size[0] * ids.size[1], " slots, want less than 2^31");
  const bool has_slots = ids.size[0] * ids.size[1] > 0;
  AMOEBA_CHECK(
      arguments.offsets != nullptr && arguments.error != nullptr &&
          (arguments.counts != nullptr || arguments.num_experts == 0) &&
          ((arguments.row_slot != nullptr && arguments.slot_row != nullptr) || !has_slots),
      "route: an output is a null pointer, want counts, offsets, row_slot, slot_row, error");
}

void check_experts(std::string_view operation, const ExpertsArguments& arguments,
                   const ExpertsOptions& options) {
  const Sizes sizes = sizes_of(arguments);
  const auto [r, t, k, e, d, h, has_slots] = sizes;
  AMOEBA_CHECK(r >= 0 && t >= 0 && e >= 0 && d >= 1 && h >= 1, operation, ": rows ", r, ", tokens ",
               t, ", experts ", e, ", model dim ", d, ", hidden dim ", h,
               ", want none negative and dims of at least 1");
  AMOEBA_CHECK(r <= INT32_MAX, operation, ": num_rows is ", r, ", want less than 2^31");
  AMOEBA_CHECK((arguments.row_slot == nullptr) == (arguments.slot_row == nullptr), operation,
               ": only one of row_slot and slot_row is given, want both or none");
  if (has_slots) {
    AMOEBA_CHECK(r == t * k, operation, ": num_rows is ", r, ", want a multiple of ", t, " tokens");
  } else {
    AMOEBA_CHECK(r == t, operation, ": num_rows is ", r, ", want the ", t,
                 " rows of x: no slots are given");
    AMOEBA_CHECK(arguments.scores.data == nullptr, operation,
                 ": scores are given without row_slot and slot_row, want none");
  }
  AMOEBA_CHECK(arguments.offsets != nullptr && arguments.error != nullptr, operation,
               ": offsets or error is a null pointer, want [E+1] and [1]");

  const DType dtype = arguments.x.dtype;
  check_view(operation, "x", arguments.x, {t, d},
             {DType::kF64, DType::kF32, DType::kF16, DType::kBF16});
  if (arguments.scores.data != nullptr) {
    check_view(operation, "scores", arguments.scores, {t, k},
               {DType::kF32, DType::kBF16, DType::kF64});
  }
  const StoredShapes shapes = stored_shapes(arguments, options);
  check_pair(operation, "gate_up", arguments.gate_up, shapes.gate_up, shapes.parts, {dtype});
  check_view(operation, "down", arguments.down, shapes.down, {dtype});
  if (arguments.gate_up_bias[0].data != nullptr || arguments.gate_up_bias[1].data != nullptr) {
    check_pair(operation, "gate_up_bias", arguments.gate_up_bias, shapes.gate_up_bias, shapes.parts,
               {dtype});
  }
  if (arguments.down_bias.data != nullptr) {
    check_view(operation, "down_bias", arguments.down_bias, shapes.down_bias, {dtype});
  }
}

void check_like_x(std::string_view operation, std::string_view name, const View& view,
                  const ExpertsArguments& arguments) {
  check_view(operation, name, view, {arguments.x.size[0], arguments.x.size[1]},
             {arguments.x.dtype});
}

void check_gradients(std::string_view operation, const ExpertsGradients& gradients,
                     const ExpertsArguments& arguments, const ExpertsOptions& options) {
  const DType dtype = arguments.x.dtype;
  const StoredShapes shapes = stored_shapes(arguments, options);
  if (gradients.dx.data != nullptr) check_like_x(operation, "dx", gradients.dx, arguments);
  if (gradients.dscores.data != nullptr) {
    AMOEBA_CHECK(arguments.scores.data != nullptr, operation,
                 ": dscores is given without scores, want scores");
    check_view(operation, "dscores", gradients.dscores,
               {arguments.scores.size[0], arguments.scores.size[1]}, {arguments.scores.dtype});
  }
  const auto check_weights = [&](std::string_view name, const View* views, const Shape& shape,
                                 int parts) {
    for (int i = 0; i < parts; ++i) {
      if (views[i].data == nullptr) continue;
      check_view(operation, cat(name, parts == 2 ? cat("[", i, "]") : ""), views[i], shape,
                 {DType::kF32, dtype});
    }
  };
  check_weights("dgate_up", gradients.dgate_up, shapes.gate_up, shapes.parts);
  check_weights("ddown", &gradients.ddown, shapes.down, 1);
  if (arguments.gate_up_bias[0].data != nullptr) {
    check_weights("dgate_up_bias", gradients.dgate_up_bias, shapes.gate_up_bias, shapes.parts);
  }
  if (arguments.down_bias.data != nullptr) {
    check_weights("ddown_bias", &gradients.ddown_bias, shapes.down_bias, 1);
  }
  AMOEBA_CHECK(
      arguments.gate_up_bias[0].data != nullptr || (gradients.dgate_up_bias[0].data == nullptr &&
                                                    gradients.dgate_up_bias[1].data == nullptr),
      operation, ": dgate_up_bias is given without gate_up_bias, want gate_up_bias");
  AMOEBA_CHECK(arguments.down_bias.data != nullptr || gradients.ddown_bias.data == nullptr,
               operation, ": ddown_bias is given without down_bias, want down_bias");
}

}  // namespace amoeba::kernels
