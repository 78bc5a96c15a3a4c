#include "train/plain/hf_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/text.h"
#include "formats/value.h"
#include "support/errors.h"
#include "support/memory_file_system.h"
#include "train/plain/config_layers.h"

namespace amoeba::train {
namespace {

using test::error_message;

constexpr const char* kMixtral = R"("model_type": "mixtral", "vocab_size": 300, "hidden_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "rope_theta": 500.0,
    "intermediate_size": 20, "num_local_experts": 5, "num_experts_per_tok": 2)";
constexpr const char* kQwen3Moe = R"("model_type": "qwen3_moe", "vocab_size": 300,
    "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "moe_intermediate_size": 20,
    "intermediate_size": 22, "num_experts": 5, "num_experts_per_tok": 2)";
constexpr const char* kDeepseekV3 = R"("model_type": "deepseek_v3", "vocab_size": 300,
    "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64, "kv_lora_rank": 22, "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8, "v_head_dim": 14, "first_k_dense_replace": 2, "intermediate_size": 30,
    "moe_intermediate_size": 20, "n_routed_experts": 8, "n_shared_experts": 1, "n_group": 4,
    "topk_group": 2, "num_experts_per_tok": 3, "num_nextn_predict_layers": 1)";
constexpr const char* kOlmoe = R"("model_type": "olmoe", "vocab_size": 300, "hidden_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 6, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "intermediate_size": 20, "num_experts": 5,
    "num_experts_per_tok": 2)";
constexpr const char* kDeepseekV2 = R"("model_type": "deepseek_v2", "vocab_size": 300,
    "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64, "q_lora_rank": 12, "kv_lora_rank": 22, "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8, "v_head_dim": 14, "first_k_dense_replace": 1, "intermediate_size": 30,
    "moe_intermediate_size": 20, "n_routed_experts": 8, "n_shared_experts": 2, "n_group": 4,
    "topk_group": 2, "topk_method": "group_limited_greedy", "num_experts_per_tok": 3)";
constexpr const char* kLlama = R"("model_type": "llama", "vocab_size": 300, "hidden_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 6, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "intermediate_size": 20)";
constexpr const char* kQwen3 = R"("model_type": "qwen3", "vocab_size": 300, "hidden_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "intermediate_size": 20)";
constexpr const char* kOriginGrouped = R"("model_type": "agpt_moe", "vocab_size": 300,
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 40, "num_local_experts": 5, "num_experts_per_tok": 2,
    "router_scale": 1.5)";
constexpr const char* kOriginLatent = R"("model_type": "origin_mla", "vocab_size": 300,
    "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6, "rms_norm_eps": 1e-5,
    "latent_norm_eps": 1e-5, "max_position_embeddings": 64, "kv_lora_rank": 22,
    "qk_nope_head_dim": 10, "qk_rope_head_dim": 8, "v_head_dim": 14, "first_k_dense_replace": 1,
    "intermediate_size": 30, "moe_intermediate_size": 20, "n_routed_experts": 8,
    "n_shared_experts": 2, "num_experts_per_tok": 3, "scoring_func": "softmax")";

// The configuration of a folder that holds only `members` in its config.json.
RunConfig config_of(const std::string& members) {
  test::MemoryFileSystem files;
  files.create_directories("/hf");
  const auto file = files.create("/hf/config.json");
  file->write("{" + members + "}");
  file->close();
  return load_config(files, {}, {{"model.from", "/hf"}, {"data.tokenizer", "bytes"}})->config;
}

HfConfig read(const std::string& members) {
  return read_hf_config(formats::parse_json("{" + members + "}", "config.json"), "config.json");
}

TEST(HfConfig, SetsTheModel) {
  const RunConfig config = config_of(kMixtral);
  EXPECT_EQ(config.model.vocab_size, 300);
  EXPECT_EQ(config.model.dim, 48);
  EXPECT_EQ(config.model.num_layers, 3);
  EXPECT_EQ(config.model.num_dense_layers, 0);
  EXPECT_EQ(config.model.num_heads, 6);
  EXPECT_EQ(config.model.num_kv_heads, 2);
  EXPECT_EQ(config.model.head_dim, 10);
  EXPECT_EQ(config.model.rope_theta, 500.0);
  EXPECT_EQ(config.model.rope_max_seq_len, 64);
  EXPECT_FALSE(config.model.tie_embeddings);
  EXPECT_FALSE(config.model.qk_norm);
  EXPECT_EQ(config.moe.num_experts, 5);
  EXPECT_EQ(config.moe.hidden_dim, 20);
  EXPECT_EQ(config.moe.num_shared_experts, 0);
  EXPECT_TRUE(config.moe.route_norm);
  EXPECT_EQ(config.moe.balance_coeff, 0.0);  // the family has no selection bias

  const RunConfig deep = config_of(kDeepseekV3);
  EXPECT_EQ(deep.model.attention, "mla");
  EXPECT_EQ(deep.model.num_dense_layers, 2);
  EXPECT_EQ(deep.model.dense_hidden_dim, 30);
  EXPECT_EQ(deep.model.latent_norm_eps, 1e-6);
  EXPECT_EQ(deep.moe.score_function, "sigmoid");
  EXPECT_EQ(deep.moe.num_groups, 4);
  EXPECT_EQ(deep.moe.num_limited_groups, 2);
  EXPECT_EQ(deep.moe.route_scale, 2.5);
  EXPECT_EQ(deep.moe.balance_coeff, MoeSection().balance_coeff);
  EXPECT_EQ(read(kDeepseekV3).num_extra_layers, 1);
}

TEST(HfConfig, SmallerThingsAreRead) {
  EXPECT_EQ(config_of(cat(kMixtral, R"(, "sliding_window": 40)")).model.sliding_window, 40);
  EXPECT_EQ(config_of(cat(kMixtral, R"(, "sliding_window": null)")).model.sliding_window, 0);
  const RunConfig dense =
      config_of(cat(kQwen3Moe, R"(, "mlp_only_layers": [1, 0], "norm_topk_prob": true)"));
  EXPECT_EQ(dense.model.num_dense_layers, 2);
  EXPECT_EQ(dense.model.dense_hidden_dim, 22);
  EXPECT_EQ(config_of(cat(kQwen3Moe, R"(, "decoder_sparse_step": 4)")).model.num_dense_layers, 3);
  const RunConfig yarn = config_of(cat(kDeepseekV3, R"(, "rope_scaling": {"type": "yarn",
      "factor": 4, "original_max_position_embeddings": 16, "mscale": 0.7, "mscale_all_dim": 0.7})"));
  EXPECT_EQ(yarn.model.rope_factor, 4.0);
  EXPECT_EQ(yarn.model.rope_mscale, 0.7);
  EXPECT_EQ(yarn.model.rope_original_seq_len, 16);
  EXPECT_TRUE(read(cat(kDeepseekV3, R"(, "quantization_config": {"quant_method": "fp8",
      "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]})"))
                  .fp8);
}

// Stretched rotation, under the key of transformers 5 and under the one before.
struct Stretch {
  const char* members;
  std::string type;
  double factor, attention_factor, beta_fast, beta_slow;
  int64_t original;
  bool truncate = true;
};

TEST(HfConfig, RotationIsReadAsTransformersReadsIt) {
  const double of_four = 0.1 * std::log(4.0) + 1.0;
  const std::vector<Stretch> cases = {
      {R"("rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 16)", "yarn", 4,
       of_four, 32, 1, 16},
      {R"("type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 3,
          "beta_slow": 0.5, "attention_factor": 1.25, "truncate": false)",
       "yarn", 4, 1.25, 3, 0.5, 16, false},
      {R"("rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 16, "mscale": 2.0,
          "mscale_all_dim": 0.5, "beta_fast": null, "beta_slow": 0)",
       "yarn", 4, (0.2 * std::log(4.0) + 1.0) / (0.05 * std::log(4.0) + 1.0), 32, 1, 16},
      // One mscale alone counts for nothing.
      {R"("rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 16,
          "mscale": 2.0)",
       "yarn", 4, of_four, 32, 1, 16},
      {R"("rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 16, "mscale": 0.7,
          "mscale_all_dim": 0.7)",
       "yarn", 4, 1, 32, 1, 16},
      {R"("rope_type": "linear", "factor": 2.5)", "linear", 2.5, 1, 32, 1, 4096},
      {R"("type": "linear", "rope_type": null, "factor": 8)", "linear", 8, 1, 32, 1, 4096},
      {R"("rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.5,
          "original_max_position_embeddings": 16)",
       "llama3", 8, 1, 4, 1.5, 16},
      {R"("rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4, "low_freq_factor": 1)",
       "llama3", 8, 1, 4, 1, 64},  // the model's whole length
      {R"("rope_type": "default")", "yarn", 1, 1, 32, 1, 4096},
  };
  for (const char* family : {kMixtral, kOlmoe, kQwen3Moe, kLlama, kQwen3, kOriginGrouped}) {
    for (const Stretch& test : cases) {
      for (const char* key : {"rope_parameters", "rope_scaling"}) {
        const ModelSection model =
            config_of(cat(family, R"(, ")", key, R"(": {)", test.members, "}")).model;
        SCOPED_TRACE(cat(family, key, test.members));
        EXPECT_EQ(model.rope_type, test.type);
        EXPECT_EQ(model.rope_factor, test.factor);
        EXPECT_EQ(model.rope_attention_factor, test.attention_factor);
        EXPECT_EQ(model.rope_beta_fast, test.beta_fast);
        EXPECT_EQ(model.rope_beta_slow, test.beta_slow);
        EXPECT_EQ(model.rope_original_seq_len, test.original);
        EXPECT_EQ(model.rope_truncate, test.truncate);
        EXPECT_EQ(model.rope_mscale, 1.0);  // of latent attention
      }
    }
  }
  const ModelSection latent = config_of(cat(kDeepseekV3, R"(, "rope_scaling": {"type": "yarn",
      "factor": 4, "original_max_position_embeddings": 16})"))
                                  .model;
  EXPECT_EQ(latent.rope_mscale, 0.0);
  EXPECT_EQ(latent.rope_attention_factor, of_four);
}

std::string with(std::string members, std::string_view from, std::string_view to) {
  return members.replace(members.find(from), from.size(), to);
}

struct Refusal {
  std::string members;
  std::string message;
};

TEST(HfConfig, RefusesWhatItCannotExpress) {
  const std::vector<Refusal> cases = {
      {R"("model_type": "gpt2")", "model_type is 'gpt2', want one of mixtral, olmoe"},
      {with(kLlama, R"("num_attention_heads": 6)", R"("num_attention_heads": 0)"),
       "num_attention_heads is 0, want 1 to"},
      {with(kLlama, R"("hidden_size": 48)", R"("hidden_size": 9223372036854775807)"),
       "hidden_size is 9223372036854775807, want 0 to"},
      {with(kQwen3Moe, R"("num_hidden_layers": 4)", R"("num_hidden_layers": 2000000000)"),
       "num_hidden_layers is 2000000000, want 1 to 10000"},
      {with(kOriginGrouped, R"("moe_intermediate_size": 20)", R"("moe_intermediate_size": 0)"),
       "moe_intermediate_size is 0, want 1 to"},
      // Zeros that would mean another value here.
      {with(kOriginLatent, R"("latent_norm_eps": 1e-5)", R"("latent_norm_eps": 0.0)"),
       "latent_norm_eps is 0.0, want more than 0"},
      {with(kLlama, R"("vocab_size": 300)", R"("vocab_size": 0)"), "vocab_size is 0, want 1 to"},
      {with(kMixtral, R"("head_dim": 10)", R"("head_dim": 0)"), "head_dim is 0, want 1 to"},
      {with(kLlama, R"("max_position_embeddings": 64)", R"("max_position_embeddings": 0)"),
       "max_position_embeddings is 0, want 1 to"},
      {cat(kMixtral, R"(, "attention_sinks": 4)"), "unknown key 'attention_sinks' (4)"},
      {cat(kMixtral, R"(, "hidden_act": "gelu")"), "hidden_act is \"gelu\", want 'silu'"},
      {cat(kMixtral, R"(, "attention_bias": true)"), "attention_bias is true, want false"},
      {cat(kMixtral, R"(, "attention_dropout": 0.1)"), "attention_dropout is 0.1, want 0"},
      {cat(kMixtral, R"(, "router_jitter_noise": 0.1)"), "router_jitter_noise is 0.1, want 0"},
      {cat(kMixtral, R"(, "rope_scaling": {"rope_type": "dynamic", "factor": 8})"),
       "rope_scaling: rope_type is \"dynamic\", want 'default', 'linear', 'llama3' or 'yarn', "
       "whose "
       "frequencies do not change with a sequence's length"},
      {cat(kMixtral, R"(, "rope_parameters": {"type": "longrope", "short_factor": [1.0]})"),
       "rope_parameters: type is \"longrope\", want 'default'"},
      {cat(kMixtral, R"(, "rope_scaling": {"rope_type": "linear"})"), "factor"},
      {cat(kMixtral, R"(, "rope_scaling": {"rope_type": "linear", "factor": 0.5})"),
       "factor is 0.5, want at least 1"},
      {cat(kMixtral, R"(, "rope_scaling": {"rope_type": "linear", "factor": 2,
           "attention_factor": 1.5})"),
       "rope_scaling: unknown key 'attention_factor' (1.5)"},
      {cat(kMixtral, R"(, "rope_scaling": {"rope_type": "linear", "factor": 2},
           "rope_parameters": {"rope_type": "linear", "factor": 2})"),
       "rope_scaling is {\"rope_type\":\"linear\",\"factor\":2}, want one of it and "
       "rope_parameters"},
      {cat(kLlama, R"(, "rope_scaling": {"rope_type": "llama3", "factor": 8,
           "low_freq_factor": 1})"),
       "high_freq_factor"},
      {cat(kLlama, R"(, "rope_scaling": {"rope_type": "llama3", "factor": 8,
           "low_freq_factor": 1.5, "high_freq_factor": 1})"),
       "high_freq_factor is 1, want more than low_freq_factor 1.5"},
      {cat(kMixtral, R"(, "rope_parameters": {"rope_type": "yarn", "factor": 1,
           "attention_factor": 1.5, "original_max_position_embeddings": 16})"),
       "attention_factor is 1.5, want 1, as factor is"},
      {cat(kMixtral, R"(, "rope_parameters": {"rope_type": "yarn", "factor": 4})"),
       "original_max_position_embeddings is 64, the context is 64, want less"},
      {cat(kMixtral, R"(, "rope_parameters": {"rope_type": "yarn", "factor": 4, "mscale": 1,
           "mscale_all_dim": 1, "original_max_position_embeddings": 64})"),
       "original_max_position_embeddings is 64, the context is 64, want less"},
      {cat(kMixtral, R"(, "rope_parameters": {"partial_rotary_factor": 0.5})"),
       "partial_rotary_factor is 0.5, want 1"},
      {cat(kMixtral, R"(, "quantization_config": {"quant_method": "awq"})"),
       "quantization_config: quant_method is \"awq\", want 'fp8'"},
      {cat(kMixtral, R"(, "quantization_config": {"quant_method": "fp8",
           "weight_block_size": [64, 128]})"),
       "weight_block_size is [64,128], want [128, 128]"},
      {cat(kOlmoe, R"(, "clip_qkv": 8.0)"), "clip_qkv is 8"},
      {cat(kQwen3Moe, R"(, "use_sliding_window": true)"), "use_sliding_window is true"},
      {cat(kQwen3Moe, R"(, "mlp_only_layers": [2])"), "mlp_only_layers is [2]"},
      {cat(kQwen3Moe, R"(, "decoder_sparse_step": 2)"), "decoder_sparse_step is 2"},
      {cat(kQwen3, R"(, "layer_types": ["sliding_attention"])"), "layer_types is"},
      {cat(kDeepseekV3, R"(, "rope_interleave": false)"), "rope_interleave is false"},
      {cat(kDeepseekV3, R"(, "scoring_func": "softmax")"), "scoring_func is \"softmax\""},
      {cat(kDeepseekV3, R"(, "num_key_value_heads": 2)"), "num_key_value_heads is 2"},
      {cat(kDeepseekV3, R"(, "moe_layer_freq": 2)"), "moe_layer_freq is 2"},
      {cat(kDeepseekV2, R"(, "norm_topk_prob": true)"), "norm_topk_prob is true"},
      {cat(kOriginGrouped, R"(, "norm_topk_prob": true)"), "norm_topk_prob is true"},
      {R"("model_type": "llama", "vocab_size": 3)", "hidden_size"},
      {cat(kMixtral, R"(, "sliding_window": -1)"), "sliding_window is -1, want 0 to 16777216"},
      {cat(kQwen3, R"(, "layer_types": "full_attention")"), "'layer_types' is string, want array"},
  };
  for (const Refusal& refusal : cases) {
    std::string message;
    try {
      read(refusal.members);
      ADD_FAILURE() << "taken: " << refusal.members;
    } catch (const Error& error) {
      message = error.what();
    }
    EXPECT_NE(message.find("config.json"), message.npos) << message;
    EXPECT_NE(message.find(refusal.message), message.npos)
        << message << "\n  want " << refusal.message;
  }
}

// What is written is read as the same model.
TEST(HfConfig, WrittenAndReadAgain) {
  const std::string yarn = R"(, "rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 3,
      "original_max_position_embeddings": 16, "mscale": 0.7, "mscale_all_dim": 0.7})";
  const std::string own_factor = R"(, "rope_parameters": {"rope_type": "yarn", "factor": 3.3,
      "original_max_position_embeddings": 16, "truncate": false})";
  const std::string linear = R"(, "rope_parameters": {"rope_type": "linear", "factor": 3.3})";
  const std::string llama3 = R"(, "rope_parameters": {"rope_type": "llama3", "factor": 8.0,
      "low_freq_factor": 1.5, "high_freq_factor": 4.0, "original_max_position_embeddings": 16})";
  for (const std::string& members :
       {std::string(kMixtral), std::string(kOlmoe), cat(kQwen3Moe, R"(, "mlp_only_layers": [0])"),
        kDeepseekV2 + yarn, kDeepseekV3 + yarn, std::string(kDeepseekV3), std::string(kLlama),
        std::string(kQwen3), std::string(kOriginGrouped), std::string(kOriginLatent),
        kQwen3Moe + own_factor, kMixtral + linear, kOlmoe + linear, kLlama + llama3,
        kQwen3 + own_factor, kDeepseekV2 + own_factor, kOriginLatent + linear,
        kOriginGrouped + llama3}) {
    const HfFamily family = read(members).family;
    RunConfig first = config_of(members);
    const bool of_origin = family == HfFamily::kOriginGrouped || family == HfFamily::kOriginLatent;
    EXPECT_EQ(of_origin ? fitting_origin_family(first) : fitting_family(first), family) << members;
    const formats::Value json = write_hf_config(first, {family, 300, "bfloat16", 256});
    const std::string text = formats::write_json(json);
    RunConfig second = config_of(text.substr(1, text.size() - 2));
    EXPECT_EQ(formats::write_json(make_schema(first).to_value()),
              formats::write_json(make_schema(second).to_value()))
        << text;
  }
}

struct Inexpressible {
  const char* members;
  HfFamily family;
  std::vector<std::pair<std::string, std::string>> changes;
  std::string message;
};

TEST(HfConfig, NamesTheSettingThatAFamilyCannotExpress) {
  const std::vector<Inexpressible> cases = {
      {kMixtral,
       HfFamily::kMixtral,
       {{"moe.num_shared_experts", "1"}},
       "export: moe.num_shared_experts is 1, which family mixtral cannot express, want 0"},
      {kMixtral, HfFamily::kMixtral, {{"moe.route_norm", "false"}}, "moe.route_norm is false"},
      {kMixtral, HfFamily::kMixtral, {{"moe.route_scale", "2"}}, "moe.route_scale is 2"},
      {kMixtral, HfFamily::kMixtral, {{"moe.score_function", "sigmoid"}}, "moe.score_function is"},
      {kMixtral, HfFamily::kMixtral, {{"model.num_dense_layers", "1"}}, "model.num_dense_layers"},
      {kMixtral, HfFamily::kMixtral, {{"model.qk_norm", "true"}}, "model.qk_norm is true"},
      {kMixtral, HfFamily::kQwen3Moe, {}, "model.qk_norm is false"},
      {kMixtral, HfFamily::kDeepseekV3, {}, "model.attention is gqa"},
      {kMixtral, HfFamily::kOriginGrouped, {}, "moe.route_norm is true"},
      {kMixtral, HfFamily::kLlama, {}, "model.num_dense_layers is 0"},
      {kOlmoe, HfFamily::kOlmoe, {{"model.qk_norm_scope", "head"}}, "model.qk_norm_scope is head"},
      {kDeepseekV3, HfFamily::kMixtral, {}, "model.attention is mla"},
      {kDeepseekV3, HfFamily::kDeepseekV2, {}, "moe.score_function is sigmoid"},
      {kDeepseekV3, HfFamily::kDeepseekV3, {{"model.latent_norm_eps", "1e-5"}}, "latent_norm_eps"},
      {kDeepseekV3, HfFamily::kDeepseekV3, {{"moe.num_shared_experts", "0"}}, "num_shared_experts"},
      {kDeepseekV3,
       HfFamily::kDeepseekV3,
       {{"moe.group_score", "best"}},
       "moe.group_score is best"},
      {kDeepseekV3,
       HfFamily::kDeepseekV3,
       {{"moe.score_before_experts", "true"}},
       "moe.score_before_experts is true"},
  };
  for (const Inexpressible& test : cases) {
    RunConfig config = config_of(test.members);
    formats::Schema schema = make_schema(config);
    for (const auto& [path, value] : test.changes) schema.apply_override(path, value);
    const std::string message = error_message(ErrorKind::kUsage, [&] {
      write_hf_config(config, {test.family, 300, "float32", 256});
    });
    EXPECT_NE(message.find(test.message), message.npos) << message << "\n  want " << test.message;
  }
}

}  // namespace
}  // namespace amoeba::train
