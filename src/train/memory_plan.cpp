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
#include "formats/tokenizer.h"
#include "train/device.h"
#include "train/model_config.h"

namespace amoeba::train {

namespace {

constexpr int64_t kFp32 = 4, kId = 8;  // ids are int64

// One half of a block: attention or network.
struct Half {
  int64_t kept = 0;      // from forward to backward, without the half's input [T, D]
  int64_t backward = 0;  // most that its backward adds to that
};

struct Sizes {
  const nn::ModelConfig& config;
  int64_t tokens;
  int64_t c;
  bool cpu_loops;  // fp32 on the CPU: loops without fp32 copies of whole tensors

  int64_t dim() const { return config.attention.dim; }
  int64_t rows() const { return tokens * config.moe.router.top_k; }
};

// The normalised input of a half [T, D] and its reciprocal norms [T].
int64_t norm_kept(const Sizes& s) { return s.tokens * (s.dim() * s.c + kFp32); }

Half attention_half(const Sizes& s) {
  const nn::AttentionConfig& a = s.config.attention;
  const int64_t width = a.mla ? a.mla->qk_nope_head_dim + a.mla->qk_rope_head_dim : a.head_dim;
  const int64_t q = s.tokens * a.num_heads * width * s.c;                 // as wide as y
  const int64_t k = a.mla ? q : s.tokens * a.num_kv_heads * width * s.c;  // as wide as v
  Half half;
  half.kept = norm_kept(s);
  half.kept += 2 * q + 2 * k + s.tokens * a.num_heads * kFp32;  // q, k, v, y, log-sum-exps
  if (a.mla) {
    // v and y are padded to the width of the keys; wo keeps a copy of y without the padding. Then
    // the latent vectors before and after their norms.
    half.kept += s.tokens * a.num_heads * a.mla->v_head_dim * s.c;
    half.kept += s.tokens * 2 * (a.mla->kv_lora_rank + a.mla->q_lora_rank) * s.c;
  }
  if (a.qk_norm) half.kept += q + k;  // before their norms
  half.backward = 2 * q + 2 * k;      // gradients of y, q, k, v
  return half;
}

// Two products and swiglu: gate and up [T, 2 width], their product [T, width].
int64_t feed_forward_kept(const Sizes& s, int64_t width) { return s.tokens * 3 * width * s.c; }

Half dense_half(const Sizes& s) {
  const int64_t width = s.config.dense_hidden_dim;
  Half half;
  half.kept = norm_kept(s) + feed_forward_kept(s, width);
  // Gradients of the two; swiglu elsewhere than in the CPU's loops goes through fp32.
  half.backward = s.tokens * width * (s.cpu_loops ? 3 * s.c : 3 * s.c + 6 * kFp32);
  return half;
}

// Rows of gate and up. batched_mm_padded: as with equal loads, the most even case.
int64_t expert_rows(const Sizes& s) {
  const nn::MoeConfig& moe = s.config.moe;
  if (s.config.compute_backend != "batched_mm_capacity") return s.rows();
  const double rows = static_cast<double>(s.rows()) * moe.experts.capacity_factor;
  return static_cast<int64_t>(std::ceil(rows));
}

Half moe_half(const Sizes& s) {
  const nn::MoeConfig& moe = s.config.moe;
  const int64_t experts = moe.router.num_experts;
  const int64_t shared = feed_forward_kept(s, moe.num_shared_experts * moe.hidden_dim);
  const int64_t rows = s.rows() * s.dim() * s.c;                 // [R, D]
  const int64_t hidden = expert_rows(s) * moe.hidden_dim * s.c;  // [R, H]
  const int64_t weights = experts * moe.hidden_dim * s.dim() * s.c;
  Half half;
  half.kept = norm_kept(s) + shared;
  if (s.c != kFp32) half.kept += s.tokens * s.dim() * kFp32;  // the router's input in fp32
  half.kept += s.tokens * experts * (2 * kFp32 + 1);          // logits, scores, where NaN
  half.kept += s.rows() * (4 * kId + 2 * kFp32);              // ids, order there and back, weights
  half.kept += 2 * rows + 2 * hidden;                         // rows in and out, gate, up
  // The shared expert and the combination are done when the experts' backward begins: gradients of
  // the rows out and in, of gate, up and their product, of the three weights.
  const int64_t of_experts = 2 * rows + 3 * hidden + 3 * weights - rows - shared;
  // Combining elsewhere than in the CPU's loops: the slots and their gradients, also in fp32.
  const int64_t of_combine = s.cpu_loops ? 0 : 2 * rows + 2 * s.rows() * s.dim() * kFp32 - shared;
  half.backward = std::max(of_experts, of_combine);
  return half;
}

// Most that the backward of a block adds to what the block keeps.
int64_t block_backward(const Sizes& s, const Half& attention, const Half& network) {
  const int64_t stream = 2 * s.tokens * s.dim() * s.c;  // gradients of the block's output and input
  return stream + std::max(network.backward, attention.backward - network.kept);
}

}  // namespace

int64_t MemoryPlan::total() const {
  return weights + gradients + optimizer + shadow + activations + std::max(loss, backward);
}

MemoryPlan plan_memory(const nn::ModelConfig& config, const StepSize& step) {
  const auto c = static_cast<int64_t>(c10::elementSize(step.dtype));
  const int64_t tokens = step.batch_size * step.seq_len;
  const Sizes s{config, tokens, c, step.device == at::kCPU && step.dtype == at::kFloat};
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
    plan.backward = std::max(plan.backward, computed_again + block_backward(s, attention, network));
  }

  const int64_t row = config.vocab_size * kFp32;  // of the logits
  const int64_t chunk = std::min(tokens, std::max<int64_t>(1, step.loss_chunk_bytes / row));
  plan.loss = 2 * chunk * row;  // the logits, and their exponentials for the sum
  // The gradient of the output projection is added to fp32 through a product in bf16.
  if (step.dtype != at::kFloat) plan.loss += config.vocab_size * s.dim() * c;
  return plan;
}

MemoryPlan plan_memory(const RunConfig& config, at::DeviceType device) {
  const TrainingSection& training = config.training;
  const auto tokenizer = formats::make_tokenizer(config.data.tokenizer);
  return plan_memory(make_model_config(config, tokenizer->vocab_size()),
                     {training.local_batch_size, training.seq_len, resolve_dtype(training.dtype),
                      device, training.loss_chunk_mib << 20});
}

std::string describe(const MemoryPlan& plan) {
  const std::pair<const char*, int64_t> parts[] = {
      {"weights ", plan.weights},         {"gradients ", plan.gradients},
      {"optimizer ", plan.optimizer},     {"shadow ", plan.shadow},
      {"activations ", plan.activations}, {"loss ", plan.loss},
      {"backward ", plan.backward}};
  std::vector<std::string> texts;
  for (const auto& [name, bytes] : parts) {
    if (bytes > 0) texts.push_back(name + format_bytes(bytes));
  }
  return join(texts, ", ");
}

}  // namespace amoeba::train
