#include "nn/rope.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/complex.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "amoeba/error.h"
#include "nn/cpu_math.h"
#include "nn/operators.h"
#include "nn/parallel.h"

namespace amoeba::nn {

AMOEBA_CPU_CLONES
void rotate_head(const float* x, const float* cos, const float* sin, float direction, float* y,
                 int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1], s = direction * sin[i];
    y[2 * i] = a * cos[i] - b * s;
    y[2 * i + 1] = a * s + b * cos[i];
  }
}

int64_t rope_row(const RopeTable& table, const int64_t* positions, int64_t token) {
  const int64_t position = positions[token], max_positions = table.cos.size(0);
  AMOEBA_CHECK(position >= 0 && position < max_positions, "rope: position of token ", token, " is ",
               position, ", want at least 0 and less than ", max_positions);
  return position * table.cos.size(1);
}

namespace {

at::Tensor rotate(const at::Tensor& x, const RopeTable& table, const at::Tensor& positions,
                  float direction) {
  const int64_t tokens = x.size(0), heads = x.size(1), width = x.size(2);
  const int64_t half = table.cos.size(1), fixed = width - 2 * half;
  if (has_card_rope(x, 2 * half)) return card_rope(x, table.cos, table.sin, positions, direction);
  if (x.is_cuda()) {  // few passes over memory: a pair is a complex number, a rotation its product
    const at::Tensor pairs = x.narrow(2, fixed, 2 * half).to(at::kFloat).contiguous();
    const at::Tensor turns = at::complex(table.cos.index_select(0, positions),
                                         table.sin.index_select(0, positions) * direction);
    const at::Tensor rotated =
        at::view_as_complex(pairs.view({tokens, heads, half, 2})) * turns.unsqueeze(1);
    at::Tensor y = at::empty_like(x);
    y.narrow(2, 0, fixed).copy_(x.narrow(2, 0, fixed));
    y.narrow(2, fixed, 2 * half).copy_(at::view_as_real(rotated).flatten(2));
    return y;
  }
  if (!x.is_cpu() || x.scalar_type() != at::kFloat) {
    const at::Tensor last = x.narrow(2, fixed, 2 * half);
    const at::Tensor pairs = last.to(at::kFloat).view({tokens, heads, half, 2});
    const at::Tensor cos = table.cos.index_select(0, positions).unsqueeze(1);
    const at::Tensor sin = table.sin.index_select(0, positions).unsqueeze(1) * direction;
    const at::Tensor a = pairs.select(-1, 0), b = pairs.select(-1, 1);
    const at::Tensor rotated =
        at::stack({a * cos - b * sin, a * sin + b * cos}, -1).view_as(last).to(x.scalar_type());
    return fixed == 0 ? rotated : at::cat({x.narrow(2, 0, fixed), rotated}, 2);
  }
  at::Tensor y = at::empty_like(x);
  const float *in = x.const_data_ptr<float>(), *cos = table.cos.const_data_ptr<float>();
  const float* sin = table.sin.const_data_ptr<float>();
  const int64_t* at_position = positions.const_data_ptr<int64_t>();
  float* out = y.mutable_data_ptr<float>();
  parallel_for(tokens, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t row = rope_row(table, at_position, token);
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t start = (token * heads + head) * width;
        std::copy_n(in + start, fixed, out + start);
        rotate_head(in + start + fixed, cos + row, sin + row, direction, out + start + fixed, half);
      }
    }
  });
  return y;
}

class Rope : public torch::autograd::Function<Rope> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& cos, const at::Tensor& sin,
                            const at::Tensor& positions) {
    context->save_for_backward({cos, sin, positions});
    return rotate(x.contiguous(), {cos, sin}, positions, 1.0f);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grad_outputs) {
    const auto saved = context->get_saved_variables();
    return {rotate(grad_outputs[0].contiguous(), {saved[0], saved[1]}, saved[2], -1.0f),
            at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

constexpr at::ScalarType kFp64 = at::kDouble;

// Index, counted in pairs, of the frequency that turns `rotations` times within the original
// length.
double pair_of_rotations(const RopeConfig& config, double rotations) {
  const double length = static_cast<double>(config.original_seq_len);
  return static_cast<double>(config.head_dim) *
         std::log(length / (rotations * 2.0 * std::numbers::pi)) / (2.0 * std::log(config.theta));
}

// The share of each pair's frequency that is divided by the factor, 0 to 1: YaRN ("NTK-by-parts",
// Peng et al. 2023, arXiv 2309.00071) as in DeepSeek-V2's published inference code, a ramp over the
// pairs between bounds clamped to [0, head_dim - 1]; whole ones, unless transformers' `truncate` is
// off.
at::Tensor yarn_share(const RopeConfig& config) {
  double low = pair_of_rotations(config, config.beta_fast),
         high = pair_of_rotations(config, config.beta_slow);
  if (config.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.head_dim) - 1.0);
  if (high == low) high += 0.001;  // a step, not a division by zero
  return ((at::arange(config.head_dim / 2, kFp64) - low) / (high - low)).clamp(0.0, 1.0);
}

// The same of Llama 3.1 (apply_scaling in its published model.py): a ramp over the rotations within
// the original length.
at::Tensor llama3_share(const RopeConfig& config, const at::Tensor& plain) {
  const double length = static_cast<double>(config.original_seq_len);
  const at::Tensor rotations = plain * (length / (2.0 * std::numbers::pi));
  return ((config.beta_fast - rotations) / (config.beta_fast - config.beta_slow)).clamp(0.0, 1.0);
}

// [head_dim / 2] fp64. Linear: Chen et al. 2023 (arXiv 2306.15595), positions divided by the
// factor.
at::Tensor frequencies(const RopeConfig& config) {
  const at::Tensor plain = at::pow(config.theta, -at::arange(0, config.head_dim, 2, kFp64) /
                                                     static_cast<double>(config.head_dim));
  if (!config.stretched()) return plain;
  if (config.type == RopeType::kLinear) return plain / config.factor;
  const at::Tensor share =
      config.type == RopeType::kYarn ? yarn_share(config) : llama3_share(config, plain);
  return plain / config.factor * share + plain * (1.0 - share);
}

}  // namespace

double yarn_scale_factor(const RopeConfig& config, double mscale) {
  if (!config.stretched() || config.type != RopeType::kYarn) return 1.0;
  const double factor = 0.1 * mscale * std::log(config.factor) + 1.0;
  return factor * factor;
}

RopeTable make_rope_table(const RopeConfig& config, int64_t num_positions, at::Device device) {
  AMOEBA_CHECK(config.head_dim > 0 && config.head_dim % 2 == 0, "rope: head_dim is ",
               config.head_dim, ", want it even and > 0");
  const at::Tensor angles = at::outer(at::arange(num_positions, kFp64), frequencies(config));
  const double factor = config.stretched() ? config.attention_factor : 1.0;
  return {(angles.cos() * factor).to(at::kFloat).to(device),
          (angles.sin() * factor).to(at::kFloat).to(device)};
}

at::Tensor rope(const at::Tensor& x, const RopeTable& table, const at::Tensor& positions) {
  AMOEBA_CHECK(x.size(2) >= 2 * table.cos.size(1), "rope: heads are ", x.size(2),
               " wide, want at least the table's ", 2 * table.cos.size(1));
  return Rope::apply(x, table.cos, table.sin, positions);
}

}  // namespace amoeba::nn
