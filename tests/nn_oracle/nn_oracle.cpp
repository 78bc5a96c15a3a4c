// One forward and backward of a described model with given weights, for comparison with another
// implementation: nn_oracle CONFIG.json INPUT.safetensors OUTPUT.safetensors.
//
// INPUT holds `tokens` and `targets` [B, S] int64, every parameter by its name and, for a model
// with experts, `expert_bias` [M, E]. OUTPUT gets `logits` [T, V], `loss` (the mean over valid
// targets), `gradient.NAME` of every parameter and the rotary table `rope.cos`, `rope.sin`.
#include <ATen/ops/empty.h>

#include <cstring>
#include <fstream>
#include <iostream>
#include <set>
#include <sstream>

#include "amoeba/error.h"
#include "amoeba/model.h"
#include "base/file_system.h"
#include "formats/safetensors.h"
#include "formats/value.h"
#include "nn_oracle/run_model.h"

namespace amoeba::test {
namespace {

constexpr const char* kWhat = "nn_oracle";

nn::RopeType rope_type(const std::string& name) {
  if (name == "linear") return nn::RopeType::kLinear;
  return name == "llama3" ? nn::RopeType::kLlama3 : nn::RopeType::kYarn;
}

nn::ModelConfig read_config(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  const formats::Value json = formats::parse_json(text.str(), path);
  const auto integer = [&](const char* key) { return json.integer_at(key, kWhat); };
  const auto number = [&](const char* key) { return json.number_at(key, kWhat); };
  nn::ModelConfig config;
  config.vocab_size = integer("vocab_size");
  config.num_layers = integer("num_layers");
  config.num_dense_layers = integer("num_dense_layers");
  config.dense_hidden_dim = integer("dense_hidden_dim");
  config.max_seq_len = integer("max_seq_len");
  config.tie_embeddings = json.bool_at("tie_embeddings", kWhat);
  nn::AttentionConfig& attention = config.attention;
  attention.dim = integer("dim");
  attention.num_heads = integer("num_heads");
  attention.norm_eps = number("norm_eps");
  if (json.find("kv_lora_rank") != nullptr) {
    attention.mla =
        nn::MlaConfig{integer("q_lora_rank"), integer("kv_lora_rank"), integer("qk_nope_head_dim"),
                      integer("qk_rope_head_dim"), integer("v_head_dim")};
    attention.rope.head_dim = attention.mla->qk_rope_head_dim;
  } else {
    attention.num_kv_heads = integer("num_kv_heads");
    attention.head_dim = attention.rope.head_dim = integer("head_dim");
    attention.qk_norm = json.bool_at("qk_norm", kWhat);
  }
  attention.rope.theta = number("rope_theta");
  attention.rope.type = rope_type(json.string_at("rope_type", kWhat));
  attention.rope.factor = number("rope_factor");
  attention.rope.beta_fast = number("rope_beta_fast");
  attention.rope.beta_slow = number("rope_beta_slow");
  attention.rope.original_seq_len = integer("rope_original_seq_len");
  attention.rope.max_seq_len = integer("rope_max_seq_len");
  attention.rope.attention_factor = number("rope_attention_factor");
  attention.rope.truncate = json.bool_at("rope_truncate", kWhat);
  attention.yarn_mscale = number("rope_mscale");
  if (config.num_dense_layers == config.num_layers) return config;
  nn::RouterConfig& router = config.moe.router;
  router.dim = attention.dim;
  router.num_experts = integer("num_experts");
  router.top_k = integer("top_k");
  router.score_function =
      json.bool_at("sigmoid", kWhat) ? nn::ScoreFunction::kSigmoid : nn::ScoreFunction::kSoftmax;
  router.num_groups = integer("num_groups");
  router.num_limited_groups = integer("num_limited_groups");
  router.route_norm = json.bool_at("route_norm", kWhat);
  router.route_scale = number("route_scale");
  config.moe.hidden_dim = integer("hidden_dim");
  config.moe.num_shared_experts = integer("num_shared_experts");
  return config;
}

// Copies out of the file by name, and knows at the end whether anything was left over.
class Inputs {
 public:
  explicit Inputs(const std::string& path) : file_(formats::read_safetensors(files_, path)) {}

  at::Tensor take(const std::string& name, at::ScalarType dtype) {
    for (const formats::TensorEntry& entry : file_.tensors) {
      if (entry.name != name) continue;
      AMOEBA_CHECK(entry.dtype == (dtype == at::kLong ? "I64" : "F32"), "nn_oracle: ", name, " is ",
                   entry.dtype, ", want ", dtype);
      taken_.insert(name);
      at::Tensor tensor = at::empty(entry.shape, dtype);
      std::memcpy(tensor.mutable_data_ptr(), entry.data.data(), entry.data.size());
      return tensor;
    }
    fail(ErrorKind::kUsage, cat("nn_oracle: got no tensor ", name, ", want one"));
  }

  void check_all_taken() const {
    for (const formats::TensorEntry& entry : file_.tensors) {
      AMOEBA_CHECK(taken_.count(entry.name) == 1, "nn_oracle: got a tensor ", entry.name,
                   ", want none of that name");
    }
  }

 private:
  PosixFileSystem files_;
  formats::SafetensorsFile file_;
  std::set<std::string> taken_;
};

void copy_checked(const std::string& name, const at::Tensor& from, at::Tensor to) {
  AMOEBA_CHECK(from.sizes() == to.sizes(), "nn_oracle: ", name, " is ", from.sizes(), ", want ",
               to.sizes());
  to.copy_(from);
}

void run_files(const std::string& config_path, const std::string& input_path,
               const std::string& output_path) {
  const nn::ModelConfig config = read_config(config_path);
  nn::Model model(config, at::kCPU, at::kFloat, /*seed=*/1);
  Inputs inputs(input_path);
  for (const auto& parameter : model.store().parameters()) {
    copy_checked(parameter->name, inputs.take(parameter->name, at::kFloat),
                 parameter->master.detach());
  }
  if (model.num_moe_layers() > 0) {
    copy_checked("expert_bias", inputs.take("expert_bias", at::kFloat), model.expert_bias());
  }
  const at::Tensor tokens = inputs.take("tokens", at::kLong);
  const at::Tensor targets = inputs.take("targets", at::kLong);
  inputs.check_all_taken();

  const OracleRun run = run_model(model, tokens, targets);

  const nn::RopeTable rope =
      nn::make_rope_table(config.attention.rope, config.max_seq_len, at::kCPU);
  std::vector<std::pair<std::string, at::Tensor>> results = {
      {"logits", run.logits}, {"loss", run.loss}, {"rope.cos", rope.cos}, {"rope.sin", rope.sin}};
  for (const auto& parameter : model.store().parameters()) {
    results.emplace_back("gradient." + parameter->name, parameter->grad);
  }
  std::vector<formats::TensorEntry> entries;
  for (const auto& [name, tensor] : results) {
    AMOEBA_CHECK(tensor.is_contiguous(), "nn_oracle: ", name, " has strides");
    entries.push_back({name,
                       "F32",
                       tensor.sizes().vec(),
                       {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()}});
  }
  PosixFileSystem files;
  formats::write_safetensors(files, output_path, entries, {});
}

}  // namespace
}  // namespace amoeba::test

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: nn_oracle CONFIG.json INPUT.safetensors OUTPUT.safetensors\n";
    return 2;
  }
  try {
    amoeba::test::run_files(argv[1], argv[2], argv[3]);
  } catch (const amoeba::Error& error) {
    std::cerr << error.what() << "\n";
    return 3;
  }
  return 0;
}
