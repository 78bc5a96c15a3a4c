// The parameter counts of every flavor, as the origin publishes them or as they follow from its
// definition, and the work of one. On the meta device: nothing is allocated.
#include "train/plain/flavors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "amoeba/error.h"
#include "amoeba/model.h"
#include "base/text.h"
#include "support/errors.h"
#include "support/memory_file_system.h"
#include "train/model_config.h"
#include "train/plain/config_layers.h"

namespace amoeba::train {
namespace {

using Overrides = std::vector<std::pair<std::string, std::string>>;

nn::ModelConfig model_of(const std::string& name, const Overrides& overrides = {}) {
  test::MemoryFileSystem files;
  const auto loaded = load_config(files, {name}, overrides);
  check_config(loaded->config);
  return make_model_config(loaded->config, /*tokenizer_vocab_size=*/257);
}

nn::ModelSize size_of(const nn::ModelConfig& config, int64_t seq_len = 256) {
  return nn::Model(config, at::kMeta, at::kFloat, /*seed=*/0).size(seq_len);
}

// total = 2 V D + D + sum over layers [attention + 2 D + network]; active: K of E.
struct Formula {
  int64_t total = 0, active = 0, sparse = 0;
};

Formula count(const RunConfig& run) {
  const ModelSection& m = run.model;
  const MoeSection& moe = run.moe;
  int64_t attention = 0;
  if (m.attention == "mla") {
    const int64_t qk = m.qk_nope_head_dim + m.qk_rope_head_dim, q_rows = m.num_heads * qk;
    attention += m.q_lora_rank == 0
                     ? m.dim * q_rows
                     : m.dim * m.q_lora_rank + m.q_lora_rank * q_rows + m.q_lora_rank;
    attention += m.dim * (m.kv_lora_rank + m.qk_rope_head_dim) + m.kv_lora_rank;
    attention += m.kv_lora_rank * m.num_heads * (m.qk_nope_head_dim + m.v_head_dim);
    attention += m.num_heads * m.v_head_dim * m.dim;
  } else {
    attention += 2 * m.dim * m.num_heads * m.head_dim + 2 * m.dim * m.num_kv_heads * m.head_dim;
  }
  const int64_t moe_layers = m.num_layers - m.num_dense_layers;
  const int64_t expert = 3 * m.dim * moe.hidden_dim;
  Formula out;
  out.sparse =
      moe_layers * (m.dim * moe.num_experts + expert * (moe.num_experts + moe.num_shared_experts));
  out.total = 2 * m.vocab_size * m.dim + m.dim + m.num_layers * (attention + 2 * m.dim) +
              m.num_dense_layers * 3 * m.dim * m.dense_hidden_dim + out.sparse;
  out.active = out.total - moe_layers * expert * (moe.num_experts - moe.top_k);
  return out;
}

struct Count {
  std::string flavor;
  std::string vocab_size;  // "": the flavor's own
  int64_t total, active;
  std::optional<int64_t> sparse = {};
};

TEST(FlavorSizes, AreTheOriginsToTheParameter) {
  const std::vector<Count> counts = {
      {"debugmodel", "", 163'102'976, 158'187'776, 9'840'640},
      {"debugmodel", "32000", 48'349'440, 43'434'240, 9'840'640},
      {"500M", "", 481'405'440, 368'945'664, 155'803'648},
      {"500M", "32000", 251'898'368, 139'438'592, 155'803'648},
      {"2B", "", 2'070'747'136, 947'722'240, 1'390'829'568},
      {"2B", "32000", 1'611'732'992, 488'708'096, 1'390'829'568},
      {"4B", "", 3'576'171'008, 1'495'271'936, 2'577'125'376},
      {"4B", "32000", 2'887'649'792, 806'750'720, 2'577'125'376},
      {"7B", "", 8'455'952'384, 2'486'933'504, 6'875'111'424},
      {"7B", "32000", 7'537'924'096, 1'568'905'216, 6'875'111'424},
      {"small", "", 6'182'909'952, 1'986'508'800, 4'778'229'760},
      {"10B_2B", "", 10'036'915'712, 2'614'570'496, 8'548'859'904},
      {"10B_2B", "102400", 9'407'245'824, 1'984'900'608, 8'548'859'904},
      {"10B_2B_50K_sdpa", "", 10'564'138'496, 1'999'894'016, 9'864'069'120},
      {"16B", "", 16'336'154'112, 3'290'820'096, 14'848'098'304},
      {"16B", "102400", 15'706'484'224, 2'661'150'208, 14'848'098'304},
      {"236B", "", 237'315'609'600, 22'949'975'040, 225'549'844'480},
      {"236B", "102400", 235'741'434'880, 21'375'800'320, 225'549'844'480},
      {"671B", "", 672'844'897'280, 39'370'775'552, 656'569'532'416},
      {"671B", "129280", 671'026'404'352, 37'552'282'624, 656'569'532'416},
      {"AGPT_2B_50K_MOE_sdpa", "", 12'293'801'984, 2'016'708'608, 11'835'998'208},
      {"10B_2B_50K_sdpa_1layer", "", 548'616'704, 263'141'888, 328'802'304},
      {"10B_2B_sdpa_1layer", "", 1'391'671'808, 1'106'196'992},
      {"10B_2B_sdpa_1layer", "50304", 548'616'704, 263'141'888},
  };
  for (const Count& want : counts) {
    SCOPED_TRACE(want.flavor + " " + want.vocab_size);
    Overrides overrides;
    if (!want.vocab_size.empty()) overrides.push_back({"model.vocab_size", want.vocab_size});
    const nn::ModelSize size = size_of(model_of(want.flavor, overrides));
    EXPECT_EQ(size.total, want.total);
    EXPECT_EQ(size.active, want.active);
    if (want.sparse) {
      EXPECT_EQ(size.sparse, *want.sparse);
    }
  }
}

// The dense model of the same attention, whose count the origin publishes too.
TEST(FlavorSizes, ADensePartnerIsAllDenseLayers) {
  const Overrides dense = {{"model.num_dense_layers", "24"}, {"model.dense_hidden_dim", "10496"}};
  const nn::ModelSize size = size_of(model_of("AGPT_2B_50K_MOE_sdpa", dense));
  EXPECT_EQ(size.total, 2'005'501'952);
  EXPECT_EQ(size.active, size.total);
  EXPECT_EQ(size.sparse, 0);
}

TEST(FlavorSizes, FollowTheFormula) {
  test::MemoryFileSystem files;
  for (const Flavor& flavor : flavors()) {
    const std::string name(flavor.name);
    SCOPED_TRACE(name);
    const Formula want = count(load_config(files, {name}, {})->config);
    const nn::ModelSize size = size_of(model_of(name));
    EXPECT_EQ(size.total, want.total);
    EXPECT_EQ(size.active, want.active);
    EXPECT_EQ(size.sparse, want.sparse);
  }
}

// Standard deviations by name: what writes to the stream, gates and w3 shrink with depth.
TEST(FlavorInit, IsTheOrigins) {
  const std::set<std::string> shrinking = {"wo", "w2", "w3", "gate"};
  for (const std::string name : {"671B", "10B_2B", "AGPT_2B_50K_MOE_sdpa"}) {
    const nn::ModelConfig config = model_of(name);
    const nn::Model model(config, at::kMeta, at::kFloat, /*seed=*/0);
    for (const auto& parameter : model.store().parameters()) {
      SCOPED_TRACE(name + " " + parameter->name);
      const std::vector<std::string> parts = split(parameter->name, '.');
      const bool has_suffix = parts.back() == "weight";
      const std::string& last = parts[parts.size() - (has_suffix ? 2 : 1)];
      const nn::Init& init = parameter->init;
      if (last.ends_with("norm")) {
        EXPECT_EQ(init.kind, nn::Init::Kind::kOnes);
      } else if (last == "tok_embeddings") {
        EXPECT_EQ(init.kind, nn::Init::Kind::kNormal);
        EXPECT_EQ(init.std, 1.0);
      } else if (last == "output") {
        const double std = 1.0 / std::sqrt(static_cast<double>(config.attention.dim));
        EXPECT_EQ(init.kind, nn::Init::Kind::kTruncatedNormal);
        EXPECT_EQ(init.std, std);
        EXPECT_EQ(init.cutoff, 3.0 * std);
      } else {
        const double depth = std::sqrt(2.0 * (std::stod(parts[1]) + 1.0));
        EXPECT_EQ(init.kind, nn::Init::Kind::kTruncatedNormal);
        EXPECT_EQ(init.std, config.init_std / (shrinking.contains(last) ? depth : 1.0));
        EXPECT_EQ(init.cutoff, 2.0);
      }
    }
  }
}

TEST(FlavorSizes, WorkIsTheOrigins) {
  const nn::ModelConfig config = model_of("AGPT_2B_50K_MOE_sdpa");
  EXPECT_EQ(size_of(config, 2048).flops_per_token, 12'690'075'648.0);
  EXPECT_EQ(size_of(config, 4096).flops_per_token, 13'898'035'200.0);
}

// 6 (active - input embedding) + 6 L heads (qk + v) S
TEST(FlavorSizes, WorkOfLatentAttentionCountsBothWidths) {
  const nn::ModelConfig config = model_of("10B_2B");
  const int64_t embedding = 256128 * 2048, attention = 27 * 16 * (192 + 128);
  EXPECT_EQ(size_of(config, 8192).flops_per_token,
            6.0 * static_cast<double>(2'614'570'496 - embedding + attention * int64_t{8192}));
}

TEST(MakeModelConfig, TakesEveryKeyOfAFlavor) {
  const nn::ModelConfig config = model_of("671B", {{"training.activation_checkpoint", "selective"},
                                                   {"moe.force_balance", "true"},
                                                   {"model.rope_beta_fast", "31"},
                                                   {"model.rope_beta_slow", "2"},
                                                   {"model.rope_attention_factor", "1.25"},
                                                   {"model.rope_truncate", "false"},
                                                   {"model.rope_original_seq_len", "2048"}});
  EXPECT_EQ(config.vocab_size, 256128);
  EXPECT_EQ(config.num_layers, 61);
  EXPECT_EQ(config.num_dense_layers, 3);
  EXPECT_EQ(config.dense_hidden_dim, 18432);
  EXPECT_EQ(config.max_seq_len, 256);
  EXPECT_FALSE(config.tie_embeddings);
  EXPECT_EQ(config.embedding_std, 1.0);
  EXPECT_EQ(config.init_std, 0.02);
  EXPECT_EQ(config.activation_checkpoint, nn::ActivationCheckpoint::kSelective);
  const nn::AttentionConfig& attention = config.attention;
  EXPECT_EQ(attention.dim, 7168);
  EXPECT_EQ(attention.num_heads, 128);
  ASSERT_TRUE(attention.mla.has_value());
  EXPECT_EQ(attention.mla->q_lora_rank, 1536);
  EXPECT_EQ(attention.mla->kv_lora_rank, 512);
  EXPECT_EQ(attention.mla->qk_nope_head_dim, 128);
  EXPECT_EQ(attention.mla->qk_rope_head_dim, 64);
  EXPECT_EQ(attention.mla->v_head_dim, 128);
  EXPECT_EQ(attention.rope.head_dim, 64);
  EXPECT_EQ(attention.rope.theta, 1e4);
  EXPECT_EQ(attention.rope.factor, 40.0);
  EXPECT_EQ(attention.rope.type, nn::RopeType::kYarn);
  EXPECT_EQ(attention.rope.attention_factor, 1.25);
  EXPECT_FALSE(attention.rope.truncate);
  EXPECT_EQ(attention.rope.beta_fast, 31.0);
  EXPECT_EQ(attention.rope.beta_slow, 2.0);
  EXPECT_EQ(attention.rope.original_seq_len, 2048);
  EXPECT_EQ(attention.rope.max_seq_len, 16384);
  EXPECT_EQ(attention.yarn_mscale, 1.0);
  EXPECT_EQ(attention.norm_eps, 1e-5);
  const nn::RouterConfig& router = config.moe.router;
  EXPECT_EQ(router.dim, 7168);
  EXPECT_EQ(router.num_experts, 256);
  EXPECT_EQ(router.top_k, 8);
  EXPECT_EQ(router.score_function, nn::ScoreFunction::kSigmoid);
  EXPECT_EQ(router.num_groups, 8);
  EXPECT_EQ(router.num_limited_groups, 4);
  EXPECT_TRUE(router.route_norm);
  EXPECT_EQ(router.route_scale, 2.5);
  EXPECT_TRUE(router.force_balance);
  EXPECT_EQ(config.moe.hidden_dim, 2048);
  EXPECT_EQ(config.moe.num_shared_experts, 1);
}

TEST(MakeModelConfig, GroupedQueryRotatesWholeHeads) {
  const nn::AttentionConfig attention = model_of("AGPT_2B_50K_MOE_sdpa").attention;
  EXPECT_FALSE(attention.mla.has_value());
  EXPECT_EQ(attention.num_kv_heads, 4);
  EXPECT_EQ(attention.head_dim, 128);
  EXPECT_EQ(attention.rope.head_dim, 128);
  EXPECT_EQ(attention.rope.theta, 5e4);
  EXPECT_FALSE(attention.rope.stretched());
  for (const auto& [name, type] :
       {std::pair{"linear", nn::RopeType::kLinear}, std::pair{"llama3", nn::RopeType::kLlama3}}) {
    const nn::RopeConfig rope =
        model_of("AGPT_2B_50K_MOE_sdpa", {{"model.rope_type", name}, {"model.rope_factor", "8"}})
            .attention.rope;
    EXPECT_EQ(rope.type, type);
    EXPECT_EQ(rope.factor, 8.0);
    EXPECT_TRUE(rope.stretched());
  }
}

TEST(MakeModelConfig, VocabularyIsTheTokenizersOrLarger) {
  RunConfig config;
  EXPECT_EQ(make_model_config(config, 257).vocab_size, 264);  // rounded up to a multiple of 8
  EXPECT_EQ(make_model_config(config, 264).vocab_size, 264);
  config.model.vocab_size = 257;
  EXPECT_EQ(make_model_config(config, 257).vocab_size, 257);  // as asked
  config.model.vocab_size = 256;
  EXPECT_EQ(
      test::error_message(ErrorKind::kUsage, [&] { make_model_config(config, 257); }),
      "model.vocab_size: got 256, want at least 257, the vocabulary of data.tokenizer 'bytes'");
}

}  // namespace
}  // namespace amoeba::train
