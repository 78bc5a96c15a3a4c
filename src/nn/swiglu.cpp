#include "nn/swiglu.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <torch/csrc/autograd/custom_function.h>

#include "nn/cpu_math.h"
#include "nn/operators.h"
#include "nn/parallel.h"
#include "nn/vector_exp.h"

namespace amoeba::nn {

namespace {

AMOEBA_CPU_CLONES
void forward_row(const float* gate, const float* up, float* y, int64_t size) {
  for (int64_t h = 0; h < size; ++h) y[h] = gate[h] / (1.0f + vector_exp(-gate[h])) * up[h];
}

// With s = sigmoid(g): d gate = dy u s (1 + g (1 - s)),  d up = dy g s.
AMOEBA_CPU_CLONES
void backward_row(const float* gate, const float* up, const float* dy, float* dgate, float* dup,
                  int64_t size) {
  for (int64_t h = 0; h < size; ++h) {
    const float s = 1.0f / (1.0f + vector_exp(-gate[h]));
    dup[h] = dy[h] * gate[h] * s;
    dgate[h] = dy[h] * up[h] * s * (1.0f + gate[h] * (1.0f - s));
  }
}

// Without kernels of our own. On a card passes over memory are the cost: these are two, and four
// back, in the dtype of gate.
at::Tensor forward_on_card(const at::Tensor& gate, const at::Tensor& up) {
  at::Tensor y = at::empty(gate.sizes(), gate.options());
  swiglu_out(y, gate, up);
  return y;
}

at::Tensor backward_on_card(const at::Tensor& gate_up, const at::Tensor& dy) {
  const int64_t size = gate_up.size(1) / 2;
  const at::Tensor gate = gate_up.narrow(1, 0, size), up = gate_up.narrow(1, size, size);
  at::Tensor dgate_up = at::empty_like(gate_up);
  at::Tensor dgate = dgate_up.narrow(1, 0, size), dup = dgate_up.narrow(1, size, size);
  at::mul_out(dup, at::silu(gate), dy);
  at::silu_backward_out(dgate, dy * up, gate);
  return dgate_up;
}

at::Tensor forward_rows(const at::Tensor& gate_up) {
  const int64_t rows = gate_up.size(0), size = gate_up.size(1) / 2;
  if (has_card_layers(gate_up)) return card_swiglu(gate_up);
  if (gate_up.is_cuda())
    return forward_on_card(gate_up.narrow(1, 0, size), gate_up.narrow(1, size, size));
  if (!has_cpu_loop(gate_up)) {
    const at::Tensor gate = gate_up.narrow(1, 0, size).to(at::kFloat);
    const at::Tensor up = gate_up.narrow(1, size, size);
    return (gate * at::sigmoid(gate) * up).to(gate_up.scalar_type());
  }
  at::Tensor y = at::empty({rows, size}, gate_up.options());
  const float* in = gate_up.const_data_ptr<float>();
  float* out = y.mutable_data_ptr<float>();
  parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* gate = in + row * 2 * size;
      forward_row(gate, gate + size, out + row * size, size);
    }
  });
  return y;
}

at::Tensor backward_rows(const at::Tensor& gate_up, const at::Tensor& dy) {
  const int64_t rows = gate_up.size(0), size = gate_up.size(1) / 2;
  if (has_card_layers(gate_up)) return card_swiglu_backward(dy, gate_up);
  if (gate_up.is_cuda()) return backward_on_card(gate_up, dy);
  if (!has_cpu_loop(gate_up)) {
    const at::Tensor gate = gate_up.narrow(1, 0, size).to(at::kFloat);
    const at::Tensor up = gate_up.narrow(1, size, size);
    const at::Tensor s = at::sigmoid(gate);
    const at::Tensor wide = dy.to(at::kFloat);
    return at::cat({wide * up * s * (1 + gate * (1 - s)), wide * gate * s}, 1)
        .to(gate_up.scalar_type());
  }
  at::Tensor dgate_up = at::empty_like(gate_up);
  const float *in = gate_up.const_data_ptr<float>(), *grad = dy.const_data_ptr<float>();
  float* out = dgate_up.mutable_data_ptr<float>();
  parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* gate = in + row * 2 * size;
      float* dgate = out + row * 2 * size;
      backward_row(gate, gate + size, grad + row * size, dgate, dgate + size, size);
    }
  });
  return dgate_up;
}

class SwiGlu : public torch::autograd::Function<SwiGlu> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& gate_up) {
    context->save_for_backward({gate_up});
    return forward_rows(widened(gate_up)).to(gate_up.scalar_type());
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grad_outputs) {
    const at::Tensor gate_up = context->get_saved_variables()[0];
    const at::Tensor dgate_up =
        backward_rows(widened(gate_up), widened(grad_outputs[0].contiguous()));
    return {dgate_up.to(gate_up.scalar_type())};
  }
};

}  // namespace

void swiglu_out(at::Tensor& out, const at::Tensor& gate, const at::Tensor& up) {
  at::silu_out(out, gate);
  out.mul_(up);
}

at::Tensor swiglu(const at::Tensor& gate_up) { return SwiGlu::apply(gate_up.contiguous()); }

}  // namespace amoeba::nn
