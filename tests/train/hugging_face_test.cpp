#include "train/hugging_face.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "formats/hf_folder.h"
#include "support/errors.h"
#include "support/faults.h"
#include "support/torch/memory.h"
#include "train/export.h"
#include "train/lab.h"
#include "train/load_model.h"
#include "train/model_config.h"
#include "train/plain/config_layers.h"
#include "train/plain/model_source.h"
#include "train/start_weights.h"

namespace amoeba::train {
namespace {

using formats::TensorEntry;
using test::error_message;

void no_log(LogLevel, std::string_view) {}

// Every size another, vocabulary no smaller than the byte tokenizer's.
RunConfig grouped_config() {
  RunConfig config;
  config.model.vocab_size = 264;
  config.model.dim = 24;
  config.model.num_layers = 3;
  config.model.num_heads = 6;
  config.model.num_kv_heads = 2;
  config.model.head_dim = 10;
  config.model.tie_embeddings = false;
  config.moe.num_experts = 5;
  config.moe.hidden_dim = 14;
  config.moe.num_shared_experts = 0;
  config.training.seq_len = 16;
  return config;
}

RunConfig latent_config() {
  RunConfig config = grouped_config();
  config.model.attention = "mla";
  config.model.q_lora_rank = 9;
  config.model.kv_lora_rank = 11;
  config.model.qk_nope_head_dim = 7;
  config.model.qk_rope_head_dim = 4;
  config.model.v_head_dim = 8;
  config.model.latent_norm_eps = 1e-6;
  config.model.num_dense_layers = 1;
  config.model.dense_hidden_dim = 18;
  config.moe.num_shared_experts = 2;
  config.moe.route_norm = false;
  return config;
}

std::unique_ptr<nn::Model> make_model(const RunConfig& config, uint64_t seed,
                                      at::ScalarType dtype = at::kFloat) {
  return std::make_unique<nn::Model>(make_model_config(config, 257), at::kCPU, dtype, seed);
}

void export_to(FileSystem& files, nn::Model& model, const RunConfig& config, HfFamily family,
               const std::string& folder, ExportOptions options = {}) {
  options.family = family;
  export_hugging_face(files, model, config, formats::ByteTokenizer(), options, folder);
}

void load_from(FileSystem& files, const std::string& folder, nn::Model& model) {
  RunConfig config;
  config.model.from = folder;
  load_start_weights(files, config, model, no_log);
}

void expect_equal(nn::Model& a, nn::Model& b) {
  const auto left = weight_tensors(a), right = weight_tensors(b);
  ASSERT_EQ(left.size(), right.size());
  for (size_t i = 0; i < left.size(); ++i) {
    EXPECT_TRUE(at::equal(left[i].tensor, right[i].tensor)) << left[i].name;
  }
}

struct Family {
  HfFamily family;
  RunConfig config;
};

std::vector<Family> families() {
  std::vector<Family> all = {
      {HfFamily::kMixtral, grouped_config()},       {HfFamily::kOlmoe, grouped_config()},
      {HfFamily::kQwen3Moe, grouped_config()},      {HfFamily::kLlama, grouped_config()},
      {HfFamily::kOriginGrouped, grouped_config()}, {HfFamily::kDeepseekV2, latent_config()},
      {HfFamily::kDeepseekV3, latent_config()},     {HfFamily::kOriginLatent, latent_config()}};
  all[0].config.model.sliding_window = 7;
  all[1].config.model.qk_norm = all[2].config.model.qk_norm = true;
  all[1].config.model.qk_norm_scope = "projection";
  all[1].config.model.head_dim = 4;
  all[2].config.model.num_dense_layers = 1;
  all[2].config.model.dense_hidden_dim = 18;
  all[3].config.model.num_dense_layers = 3;
  all[3].config.model.dense_hidden_dim = 18;
  all[4].config.moe.num_shared_experts = 3;
  all[4].config.moe.route_norm = false;
  all[6].config.moe.score_function = "sigmoid";
  return all;
}

bool has_bias(HfFamily family) {
  return family == HfFamily::kDeepseekV3 || family == HfFamily::kOriginLatent ||
         family == HfFamily::kOriginGrouped;
}

TEST(HuggingFace, ExportThenImportIsTheIdentity) {
  for (const Family& family : families()) {
    SCOPED_TRACE(model_type(family.family));
    test::MemoryFileSystem files;
    const auto model = make_model(family.config, 1);
    if (has_bias(family.family)) {
      model->expert_bias().copy_(
          at::arange(model->expert_bias().numel(), at::kFloat).view_as(model->expert_bias()) / 3);
    }
    ExportOptions options;
    options.max_shard_bytes = 9000;
    export_to(files, *model, family.config, family.family, "/hf", options);
    EXPECT_TRUE(files.exists("/hf/model.safetensors.index.json"));
    EXPECT_FALSE(files.exists("/hf.partial"));
    const auto loaded = make_model(family.config, 2);
    load_from(files, "/hf", *loaded);
    expect_equal(*model, *loaded);
  }
}

TEST(HuggingFace, SixteenBitsAreRoundedOnceButNotTheBias) {
  const Family family = families()[6];
  test::MemoryFileSystem files;
  const auto model = make_model(family.config, 1);
  model->expert_bias().fill_(1.0f / 3);
  ExportOptions options;
  options.dtype = "bfloat16";
  export_to(files, *model, family.config, family.family, "/hf", options);
  const auto loaded = make_model(family.config, 2);
  load_from(files, "/hf", *loaded);
  const auto want = weight_tensors(*model), got = weight_tensors(*loaded);
  for (size_t i = 0; i < want.size(); ++i) {
    const bool is_bias = want[i].name == "expert_bias";
    EXPECT_TRUE(at::equal(
        got[i].tensor, is_bias ? want[i].tensor : want[i].tensor.to(at::kBFloat16).to(at::kFloat)))
        << want[i].name;
  }
  options.dtype = "float16";
  model->store().parameters()[0]->master.detach().fill_(1e6);
  EXPECT_NE(error_message(
                ErrorKind::kNumeric,
                [&] { export_to(files, *model, family.config, family.family, "/f16", options); })
                .find("'model.embed_tokens.weight' holds values that float16 cannot"),
            std::string::npos);
  EXPECT_FALSE(files.exists("/f16"));
}

TEST(HuggingFace, RefusesABiasThatTheFamilyHasNot) {
  test::MemoryFileSystem files;
  const auto model = make_model(grouped_config(), 1);
  model->expert_bias()[1][2] = 0.5;
  EXPECT_NE(
      error_message(ErrorKind::kUsage,
                    [&] { export_to(files, *model, grouped_config(), HfFamily::kMixtral, "/hf"); })
          .find("selection bias of the experts is as large as 0.5, which family mixtral"),
      std::string::npos);
  files.create_directories("/there");
  error_message(ErrorKind::kUsage, [&] {
    export_to(files, *make_model(grouped_config(), 1), grouped_config(), HfFamily::kMixtral,
              "/there");
  });
}

// A disk that fails at any operation leaves nothing of the folder, or all of it.
TEST(HuggingFace, AFailedExportLeavesNothing) {
  const auto model = make_model(grouped_config(), 1);
  int64_t num_operations = 1;
  for (int64_t index = 0; index < num_operations; ++index) {
    test::MemoryFileSystem disk;
    test::FaultyFileSystem files(disk);
    files.fail_at(index, "No space left on device");
    const std::string message = error_message(ErrorKind::kData, [&] {
      export_to(files, *model, grouped_config(), HfFamily::kMixtral, "/new/hf");
    });
    SCOPED_TRACE(cat(index, ": ", message));
    EXPECT_FALSE(disk.exists("/new/hf.partial"));
    if (disk.exists("/new/hf")) {
      const auto loaded = make_model(grouped_config(), 2);
      load_from(disk, "/new/hf", *loaded);
      expect_equal(*model, *loaded);
    }
    if (index > 0) continue;
    test::FaultyFileSystem counted(disk);
    export_to(counted, *model, grouped_config(), HfFamily::kMixtral, "/new/counted");
    num_operations = counted.num_operations() - 2;  // "/new" is there
  }
  EXPECT_GT(num_operations, 10);
}

// The folder of a Mixtral with `change` applied to its list of tensors.
std::string refusal_of(const std::function<void(std::vector<TensorEntry>&)>& change) {
  test::MemoryFileSystem files;
  export_to(files, *make_model(grouped_config(), 1), grouped_config(), HfFamily::kMixtral, "/hf");
  const formats::SafetensorsFile file = formats::read_safetensors(files, "/hf/model.safetensors");
  std::vector<TensorEntry> tensors = file.tensors;
  change(tensors);
  formats::write_safetensors(files, "/hf/changed", tensors, {});
  files.rename("/hf/changed", "/hf/model.safetensors");
  const auto model = make_model(grouped_config(), 2);
  return error_message(ErrorKind::kData, [&] { load_from(files, "/hf", *model); });
}

TEST(HuggingFace, HostileFoldersAreRefused) {
  constexpr const char* kExpert = "model.layers.1.block_sparse_moe.experts.3.w2.weight";
  const auto named = [](std::vector<TensorEntry>& tensors, std::string_view name) {
    return std::find_if(tensors.begin(), tensors.end(),
                        [&](const TensorEntry& tensor) { return tensor.name == name; });
  };
  EXPECT_EQ(refusal_of([&](auto& tensors) { tensors.erase(named(tensors, kExpert)); }),
            cat("'/hf': tensor '", kExpert, "' is missing"));
  EXPECT_EQ(refusal_of([&](auto& tensors) {
              tensors.push_back({"model.layers.1.extra", "F32", {0}, {}});
            }),
            "'/hf': tensor 'model.layers.1.extra' is not part of the model that config.json "
            "describes");
  EXPECT_EQ(refusal_of([&](auto& tensors) {
              std::reverse(named(tensors, kExpert)->shape.begin(),
                           named(tensors, kExpert)->shape.end());
            }),
            cat("'/hf': tensor '", kExpert, "' is [14, 24], want [24, 14]"));
  EXPECT_EQ(refusal_of([&](auto& tensors) { named(tensors, kExpert)->dtype = "I32"; }),
            cat("'/hf': tensor '", kExpert, "' is I32, want F32, BF16, F16"));
  EXPECT_EQ(refusal_of([&](auto& tensors) {
              TensorEntry& tensor = *named(tensors, kExpert);
              tensor.dtype = "F8_E4M3";
              tensor.data = tensor.data.first(tensor.data.size() / 4);
            }),
            cat("'/hf': tensor '", kExpert, "' is F8_E4M3, want F32, BF16, F16"));
  EXPECT_EQ(refusal_of([&](auto& tensors) {
              named(tensors, "model.norm.weight")->name = kExpert + std::string("_scale_inv");
            }),
            "'/hf': tensor 'model.norm.weight' is missing");
}

// Tensor by tensor: never a second copy of the model.
TEST(HuggingFace, MemoryIsOneTensor) {
  constexpr int64_t kSmall = 1 << 14;
  for (const Family& family : families()) {
    SCOPED_TRACE(model_type(family.family));
    test::MemoryFileSystem files;
    const auto model = make_model(family.config, 1);
    int64_t largest = 0, total = 0;
    for (const HfTensor& tensor :
         hf_tensors(family.family, model->config(), weight_tensors(*model))) {
      largest = std::max(largest, static_cast<int64_t>(tensor.ours.numel() * 4));
      total += tensor.ours.numel() * 4;
    }
    test::CountedMemory memory;
    export_to(files, *model, family.config, family.family, "/hf");
    EXPECT_LE(memory.peak_bytes(), largest + kSmall);
    const auto loaded = make_model(family.config, 2);
    const int64_t before = memory.live_bytes();
    memory.reset_peak();
    load_from(files, "/hf", *loaded);
    EXPECT_LE(memory.peak_bytes() - before, kSmall);
    EXPECT_GT(total, largest + kSmall) << "too small a model to tell";
  }
}

at::Tensor logits_of(nn::Model& model) {
  const at::Tensor tokens = at::arange(24, at::kLong) * 11 % 250;
  const at::NoGradGuard no_grad;
  return model.logits(
      model.forward({tokens, {2, 12, at::arange(12, at::kLong).repeat({2}), {}}, {}}).hidden);
}

TEST(StartWeights, ARunContinuesFromAnotherOrFromAFolder) {
  test::Lab lab;
  RunConfig config = test::small_config();
  config.training.steps = 2;
  config.moe.num_shared_experts = 0;
  config.moe.balance_coeff = 0;
  lab.run(config);
  const LoadedModel trained = load_model(lab.files, "/run", {}, no_log);
  export_to(lab.files, *trained.model, config, HfFamily::kMixtral, "/hf");
  for (const std::string from : {"/run", "/hf"}) {
    RunConfig next = load_config(lab.files, {},
                                 {{"model.from", from},
                                  {"data.tokenizer", "bytes"},
                                  {"run.folder", "/next" + from},
                                  {"data.path", "/text.txt"},
                                  {"training.seq_len", "32"},
                                  {"training.local_batch_size", "4"},
                                  {"training.steps", "3"},
                                  {"training.num_threads", "2"},
                                  {"metrics.report", "false"},
                                  {"checkpoint.interval", "2"},
                                  {"moe.balance_coeff", "0"},
                                  {"optimizer.lr", "1e-9"}})
                         ->config;
    ASSERT_EQ(lab.run(next).step, 3);
    // A tiny learning rate: what was loaded is what is saved.
    const LoadedModel after = load_model(lab.files, "/next" + from, {}, no_log);
    const at::Tensor want = logits_of(*trained.model), got = logits_of(*after.model);
    EXPECT_LT((got - want).abs().max().item<float>(), 1e-5) << from;
    // Resuming takes the checkpoint's weights: those of the folder may be gone.
    if (from == "/hf") lab.files.remove_all("/hf/model.safetensors");
    next.checkpoint.resume = "auto";
    next.training.steps = 4;
    EXPECT_EQ(lab.run(next).step, 4);
  }
  const LoadedModel loaded = load_model(lab.files, "/next/hf", {}, no_log);
  EXPECT_EQ(loaded.step, 4);
}

struct Upcycled {
  const char* what;
  std::vector<std::pair<std::string, std::string>> settings;
};

// He et al. 2024: G slices of every network, router rows equal within a group of G.
TEST(StartWeights, UpcyclingAnOwnDenseCheckpointKeepsItsLogits) {
  test::Lab lab;
  RunConfig dense = test::small_config();
  dense.training.steps = 2;
  dense.model.num_dense_layers = 2;
  dense.model.dense_hidden_dim = 36;
  lab.run(dense);
  const LoadedModel trained = load_model(lab.files, "/run", {}, no_log);
  const at::Tensor want = logits_of(*trained.model);
  const std::vector<Upcycled> cases = {
      {"copy", {{"model.upcycle", "copy"}, {"moe.num_experts", "5"}, {"moe.top_k", "2"}}},
      {"granular",
       {{"model.upcycle", "granular"},
        {"moe.num_experts", "9"},
        {"moe.top_k", "6"},
        {"moe.hidden_dim", "12"},
        {"moe.route_scale", "1.5"}}},
  };
  for (const Upcycled& upcycled : cases) {
    auto overrides = upcycled.settings;
    overrides.emplace_back("model.from", "/run");
    const RunConfig config = load_config(lab.files, {}, overrides)->config;
    check_config(config);
    const auto model = make_model(config, 3);
    load_start_weights(lab.files, config, *model, no_log);
    const at::Tensor got = logits_of(*model);
    EXPECT_LT(((got - want).abs().max() / want.abs().max()).item<float>(), 3e-6) << upcycled.what;
    const auto before = weight_tensors(*make_model(config, 3)), after = weight_tensors(*model);
    for (size_t i = 0; i < after.size(); ++i) {
      if (after[i].name != "layers.0.moe.router.gate.weight") continue;
      // The router is random: as drawn, but for the equal rows of a group.
      EXPECT_TRUE(at::equal(before[i].tensor[0], after[i].tensor[0]));
      EXPECT_FALSE(at::equal(after[i].tensor[0], after[i].tensor[4]));
    }
  }
}

}  // namespace
}  // namespace amoeba::train
