#include "nn/loss.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "amoeba/error.h"
#include "nn/linear.h"

namespace amoeba::nn {

namespace {

// A stretch of the tokens.
struct Chunk {
  at::Tensor rows;     // [C, D]
  at::Tensor valid;    // [C] bool
  at::Tensor target;   // [C, 1], of a token to ignore 0
  at::Tensor dhidden;  // [C, D] to be written, undefined without gradients
};

// On a card, where passes over the logits are the cost: fp32 sums of the product are taken as they
// are, and softmax - one hot is rounded once and never scaled or masked; the small sides of its two
// products are.
at::Tensor loss_on_card(const Chunk& chunk, const Parameter& lm_head, double scale) {
  const at::Tensor& weight = lm_head.compute;
  const bool is_wide = weight.scalar_type() == at::kFloat;
  const auto product = [&](const at::Tensor& a, const at::Tensor& b) {
    return is_wide ? at::mm(a, b) : at::mm(a, b, at::kFloat);
  };
  const at::Tensor log_p = at::log_softmax(product(chunk.rows, weight.t()), 1);  // [C, V]
  const at::Tensor target_log_p = log_p.gather(1, chunk.target);                 // [C, 1]
  const at::Tensor losses = at::where(chunk.valid, target_log_p.squeeze(1), 0.0);
  if (chunk.dhidden.defined()) {
    at::Tensor dlogits = at::empty(log_p.sizes(), log_p.options().dtype(weight.scalar_type()));
    at::exp_out(dlogits, log_p);
    const at::Tensor at_target = target_log_p.exp().sub_(1.0).to(weight.scalar_type());
    dlogits.scatter_(1, chunk.target, at_target);
    const at::Tensor mask = chunk.valid.to(at::kFloat).unsqueeze_(1);
    at::Tensor dhidden = chunk.dhidden;
    at::mul_out(dhidden, product(dlogits, weight), mask * scale);
    add_weight_gradient(lm_head.grad, dlogits, chunk.rows * mask.to(weight.scalar_type()), scale);
  }
  return losses.sum(at::kDouble).neg();
}

}  // namespace

LossOutput lm_head_cross_entropy(const at::Tensor& hidden, const Parameter& lm_head,
                                 const at::Tensor& targets, const LossOptions& options) {
  AMOEBA_CHECK(hidden.dim() == 2 && targets.dim() == 1 && hidden.size(0) == targets.size(0),
               "cross_entropy: got hidden ", hidden.sizes(), " and targets ", targets.sizes(),
               ", want [T, D] and [T]");
  const bool with_grad = lm_head.wants_gradient();
  const at::NoGradGuard no_grad;
  const at::Tensor x = hidden.detach();
  const at::Tensor& weight = lm_head.compute;
  const int64_t tokens = x.size(0), vocab = weight.size(0);
  const int64_t chunk =
      std::max<int64_t>(1, options.max_chunk_bytes / (vocab * static_cast<int64_t>(sizeof(float))));
  LossOutput out;
  out.loss_sum = at::zeros({}, x.options().dtype(at::kDouble));
  if (with_grad) out.dhidden = at::empty_like(x);
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t size = std::min(chunk, tokens - begin);
    const at::Tensor rows = x.narrow(0, begin, size);
    const at::Tensor target = targets.narrow(0, begin, size);
    const at::Tensor valid = target.ne(kIgnoreIndex);
    // Only the ignore index is replaced: any other target outside [0, V) is refused by gather.
    const at::Tensor safe_target = at::where(valid, target, 0).unsqueeze(1);
    if (x.is_cuda()) {
      const at::Tensor dhidden = with_grad ? out.dhidden.narrow(0, begin, size) : at::Tensor();
      out.loss_sum.add_(loss_on_card({rows, valid, safe_target, dhidden}, lm_head, options.scale));
      continue;
    }
    at::Tensor logits = at::mm(rows, weight.t()).to(at::kFloat);  // [chunk, V]
    const at::Tensor lse = logits.logsumexp(1, /*keepdim=*/true);
    const at::Tensor loss = (lse - logits.gather(1, safe_target)).squeeze(1);
    out.loss_sum.add_(at::where(valid, loss, 0.0).sum(at::kDouble));
    if (!with_grad) continue;
    // d logits = scale * (softmax - one hot), zero where ignored, in the storage of the logits.
    const at::Tensor row_scale = valid.to(at::kFloat).mul_(options.scale).unsqueeze(1);
    logits.sub_(lse).exp_().mul_(row_scale);
    logits.scatter_add_(1, safe_target, row_scale.neg());
    const at::Tensor dlogits = logits.to(weight.scalar_type());
    out.dhidden.narrow(0, begin, size).copy_(at::mm(dlogits, weight));
    add_weight_gradient(lm_head.grad, dlogits, rows);
  }
  return out;
}

}  // namespace amoeba::nn
