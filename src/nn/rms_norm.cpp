#include "nn/rms_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/mv.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

#include "nn/cpu_math.h"
#include "nn/operators.h"
#include "nn/parallel.h"

namespace amoeba::nn {

float inverse_rms(const float* x, int64_t size, double eps) {
  return 1.0f / std::sqrt(dot(x, x, size) / static_cast<float>(size) + static_cast<float>(eps));
}

AMOEBA_CPU_CLONES
void norm_row(const float* x, const float* weight, float rstd, float* y, int64_t size) {
  for (int64_t d = 0; d < size; ++d) y[d] = x[d] * rstd * weight[d];
}

// dx = passed + rstd * (w dy) - x * rstd^3 / D * sum(w dy x);  dw += dy x rstd
AMOEBA_CPU_CLONES
void norm_row_backward(const float* x, const float* weight, const float* dy, const float* passed,
                       float rstd, float* dx, float* dweight, int64_t size) {
  float lanes[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += weight[d + j] * dy[d + j] * x[d + j];
  }
  float sum = 0.0f;
  for (; d < size; ++d) sum += weight[d] * dy[d] * x[d];
  for (float lane : lanes) sum += lane;
  const float scale = rstd * rstd * rstd / static_cast<float>(size) * sum;
  for (d = 0; d < size; ++d) {
    dweight[d] += dy[d] * x[d] * rstd;
    const float own = rstd * weight[d] * dy[d] - x[d] * scale;
    dx[d] = passed == nullptr ? own : passed[d] + own;
  }
}

namespace {

struct Normalised {
  at::Tensor y;     // [T, D]
  at::Tensor rstd;  // [T] or [T, 1] fp32
};

Normalised forward_cpu(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const int64_t rows = x.size(0), size = x.size(1);
  Normalised out{at::empty_like(x), at::empty({rows, 1}, x.options())};
  const float *x_data = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>();
  float *y = out.y.mutable_data_ptr<float>(), *rstd = out.rstd.mutable_data_ptr<float>();
  parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* in = x_data + row * size;
      rstd[row] = inverse_rms(in, size, eps);
      norm_row(in, w, rstd[row], y + row * size, size);
    }
  });
  return out;
}

at::Tensor backward_cpu(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& rstd,
                        const at::Tensor& dy, const at::Tensor& passed, at::Tensor& grad) {
  const int64_t rows = x.size(0), size = x.size(1);
  const int64_t num_blocks = (rows + kNormRowsPerBlock - 1) / kNormRowsPerBlock;
  at::Tensor dx = at::empty_like(x);
  at::Tensor partial = at::zeros({num_blocks, size}, x.options());
  const float *x_data = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>();
  const float *dy_data = dy.const_data_ptr<float>(), *rstd_data = rstd.const_data_ptr<float>();
  const float* passed_data = passed.defined() ? passed.const_data_ptr<float>() : nullptr;
  float *dx_data = dx.mutable_data_ptr<float>(), *sums = partial.mutable_data_ptr<float>();
  parallel_for(num_blocks, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * kNormRowsPerBlock; row < std::min(end * kNormRowsPerBlock, rows);
         ++row) {
      const int64_t at = row * size;
      norm_row_backward(x_data + at, w, dy_data + at,
                        passed_data == nullptr ? nullptr : passed_data + at, rstd_data[row],
                        dx_data + at, sums + row / kNormRowsPerBlock * size, size);
    }
  });
  float* dweight = grad.mutable_data_ptr<float>();
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int64_t d = 0; d < size; ++d) dweight[d] += sums[block * size + d];
  }
  return dx;
}

Normalised forward_rows(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (const at::Tensor wide = widened(x); has_cpu_loop(wide)) {
    const Normalised out = forward_cpu(wide, weight, eps);
    return {out.y.to(x.scalar_type()), out.rstd};
  }
  if (has_card_layers(x)) {
    const OperatorNorm norm = card_rms_norm(x, weight, eps);
    return {norm.y, norm.rstd};
  }
  const auto size = static_cast<double>(x.size(1));
  const at::ScalarType sum_type = c10::promoteTypes(x.scalar_type(), at::kFloat);
  const at::Tensor norm = at::linalg_vector_norm(x, 2, {1}, /*keepdim=*/true, sum_type);
  const at::Tensor rstd = norm.square().div_(size).add_(eps).rsqrt_();
  at::Tensor y = at::empty_like(x);
  at::mul_out(y, x * rstd, weight);
  return {y, rstd};
}

// dx = rstd (w dy - n mean(w dy n)) + passed with n = x rstd;  dw += dy n. In fp32, few passes over
// memory.
at::Tensor backward_composed(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& rstd,
                             const at::Tensor& dy, const at::Tensor& passed, at::Tensor& grad) {
  const at::Tensor normal = x * rstd;
  const at::Tensor product = normal * dy;
  grad.add_(product.sum(0));
  // (A CPU's matrix-vector product may differ with the number of threads.)
  const at::Tensor sum = x.is_cuda() ? at::mv(product, weight) : (product * weight).sum(1);
  const at::Tensor mean = sum.div(x.size(1)).unsqueeze_(1);  // [T, 1]
  const at::Tensor inner = (dy * weight).addcmul_(normal, mean, -1);
  at::Tensor dx = at::empty_like(x);
  at::mul_out(dx, inner, rstd);
  return passed.defined() ? dx.add_(passed) : dx;
}

// Returns y and x itself: what else reads x sends its gradient through here, where it is added in
// the same pass.
class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const at::Tensor& x, const at::Tensor& master,
                                                const at::Tensor& weight, const at::Tensor& grad,
                                                double eps) {
    (void)master;
    const Normalised out = forward_rows(x, weight, eps);
    context->save_for_backward({x, weight, out.rstd});
    context->saved_data["grad"] = grad;
    context->set_materialize_grads(false);
    return {out.y, x};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grad_outputs) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &weight = saved[1], &rstd = saved[2], x = widened(saved[0]);
    at::Tensor passed = grad_outputs[1];
    if (!grad_outputs[0].defined()) {
      return {passed, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
    }
    const at::Tensor dy = widened(grad_outputs[0].contiguous());
    if (passed.defined()) passed = widened(passed.contiguous());
    at::Tensor grad = context->saved_data["grad"].toTensor();
    const at::Tensor dx = has_cpu_loop(x) ? backward_cpu(x, weight, rstd, dy, passed, grad)
                          : has_card_layers(x)
                              ? card_rms_norm_backward(dy, x, weight, rstd, passed, grad)
                              : backward_composed(x, weight, rstd, dy, passed, grad);
    return {dx.to(saved[0].scalar_type()), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const Parameter& weight, double eps) {
  return rms_norm_residual(x.reshape({-1, x.size(-1)}), weight, eps).normed.view(x.sizes());
}

NormedResidual rms_norm_residual(const at::Tensor& x, const Parameter& weight, double eps) {
  RECORD_USER_SCOPE("norm");
  const at::Tensor rows = x.contiguous();
  if (!weight.wants_gradient()) return {rows, forward_rows(rows, weight.compute, eps).y};
  const auto out = RmsNorm::apply(rows, weight.master, weight.compute, weight.grad, eps);
  return {out[1], out[0]};
}

}  // namespace amoeba::nn
