// Defaults for absent keys are those of transformers' configuration classes (5.23).
#include "train/plain/hf_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "amoeba/error.h"
#include "base/text.h"

namespace amoeba::train {

namespace {

using formats::Array;
using formats::Object;
using formats::Value;

struct FamilyName {
  HfFamily family;
  std::string_view model_type;
};
constexpr std::array<FamilyName, 9> kFamilies = {{{HfFamily::kMixtral, "mixtral"},
                                                  {HfFamily::kOlmoe, "olmoe"},
                                                  {HfFamily::kQwen3Moe, "qwen3_moe"},
                                                  {HfFamily::kDeepseekV2, "deepseek_v2"},
                                                  {HfFamily::kDeepseekV3, "deepseek_v3"},
                                                  {HfFamily::kLlama, "llama"},
                                                  {HfFamily::kQwen3, "qwen3"},
                                                  {HfFamily::kOriginLatent, "origin_mla"},
                                                  {HfFamily::kOriginGrouped, "agpt_moe"}}};

// Of every size and count, far above any model: products of two stay inside 64 bits.
constexpr int64_t kMaxInteger = 1 << 24;

// What says nothing about the mathematics of a forward pass.
constexpr std::string_view kIgnoredKeys[] = {
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "auto_map",
    "aux_loss_alpha",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "ep_size",
    "id2label",
    "initializer_range",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "router_aux_loss_coef",
    "seq_aux",
    "torch_dtype",
    "transformers_version",
    "use_cache",
};

constexpr int64_t kMaxLayers = 10000;  // of model.num_layers

template <typename T>
Value value_of(T data) {
  Value value;
  value.data = std::move(data);
  return value;
}

// The members of an object, each asked for by name; at the end nothing may be left over.
class Keys {
 public:
  Keys(const Value& object, std::string path) : object_(object), path_(std::move(path)) {}

  // Null counts as absent.
  const Value* find(std::string_view key) {
    taken_.insert(std::string(key));
    const Value* value = object_.find(key);
    return value == nullptr || value->get_if<std::monostate>() != nullptr ? nullptr : value;
  }
  int64_t integer(std::string_view key, int64_t minimum = 0, int64_t maximum = kMaxInteger) {
    find(key);
    const int64_t number = object_.integer_at(key, path_);
    AMOEBA_CHECK_KIND(kData, number >= minimum && number <= maximum, path_, ": ", key, " is ",
                      number, ", want ", minimum, " to ", maximum);
    return number;
  }
  int64_t integer_or(std::string_view key, int64_t absent, int64_t minimum = 0) {
    return find(key) == nullptr ? absent : integer(key, minimum);
  }
  double number(std::string_view key) {
    find(key);
    return object_.number_at(key, path_);
  }
  double number(std::string_view key, double absent) {
    return find(key) == nullptr ? absent : object_.number_at(key, path_);
  }
  bool flag(std::string_view key, bool absent) {
    return find(key) == nullptr ? absent : object_.bool_at(key, path_);
  }
  std::string text(std::string_view key, std::string_view absent) {
    return find(key) == nullptr ? std::string(absent) : object_.string_at(key, path_);
  }
  const Array& array(std::string_view key) {
    find(key);
    return object_.array_at(key, path_);
  }
  std::vector<int64_t> integers(std::string_view key) {
    std::vector<int64_t> out;
    if (find(key) == nullptr) return out;
    for (const Value& element : array(key)) {
      const auto* number = element.get_if<int64_t>();
      if (number == nullptr) refuse(key, "integers");
      out.push_back(*number);
    }
    return out;
  }

  // Absent, or what is wanted.
  void expect(std::string_view key, bool want) {
    if (flag(key, want) != want) refuse(key, want ? "true" : "false");
  }
  void expect(std::string_view key, double want) {
    if (number(key, want) != want) refuse(key, cat(want));
  }
  void expect(std::string_view key, const char* want) {  // else a literal would be a bool
    if (text(key, want) != want) refuse(key, cat("'", want, "'"));
  }
  void expect_absent(std::string_view key, std::string_view want = "null") {
    if (find(key) != nullptr) refuse(key, want);
  }
  void ignore(std::string_view key) { taken_.insert(std::string(key)); }

  [[noreturn]] void refuse(std::string_view key, std::string_view want) const {
    const Value* value = object_.find(key);
    fail(ErrorKind::kData, cat(path_, ": ", key, " is ",
                               value == nullptr ? "absent" : printable(formats::write_json(*value)),
                               ", want ", want, ": this engine has nothing else"));
  }
  void check_all_taken() const {
    for (const auto& [key, value] : *object_.get_if<Object>()) {
      AMOEBA_CHECK_KIND(kData, taken_.count(key) == 1, path_, ": unknown key '", printable(key),
                        "' (", printable(formats::write_json(value)),
                        "), which may change what the model computes");
    }
  }
  const std::string& path() const { return path_; }

 private:
  const Value& object_;
  std::string path_;
  std::set<std::string> taken_;
};

class Reader {
 public:
  Reader(const Value& config, const std::string& path) : keys_(config, path) {}

  HfConfig read() {
    out_.family =
        family_of(keys_.text("model_type", ""), keys_.path() + ": model_type", ErrorKind::kData);
    for (std::string_view key : kIgnoredKeys) keys_.ignore(key);
    read_common();
    is_latent() ? read_latent() : read_grouped();
    read_networks();
    read_rotation();
    if (const Value* quantization = keys_.find("quantization_config")) {
      read_quantization(*quantization);
    }
    keys_.check_all_taken();
    return std::move(out_);
  }

 private:
  bool is(HfFamily family) const { return out_.family == family; }
  bool is_latent() const {
    return is(HfFamily::kDeepseekV2) || is(HfFamily::kDeepseekV3) || is(HfFamily::kOriginLatent);
  }
  bool is_dense() const { return is(HfFamily::kLlama) || is(HfFamily::kQwen3); }

  template <typename T>
  void set(std::string_view key, std::string_view path, T value) {
    out_.settings.push_back({std::string(key), std::string(path), value_of(std::move(value))});
  }
  void set_text(std::string_view key, std::string_view path, std::string_view value) {
    set(key, path, std::string(value));
  }

  void read_common() {
    dim_ = keys_.integer("hidden_size");
    num_layers_ = keys_.integer("num_hidden_layers", 1, kMaxLayers);
    num_heads_ = keys_.integer("num_attention_heads", 1);
    set("vocab_size", "model.vocab_size", keys_.integer("vocab_size", 1));
    set("hidden_size", "model.dim", dim_);
    set("num_hidden_layers", "model.num_layers", num_layers_);
    set("num_attention_heads", "model.num_heads", num_heads_);
    set("rms_norm_eps", "model.norm_eps", keys_.number("rms_norm_eps"));
    set("tie_word_embeddings", "model.tie_embeddings", keys_.flag("tie_word_embeddings", false));
    keys_.expect("hidden_act", "silu");
    keys_.expect("attention_bias", false);
    keys_.expect("mlp_bias", false);
    keys_.expect("attention_dropout", 0.0);
    keys_.expect("router_jitter_noise", 0.0);
    keys_.expect("pretraining_tp", 1.0);
  }

  void read_grouped() {
    set_text("model_type", "model.attention", "gqa");
    set("num_key_value_heads", "model.num_kv_heads",
        keys_.integer_or("num_key_value_heads", num_heads_));
    const bool is_qwen3 = is(HfFamily::kQwen3);
    const int64_t head_dim = keys_.integer_or("head_dim", is_qwen3 ? 128 : dim_ / num_heads_, 1);
    set("head_dim", "model.head_dim", head_dim);
    const int64_t window = is(HfFamily::kMixtral) ? keys_.integer_or("sliding_window", 0) : 0;
    set("sliding_window", "model.sliding_window", window);
    const bool norms_heads = is_qwen3 || is(HfFamily::kQwen3Moe), norms_all = is(HfFamily::kOlmoe);
    set("model_type", "model.qk_norm", norms_heads || norms_all);
    if (norms_heads || norms_all) {
      set_text("model_type", "model.qk_norm_scope", norms_all ? "projection" : "head");
    }
    if (norms_all) {
      if (head_dim * num_heads_ != dim_) keys_.refuse("head_dim", cat(dim_ / num_heads_));
      keys_.expect_absent("clip_qkv");
    }
    if (norms_heads) {
      keys_.expect("use_sliding_window", false);
      keys_.ignore("sliding_window");
      keys_.ignore("max_window_layers");
    }
    if (keys_.find("layer_types") != nullptr) {
      for (const Value& type : keys_.array("layer_types")) {
        const auto* text = type.get_if<std::string>();
        if (text == nullptr || *text != "full_attention") {
          keys_.refuse("layer_types", "full_attention everywhere");
        }
      }
    }
  }

  void read_latent() {
    set_text("model_type", "model.attention", "mla");
    set("q_lora_rank", "model.q_lora_rank", keys_.integer_or("q_lora_rank", 0));
    for (const char* key : {"kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}) {
      set(key, cat("model.", key), keys_.integer(key));
    }
    const int64_t rope = keys_.integer("qk_rope_head_dim");
    const int64_t key_dim = keys_.integer("qk_nope_head_dim") + rope;
    if (keys_.integer_or("qk_head_dim", key_dim) != key_dim) {
      keys_.refuse("qk_head_dim", cat(key_dim));
    }
    keys_.ignore("head_dim");  // older files hold other widths here; nothing reads it
    if (keys_.integer_or("num_key_value_heads", num_heads_) != num_heads_) {
      keys_.refuse("num_key_value_heads", cat(num_heads_, ", as num_attention_heads"));
    }
    keys_.expect("rope_interleave", true);
    // Their classes norm the latents with 1e-6 whatever rms_norm_eps says.
    const double eps = is(HfFamily::kOriginLatent) ? keys_.number("latent_norm_eps") : 1e-6;
    if (eps <= 0.0) keys_.refuse("latent_norm_eps", "more than 0");
    set(is(HfFamily::kOriginLatent) ? "latent_norm_eps" : "model_type", "model.latent_norm_eps",
        eps);
  }

  void read_networks() {
    if (is_dense()) {
      set("num_hidden_layers", "model.num_dense_layers", num_layers_);
      set("intermediate_size", "model.dense_hidden_dim", keys_.integer("intermediate_size"));
      return;
    }
    set("num_experts_per_tok", "moe.top_k", keys_.integer("num_experts_per_tok"));
    set_text("model_type", "moe.score_function", score_function());
    set("model_type", "moe.score_before_experts", false);
    set("model_type", "moe.force_balance", false);
    is_latent() ? read_deepseek_experts() : read_grouped_experts();
    const bool has_bias =
        is(HfFamily::kDeepseekV3) || is(HfFamily::kOriginLatent) || is(HfFamily::kOriginGrouped);
    if (!has_bias) {
      out_.defaults.push_back({"model_type", "moe.balance_coeff", value_of(0.0)});
    }
  }

  std::string score_function() {
    switch (out_.family) {
      case HfFamily::kDeepseekV3:
        keys_.expect("scoring_func", "sigmoid");
        keys_.expect("topk_method", "noaux_tc");
        return "sigmoid";
      case HfFamily::kOriginLatent:
        return keys_.text("scoring_func", "softmax");
      case HfFamily::kOriginGrouped:
        keys_.expect("router_score_function", "softmax");
        keys_.expect("router_bias_selection", true);
        return "softmax";
      default:
        keys_.expect("scoring_func", "softmax");
        return "softmax";
    }
  }

  void read_grouped_experts() {
    const bool has_own_width = is(HfFamily::kQwen3Moe) || is(HfFamily::kOriginGrouped);
    const char* width_key = has_own_width ? "moe_intermediate_size" : "intermediate_size";
    const int64_t width = keys_.integer(width_key, 1);
    set(width_key, "moe.hidden_dim", width);
    const char* experts_key =
        keys_.find("num_experts") != nullptr ? "num_experts" : "num_local_experts";
    const int64_t num_experts = keys_.integer(experts_key);
    if (keys_.integer_or("num_local_experts", num_experts) != num_experts) {
      keys_.refuse("num_local_experts", cat(num_experts, ", as num_experts"));
    }
    set(experts_key, "moe.num_experts", num_experts);
    if (is(HfFamily::kMixtral)) {
      set("model_type", "moe.route_norm", true);
    } else if (is(HfFamily::kOriginGrouped)) {
      keys_.expect("norm_topk_prob", false);
      set("norm_topk_prob", "moe.route_norm", false);
    } else {
      set("norm_topk_prob", "moe.route_norm", keys_.flag("norm_topk_prob", false));
    }
    int64_t num_shared = 0;
    double scale = 1.0;
    if (is(HfFamily::kOriginGrouped)) {
      const int64_t shared_width = keys_.integer("shared_expert_intermediate_size");
      if (shared_width == 0 || shared_width % width != 0) {
        keys_.refuse("shared_expert_intermediate_size", cat("a multiple of ", width, " above 0"));
      }
      num_shared = shared_width / width;
      scale = keys_.number("router_scale", 1.0);
      if (keys_.integer_or("intermediate_size", width) != width) {
        keys_.refuse("intermediate_size", cat(width, ", as moe_intermediate_size"));
      }
    }
    set("shared_expert_intermediate_size", "moe.num_shared_experts", num_shared);
    set("router_scale", "moe.route_scale", scale);
    set("model_type", "moe.num_groups", int64_t{0});
    read_dense_layers_of_qwen();
  }

  // Which layers are dense is a list and a step there, the first ones here.
  void read_dense_layers_of_qwen() {
    int64_t num_dense = 0;
    if (is(HfFamily::kQwen3Moe)) {
      const int64_t step = keys_.integer_or("decoder_sparse_step", 1);
      const std::vector<int64_t> list = keys_.integers("mlp_only_layers");
      const std::set<int64_t> listed(list.begin(), list.end());
      if (step < 1) keys_.refuse("decoder_sparse_step", "at least 1");
      const auto is_dense_layer = [&](int64_t layer) {
        return listed.contains(layer) || (layer + 1) % step != 0;
      };
      while (num_dense < num_layers_ && is_dense_layer(num_dense)) ++num_dense;
      for (int64_t layer = num_dense; layer < num_layers_; ++layer) {
        if (!is_dense_layer(layer)) continue;
        keys_.refuse(step == 1 ? "mlp_only_layers" : "decoder_sparse_step",
                     "dense layers only before the first with experts");
      }
      const int64_t width = keys_.integer_or("intermediate_size", 0);
      if (num_dense > 0) set("intermediate_size", "model.dense_hidden_dim", width);
    }
    set("mlp_only_layers", "model.num_dense_layers", num_dense);
  }

  void read_deepseek_experts() {
    const bool is_v2 = is(HfFamily::kDeepseekV2), is_v3 = is(HfFamily::kDeepseekV3);
    const int64_t num_dense =
        std::min(keys_.integer_or("first_k_dense_replace", is_v3 ? 3 : 0), num_layers_);
    const int64_t dense_width = keys_.integer_or("intermediate_size", 0);
    set("first_k_dense_replace", "model.num_dense_layers", num_dense);
    if (num_dense > 0) set("intermediate_size", "model.dense_hidden_dim", dense_width);
    keys_.expect("moe_layer_freq", 1.0);
    out_.num_extra_layers = keys_.integer_or("num_nextn_predict_layers", 0);
    set("moe_intermediate_size", "moe.hidden_dim", keys_.integer("moe_intermediate_size"));
    set("n_routed_experts", "moe.num_experts", keys_.integer("n_routed_experts"));
    set("n_shared_experts", "moe.num_shared_experts", keys_.integer_or("n_shared_experts", 0));
    if (is_v2) {
      keys_.expect("norm_topk_prob", false);
      set("norm_topk_prob", "moe.route_norm", false);
    } else {
      set("norm_topk_prob", "moe.route_norm", keys_.flag("norm_topk_prob", is_v3));
    }
    set("routed_scaling_factor", "moe.route_scale",
        keys_.number("routed_scaling_factor", is_v3 ? 2.5 : 1.0));

    int64_t groups = keys_.integer_or("n_group", 1),
            limited = keys_.integer_or("topk_group", groups);
    std::string_view score = "best_two";
    if (is_v2) {
      const std::string method = keys_.text("topk_method", "greedy");
      if (method != "greedy" && method != "group_limited_greedy") {
        keys_.refuse("topk_method", "'greedy' or 'group_limited_greedy'");
      }
      if (method == "greedy") groups = 1;
      score = "best";
    } else if (is(HfFamily::kOriginLatent)) {
      score = keys_.text("group_score", "best_two") == "best" ? "best" : "best_two";
    }
    if (groups <= 1 || limited >= groups) groups = limited = 0;
    set("n_group", "moe.num_groups", groups);
    set("topk_group", "moe.num_limited_groups", limited);
    if (groups > 0) set_text("topk_method", "moe.group_score", score);
  }

  // Frequencies and the length that the model is meant for. transformers 5 keeps both in
  // rope_parameters, before it rope_theta stood beside rope_scaling.
  void read_rotation() {
    const int64_t context = keys_.integer("max_position_embeddings", 1);
    const char* key = keys_.find("rope_parameters") != nullptr ? "rope_parameters" : "rope_scaling";
    const Value* scaling = keys_.find(key);
    if (key == std::string_view("rope_parameters")) {
      keys_.expect_absent("rope_scaling", "one of it and rope_parameters");
    }
    double theta = keys_.number("rope_theta", is(HfFamily::kMixtral) ? 1e6 : 10000.0);
    double factor = 1.0;
    if (scaling != nullptr) {
      if (scaling->get_if<Object>() == nullptr) keys_.refuse(key, "an object");
      Keys rope(*scaling, cat(keys_.path(), ": ", key));
      theta = rope.number("rope_theta", theta);
      factor = read_stretch(rope, context);
      rope.expect("partial_rotary_factor", 1.0);
      rope.check_all_taken();
    }
    set("rope_theta", "model.rope_theta", theta);
    set(key, "model.rope_factor", factor);
    set("max_position_embeddings", "model.rope_max_seq_len", context);
  }

  // As transformers' modeling_rope_utils.py; the factor.
  double read_stretch(Keys& rope, int64_t context) {
    const char* key = rope.find("rope_type") != nullptr ? "rope_type" : "type";
    const std::string type = rope.text(key, "default");
    rope.ignore("type");
    if (type == "default") return 1.0;
    if (type != "linear" && type != "llama3" && type != "yarn") {
      rope.refuse(key,
                  "'default', 'linear', 'llama3' or 'yarn', whose frequencies do not change "
                  "with a sequence's length");
    }
    const double factor = rope.number("factor");
    if (factor < 1.0) rope.refuse("factor", "at least 1");
    set(key, "model.rope_type", type);
    if (type == "linear") return factor;
    const int64_t original = rope.integer_or("original_max_position_embeddings", context, 1);
    set("original_max_position_embeddings", "model.rope_original_seq_len", original);
    if (type == "yarn") {
      AMOEBA_CHECK_KIND(kData, context > original, rope.path(),
                        ": original_max_position_embeddings is ", original, ", the context is ",
                        context, ", want less: this engine stretches only beyond that length");
      read_yarn(rope, factor);
      return factor;
    }
    const double low = rope.number("low_freq_factor"), high = rope.number("high_freq_factor");
    if (high <= low) rope.refuse("high_freq_factor", cat("more than low_freq_factor ", low));
    set("high_freq_factor", "model.rope_beta_fast", high);
    set("low_freq_factor", "model.rope_beta_slow", low);
    return factor;
  }

  void read_yarn(Keys& rope, double factor) {
    const auto number = [&](const char* key, double absent) {  // 0 counts as absent
      const double given = rope.number(key, absent);
      return given != 0.0 ? given : absent;
    };
    set("beta_fast", "model.rope_beta_fast", number("beta_fast", 32.0));
    set("beta_slow", "model.rope_beta_slow", number("beta_slow", 1.0));
    set("truncate", "model.rope_truncate", rope.flag("truncate", true));
    const double mscale = rope.number("mscale", 0.0), all_dim = rope.number("mscale_all_dim", 0.0);
    const auto factor_of = [&](double scale) { return 0.1 * scale * std::log(factor) + 1.0; };
    const bool both = mscale != 0.0 && all_dim != 0.0;
    const double attention_factor = rope.number(
        "attention_factor", both ? factor_of(mscale) / factor_of(all_dim) : factor_of(1.0));
    if (factor == 1.0 && attention_factor != 1.0)
      rope.refuse("attention_factor", "1, as factor is");
    set("attention_factor", "model.rope_attention_factor", attention_factor);
    if (is_latent()) set("mscale_all_dim", "model.rope_mscale", all_dim);
  }

  void read_quantization(const Value& value) {
    Keys keys(value, keys_.path() + ": quantization_config");
    if (value.get_if<Object>() == nullptr) keys_.refuse("quantization_config", "an object");
    if (keys.text("quant_method", "") != "fp8") keys.refuse("quant_method", "'fp8'");
    keys.expect("fmt", "e4m3");
    keys.ignore("activation_scheme");  // of their kernels; weights alone are taken
    keys.ignore("modules_to_not_convert");
    keys.ignore("dequantize");
    if (keys.integers("weight_block_size") != std::vector<int64_t>{128, 128}) {
      keys.refuse("weight_block_size", "[128, 128]");
    }
    keys.check_all_taken();
    out_.fp8 = true;
  }

  Keys keys_;
  HfConfig out_;
  int64_t dim_ = 0;
  int64_t num_layers_ = 0;
  int64_t num_heads_ = 0;
};

}  // namespace

std::string_view model_type(HfFamily family) {
  for (const FamilyName& entry : kFamilies) {
    if (entry.family == family) return entry.model_type;
  }
  AMOEBA_ASSERT(false);
  return {};
}

HfFamily family_of(std::string_view model_type, std::string_view what, ErrorKind kind) {
  std::vector<std::string> names;
  for (const FamilyName& entry : kFamilies) {
    if (entry.model_type == model_type) return entry.family;
    names.emplace_back(entry.model_type);
  }
  fail(kind, cat(what, " is '", printable(model_type), "', want one of ", join(names, ", ")));
}

HfConfig read_hf_config(const Value& config, const std::string& path) {
  return Reader(config, path).read();
}

}  // namespace amoeba::train
