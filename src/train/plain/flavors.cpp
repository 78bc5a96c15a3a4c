// Names and numbers: the origin's flavor and trainer-configuration registries. All attention here
// is torch's scaled_dot_product_attention, so a name's _sdpa, _flex_attn or _hf (where the origin
// takes its data from) changes nothing, nor does _scattermoe, whose place `auto` takes. A backend
// that is named is the flavor's default for moe.compute_backend.
#include "train/plain/flavors.h"

#include <algorithm>

namespace amoeba::train {
namespace {

// What every flavor starts from: DeepSeek-V2's attention and router, one dense layer, two shared
// experts.
const std::vector<Setting>& common_model() {
  static const std::vector<Setting> settings = {
      {"model.vocab_size", 256128},
      {"model.num_dense_layers", 1},
      {"model.attention", "mla"},
      {"model.qk_norm", false},
      {"model.q_lora_rank", 0},
      {"model.kv_lora_rank", 512},
      {"model.qk_nope_head_dim", 128},
      {"model.qk_rope_head_dim", 64},
      {"model.v_head_dim", 128},
      {"model.rope_theta", 1e4},
      {"model.rope_factor", 40.0},
      {"model.rope_beta_fast", 32.0},
      {"model.rope_beta_slow", 1.0},
      {"model.rope_original_seq_len", 4096},
      {"model.rope_max_seq_len", 16384},
      {"model.rope_mscale", 0.7},
      {"model.norm_eps", 1e-5},
      {"model.tie_embeddings", false},
      {"model.init_std", 0.02},
      {"model.embedding_init_std", 1.0},
      {"moe.num_shared_experts", 2},
      {"moe.route_norm", false},
      {"moe.route_scale", 1.0},
      {"moe.score_function", "softmax"},
      {"moe.num_groups", 0},
      {"moe.num_limited_groups", 0},
      {"moe.score_before_experts", false},
      {"moe.balance_coeff", 1e-3},
      {"moe.aux_loss_coeff", 0.0},
      {"moe.z_loss_coeff", 0.0},
      {"moe.compute_backend", "auto"},
  };
  return settings;
}

// D, L, heads, H, dense hidden width, E, K, then what else differs.
std::vector<Setting> shape(int64_t dim, int64_t num_layers, int64_t num_heads, int64_t hidden_dim,
                           int64_t dense_hidden_dim, int64_t num_experts, int64_t top_k,
                           std::vector<Setting> more = {}) {
  std::vector<Setting> settings = {
      {"model.dim", dim},
      {"model.num_layers", num_layers},
      {"model.num_heads", num_heads},
      {"moe.hidden_dim", hidden_dim},
      {"model.dense_hidden_dim", dense_hidden_dim},
      {"moe.num_experts", num_experts},
      {"moe.top_k", top_k},
  };
  settings.insert(settings.end(), more.begin(), more.end());
  return settings;
}

const std::vector<Flavor>& flavor_table() {
  static const std::vector<Flavor> table = {
      {"debugmodel", "", "", shape(256, 6, 16, 256, 1024, 8, 3)},
      {"debugmodel_flex_attn", "debugmodel", "same", {}},
      {"debugmodel_hf", "debugmodel", "same", {}},
      {"debugmodel_flex_attn_hf", "debugmodel", "same", {}},
      {"500M", "", "", shape(512, 12, 16, 512, 2048, 16, 3)},
      {"2B", "", "", shape(1024, 18, 16, 1024, 4096, 24, 3)},
      {"4B", "", "", shape(1536, 22, 12, 1024, 6144, 24, 3)},
      {"7B", "", "", shape(2048, 24, 24, 1280, 8192, 36, 3)},
      {"small", "", "scores of a token sum to 1; rope theta 50000, length 256128",
       shape(2048, 24, 16, 512, 4096, 64, 6,
             {{"model.rope_theta", 5e4},
              {"model.rope_max_seq_len", 256128},
              {"moe.route_norm", true}})},
      {"10B_2B", "", "", shape(2048, 27, 16, 1408, 10944, 36, 3)},
      {"10B_2B_sdpa", "10B_2B", "same", {}},
      {"10B_2B_sdpa_for_loop", "10B_2B", "backend", {{"moe.compute_backend", "for_loop"}}},
      {"10B_2B_sdpa_batched_mm_padded",
       "10B_2B",
       "backend",
       {{"moe.compute_backend", "batched_mm_padded"}}},
      {"10B_2B_sdpa_scattermoe", "10B_2B", "same", {}},
      {"10B_2B_sdpa_1layer",
       "10B_2B",
       "one MoE layer",
       {{"model.num_layers", 1}, {"model.num_dense_layers", 0}}},
      {"10B_2B_50K_sdpa",
       "10B_2B",
       "31 layers, small vocabulary",
       {{"model.num_layers", 31}, {"model.vocab_size", 50304}}},
      {"10B_2B_50K_sdpa_for_loop",
       "10B_2B_50K_sdpa",
       "backend",
       {{"moe.compute_backend", "for_loop"}}},
      {"10B_2B_50K_sdpa_batched_mm_padded",
       "10B_2B_50K_sdpa",
       "backend",
       {{"moe.compute_backend", "batched_mm_padded"}}},
      {"10B_2B_50K_sdpa_scattermoe", "10B_2B_50K_sdpa", "same", {}},
      {"10B_2B_50K_sdpa_1layer",
       "10B_2B_50K_sdpa",
       "one MoE layer",
       {{"model.num_layers", 1}, {"model.num_dense_layers", 0}}},
      {"16B", "", "the shape of DeepSeek-V2-Lite", shape(2048, 27, 16, 1408, 10944, 64, 6)},
      {"236B", "", "the shape of DeepSeek-V2: q_lora 1536; 3 of 8 groups; route_scale 16",
       shape(5120, 60, 128, 1536, 12288, 160, 6,
             {{"model.q_lora_rank", 1536},
              {"model.rope_mscale", 1.0},
              {"moe.route_scale", 16.0},
              {"moe.num_groups", 8},
              {"moe.num_limited_groups", 3}})},
      {"671B", "",
       "the shape of DeepSeek-V3: q_lora 1536; sigmoid; 4 of 8 groups; scores sum to 2.5",
       shape(7168, 61, 128, 2048, 18432, 256, 8,
             {{"model.num_dense_layers", 3},
              {"model.q_lora_rank", 1536},
              {"model.rope_mscale", 1.0},
              {"moe.num_shared_experts", 1},
              {"moe.route_norm", true},
              {"moe.route_scale", 2.5},
              {"moe.score_function", "sigmoid"},
              {"moe.num_groups", 8},
              {"moe.num_limited_groups", 4}})},
      {"AGPT_2B_50K_MOE_sdpa", "", "grouped-query attention, 4 kv heads; rope theta 50000",
       shape(2048, 24, 16, 2112, 0, 36, 3,
             {{"model.vocab_size", 50304},
              {"model.num_dense_layers", 0},
              {"model.attention", "gqa"},
              {"model.num_kv_heads", 4},
              {"model.head_dim", 128},
              {"model.rope_theta", 5e4},
              {"model.rope_factor", 1.0},
              {"model.rope_max_seq_len", 131072},
              {"model.rope_mscale", 1.0},
              // sqrt(2 / (5 D)), Megatron-DeepSpeed's rule (Takase et al. 2023, arXiv 2312.16903).
              {"model.init_std", 0.013975424859373686}})},
  };
  return table;
}

// What every trainer configuration starts from. Masters are fp32 whatever the dtype.
const std::vector<Setting>& common_training() {
  static const std::vector<Setting> settings = {
      {"training.steps", 10000},
      {"training.seq_len", 8192},
      {"training.local_batch_size", 1},
      {"training.max_norm", 1.0},
      {"training.dtype", "bfloat16"},
      {"training.activation_checkpoint", "full"},
      {"optimizer.lr", 8e-4},
      {"optimizer.beta1", 0.9},
      {"optimizer.beta2", 0.95},
      {"optimizer.eps", 1e-8},
      {"optimizer.weight_decay", 0.1},
      {"lr_scheduler.warmup_steps", 200},
      {"lr_scheduler.decay_ratio", 0.8},
      {"lr_scheduler.decay_type", "linear"},
      {"lr_scheduler.min_lr_factor", 0.0},
      {"checkpoint.interval", 50},
      {"metrics.log_interval", 1},
  };
  return settings;
}

const std::vector<TrainerPreset>& preset_table() {
  static const std::vector<TrainerPreset> table = {
      {"moe_debugmodel", "debugmodel", "", {{"training.local_batch_size", 8}}},
      {"moe_debugmodel_flex_attn", "debugmodel_flex_attn", "moe_debugmodel", {}},
      {"moe_debugmodel_hf", "debugmodel_hf", "moe_debugmodel", {}},
      {"moe_debugmodel_flex_attn_hf", "debugmodel_flex_attn_hf", "moe_debugmodel", {}},
      {"moe_500m", "500M", "", {{"training.local_batch_size", 4}}},
      {"smoke_moe_500m_50steps",
       "500M",
       "",
       {{"training.steps", 50},
        {"training.local_batch_size", 2},
        {"training.activation_checkpoint", "none"},
        {"lr_scheduler.warmup_steps", 5},
        {"lr_scheduler.decay_ratio", 0.0},
        {"checkpoint.enable", false}}},
      {"moe_2b", "2B", "", {{"training.local_batch_size", 16}}},
      {"moe_4b", "4B", "", {{"training.local_batch_size", 16}}},
      {"moe_7b",
       "7B",
       "",
       {{"training.local_batch_size", 2}, {"training.activation_checkpoint", "none"}}},
      {"moe_small", "small", "", {{"training.local_batch_size", 8}}},
      {"moe_small_hf", "small", "moe_small", {}},
      {"moe_10b_2b",
       "10B_2B",
       "",
       {{"training.steps", 1000},
        {"optimizer.lr", 2.2e-4},
        {"lr_scheduler.decay_type", "cosine"},
        {"lr_scheduler.min_lr_factor", 0.1},
        {"checkpoint.interval", 100}}},
      {"moe_10b_2b_sdpa",
       "10B_2B_sdpa",
       "moe_10b_2b",
       {{"training.local_batch_size", 2}, {"training.activation_checkpoint", "none"}}},
      {"moe_10b_2b_sdpa_for_loop", "10B_2B_sdpa_for_loop", "moe_10b_2b_sdpa", {}},
      {"moe_10b_2b_sdpa_batched_mm_padded", "10B_2B_sdpa_batched_mm_padded", "moe_10b_2b_sdpa", {}},
      {"moe_10b_2b_sdpa_scattermoe", "10B_2B_sdpa_scattermoe", "moe_10b_2b_sdpa", {}},
      {"moe_10b_2b_sdpa_1layer", "10B_2B_sdpa_1layer", "moe_10b_2b_sdpa", {}},
      {"moe_10b_2b_50k_sdpa",
       "10B_2B_50K_sdpa",
       "moe_10b_2b",
       {{"training.steps", 1100},
        {"training.seq_len", 2048},
        {"training.activation_checkpoint", "none"}}},
      {"moe_10b_2b_50k_sdpa_for_loop", "10B_2B_50K_sdpa_for_loop", "moe_10b_2b_50k_sdpa", {}},
      {"moe_10b_2b_50k_sdpa_batched_mm_padded",
       "10B_2B_50K_sdpa_batched_mm_padded",
       "moe_10b_2b_50k_sdpa",
       {}},
      {"moe_10b_2b_50k_sdpa_scattermoe", "10B_2B_50K_sdpa_scattermoe", "moe_10b_2b_50k_sdpa", {}},
      {"moe_10b_2b_50k_sdpa_1layer", "10B_2B_50K_sdpa_1layer", "moe_10b_2b_50k_sdpa", {}},
      {"moe_16b",
       "16B",
       "moe_10b_2b",
       {{"training.local_batch_size", 4}, {"checkpoint.interval", 50}}},
      {"moe_671b",
       "671B",
       "moe_16b",
       {{"training.steps", 10000},
        {"lr_scheduler.warmup_steps", 2000},
        {"checkpoint.interval", 500}}},
      // The origin has no trainer configuration of this flavor.
      {"moe_236b", "236B", "moe_671b", {}},
      {"agpt_2b_50k_moe_sdpa",
       "AGPT_2B_50K_MOE_sdpa",
       "moe_10b_2b_50k_sdpa",
       {{"training.activation_checkpoint", "selective"}}},
  };
  return table;
}

template <typename Row>
const Row* find_row(const std::vector<Row>& rows, std::string_view name) {
  const auto row =
      std::find_if(rows.begin(), rows.end(), [&](const Row& entry) { return entry.name == name; });
  return row == rows.end() ? nullptr : &*row;
}

template <typename Row>
std::vector<Setting> chain(const std::vector<Row>& rows, const Row& row,
                           const std::vector<Setting>& common) {
  std::vector<Setting> settings =
      row.base.empty() ? common : chain(rows, *find_row(rows, row.base), common);
  settings.insert(settings.end(), row.settings.begin(), row.settings.end());
  return settings;
}

}  // namespace

std::span<const Flavor> flavors() { return flavor_table(); }
std::span<const TrainerPreset> trainer_presets() { return preset_table(); }

const Flavor* find_flavor(std::string_view name) { return find_row(flavor_table(), name); }
const TrainerPreset* find_trainer_preset(std::string_view name) {
  return find_row(preset_table(), name);
}

std::vector<Setting> settings_of(const Flavor& flavor) {
  return chain(flavor_table(), flavor, common_model());
}

std::vector<Setting> settings_of(const TrainerPreset& preset) {
  std::vector<Setting> settings = settings_of(*find_flavor(preset.flavor));
  const std::vector<Setting> training = chain(preset_table(), preset, common_training());
  settings.insert(settings.end(), training.begin(), training.end());
  return settings;
}

}  // namespace amoeba::train
