#include "train/model_config.h"

#include "amoeba/error.h"

namespace amoeba::train {

namespace {

constexpr int64_t kVocabMultiple = 8;  // keeps rows of the logits aligned

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
  out.max_seq_len = config.training.seq_len;
  out.rope_theta = model.rope_theta;
  out.tie_embeddings = model.tie_embeddings;
  out.embedding_std = model.embedding_init_std != 0.0 ? model.embedding_init_std
                                                      : (model.tie_embeddings ? 0.02 : 1.0);
  out.init_std = model.init_std;
  out.attention.dim = model.dim;
  out.attention.num_heads = model.num_heads;
  out.attention.num_kv_heads = model.num_kv_heads;
  out.attention.head_dim = model.head_dim != 0 ? model.head_dim : model.dim / model.num_heads;
  out.attention.qk_norm = model.qk_norm;
  out.attention.norm_eps = model.norm_eps;
  out.moe.router.dim = model.dim;
  out.moe.router.num_experts = moe.num_experts;
  out.moe.router.top_k = moe.top_k;
  out.moe.router.route_norm = moe.route_norm;
  out.moe.router.route_scale = moe.route_scale;
  out.moe.hidden_dim = moe.hidden_dim;
  out.moe.num_shared_experts = moe.num_shared_experts;
  out.moe.score_before_experts = moe.score_before_experts;
  out.moe.experts.capacity_factor = moe.capacity_factor;
  out.compute_backend = moe.compute_backend;
  return out;
}

}  // namespace amoeba::train
