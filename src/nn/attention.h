// Grouped-query attention (Ainslie et al., 2023) with rotary positions, causal within a document.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "nn/parameters.h"
#include "nn/rope.h"

namespace amoeba::nn {

// Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values from one latent vector a
// token, and one rotated key that all heads share.
struct MlaConfig {
  int64_t q_lora_rank = 0;  // 0: queries straight from the hidden state
  int64_t kv_lora_rank = 512;
  int64_t qk_nope_head_dim = 128;
  int64_t qk_rope_head_dim = 64;
  int64_t v_head_dim = 128;
};

struct AttentionConfig {
  int64_t dim = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;  // grouped-query only, as is head_dim and qk_norm
  int64_t head_dim = 0;
  std::optional<MlaConfig> mla;  // unset: grouped-query
  RopeConfig rope;               // rope.head_dim: head_dim, or qk_rope_head_dim
  double yarn_mscale = 1.0;      // see yarn_attention_factor; MLA only
  bool qk_norm = false;          // RMSNorm of every query and key head before the rotation
  double norm_eps = 1e-5;
};

// One document's stretch inside a row of the batch.
struct Segment {
  int64_t row = 0;
  int64_t begin = 0;
  int64_t length = 0;
};

// How the T = B*S tokens of a batch hang together; tokens of row b are b*S .. b*S+S-1.
struct SequenceLayout {
  int64_t batch_size = 0;         // B
  int64_t seq_len = 0;            // S
  at::Tensor positions;           // [T] int64, restarting at each document
  std::vector<Segment> segments;  // in order, covering every row; empty: one document a row
};

// Keys and values of the tokens so far of one sequence, for generation (batch size 1).
struct KvCache {
  at::Tensor keys;  // [1, kv heads, max positions, head dim]
  at::Tensor values;
  int64_t length = 0;
};

class Attention {
 public:
  // Declares `<prefix>.wq.weight` [heads*hd, D], `.wk`, `.wv` [kv heads*hd, D], `.wo` [D,
  // heads*hd].
  Attention(const AttentionConfig& config, const std::string& prefix, const LayerInit& init,
            ParameterStore& store);

  // hidden [T, D] -> [T, D]. With a cache: appends this call's T tokens and attends to all before.
  at::Tensor forward(const at::Tensor& hidden, const SequenceLayout& layout, const RopeTable& table,
                     KvCache* cache) const;

 private:
  AttentionConfig config_;
  const Parameter* wqkv_;  // the three input projections as one
  const Parameter* wo_;
  const Parameter* q_norm_ = nullptr;
  const Parameter* k_norm_ = nullptr;
};

}  // namespace amoeba::nn
