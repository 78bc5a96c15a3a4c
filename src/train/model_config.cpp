#include "train/model_config.h"

#include "amoeba/error.h"

namespace amoeba::train {

namespace {

constexpr int64_t kVocabMultiple = 8;  // keeps rows of the logits aligned

nn::RopeType rope_type(const std::string& name) {
  if (name == "linear") return nn::RopeType::kLinear;
  if (name == "llama3") return nn::RopeType::kLlama3;
  return nn::RopeType::kYarn;
}

nn::AttentionConfig make_attention_config(const ModelSection& model, int64_t seq_len) {
  nn::AttentionConfig out;
  out.dim = model.dim;
  out.num_heads = model.num_heads;
  out.norm_eps = model.norm_eps;
  out.latent_norm_eps = model.latent_norm_eps;
  if (model.attention == "mla") {
    out.mla = nn::MlaConfig{model.q_lora_rank, model.kv_lora_rank, model.qk_nope_head_dim,
                            model.qk_rope_head_dim, model.v_head_dim};
    out.rope.head_dim = model.qk_rope_head_dim;
  } else {
    out.num_kv_heads = model.num_kv_heads;
    out.head_dim = model.head_dim != 0 ? model.head_dim : model.dim / model.num_heads;
    out.sliding_window = model.sliding_window;
    out.qk_norm = model.qk_norm;
    out.qk_norm_whole = model.qk_norm_scope == "projection";
    out.rope.head_dim = out.head_dim;
  }
  out.rope.theta = model.rope_theta;
  out.rope.type = rope_type(model.rope_type);
  out.rope.factor = model.rope_factor;
  out.rope.beta_fast = model.rope_beta_fast;
  out.rope.beta_slow = model.rope_beta_slow;
  out.rope.original_seq_len = model.rope_original_seq_len;
  out.rope.max_seq_len = model.rope_max_seq_len != 0 ? model.rope_max_seq_len : seq_len;
  out.rope.attention_factor = model.rope_attention_factor;
  out.rope.truncate = model.rope_truncate;
  out.yarn_mscale = model.rope_mscale;
  return out;
}

nn::ActivationCheckpoint activation_checkpoint(const std::string& name) {
  if (name == "full") return nn::ActivationCheckpoint::kFull;
  if (name == "selective") return nn::ActivationCheckpoint::kSelective;
  return nn::ActivationCheckpoint::kNone;
}

}  // namespace

nn::ModelConfig make_model_config(const RunConfig& config, int64_t tokenizer_vocab_size) {
  const ModelSection& model = config.model;
  const MoeSection& moe = config.moe;
  AMOEBA_CHECK(model.vocab_size == 0 || model.vocab_size >= tokenizer_vocab_size,
               "model.vocab_size: got ", model.vocab_size, ", want at least ", tokenizer_vocab_size,
               ", the vocabulary of data.tokenizer '", config.data.tokenizer, "'");
  nn::ModelConfig out;
  out.vocab_size = model.vocab_size != 0 ? model.vocab_size
                                         : (tokenizer_vocab_size + kVocabMultiple - 1) /
                                               kVocabMultiple * kVocabMultiple;
  out.num_layers = model.num_layers;
  out.num_dense_layers = model.num_dense_layers;
  out.dense_hidden_dim = model.dense_hidden_dim;
  out.max_seq_len = config.training.seq_len;
  out.tie_embeddings = model.tie_embeddings;
  out.embedding_std = model.embedding_init_std != 0.0 ? model.embedding_init_std
                                                      : (model.tie_embeddings ? 0.02 : 1.0);
  out.init_std = model.init_std;
  out.attention = make_attention_config(model, config.training.seq_len);
  out.moe.router.dim = model.dim;
  out.moe.router.num_experts = moe.num_experts;
  out.moe.router.top_k = moe.top_k;
  out.moe.router.score_function =
      moe.score_function == "sigmoid" ? nn::ScoreFunction::kSigmoid : nn::ScoreFunction::kSoftmax;
  out.moe.router.num_groups = moe.num_groups;
  out.moe.router.num_limited_groups = moe.num_limited_groups;
  out.moe.router.num_group_best = moe.group_score == "best" ? 1 : 2;
  out.moe.router.route_norm = moe.route_norm;
  out.moe.router.route_scale = moe.route_scale;
  out.moe.router.force_balance = moe.force_balance;
  out.moe.hidden_dim = moe.hidden_dim;
  out.moe.num_shared_experts = moe.num_shared_experts;
  out.moe.score_before_experts = moe.score_before_experts;
  out.moe.experts.capacity_factor = moe.capacity_factor;
  out.compute_backend = moe.compute_backend;
  out.activation_checkpoint = activation_checkpoint(config.training.activation_checkpoint);
  return out;
}

}  // namespace amoeba::train
