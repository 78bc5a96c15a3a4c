#include "nn/cpu_attention/attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "nn/parallel.h"

namespace amoeba::nn::cpu_attention {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Heads heads_of(const at::Tensor& x) {  // [T, heads, width]
  return {const_cast<float*>(x.const_data_ptr<float>()), x.stride(0), x.stride(1)};
}

Pass make_pass(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t value_dim,
               double scale) {
  Pass pass{};
  pass.num_tokens = q.size(0);
  pass.heads_per_kv = q.size(1) / k.size(1);
  pass.key_dim = q.size(2);
  pass.value_dim = value_dim;
  pass.scale = static_cast<float>(scale);
  pass.q = heads_of(q);
  pass.k = heads_of(k);
  pass.v = heads_of(v);
  return pass;
}

class CausalAttention : public torch::autograd::Function<CausalAttention> {
 public:
  static at::Tensor forward(AutogradContext* context, const Kernels& kernels, const at::Tensor& q,
                            const at::Tensor& k, const at::Tensor& v, int64_t value_dim,
                            double scale, const std::vector<int64_t>& document_lengths) {
    const int64_t tokens = q.size(0), heads = q.size(1);
    const at::Tensor y = at::empty({tokens, heads, value_dim}, q.options());
    const at::Tensor lse = at::empty({heads, tokens}, q.options());
    Pass pass = make_pass(q, k, v, value_dim, scale);
    pass.y = heads_of(y);
    pass.lse = lse.mutable_data_ptr<float>();
    run_documents(kernels.forward, kernels, pass, k.size(1), document_lengths);
    const at::Tensor out = y.view({tokens, heads * value_dim});
    context->save_for_backward({q, k, v, out, lse});
    context->saved_data["kernels"] = reinterpret_cast<int64_t>(&kernels);
    context->saved_data["scale"] = scale;
    context->saved_data["document_lengths"] = document_lengths;
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad_outputs) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &lse = saved[4];
    const at::Tensor y = saved[3].view({q.size(0), q.size(1), -1});
    const at::Tensor dy = grad_outputs[0].contiguous().view(y.sizes());
    const int64_t value_dim = y.size(2);
    const at::Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
    const at::Tensor dv = v.size(2) == value_dim ? at::empty(v.sizes(), v.options())
                                                 : at::zeros(v.sizes(), v.options());
    Pass pass = make_pass(q, k, v, value_dim, context->saved_data["scale"].toDouble());
    pass.y = heads_of(y);
    pass.lse = lse.mutable_data_ptr<float>();
    pass.dy = heads_of(dy);
    pass.dq = heads_of(dq);
    pass.dk = heads_of(dk);
    pass.dv = heads_of(dv);
    const auto& kernels = *reinterpret_cast<const Kernels*>(context->saved_data["kernels"].toInt());
    run_documents(kernels.backward, kernels, pass, k.size(1),
                  context->saved_data["document_lengths"].toIntVector());
    return {at::Tensor(), dq, dk, dv, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

void run_documents(void (*kernel)(const Pass&, const Task&, float*), const Kernels& kernels,
                   const Pass& pass, int64_t kv_heads,
                   const std::vector<int64_t>& document_lengths) {
  // Ranges of about equal work.
  std::vector<Task> tasks;
  std::vector<int64_t> work{0};  // before each task
  int64_t begin = 0, longest = 0;
  for (const int64_t length : document_lengths) {
    for (int64_t head = 0; head < kv_heads; ++head) {
      tasks.push_back({begin, length, head});
      work.push_back(work.back() + length * (length + pass.key_dim));
    }
    begin += length;
    longest = std::max(longest, length);
  }
  const int64_t num_floats = kernels.scratch_floats(pass, longest);
  parallel_for(work.back(), [&](int64_t first, int64_t last) {
    at::Tensor scratch = at::empty({num_floats}, at::kFloat);
    // The tasks whose work begins in [first, last).
    auto task = std::lower_bound(work.begin(), work.end() - 1, first) - work.begin();
    for (; work[static_cast<size_t>(task)] < last; ++task) {
      kernel(pass, tasks[static_cast<size_t>(task)], scratch.mutable_data_ptr<float>());
    }
  });
}

const Kernels* kernels_for(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const auto fits = [](const at::Tensor& x) {
    return x.is_cpu() && x.scalar_type() == at::kFloat && (x.stride(2) == 1 || x.size(2) == 1);
  };
  if (supported_kernels().empty() || !fits(q) || !fits(k) || !fits(v)) return nullptr;
  return supported_kernels()[0];
}

at::Tensor attend(const Kernels& kernels, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v, int64_t value_dim, double scale,
                  const std::vector<int64_t>& document_lengths) {
  return CausalAttention::apply(kernels, q, k, v, value_dim, scale, document_lengths);
}

}  // namespace amoeba::nn::cpu_attention
