// A Hugging Face folder: its config.json to the settings of a run and back, and its weights.
#include "amoeba/error.h"
#include "formats/hf_folder.h"
#include "fuzz/target.h"
#include "train/plain/hf_config.h"

namespace amoeba::fuzz {

namespace {

using formats::Value;

// ---- config.json --------------------------------------------------------------------------------

// The settings that a folder gives, checked as those of a run.
struct Settings {
  explicit Settings(FileSystem& files) : hf(read(files)), schema(train::make_schema(config)) {
    for (const auto* list : {&hf.settings, &hf.defaults}) {
      for (const train::HfSetting& setting : *list) {
        const size_t dot = setting.path.find('.');
        const formats::Object member = {{setting.path.substr(dot + 1), setting.value}};
        schema.apply({formats::Object{{setting.path.substr(0, dot), {member}}}}, "config.json");
      }
    }
    schema.check();
    train::ModelSection& model = config.model;
    if (model.rope_factor == 1.0) {  // what else a stretch has means nothing and is not written
      const train::ModelSection unset;
      model.rope_beta_fast = unset.rope_beta_fast;
      model.rope_beta_slow = unset.rope_beta_slow;
      model.rope_original_seq_len = unset.rope_original_seq_len;
      model.rope_mscale = unset.rope_mscale;
    }
    config.training.seq_len = 2;  // any model has that context
    train::check_config(config);
  }
  static train::HfConfig read(FileSystem& files) {
    return train::read_hf_config(formats::read_hf_config_json(files, "/f"), "/f/config.json");
  }

  train::HfConfig hf;
  train::RunConfig config;
  formats::Schema schema;
};

void read_config(std::string_view data) {
  InputFiles files({{"/f/config.json", data}});
  Settings::read(files);
}

bool run_config(std::string_view data) {
  InputFiles files({{"/f/config.json", data}});
  std::unique_ptr<const Settings> settings;
  std::string written;
  try {
    settings = std::make_unique<Settings>(files);
    written = formats::write_json(train::write_hf_config(
        settings->config, {settings->hf.family, settings->config.model.vocab_size, "float32", 0}));
  } catch (const Error&) {
    return false;
  }
  InputFiles written_files({{"/f/config.json", written}});
  const Settings again(written_files);
  expect_same(again.schema.write_toml(false) == settings->schema.write_toml(false),
              "a setting of " + written);
  return true;
}

std::vector<std::string> config_seeds() {
  const std::string common =
      R"("vocab_size":300,"hidden_size":48,"num_hidden_layers":4,"num_attention_heads":6,)"
      R"("rms_norm_eps":1e-6,"max_position_embeddings":64,"intermediate_size":20,)"
      R"("torch_dtype":"bfloat16",)";
  const std::string latent =
      R"("kv_lora_rank":22,"qk_nope_head_dim":10,"qk_rope_head_dim":8,"v_head_dim":14,)"
      R"("first_k_dense_replace":2,"moe_intermediate_size":20,"n_routed_experts":8,)"
      R"("n_shared_experts":1,"num_experts_per_tok":3,)";
  const auto family = [&](const std::string& name, const std::string& rest) {
    return "{" + common + rest + R"("model_type":")" + name + "\"}";
  };
  return {
      family("mixtral", R"("head_dim":10,"num_key_value_heads":2,"num_local_experts":5,)"
                        R"("num_experts_per_tok":2,"sliding_window":16,"rope_theta":500.0,)"),
      family("olmoe", R"("num_experts":5,"num_experts_per_tok":2,"clip_qkv":null,)"),
      family("qwen3_moe",
             R"("moe_intermediate_size":20,"num_experts":5,"num_experts_per_tok":2,)"
             R"("mlp_only_layers":[0],"decoder_sparse_step":1,"num_key_value_heads":2,)"
             R"("layer_types":["full_attention"],)"),
      family("deepseek_v2", latent + R"("q_lora_rank":12,"n_group":4,"topk_group":2,)"
                                     R"("topk_method":"group_limited_greedy",)"),
      family("deepseek_v3",
             latent + R"("n_group":4,"topk_group":2,"num_nextn_predict_layers":1,)"
                      R"("rope_scaling":{"type":"yarn","factor":4.0,"beta_fast":32,"beta_slow":1,)"
                      R"("original_max_position_embeddings":16,"mscale":1.0,"mscale_all_dim":1.0},)"
                      R"("quantization_config":{"quant_method":"fp8","fmt":"e4m3",)"
                      R"("weight_block_size":[128,128]},)"),
      family("llama", R"("rope_parameters":{"rope_type":"default","rope_theta":500.0},)"),
      family("qwen3", R"("num_key_value_heads":2,"head_dim":10,"use_sliding_window":false,)"),
      family("origin_mla", latent + R"("latent_norm_eps":1e-5,"scoring_func":"softmax",)"),
      family("agpt_moe", R"("moe_intermediate_size":20,"shared_expert_intermediate_size":40,)"
                         R"("num_local_experts":5,"num_experts_per_tok":2,"router_scale":1.5,)")};
}

// ---- Weights ------------------------------------------------------------------------------------

constexpr std::string_view kCut = "\n--\n";

std::string shard(const std::string& name) {
  return safetensors_text("{\"" + name + R"(":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
                          2);
}

std::vector<formats::TensorEntry> tensors_of(const formats::HfWeights& weights) {
  std::vector<formats::TensorEntry> tensors;
  for (const auto& [name, tensor] : weights.tensors) {
    expect_same(tensor.name == name, "the name");
    tensors.push_back(tensor);
  }
  return tensors;
}

// The bytes are an index and two shards with a line "--" between; shards left out are sound.
InputFiles folder_of(std::string_view data) {
  static const std::string kShards[] = {shard("a"), shard("b")};
  std::string_view parts[] = {data, kShards[0], kShards[1]};
  for (size_t i = 0; i < 2; ++i) {
    const size_t cut = parts[i].find(kCut);
    if (cut == std::string_view::npos) break;
    parts[i + 1] = parts[i].substr(cut + kCut.size());
    parts[i] = parts[i].substr(0, cut);
  }
  return InputFiles({{"/f/model.safetensors.index.json", parts[0]},
                     {"/f/a.safetensors", parts[1]},
                     {"/f/b.safetensors", parts[2]}});
}

void read_weights(std::string_view data) {
  InputFiles input = folder_of(data);
  formats::open_hf_weights(input, "/f");
}

bool run_weights(std::string_view data) {
  InputFiles input = folder_of(data);
  formats::HfWeights weights;
  try {
    weights = formats::open_hf_weights(input, "/f");
  } catch (const Error&) {
    return false;
  }
  test::MemoryFileSystem files;
  files.create_directories("/f");
  const auto tensors = tensors_of(weights);
  formats::write_safetensors(files, "/f/model.safetensors", tensors, {});
  const formats::HfWeights again = formats::open_hf_weights(files, "/f");
  expect_same(same_tensors(tensors_of(again), tensors), "a tensor");
  return true;
}

std::vector<std::string> weights_seeds() {
  const std::string index =
      R"({"metadata":{"total_size":4},"weight_map":{"a":"a.safetensors","b":"b.safetensors"}})";
  const std::string cut(kCut);
  return {index, index + cut + shard("a") + cut + shard("b"),
          R"({"weight_map":{"c":"a.safetensors"}})" + cut + shard("c"), R"({"weight_map":{}})"};
}

}  // namespace

extern const Target kHfConfig{"hf_config", run_config, read_config, config_seeds};
extern const Target kHfWeights{"hf_weights", run_weights, read_weights, weights_seeds};

}  // namespace amoeba::fuzz
