#include "nn/rope.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/autograd/custom_function.h>

#include "amoeba/error.h"
#include "nn/cpu_math.h"
#include "nn/parallel.h"

namespace amoeba::nn {

namespace {

// `direction` 1 rotates, -1 rotates back: the backward of a rotation.
AMOEBA_CPU_CLONES
void rotate_head(const float* x, const float* cos, const float* sin, float direction, float* y,
                 int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1], s = direction * sin[i];
    y[2 * i] = a * cos[i] - b * s;
    y[2 * i + 1] = a * s + b * cos[i];
  }
}

at::Tensor rotate(const at::Tensor& x, const RopeTable& table, const at::Tensor& positions,
                  float direction) {
  const int64_t tokens = x.size(0), heads = x.size(1), half = x.size(2) / 2;
  if (!x.is_cpu() || x.scalar_type() != at::kFloat) {
    const at::Tensor pairs = x.to(at::kFloat).view({tokens, heads, half, 2});
    const at::Tensor cos = table.cos.index_select(0, positions).unsqueeze(1);
    const at::Tensor sin = table.sin.index_select(0, positions).unsqueeze(1) * direction;
    const at::Tensor a = pairs.select(-1, 0), b = pairs.select(-1, 1);
    return at::stack({a * cos - b * sin, a * sin + b * cos}, -1).view_as(x).to(x.scalar_type());
  }
  at::Tensor y = at::empty_like(x);
  const float *in = x.const_data_ptr<float>(), *cos = table.cos.const_data_ptr<float>();
  const float* sin = table.sin.const_data_ptr<float>();
  const int64_t* at_position = positions.const_data_ptr<int64_t>();
  float* out = y.mutable_data_ptr<float>();
  const int64_t max_positions = table.cos.size(0);
  parallel_for(tokens, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t position = at_position[token];
      AMOEBA_CHECK(position >= 0 && position < max_positions, "rope: position of token ", token,
                   " is ", position, ", want at least 0 and less than ", max_positions);
      const int64_t row = position * half;
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t start = (token * heads + head) * 2 * half;
        rotate_head(in + start, cos + row, sin + row, direction, out + start, half);
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

}  // namespace

RopeTable make_rope_table(int64_t max_positions, int64_t head_dim, double theta,
                          at::Device device) {
  const auto fp64 = at::TensorOptions().dtype(at::kDouble);
  const at::Tensor exponents = at::arange(0, head_dim, 2, fp64) / static_cast<double>(head_dim);
  const at::Tensor angles = at::outer(at::arange(max_positions, fp64), at::pow(theta, -exponents));
  return {angles.cos().to(at::kFloat).to(device), angles.sin().to(at::kFloat).to(device)};
}

at::Tensor rope(const at::Tensor& x, const RopeTable& table, const at::Tensor& positions) {
  return Rope::apply(x, table.cos, table.sin, positions);
}

}  // namespace amoeba::nn
