#include "train/plain/model_source.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "support/errors.h"
#include "support/memory_file_system.h"

namespace amoeba::train {
namespace {

using test::error_message;
using Overrides = std::vector<std::pair<std::string, std::string>>;

constexpr const char* kConfig = R"({"model_type": "llama", "vocab_size": 300, "hidden_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 6, "rms_norm_eps": 1e-5, "rope_theta": 500,
    "max_position_embeddings": 512, "intermediate_size": 24})";

struct Folder {
  Folder() {
    files.create_directories("/hf");
    put("/hf/config.json", kConfig);
    put("/hf/tokenizer.json", "{}");
  }
  void put(const std::string& path, std::string_view text) {
    const auto file = files.create(path);
    file->write(text);
    file->close();
  }
  RunConfig load(Overrides overrides, const std::vector<std::string>& layers = {}) {
    overrides.emplace_back("model.from", "/hf");
    const auto loaded = load_config(files, layers, overrides);
    return loaded->config;
  }
  std::string refusal(const Overrides& overrides) {
    return error_message(ErrorKind::kUsage, [&] { check_config(load(overrides)); });
  }
  test::MemoryFileSystem files;
};

TEST(ModelSource, SetsTheModelUnderTheUsersSettings) {
  Folder folder;
  folder.put("/mine.toml", "[training]\nsteps = 7\n[model]\ndim = 48\nrope_theta = 500.0\n");
  const RunConfig config = folder.load({{"optimizer.lr", "0.5"}}, {"/mine.toml"});
  EXPECT_EQ(config.model.num_layers, 3);
  EXPECT_EQ(config.model.num_dense_layers, 3);
  EXPECT_EQ(config.model.dense_hidden_dim, 24);
  EXPECT_EQ(config.data.tokenizer, "/hf/tokenizer.json");
  EXPECT_EQ(config.training.steps, 7);
  EXPECT_EQ(config.optimizer.lr, 0.5);
  EXPECT_EQ(folder.load({{"data.tokenizer", "bytes"}}).data.tokenizer, "bytes");
}

TEST(ModelSource, NamesBothSidesOfAContradiction) {
  Folder folder;
  EXPECT_EQ(folder.refusal({{"model.num_layers", "4"}}),
            "configuration: model.num_layers is 4 (command line) and num_hidden_layers of "
            "model.from makes it 3 (/hf/config.json), want the same, or the key left out");
  EXPECT_NE(folder.refusal({{"model.attention", "mla"}}).find("model.attention is \"mla\""),
            std::string::npos);
}

TEST(ModelSource, WantsATokenizer) {
  Folder folder;
  folder.files.remove_all("/hf/tokenizer.json");
  EXPECT_NE(folder.refusal({}).find("'/hf' holds no tokenizer.json, want data.tokenizer set"),
            std::string::npos);
  EXPECT_EQ(folder.load({{"data.tokenizer", "bytes"}}).model.dim, 48);
}

TEST(ModelSource, WantsAFolder) {
  test::MemoryFileSystem files;
  error_message(ErrorKind::kData, [&] { load_config(files, {}, {{"model.from", "/none"}}); });
}

TEST(ModelSource, UpcyclingLeavesTheExpertsToTheUser) {
  Folder folder;
  const RunConfig copy =
      folder.load({{"model.upcycle", "copy"}, {"moe.num_experts", "5"}, {"moe.top_k", "2"}});
  check_config(copy);
  EXPECT_EQ(copy.model.num_dense_layers, 0);
  EXPECT_EQ(copy.moe.hidden_dim, 24);
  EXPECT_EQ(copy.moe.num_shared_experts, 0);
  EXPECT_EQ(copy.moe.num_experts, 5);
  check_config(folder.load({{"model.upcycle", "granular"},
                            {"moe.num_experts", "6"},
                            {"moe.top_k", "3"},
                            {"moe.hidden_dim", "8"}}));
}

// Settings under which the loss would not start at the dense model's.
TEST(ModelSource, RefusesUpcyclingThatChangesTheModel) {
  Folder folder;
  const std::vector<std::pair<Overrides, std::string>> cases = {
      {{{"moe.route_norm", "false"}}, "moe.route_norm is false, want true"},
      {{{"moe.num_shared_experts", "1"}}, "moe.num_shared_experts is 1, want 0"},
      {{{"moe.score_before_experts", "true"}}, "moe.score_before_experts is true"},
      {{{"moe.force_balance", "true"}}, "moe.force_balance is true"},
      {{{"moe.hidden_dim", "12"}}, "moe.hidden_dim is 12, want 24"},
      {{{"model.num_dense_layers", "3"}}, "model.num_dense_layers is 3"},
      {{{"model.upcycle", "granular"}, {"moe.hidden_dim", "7"}}, "moe.hidden_dim is 7"},
      {{{"model.upcycle", "granular"}, {"moe.hidden_dim", "24"}}, "moe.hidden_dim is 24"},
      {{{"model.upcycle", "granular"}, {"moe.hidden_dim", "8"}, {"moe.num_experts", "8"}},
       "moe.num_experts is 8, want a multiple of 3"},
      {{{"model.upcycle", "granular"}, {"moe.hidden_dim", "8"}, {"moe.num_experts", "9"}},
       "moe.top_k is 2, want a multiple of 3"},
  };
  for (const auto& [changes, message] : cases) {
    Overrides overrides = {{"model.upcycle", "copy"}};
    overrides.insert(overrides.end(), changes.begin(), changes.end());
    EXPECT_NE(folder.refusal(overrides).find(message), std::string::npos) << message;
  }
  test::MemoryFileSystem files;
  error_message(ErrorKind::kUsage, [&] { load_config(files, {}, {{"model.upcycle", "copy"}}); });
}

}  // namespace
}  // namespace amoeba::train
