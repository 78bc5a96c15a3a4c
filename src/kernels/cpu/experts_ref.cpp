// The plain reference: every layout, stride and dtype, one row after the other. fp64 inputs are
// computed in fp64; the others accumulate in fp32 and round to their dtype whatever a
// straightforward implementation would store. It keeps nothing for backward, whatever `save` says,
// and computes the rows again. Legend: T tokens, D model width, H expert hidden width, E experts, K
// choices, R routed rows.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/cpu/implementation.h"
#include "kernels/cpu/parallel.h"
#include "kernels/numbers.h"

namespace amoeba::kernels::cpu {
namespace {

template <typename Storage>
struct Reference {
  using Sum = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

  const Call& call;
  const Executor& executor;
  const Sizes sizes = call.sizes;

  // Per routed row, all in scratch; backward alone uses the second line.
  struct Rows {
    Sum *input, *gate, *up, *hidden, *output;  // [R, D], three of [R, H], [R, D]
    Sum *doutput, *dgate, *dup, *dinput;       // [R, D], two of [R, H], [R, D]
  };

  static int64_t forward_bytes(const Sizes& s) {
    return s.num_rows * (2 * s.model_dim + 3 * s.hidden_dim) * int64_t{sizeof(Sum)};
  }
  static int64_t backward_bytes(const Sizes& s) {
    return s.num_rows * (4 * s.model_dim + 5 * s.hidden_dim) * int64_t{sizeof(Sum)};
  }

  Rows rows_in(void* scratch) const {
    const int64_t wide = sizes.num_rows * sizes.model_dim,
                  narrow = sizes.num_rows * sizes.hidden_dim;
    Rows rows;
    rows.input = static_cast<Sum*>(scratch);
    rows.gate = rows.input + wide;
    rows.up = rows.gate + narrow;
    rows.hidden = rows.up + narrow;
    rows.output = rows.hidden + narrow;
    rows.doutput = rows.output + wide;
    rows.dgate = rows.doutput + wide;
    rows.dup = rows.dgate + narrow;
    rows.dinput = rows.dup + narrow;
    return rows;
  }

  // -- Elements
  // -------------------------------------------------------------------------------------
  static Sum round(Sum value) { return static_cast<Sum>(static_cast<Storage>(value)); }

  static Sum load(const View& view, int64_t i, int64_t j) {
    return load(view.data, view.dtype, i * view.stride[0] + j * view.stride[1]);
  }
  static Sum load(const Matrix& matrix, int64_t e, int64_t i, int64_t j) {
    return load(matrix.data, matrix.dtype,
                e * matrix.stride[0] + i * matrix.stride[1] + j * matrix.stride[2]);
  }
  static Sum load(const void* data, DType dtype, int64_t at) {
    switch (dtype) {
      case DType::kF64:
        return static_cast<Sum>(static_cast<const double*>(data)[at]);
      case DType::kF16:
        return static_cast<Sum>(static_cast<const Half*>(data)[at]);
      case DType::kBF16:
        return static_cast<Sum>(static_cast<float>(static_cast<const BFloat16*>(data)[at]));
      default:
        return static_cast<Sum>(static_cast<const float*>(data)[at]);
    }
  }

  static void store(const View& view, int64_t i, int64_t j, Sum value) {
    store(view.data, view.dtype, i * view.stride[0] + j * view.stride[1], value);
  }
  static void store(void* data, DType dtype, int64_t at, Sum value) {
    switch (dtype) {
      case DType::kF64:
        static_cast<double*>(data)[at] = static_cast<double>(value);
        break;
      case DType::kF16:
        static_cast<Half*>(data)[at] = static_cast<Half>(value);
        break;
      case DType::kBF16:
        static_cast<BFloat16*>(data)[at] = BFloat16(static_cast<float>(value));
        break;
      default:
        static_cast<float*>(data)[at] = static_cast<float>(value);
    }
  }

  // -- One routed row
  // -------------------------------------------------------------------------------
  int64_t num_sorted() const { return call.arguments.offsets[sizes.num_experts]; }
  int64_t expert_of(int64_t row) const {
    const int32_t* offsets = call.arguments.offsets;
    return std::upper_bound(offsets, offsets + sizes.num_experts + 1, row) - offsets - 1;
  }
  int64_t slot_of(int64_t row) const {
    return sizes.has_slots ? call.arguments.row_slot[row] : row;
  }
  int64_t token_of(int64_t row) const {
    return sizes.has_slots ? slot_of(row) / sizes.num_choices : row;
  }
  Sum score_of(int64_t row) const {
    if (call.arguments.scores.data == nullptr) return 1;
    return load(call.arguments.scores, token_of(row), slot_of(row) % sizes.num_choices);
  }
  Sum input_score(int64_t row) const { return call.options.score_before ? score_of(row) : Sum{1}; }
  Sum output_score(int64_t row) const { return call.options.score_before ? Sum{1} : score_of(row); }

  static Sum sigmoid(Sum value) { return 1 / (1 + std::exp(-value)); }

  struct Activated {
    Sum value, dgate, dup;  // a(g, u) and its derivatives
  };
  // d silu(g) / dg = s (1 + g (1 - s)) with s = sigmoid(g); a clamped value has derivative 0.
  Activated activate(Sum gate, Sum up) const {
    if (call.options.activation == Activation::kSwiglu) {
      const Sum s = sigmoid(gate);
      return {gate * s * up, up * s * (1 + gate * (1 - s)), gate * s};
    }
    const Sum alpha = static_cast<Sum>(call.options.alpha);
    const Sum limit = static_cast<Sum>(call.options.limit);
    const Sum g = std::min(gate, limit), u = std::clamp(up, -limit, limit) + 1;
    const Sum s = sigmoid(alpha * g);
    const Sum dgate = gate > limit ? 0 : u * s * (1 + alpha * g * (1 - s));
    const Sum dup = up > limit || up < -limit ? 0 : g * s;
    return {g * s * u, dgate, dup};
  }

  // sum over j of vector[j] * matrix(e, i, j), plus the bias.
  static Sum product(const Sum* vector, const Matrix& matrix, const Matrix& bias, int64_t e,
                     int64_t i, int64_t size) {
    Sum sum = 0;
    for (int64_t j = 0; j < size; ++j) sum += vector[j] * load(matrix, e, i, j);
    return bias.data == nullptr ? sum : sum + load(bias, e, i, 0);
  }

  void compute_row(const Rows& rows, int64_t row) const {
    const int64_t d = sizes.model_dim, h = sizes.hidden_dim;
    const int64_t e = expert_of(row), token = token_of(row);
    const Matrices& weights = call.weights;
    Sum *input = rows.input + row * d, *hidden = rows.hidden + row * h;
    for (int64_t j = 0; j < d; ++j) {
      input[j] = round(input_score(row) * load(call.arguments.x, token, j));
    }
    for (int64_t i = 0; i < h; ++i) {
      const Sum gate = round(product(input, weights.gate, weights.gate_bias, e, i, d));
      const Sum up = round(product(input, weights.up, weights.up_bias, e, i, d));
      rows.gate[row * h + i] = gate;
      rows.up[row * h + i] = up;
      hidden[i] = round(activate(gate, up).value);
    }
    for (int64_t j = 0; j < d; ++j) {
      rows.output[row * d + j] = round(product(hidden, weights.down, weights.down_bias, e, j, h));
    }
  }

  void differentiate_row(const Rows& rows, const View& dy, int64_t row) const {
    const int64_t d = sizes.model_dim, h = sizes.hidden_dim;
    const int64_t e = expert_of(row), token = token_of(row);
    Sum* doutput = rows.doutput + row * d;
    Sum *dgate = rows.dgate + row * h, *dup = rows.dup + row * h;
    for (int64_t j = 0; j < d; ++j) doutput[j] = round(output_score(row) * load(dy, token, j));
    for (int64_t i = 0; i < h; ++i) {
      Sum sum = 0;
      for (int64_t j = 0; j < d; ++j) sum += doutput[j] * load(call.weights.down, e, j, i);
      const Sum dhidden = round(sum);
      const Activated a = activate(rows.gate[row * h + i], rows.up[row * h + i]);
      dgate[i] = round(dhidden * a.dgate);
      dup[i] = round(dhidden * a.dup);
    }
    for (int64_t j = 0; j < d; ++j) {
      Sum sum = 0;
      for (int64_t i = 0; i < h; ++i) {
        sum +=
            dgate[i] * load(call.weights.gate, e, i, j) + dup[i] * load(call.weights.up, e, i, j);
      }
      rows.dinput[row * d + j] = round(sum);
    }
  }

  // -- Over rows
  // ------------------------------------------------------------------------------------ output[t]
  // = sum over k, in order, of the weighted rows of token t.
  void combine(const View& output, const Sum* rows, bool weighted) const {
    const int64_t d = sizes.model_dim;
    parallel_for_each(executor, sizes.num_tokens, [&](int64_t t) {
      for (int64_t j = 0; j < d; ++j) {
        Sum sum = 0;
        for (int64_t k = 0; k < std::max<int64_t>(sizes.num_choices, 1); ++k) {
          const int64_t row = row_at(t, k);
          if (row >= 0) sum += (weighted ? score_of(row) : Sum{1}) * rows[row * d + j];
        }
        store(output, t, j, sum);
      }
    });
  }
  int64_t row_at(int64_t token, int64_t choice) const {
    if (!sizes.has_slots) return token < num_sorted() ? token : -1;
    return call.arguments.slot_row[token * sizes.num_choices + choice];
  }

  void write_dscores(const View& dscores, const View& dy, const Rows& rows) const {
    const int64_t d = sizes.model_dim;
    parallel_for_each(executor, sizes.num_tokens, [&](int64_t t) {
      for (int64_t k = 0; k < sizes.num_choices; ++k) {
        const int64_t row = row_at(t, k);
        Sum sum = 0;
        for (int64_t j = 0; row >= 0 && j < d; ++j) {
          sum += call.options.score_before ? rows.dinput[row * d + j] * load(call.arguments.x, t, j)
                                           : load(dy, t, j) * rows.output[row * d + j];
        }
        store(dscores, t, k, sum);
      }
    });
  }

  // gradient(e, i, j) = sum over the rows of e, in order, of left[row, i] * right[row, j]; right ==
  // nullptr: 1.
  void write_weight_gradient(const Matrix& gradient, const Sum* left, int64_t left_size,
                             const Sum* right, int64_t right_size, bool accumulate) const {
    if (gradient.data == nullptr) return;
    const int32_t* offsets = call.arguments.offsets;
    parallel_for_each(executor, sizes.num_experts * left_size, [&](int64_t index) {
      const int64_t e = index / left_size, i = index % left_size;
      for (int64_t j = 0; j < right_size; ++j) {
        Sum sum = 0;
        for (int64_t row = offsets[e]; row < offsets[e + 1]; ++row) {
          sum += left[row * left_size + i] * (right == nullptr ? 1 : right[row * right_size + j]);
        }
        const int64_t at = e * gradient.stride[0] + i * gradient.stride[1] + j * gradient.stride[2];
        if (accumulate) sum += load(gradient.data, gradient.dtype, at);
        store(gradient.data, gradient.dtype, at, sum);
      }
    });
  }

  void forward(const View& y, void* scratch) const {
    const Rows rows = rows_in(scratch);
    parallel_for_each(executor, num_sorted(), [&](int64_t row) { compute_row(rows, row); });
    combine(y, rows.output, !call.options.score_before);
  }

  void backward(const View& dy, const ExpertsGradients& gradients, const Matrices& weights,
                void* scratch) const {
    const Rows rows = rows_in(scratch);
    parallel_for_each(executor, num_sorted(), [&](int64_t row) {
      compute_row(rows, row);
      differentiate_row(rows, dy, row);
    });
    if (gradients.dx.data != nullptr) {
      combine(gradients.dx, rows.dinput, call.options.score_before);
    }
    if (gradients.dscores.data != nullptr) write_dscores(gradients.dscores, dy, rows);
    const int64_t d = sizes.model_dim, h = sizes.hidden_dim;
    const bool accumulate = gradients.accumulate;
    write_weight_gradient(weights.gate, rows.dgate, h, rows.input, d, accumulate);
    write_weight_gradient(weights.up, rows.dup, h, rows.input, d, accumulate);
    write_weight_gradient(weights.down, rows.doutput, d, rows.hidden, h, accumulate);
    write_weight_gradient(weights.gate_bias, rows.dgate, h, nullptr, 1, accumulate);
    write_weight_gradient(weights.up_bias, rows.dup, h, nullptr, 1, accumulate);
    write_weight_gradient(weights.down_bias, rows.doutput, d, nullptr, 1, accumulate);
  }
};

// Storage conversions that C++ has no implicit rule for.
template <>
float Reference<BFloat16>::round(float value) {
  return static_cast<float>(BFloat16(value));
}

template <typename Body>
void with_storage(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kF64:
      return body(double{});
    case DType::kF16:
      return body(Half{});
    case DType::kBF16:
      return body(BFloat16{});
    default:
      return body(float{});
  }
}

WorkspaceSizes workspace_ref(const Call& call) {
  WorkspaceSizes bytes;
  with_storage(call.arguments.x.dtype, [&]<typename Storage>(Storage) {
    bytes.forward_scratch_bytes = Reference<Storage>::forward_bytes(call.sizes);
    bytes.backward_scratch_bytes = Reference<Storage>::backward_bytes(call.sizes);
  });
  return bytes;
}

void forward_ref(const Call& call, const View& y, void*, void* scratch, const Executor& executor) {
  with_storage(call.arguments.x.dtype, [&]<typename Storage>(Storage) {
    Reference<Storage>{call, executor}.forward(y, scratch);
  });
}

void backward_ref(const Call& call, const View& dy, const void*, const ExpertsGradients& gradients,
                  const Matrices& weight_gradients, void* scratch, const Executor& executor) {
  with_storage(call.arguments.x.dtype, [&]<typename Storage>(Storage) {
    Reference<Storage>{call, executor}.backward(dy, gradients, weight_gradients, scratch);
  });
}

}  // namespace

const Implementation kReference = {
    {"reference", "plain loops: any layout, stride and dtype; fp64 computes in fp64",
     [](const ExpertsArguments&, const ExpertsOptions&) { return std::string(); }},
    workspace_ref,
    forward_ref,
    backward_ref,
};

}  // namespace amoeba::kernels::cpu
