#include "nn/cpu_attention/grouped.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "nn/cpu_math.h"
#include "nn/parallel.h"
#include "nn/rms_norm.h"

namespace amoeba::nn::cpu_attention {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What one call works on. `rotated` [T, (heads + kv heads) * hd]: queries and keys as they attend.
struct Call {
  GroupedHeads heads;
  RopeTable table;
  at::Tensor positions, product, rotated;

  int64_t num_tokens() const { return product.size(0); }
  int64_t num_rotated() const { return heads.heads + heads.kv_heads; }
  const Parameter* norm_of(int64_t head) const {
    return head < heads.heads ? heads.q_norm : heads.k_norm;
  }
};

// Heads [first, ...) of a tensor [T, heads * hd].
Heads heads_at(const at::Tensor& x, int64_t first, int64_t head_dim) {
  return {const_cast<float*>(x.const_data_ptr<float>()) + first * head_dim, x.stride(0), head_dim};
}

Pass make_pass(const Call& call, const at::Tensor& y, const at::Tensor& lse) {
  const auto& [heads, kv_heads, head_dim, q_norm, k_norm, eps, scale] = call.heads;
  Pass pass{};
  pass.num_tokens = call.num_tokens();
  pass.heads_per_kv = heads / kv_heads;
  pass.key_dim = pass.value_dim = head_dim;
  pass.scale = static_cast<float>(scale);
  pass.q = heads_at(call.rotated, 0, head_dim);
  pass.k = heads_at(call.rotated, heads, head_dim);
  pass.v = heads_at(call.product, heads + kv_heads, head_dim);
  pass.y = heads_at(y, 0, head_dim);
  pass.lse = lse.mutable_data_ptr<float>();
  return pass;
}

void norm_and_rotate(const Call& call) {
  const int64_t hd = call.heads.head_dim;
  const float *cos = call.table.cos.const_data_ptr<float>(),
              *sin = call.table.sin.const_data_ptr<float>();
  const int64_t* positions = call.positions.const_data_ptr<int64_t>();
  const float* in = call.product.const_data_ptr<float>();
  float* out = call.rotated.mutable_data_ptr<float>();
  parallel_for(call.num_tokens(), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = rope_row(call.table, positions, t);
      for (int64_t head = 0; head < call.num_rotated(); ++head) {
        const float* x = in + t * call.product.size(1) + head * hd;
        float* y = out + (t * call.num_rotated() + head) * hd;
        if (const Parameter* norm = call.norm_of(head)) {
          norm_row(x, norm->compute.const_data_ptr<float>(),
                   inverse_rms(x, hd, call.heads.norm_eps), y, hd);
          x = y;
        }
        rotate_head(x, cos + row, sin + row, 1.0f, y, hd / 2);
      }
    }
  });
}

// The gradients of rotated heads in `dproduct` become those of the product; of the norms' weights:
// [blocks of tokens, 2, hd] partial sums.
at::Tensor rotate_and_norm_backward(const Call& call, const at::Tensor& dproduct) {
  const int64_t hd = call.heads.head_dim, width = dproduct.size(1), tokens = call.num_tokens();
  const int64_t num_blocks = (tokens + kNormRowsPerBlock - 1) / kNormRowsPerBlock;
  const at::Tensor partial = at::zeros({num_blocks, 2, hd}, dproduct.options());
  const float *cos = call.table.cos.const_data_ptr<float>(),
              *sin = call.table.sin.const_data_ptr<float>();
  const int64_t* positions = call.positions.const_data_ptr<int64_t>();
  const float* in = call.product.const_data_ptr<float>();
  float *out = dproduct.mutable_data_ptr<float>(), *sums = partial.mutable_data_ptr<float>();
  parallel_for(num_blocks, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin * kNormRowsPerBlock; t < std::min(end * kNormRowsPerBlock, tokens);
         ++t) {
      const int64_t row = rope_row(call.table, positions, t);
      for (int64_t head = 0; head < call.num_rotated(); ++head) {
        const float* x = in + t * width + head * hd;
        float* dx = out + t * width + head * hd;
        rotate_head(dx, cos + row, sin + row, -1.0f, dx, hd / 2);
        const Parameter* norm = call.norm_of(head);
        if (norm == nullptr) continue;
        const int64_t which = head < call.heads.heads ? 0 : 1;
        norm_row_backward(x, norm->compute.const_data_ptr<float>(), dx, nullptr,
                          inverse_rms(x, hd, call.heads.norm_eps), dx,
                          sums + (t / kNormRowsPerBlock * 2 + which) * hd, hd);
      }
    }
  });
  return partial;
}

void add_partials(const at::Tensor& partial, int64_t which, const Parameter* norm) {
  if (norm == nullptr) return;
  const int64_t hd = partial.size(2);
  const float* sums = partial.const_data_ptr<float>() + which * hd;
  at::Tensor grad = norm->grad;
  float* out = grad.mutable_data_ptr<float>();
  for (int64_t block = 0; block < partial.size(0); ++block) {
    for (int64_t d = 0; d < hd; ++d) out[d] += sums[block * 2 * hd + d];
  }
}

// Parameters outlive the graph: the store keeps them at their place.
struct HeldCall : torch::CustomClassHolder {
  HeldCall(const Kernels& used, Call made, std::vector<int64_t> lengths)
      : kernels(used), call(std::move(made)), document_lengths(std::move(lengths)) {}
  const Kernels& kernels;
  Call call;  // without tensors that autograd saves
  std::vector<int64_t> document_lengths;
};

struct GroupedCausalAttention : torch::autograd::Function<GroupedCausalAttention> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& product,
                            const c10::intrusive_ptr<HeldCall>& held) {
    Call call = held->call;
    const int64_t tokens = product.size(0), hd = call.heads.head_dim;
    call.product = product;
    call.rotated = at::empty({tokens, call.num_rotated() * hd}, product.options());
    const at::Tensor y = at::empty({tokens, call.heads.heads * hd}, product.options());
    const at::Tensor lse = at::empty({call.heads.heads, tokens}, product.options());
    norm_and_rotate(call);
    run_documents(held->kernels.forward, held->kernels, make_pass(call, y, lse),
                  call.heads.kv_heads, held->document_lengths);
    context->save_for_backward({product, call.rotated, y, lse});
    context->saved_data["held"] = c10::IValue::make_capsule(held);
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad_outputs) {
    const variable_list saved = context->get_saved_variables();
    const auto held =
        c10::static_intrusive_pointer_cast<HeldCall>(context->saved_data["held"].toCapsule());
    Call call = held->call;
    call.product = saved[0];
    call.rotated = saved[1];
    const auto [heads, kv_heads, hd, q_norm, k_norm, eps, scale] = call.heads;
    const at::Tensor dy = grad_outputs[0].contiguous(), dproduct = at::empty_like(call.product);
    Pass pass = make_pass(call, saved[2], saved[3]);
    pass.dy = heads_at(dy, 0, hd);
    pass.dq = heads_at(dproduct, 0, hd);
    pass.dk = heads_at(dproduct, heads, hd);
    pass.dv = heads_at(dproduct, heads + kv_heads, hd);
    run_documents(held->kernels.backward, held->kernels, pass, kv_heads, held->document_lengths);
    const at::Tensor partial = rotate_and_norm_backward(call, dproduct);
    add_partials(partial, 0, q_norm);
    add_partials(partial, 1, k_norm);
    return {dproduct, at::Tensor()};
  }
};

}  // namespace

const Kernels* kernels_for(const at::Tensor& product, const GroupedHeads& heads) {
  const auto fits = [&](const Parameter* norm) {
    return norm == nullptr || norm->numel() == heads.head_dim;
  };
  if (supported_kernels().empty() || !has_cpu_loop(product)) return nullptr;
  return fits(heads.q_norm) && fits(heads.k_norm) ? supported_kernels()[0] : nullptr;
}

at::Tensor attend_grouped(const Kernels& kernels, const at::Tensor& product,
                          const GroupedHeads& heads, const RopeTable& table,
                          const at::Tensor& positions,
                          const std::vector<int64_t>& document_lengths) {
  return GroupedCausalAttention::apply(
      product, c10::make_intrusive<HeldCall>(kernels, Call{heads, table, positions, {}, {}},
                                             document_lengths));
}

}  // namespace amoeba::nn::cpu_attention
