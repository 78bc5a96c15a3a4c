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
#include <cmath>

#include "amoeba/error.h"
#include "nn/cpu_math.h"
#include "nn/linear.h"
#include "nn/operators.h"
#include "nn/parallel.h"
#include "nn/vector_exp.h"

namespace amoeba::nn {

namespace {

// A stretch of the tokens.
struct Chunk {
  at::Tensor rows;     // [C, D]
  at::Tensor target;   // [C]
  at::Tensor dhidden;  // [C, D] to be written, undefined without gradients
};

// Losses [C]; softmax - one hot, rounded once, goes to dlogits (may be undefined). Both are 0 for a
// token to ignore.
at::Tensor token_losses_composed(const at::Tensor& logits, const at::Tensor& target,
                                 at::Tensor dlogits) {
  const at::Tensor valid = target.ne(kIgnoreIndex);  // [C]
  // Only the ignore index is replaced: any other target outside [0, V) is refused by gather.
  const at::Tensor safe_target = at::where(valid, target, 0).unsqueeze(1);
  const at::Tensor log_p = at::log_softmax(logits, 1);
  const at::Tensor target_log_p = log_p.gather(1, safe_target);  // [C, 1]
  if (dlogits.defined()) {
    at::exp_out(dlogits, log_p);
    dlogits.scatter_(1, safe_target, target_log_p.exp().sub_(1.0).to(dlogits.scalar_type()));
    dlogits.masked_fill_(valid.logical_not().unsqueeze_(1), 0.0);
  }
  return at::where(valid, target_log_p.squeeze(1), 0.0).neg();
}

// On a card, where passes over the logits are the cost: fp32 sums of the product are taken as they
// are, and their gradient is never scaled; the small sides of its two products are.
at::Tensor loss_on_card(const Chunk& chunk, const Parameter& lm_head, double scale) {
  const at::Tensor& weight = lm_head.compute;
  const bool is_wide = weight.scalar_type() == at::kFloat;
  const auto product = [&](const at::Tensor& a, const at::Tensor& b) {
    return is_wide ? at::mm(a, b) : at::mm(a, b, at::kFloat);
  };
  const at::Tensor logits = product(chunk.rows, weight.t());  // [C, V]
  at::Tensor dlogits;
  if (chunk.dhidden.defined()) {
    dlogits = at::empty(logits.sizes(), logits.options().dtype(weight.scalar_type()));
  }
  const at::Tensor losses = has_card_layers(logits)
                                ? card_cross_entropy(logits, chunk.target, dlogits)
                                : token_losses_composed(logits, chunk.target, dlogits);
  if (dlogits.defined()) {
    at::Tensor dhidden = chunk.dhidden;
    dhidden.copy_(product(dlogits, weight).mul_(scale));
    add_weight_gradient(lm_head.grad, dlogits, chunk.rows, scale);
  }
  return losses.sum(at::kDouble);
}

AMOEBA_CPU_CLONES
float largest(const float* values, int64_t size) {
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, values[0]);
  int64_t v = 0;
  for (; v + kLanes <= size; v += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      lanes[j] = values[v + j] > lanes[j] ? values[v + j] : lanes[j];
    }
  }
  float max = values[0];
  for (; v < size; ++v) max = values[v] > max ? values[v] : max;
  for (const float lane : lanes) max = lane > max ? lane : max;
  return max;
}

// values[v] = e^(values[v] - shift), and their sum.
AMOEBA_CPU_CLONES
float exponentials(float* values, float shift, int64_t size) {
  float lanes[kLanes] = {};
  int64_t v = 0;
  for (; v + kLanes <= size; v += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      values[v + j] = vector_exp(values[v + j] - shift);
      lanes[j] += values[v + j];
    }
  }
  float sum = 0.0f;
  for (; v < size; ++v) sum += values[v] = vector_exp(values[v] - shift);
  for (const float lane : lanes) sum += lane;
  return sum;
}

AMOEBA_CPU_CLONES
void scale_row(float* values, float factor, int64_t size) {
  for (int64_t v = 0; v < size; ++v) values[v] *= factor;
}

// Losses of [chunk] tokens, 0 where ignored, in one pass over a row while it is in cache. Logits
// are used up: with gradients they become those of scale * sum of losses, scale * (softmax - one
// hot).
at::Tensor token_losses_cpu(const at::Tensor& logits, const at::Tensor& targets, double scale,
                            bool with_grad) {
  const int64_t vocab = logits.size(1);
  at::Tensor losses = at::empty(targets.sizes(), logits.options());
  const at::Tensor ids = targets.contiguous();
  const int64_t* target_of = ids.const_data_ptr<int64_t>();
  float *rows = logits.mutable_data_ptr<float>(), *loss = losses.mutable_data_ptr<float>();
  parallel_for(ids.size(0), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = rows + t * vocab;
      const int64_t target = target_of[t];
      if (target == kIgnoreIndex) {
        loss[t] = 0.0f;
        std::fill_n(row, vocab, 0.0f);
        continue;
      }
      AMOEBA_CHECK(target >= 0 && target < vocab, "cross_entropy: target of token ", t, " is ",
                   target, ", want 0 to ", vocab - 1, ", or ", kIgnoreIndex, " for none");
      const float max = largest(row, vocab), own = row[target];
      const float sum = exponentials(row, max, vocab);
      loss[t] = max - own + std::log(sum);
      if (!with_grad) continue;
      const auto factor = static_cast<float>(scale);
      scale_row(row, factor / sum, vocab);
      row[target] -= factor;
    }
  });
  return losses;
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
    if (!x.is_cpu()) {
      const at::Tensor dhidden = with_grad ? out.dhidden.narrow(0, begin, size) : at::Tensor();
      out.loss_sum.add_(loss_on_card({rows, target, dhidden}, lm_head, options.scale));
      continue;
    }
    const at::Tensor logits = at::mm(rows, weight.t()).to(at::kFloat);  // [chunk, V]
    out.loss_sum.add_(token_losses_cpu(logits, target, options.scale, with_grad).sum(at::kDouble));
    if (!with_grad) continue;
    const at::Tensor dlogits = logits.to(weight.scalar_type());
    out.dhidden.narrow(0, begin, size).copy_(at::mm(dlogits, weight));
    add_weight_gradient(lm_head.grad, dlogits, rows);
  }
  return out;
}

}  // namespace amoeba::nn
