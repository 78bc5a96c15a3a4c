#include <algorithm>
#include <utility>

#include "amoeba/error.h"
#include "base/text.h"
#include "train/plain/hf_config.h"

namespace amoeba::train {

namespace {

using formats::Array;
using formats::Object;
using formats::Value;

class Writer {
 public:
  Writer(const RunConfig& config, const HfExport& options)
      : model_(config.model),
        moe_(config.moe),
        options_(options),
        family_(options.family),
        context_(model_.rope_max_seq_len != 0 ? model_.rope_max_seq_len : config.training.seq_len) {
  }

  Value write() {
    put_architecture();
    put("vocab_size", options_.vocab_size);
    put("hidden_size", model_.dim);
    put("num_hidden_layers", model_.num_layers);
    put("num_attention_heads", model_.num_heads);
    put("rms_norm_eps", model_.norm_eps);
    put("hidden_act", std::string("silu"));
    put("tie_word_embeddings", model_.tie_embeddings);
    put("attention_dropout", 0.0);
    is_latent() ? put_latent() : put_grouped();
    put_rotation();
    put_networks();
    put("initializer_range", model_.init_std);
    put("use_cache", true);
    put("bos_token_id", std::monostate());
    put("pad_token_id", std::monostate());
    if (options_.end_of_text >= 0) {
      put("eos_token_id", options_.end_of_text);
    } else {
      put("eos_token_id", std::monostate());
    }
    put("torch_dtype", options_.dtype);
    Value out;
    out.data = std::move(members_);
    return out;
  }

 private:
  bool is(HfFamily family) const { return family_ == family; }
  bool is_latent() const {
    return is(HfFamily::kDeepseekV2) || is(HfFamily::kDeepseekV3) || is(HfFamily::kOriginLatent);
  }
  bool is_dense() const { return is(HfFamily::kLlama) || is(HfFamily::kQwen3); }

  template <typename T>
  void put(std::string key, T data) {
    auto& member = members_.emplace_back();
    member.first = std::move(key);
    member.second.data = std::move(data);
  }

  template <typename Got, typename Want>
  void want(const char* path, const Got& got, const Want& wanted) {
    AMOEBA_CHECK(got == wanted, "export: ", path, " is ", text_of(got), ", which family ",
                 model_type(family_), " cannot express, want ", text_of(wanted));
  }
  static std::string text_of(bool value) { return value ? "true" : "false"; }
  static std::string text_of(const std::string& value) { return value; }
  static std::string text_of(const char* value) { return value; }
  template <typename T>
  static std::string text_of(const T& value) {
    return cat(value);
  }

  void put_architecture() {
    static constexpr std::pair<HfFamily, const char*> kClasses[] = {
        {HfFamily::kMixtral, "MixtralForCausalLM"},
        {HfFamily::kOlmoe, "OlmoeForCausalLM"},
        {HfFamily::kQwen3Moe, "Qwen3MoeForCausalLM"},
        {HfFamily::kDeepseekV2, "DeepseekV2ForCausalLM"},
        {HfFamily::kDeepseekV3, "DeepseekV3ForCausalLM"},
        {HfFamily::kLlama, "LlamaForCausalLM"},
        {HfFamily::kQwen3, "Qwen3ForCausalLM"},
        {HfFamily::kOriginGrouped, "AGPTMoEForCausalLM"}};
    for (const auto& [family, name] : kClasses) {
      if (family != family_) continue;
      Array names;
      names.emplace_back().data = std::string(name);
      put("architectures", std::move(names));
    }
    put("model_type", std::string(model_type(family_)));
  }

  void put_grouped() {
    want("model.attention", model_.attention, "gqa");
    const int64_t head_dim = model_.head_dim != 0 ? model_.head_dim : model_.dim / model_.num_heads;
    put("num_key_value_heads", model_.num_kv_heads);
    const bool norms_heads = is(HfFamily::kQwen3Moe) || is(HfFamily::kQwen3);
    const bool norms_all = is(HfFamily::kOlmoe);
    want("model.qk_norm", model_.qk_norm, norms_heads || norms_all);
    if (model_.qk_norm) {
      want("model.qk_norm_scope", model_.qk_norm_scope, norms_all ? "projection" : "head");
    }
    if (norms_all) {
      want("model.head_dim", head_dim, model_.dim / model_.num_heads);
      put("clip_qkv", std::monostate());
    } else {
      put("head_dim", head_dim);
    }
    if (!is(HfFamily::kMixtral)) put("attention_bias", false);
    if (is(HfFamily::kLlama) || is(HfFamily::kOriginGrouped)) put("mlp_bias", false);
    if (norms_heads) put("use_sliding_window", false);
    if (is(HfFamily::kMixtral) && model_.sliding_window > 0) {
      put("sliding_window", model_.sliding_window);
    } else {
      want("model.sliding_window", model_.sliding_window, int64_t{0});
      if (norms_heads || is(HfFamily::kMixtral)) put("sliding_window", std::monostate());
    }
  }

  void put_latent() {
    want("model.attention", model_.attention, "mla");
    put("num_key_value_heads", model_.num_heads);
    if (model_.q_lora_rank != 0) {
      put("q_lora_rank", model_.q_lora_rank);
    } else {
      put("q_lora_rank", std::monostate());
    }
    put("kv_lora_rank", model_.kv_lora_rank);
    put("qk_nope_head_dim", model_.qk_nope_head_dim);
    put("qk_rope_head_dim", model_.qk_rope_head_dim);
    put("v_head_dim", model_.v_head_dim);
    put("attention_bias", false);
    const double eps = model_.latent_norm_eps != 0.0 ? model_.latent_norm_eps : model_.norm_eps;
    if (is(HfFamily::kOriginLatent)) {
      put("latent_norm_eps", eps);
    } else {
      want("model.latent_norm_eps (0: model.norm_eps)", eps, 1e-6);
    }
    if (is(HfFamily::kDeepseekV2)) put("mlp_bias", false);
    if (!is(HfFamily::kDeepseekV2)) put("rope_interleave", true);
  }

  // As before transformers 5, which reads that too.
  void put_rotation() {
    put("max_position_embeddings", context_);
    put("rope_theta", model_.rope_theta);
    const bool yarn = model_.rope_type == "yarn", llama3 = model_.rope_type == "llama3";
    if (model_.rope_factor == 1.0 || (yarn && context_ <= model_.rope_original_seq_len)) return;
    Object scaling;
    const auto put_scaling = [&](const char* key, auto data) {
      auto& member = scaling.emplace_back();
      member.first = key;
      member.second.data = std::move(data);
    };
    put_scaling("rope_type", model_.rope_type);
    put_scaling("type", model_.rope_type);
    put_scaling("factor", model_.rope_factor);
    if (yarn || llama3) {
      put_scaling("original_max_position_embeddings", model_.rope_original_seq_len);
      put_scaling(yarn ? "beta_fast" : "high_freq_factor", model_.rope_beta_fast);
      put_scaling(yarn ? "beta_slow" : "low_freq_factor", model_.rope_beta_slow);
    }
    if (yarn) {
      put_scaling("attention_factor", model_.rope_attention_factor);
      if (!model_.rope_truncate) put_scaling("truncate", false);
      if (is_latent()) {
        put_scaling("mscale", model_.rope_mscale);
        put_scaling("mscale_all_dim", model_.rope_mscale);
      }
    }
    put("rope_scaling", std::move(scaling));
  }

  void put_networks() {
    if (is_dense()) {
      want("model.num_dense_layers", model_.num_dense_layers, model_.num_layers);
      put("intermediate_size", model_.dense_hidden_dim);
      return;
    }
    want("moe.score_before_experts", moe_.score_before_experts, false);
    want("moe.force_balance", moe_.force_balance, false);
    put("num_experts_per_tok", moe_.top_k);
    put("output_router_logits", false);
    is_latent() ? put_deepseek_experts() : put_grouped_experts();
  }

  void put_grouped_experts() {
    want("moe.score_function", moe_.score_function, "softmax");
    want("moe.num_groups", moe_.num_groups, 0);
    const bool is_origin = is(HfFamily::kOriginGrouped);
    if (!is(HfFamily::kQwen3Moe)) want("model.num_dense_layers", model_.num_dense_layers, 0);
    if (is(HfFamily::kMixtral)) {
      want("moe.route_norm", moe_.route_norm, true);
    } else {
      if (is_origin) want("moe.route_norm", moe_.route_norm, false);
      put("norm_topk_prob", moe_.route_norm);
    }
    if (!is_origin) {
      want("moe.num_shared_experts", moe_.num_shared_experts, 0);
      want("moe.route_scale", moe_.route_scale, 1.0);
    }
    put(is(HfFamily::kMixtral) || is_origin ? "num_local_experts" : "num_experts",
        moe_.num_experts);
    if (is(HfFamily::kQwen3Moe)) {
      put("moe_intermediate_size", moe_.hidden_dim);
      put("intermediate_size",
          model_.dense_hidden_dim != 0 ? model_.dense_hidden_dim : moe_.hidden_dim);
      Array dense;
      for (int64_t layer = 0; layer < model_.num_dense_layers; ++layer) {
        dense.emplace_back().data = layer;
      }
      put("mlp_only_layers", std::move(dense));
      put("decoder_sparse_step", int64_t{1});
    } else {
      put("intermediate_size", moe_.hidden_dim);
    }
    if (!is_origin) return;
    AMOEBA_CHECK(moe_.num_shared_experts > 0,
                 "export: moe.num_shared_experts is 0, which family agpt_moe cannot express, want "
                 "at least 1");
    put("moe_intermediate_size", moe_.hidden_dim);
    put("shared_expert_intermediate_size", moe_.num_shared_experts * moe_.hidden_dim);
    put("router_score_function", std::string("softmax"));
    put("router_bias_selection", true);
    put("router_scale", moe_.route_scale);
  }

  void put_deepseek_experts() {
    const bool is_v2 = is(HfFamily::kDeepseekV2), is_v3 = is(HfFamily::kDeepseekV3);
    if (!is(HfFamily::kOriginLatent)) {
      want("moe.score_function", moe_.score_function, is_v3 ? "sigmoid" : "softmax");
      AMOEBA_CHECK(moe_.num_shared_experts > 0,
                   "export: moe.num_shared_experts is 0, which family ", model_type(family_),
                   " cannot express, want at least 1");
    }
    if (is_v2) want("moe.route_norm", moe_.route_norm, false);
    put("first_k_dense_replace", model_.num_dense_layers);
    put("moe_layer_freq", int64_t{1});
    put("intermediate_size",
        model_.dense_hidden_dim != 0 ? model_.dense_hidden_dim : moe_.hidden_dim);
    put("moe_intermediate_size", moe_.hidden_dim);
    put("n_routed_experts", moe_.num_experts);
    put("n_shared_experts", moe_.num_shared_experts);
    put("norm_topk_prob", moe_.route_norm);
    put("routed_scaling_factor", moe_.route_scale);
    put("scoring_func", moe_.score_function);
    const bool grouped = moe_.num_groups > 0;
    put("n_group", std::max<int64_t>(1, moe_.num_groups));
    put("topk_group", std::max<int64_t>(1, moe_.num_limited_groups));
    if (is_v2) {
      put("topk_method", std::string(grouped ? "group_limited_greedy" : "greedy"));
    } else if (is_v3) {
      put("topk_method", std::string("noaux_tc"));
      put("num_nextn_predict_layers", int64_t{0});
    } else {
      put("group_score", moe_.group_score);
    }
    if (grouped && !is(HfFamily::kOriginLatent)) {
      want("moe.group_score", moe_.group_score, is_v2 ? "best" : "best_two");
    }
  }

  const ModelSection& model_;
  const MoeSection& moe_;
  const HfExport& options_;
  HfFamily family_;
  int64_t context_;
  Object members_;
};

}  // namespace

HfFamily fitting_family(const RunConfig& config) {
  const ModelSection& model = config.model;
  if (model.attention == "mla") {
    return config.moe.score_function == "sigmoid" ? HfFamily::kDeepseekV3 : HfFamily::kDeepseekV2;
  }
  const bool dense = model.num_dense_layers == model.num_layers;
  if (!model.qk_norm) return dense ? HfFamily::kLlama : HfFamily::kMixtral;
  if (dense) return HfFamily::kQwen3;
  return model.qk_norm_scope == "projection" ? HfFamily::kOlmoe : HfFamily::kQwen3Moe;
}

HfFamily fitting_origin_family(const RunConfig& config) {
  return config.model.attention == "mla" ? HfFamily::kOriginLatent : HfFamily::kOriginGrouped;
}

Value write_hf_config(const RunConfig& config, const HfExport& options) {
  return Writer(config, options).write();
}

}  // namespace amoeba::train
