// The sizes of an attention layer, of either kind.
#pragma once

#include <cstdint>
#include <optional>

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
  int64_t num_kv_heads = 0;  // grouped-query only, as are the others without mla
  int64_t head_dim = 0;
  std::optional<MlaConfig> mla;  // unset: grouped-query
  RopeConfig rope;               // rope.head_dim: head_dim, or qk_rope_head_dim
  double yarn_mscale = 1.0;      // see yarn_scale_factor; MLA only
  bool qk_norm = false;          // RMSNorm of every query and key head before the rotation
  bool qk_norm_whole = false;    // of all heads of a token together instead
  int64_t sliding_window = 0;    // tokens that a token sees, itself included; 0: all before it
  double norm_eps = 1e-5;
  double latent_norm_eps = 0.0;  // of the norms inside latent attention; 0: norm_eps

  // Widths of a head as the attention product sees it.
  int64_t key_dim() const { return mla ? mla->qk_nope_head_dim + mla->qk_rope_head_dim : head_dim; }
  int64_t value_dim() const { return mla ? mla->v_head_dim : head_dim; }
  double latent_eps() const { return latent_norm_eps != 0.0 ? latent_norm_eps : norm_eps; }
};

// Error(kUsage) for sizes that do not fit together.
void check_attention_config(const AttentionConfig& config);

}  // namespace amoeba::nn
