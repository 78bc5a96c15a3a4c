// Every function of nn that autograd calls saves its inputs, so a block keeps what passes between
// its functions. Sizes are in bytes; c: bytes of the compute dtype.
//
// Legend: T tokens, D model width, H expert hidden width, E experts, K choices per token, R = T*K,
// V vocabulary, N parameters.
#include "train/memory_plan.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/text.h"
#include "nn/cpu_attention/attention.h"
#include "train/device.h"
#include "train/model_config.h"

namespace amoeba::train {

namespace {

constexpr int64_t kFp32 = 4, kId = 8;  // ids are int64

// MemoryPlan::program on the CPU, measured (docs/memory.md). oneDNN's products, which bf16 takes,
// hold more.
constexpr int64_t kProgramFp32 = 220 << 20, kProgramBf16 = 340 << 20;
constexpr int64_t kProgramBf16Fused = 250 << 20;  // experts take none of oneDNN's products

// One half of a block: attention or network.
struct Half {
  int64_t kept = 0;      // from forward to backward, without the half's input [T, D]
  int64_t backward = 0;  // most that its backward adds to that
};

struct Sizes {
  const nn::ModelConfig& config;
  int64_t tokens;
  at::ScalarType dtype;
  int64_t c;
  bool cpu;

  int64_t dim() const { return config.attention.dim; }
  int64_t rows() const { return tokens * config.moe.router.top_k; }
  // The CPU's loops of fp32 make no fp32 copies of whole tensors, LibTorch's operators do.
  bool has_loops() const { return cpu && c == kFp32; }
  // A weight's gradient is added in place, but on the CPU first computed in the compute dtype and
  // then copied to fp32.
  int64_t weight_gradient(int64_t numel) const {
    return cpu && c != kFp32 ? numel * (c + kFp32) : 0;
  }
};

// The normalised input of a half [T, D] and its reciprocal norms [T].
int64_t norm_kept(const Sizes& s) { return s.tokens * (s.dim() * s.c + kFp32); }

// Backward of a norm of [T, D]: where no loop takes it, three such tensors in fp32, and on the CPU
// a copy that its last expression makes.
int64_t norm_backward(const Sizes& s) {
  return s.tokens * s.dim() * (s.has_loops() ? s.c : s.c + (s.cpu ? 4 : 3) * kFp32);
}

// Grouped queries through one node of our own (nn/cpu_attention/grouped.h), which works in fp32: it
// keeps the joined product, rotated queries and keys, and y; in bf16 the output map keeps y too.
Half grouped_half(const Sizes& s) {
  const nn::AttentionConfig& a = s.config.attention;
  const int64_t y = s.tokens * a.num_heads * a.head_dim;  // q as well
  const int64_t k = s.tokens * a.num_kv_heads * a.head_dim, product = y + 2 * k;
  const int64_t map = s.dim() * a.num_heads * a.head_dim;
  const int64_t joined_map = map + 2 * s.dim() * a.num_kv_heads * a.head_dim;
  const int64_t narrow = s.c == kFp32 ? 0 : s.c;
  const int64_t own = (product + y + k + y) * kFp32 + s.tokens * a.num_heads * kFp32;
  Half half;
  half.kept = norm_kept(s) + own + y * narrow;
  // Gradients of y and the product; or that of the output map while all is kept, or of the joined
  // map beside the product's gradient when what the node kept is gone.
  half.backward = std::max({y * (kFp32 + narrow) + product * kFp32, s.weight_gradient(map),
                            s.weight_gradient(joined_map) + product * s.c - own - y * narrow});
  return half;
}

Half attention_half(const Sizes& s) {
  const nn::AttentionConfig& a = s.config.attention;
  const bool has_kernels = s.cpu && !nn::cpu_attention::supported_kernels().empty();
  if (has_kernels && !a.mla && !a.qk_norm_whole && a.sliding_window == 0) return grouped_half(s);
  const int64_t q_rows = a.num_heads * a.key_dim();
  const int64_t q = s.tokens * q_rows * s.c;
  const int64_t k = a.mla ? q : s.tokens * a.num_kv_heads * a.key_dim() * s.c;
  const int64_t own_y = s.tokens * a.num_heads * a.value_dim() * s.c;  // without padding
  const bool is_padded = a.mla && !(s.has_loops() && has_kernels);
  const int64_t y = is_padded ? q : own_y;
  const int64_t v = a.mla ? y : k;
  int64_t largest_weight = s.dim() * q_rows;
  Half half;
  half.kept = norm_kept(s);
  half.kept += q + k + v + y + s.tokens * a.num_heads * kFp32;  // q, k, v, y, log-sum-exps
  if (a.mla) {
    // Where v and y are padded to the width of the keys, wo keeps a copy of y without the padding.
    // Then the latent vectors before and after their norms.
    if (is_padded) half.kept += own_y;
    half.kept += s.tokens * 2 * (a.mla->kv_lora_rank + a.mla->q_lora_rank) * s.c;
    largest_weight =
        std::max(a.mla->q_lora_rank == 0 ? largest_weight : a.mla->q_lora_rank * q_rows,
                 a.num_heads * (a.mla->qk_nope_head_dim + a.mla->v_head_dim) * a.mla->kv_lora_rank);
  } else {
    largest_weight += 2 * s.dim() * a.num_kv_heads * a.head_dim;
  }
  if (a.qk_norm) half.kept += q + k;  // before their norms
  // Gradients of y, q, k, v; or the gradient of the output map while all is kept, or of the largest
  // input map when q, k, v and y are gone and the gradients of two are left.
  half.backward = std::max({q + k + v + y, s.weight_gradient(s.dim() * a.num_heads * a.value_dim()),
                            s.weight_gradient(largest_weight) - q - k});
  return half;
}

// Two products and swiglu: gate and up [T, 2 W], their product [T, W].
Half feed_forward(const Sizes& s, int64_t width) {
  const int64_t hidden = s.tokens * width * s.c, weight = width * s.dim();
  Half half;
  half.kept = 3 * hidden;
  // Gradients of the product and of gate and up; on the CPU both beside gate and up in fp32, on a
  // card with thirteen tensors in fp32, ten of which one expression holds; or of the first map's
  // weights when what swiglu kept is gone.
  const int64_t of_loop = s.c == kFp32 ? 2 * hidden : 5 * s.tokens * width * kFp32;
  const int64_t of_swiglu = hidden + (s.cpu ? of_loop : 2 * hidden + 13 * s.tokens * width * kFp32);
  half.backward = std::max(
      {of_swiglu, hidden + s.weight_gradient(weight), s.weight_gradient(2 * weight) - hidden});
  return half;
}

Half dense_half(const Sizes& s) {
  Half half = feed_forward(s, s.config.dense_hidden_dim);
  half.kept += norm_kept(s);
  return half;
}

// Rows of gate and up. batched_mm_padded: as with equal loads, the least there can be.
int64_t expert_rows(const Sizes& s) {
  const nn::MoeConfig& moe = s.config.moe;
  if (s.config.compute_backend != "batched_mm_capacity") return s.rows();
  const double rows = static_cast<double>(s.rows()) * moe.experts.capacity_factor;
  return static_cast<int64_t>(std::ceil(rows));
}

bool takes_fused(const Sizes& s) {
  if (s.config.compute_backend != "auto") return s.config.compute_backend == "fused";
  const nn::MoeConfig& moe = s.config.moe;
  nn::ExpertProblem problem;
  problem.device = s.cpu ? nn::DeviceKind::kCpu : nn::DeviceKind::kCuda;
  problem.dtype = s.dtype;
  problem.model_dim = s.dim();
  problem.hidden_dim = moe.hidden_dim;
  problem.num_experts = moe.router.num_experts;
  return nn::choose_expert_backend("auto", problem).backend->name == "fused";
}

// The router, and the shared expert, whose backward runs before that of the routed ones.
struct Shared {
  Half half;
  int64_t kept;  // of both
};

Shared shared_half(const Sizes& s) {
  const nn::MoeConfig& moe = s.config.moe;
  const Half half = feed_forward(s, moe.num_shared_experts * moe.hidden_dim);
  int64_t kept = norm_kept(s) + half.kept;
  if (s.c != kFp32) kept += s.tokens * s.dim() * kFp32;         // the router's input in fp32
  kept += s.tokens * moe.router.num_experts * (2 * kFp32 + 1);  // logits, scores, where NaN
  kept += s.rows() * (2 * kId + 2 * kFp32);                     // ids, weights
  return {half, kept};
}

// Scratch of the operators' backward. On the CPU rows of an expert are padded to whole vectors, and
// the gradients of gate, up and the product, x and dy lie there as the products read them; in bf16
// the first two twice (counted for a CPU that multiplies pairs of bf16).
int64_t fused_scratch(const Sizes& s, int64_t padded_rows) {
  const int64_t hidden = s.config.moe.hidden_dim, rows = s.rows() * s.dim() * s.c;
  if (!s.cpu) return s.rows() * 3 * hidden * s.c + rows;
  constexpr int64_t kLanes = 16;
  const int64_t row = (3 * s.dim() + 2 * kLanes + (s.c == kFp32 ? 3 : 5) * hidden) * s.c;
  const int64_t score_parts = s.rows() * (hidden / kLanes + 1) * kFp32;
  return padded_rows * row + rows + score_parts;
}

Half fused_half(const Sizes& s) {
  const nn::MoeConfig& moe = s.config.moe;
  const Shared shared = shared_half(s);
  constexpr int64_t kIndex = 4;
  const int64_t padded_rows = s.rows() + (s.cpu ? 15 * moe.router.num_experts : 0);
  Half half;
  half.kept = shared.kept + s.rows() * 2 * kIndex;      // order there and back
  half.kept += padded_rows * 2 * moe.hidden_dim * s.c;  // gate, up
  const int64_t of_experts = fused_scratch(s, padded_rows) + s.tokens * s.dim() * s.c;
  half.backward = std::max(shared.half.backward, of_experts - shared.half.kept);
  return half;
}

Half moe_half(const Sizes& s) {
  if (takes_fused(s)) return fused_half(s);
  const nn::MoeConfig& moe = s.config.moe;
  const int64_t experts = moe.router.num_experts;
  const Shared shared = shared_half(s);
  const int64_t rows = s.rows() * s.dim() * s.c;  // [R, D]
  const int64_t rows_fp32 = s.rows() * s.dim() * kFp32;
  const int64_t hidden = expert_rows(s) * moe.hidden_dim * s.c;  // [R, H]
  const int64_t weight = experts * moe.hidden_dim * s.dim();     // [E, H, D]
  Half half;
  half.kept = shared.kept + s.rows() * 2 * kId;              // order there and back
  half.kept += rows + 2 * hidden;                            // rows in, gate, up
  half.kept += moe.score_before_experts ? rows_fp32 : rows;  // before weighting, or out
  // In this order: the shared expert; the combination, with the slots and their gradients in fp32
  // where no loop takes them; the experts, with the gradients of the rows out and in, of gate, up
  // and their product and of the weights; the weights' addition, when all else is gone.
  const int64_t of_combine =
      s.has_loops() ? rows : 2 * rows + 2 * rows_fp32 + s.tokens * s.dim() * kFp32;
  const int64_t of_experts = rows + 3 * hidden + 3 * weight * s.c;
  const int64_t of_addition =
      3 * weight * s.c + (s.c != kFp32 && s.cpu ? weight * kFp32 : 0) - rows - 2 * hidden;
  half.backward = std::max(shared.half.backward,
                           std::max({of_combine, of_experts, of_addition}) - shared.half.kept);
  return half;
}

// Most that the backward of a block adds to what the block keeps.
int64_t block_backward(const Sizes& s, const Half& attention, const Half& network) {
  const int64_t stream = 2 * s.tokens * s.dim() * s.c;  // gradients of the block's output and input
  return stream + std::max(network.backward, attention.backward - network.kept);
}

}  // namespace

int64_t MemoryPlan::tensors() const {
  return weights + gradients + optimizer + shadow + activations + std::max(loss, backward) +
         snapshot;
}

MemoryPlan plan_memory(const nn::ModelConfig& config, const StepSize& step) {
  const auto c = static_cast<int64_t>(c10::elementSize(step.dtype));
  const int64_t tokens = step.batch_size * step.seq_len;
  const Sizes s{config, tokens, step.dtype, c, step.device == at::kCPU};
  const int64_t parameters =
      nn::Model(config, at::kMeta, step.dtype, /*seed=*/0).size(step.seq_len).total;
  MemoryPlan plan;
  plan.weights = parameters * kFp32;
  plan.gradients = parameters * kFp32;
  plan.optimizer = 2 * parameters * kFp32;
  if (step.dtype != at::kFloat) plan.shadow = parameters * c;

  const int64_t stream = tokens * s.dim() * c;  // [T, D]
  const int64_t ids = s.rows() * kId;
  const Half attention = attention_half(s);
  plan.activations = 3 * stream;  // before and after the final norm, and the gradient of that
  int64_t backward_peak = 0;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const Half network = layer < config.num_dense_layers ? dense_half(s) : moe_half(s);
    int64_t computed_again = 0;
    switch (config.activation_checkpoint) {
      case nn::ActivationCheckpoint::kNone:
        plan.activations += 2 * stream + attention.kept + network.kept;
        break;
      case nn::ActivationCheckpoint::kFull:
        plan.activations += stream + ids;
        computed_again = stream + attention.kept + network.kept;
        break;
      case nn::ActivationCheckpoint::kSelective:
        plan.activations += 2 * stream + attention.kept + ids;
        computed_again = network.kept;
        break;
    }
    // Later layers are done when this one's backward runs.
    backward_peak = std::max(
        backward_peak, plan.activations + computed_again + block_backward(s, attention, network));
  }
  plan.backward = std::max(norm_backward(s), backward_peak - plan.activations);

  const int64_t row = config.vocab_size * kFp32;  // of the logits
  const int64_t chunk = std::min(tokens, std::max<int64_t>(1, step.loss_chunk_bytes / row));
  // The logits, and their exponentials for the sum; on a card their gradient beside both.
  plan.loss = 2 * chunk * row + (s.cpu ? 0 : chunk * config.vocab_size * c);
  plan.loss += s.weight_gradient(config.vocab_size * s.dim());
  const bool is_fused = config.num_dense_layers < config.num_layers && takes_fused(s);
  const int64_t program_bf16 = is_fused ? kProgramBf16Fused : kProgramBf16;
  if (s.cpu) plan.program = c == kFp32 ? kProgramFp32 : program_bf16;
  return plan;
}

MemoryPlan plan_memory(const RunConfig& config, int64_t tokenizer_vocab_size,
                       at::DeviceType device) {
  const TrainingSection& training = config.training;
  MemoryPlan plan =
      plan_memory(make_model_config(config, tokenizer_vocab_size),
                  {training.local_batch_size, training.seq_len, resolve_dtype(training.dtype),
                   device, loss_chunk_bytes(training.loss_chunk_mib, device)});
  const bool copies = config.checkpoint.enable && config.checkpoint.async_mode == "async";
  if (copies && device == at::kCPU) plan.snapshot = plan.weights + plan.optimizer;
  return plan;
}

std::string describe(const MemoryPlan& plan) {
  const std::pair<const char*, int64_t> parts[] = {
      {"weights ", plan.weights},         {"gradients ", plan.gradients},
      {"optimizer ", plan.optimizer},     {"shadow ", plan.shadow},
      {"activations ", plan.activations}, {"loss ", plan.loss},
      {"backward ", plan.backward},       {"snapshot ", plan.snapshot},
      {"program ", plan.program}};
  std::vector<std::string> texts;
  for (const auto& [name, bytes] : parts) {
    if (bytes > 0) texts.push_back(name + format_bytes(bytes));
  }
  return join(texts, ", ");
}

}  // namespace amoeba::train
