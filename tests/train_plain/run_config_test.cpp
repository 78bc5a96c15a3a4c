#include "train/plain/run_config.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "amoeba/error.h"
#include "support/errors.h"

namespace amoeba::train {
namespace {

using test::error_message;

TEST(RunConfig, DefaultsAreLegal) { check_config(RunConfig()); }

TEST(RunConfig, EveryFieldHasItsOwnDocumentedKey) {
  RunConfig config;
  const formats::Schema schema = make_schema(config);
  std::set<const void*> fields;
  for (const formats::Key& key : schema.keys()) {
    const void* field =
        std::visit([](const auto* pointer) -> const void* { return pointer; }, key.field);
    EXPECT_TRUE(fields.insert(field).second) << key.path;
    EXPECT_TRUE(key.doc.ends_with('.')) << key.path;
    EXPECT_EQ(key.doc.find('\n'), std::string::npos) << key.path;
    const bool has_choices = !key.choices.empty();
    EXPECT_TRUE(!has_choices || std::holds_alternative<std::string*>(key.field)) << key.path;
  }
}

// A field that was added to a section and not to the schema makes the section larger than its keys.
TEST(RunConfig, NoFieldIsWithoutAKey) {
  RunConfig config;
  const formats::Schema schema = make_schema(config);
  const auto check = [&](const auto& section, const std::string& name) {
    const auto begin = reinterpret_cast<std::uintptr_t>(&section);
    std::uintptr_t covered =
        begin;  // keys are in the order of the fields; padding is shorter than a number
    for (const formats::Key& key : schema.keys()) {
      if (!key.path.starts_with(name + ".")) continue;
      std::visit(
          [&](const auto* field) {
            const auto at = reinterpret_cast<std::uintptr_t>(field);
            EXPECT_LT(at - covered, sizeof(int64_t)) << "a field before " << key.path;
            covered = at + sizeof *field;
          },
          key.field);
    }
    EXPECT_LT(begin + sizeof section - covered, sizeof(int64_t))
        << "a field at the end of " << name;
  };
  check(config.run, "run");
  check(config.model, "model");
  check(config.moe, "moe");
  check(config.training, "training");
  check(config.optimizer, "optimizer");
  check(config.lr_scheduler, "lr_scheduler");
  check(config.data, "data");
  check(config.validation, "validation");
  check(config.checkpoint, "checkpoint");
  check(config.metrics, "metrics");
  check(config.profiling, "profiling");
  check(config.sample, "sample");
}

TEST(RunConfig, RefusesContradictions) {
  struct Case {
    std::function<void(RunConfig&)> change;
    std::string want;
  };
  const std::vector<Case> cases = {
      {[](RunConfig& c) { c.moe.top_k = 9; },
       "moe.top_k is 9 and moe.num_experts is 8, want no more than there are experts"},
      {[](RunConfig& c) { c.model.num_kv_heads = 3; },
       "model.num_heads is 4 and model.num_kv_heads is 3, want a multiple"},
      {[](RunConfig& c) { c.model.dim = 130; },
       "model.dim is 130 and model.num_heads is 4, want a multiple, or model.head_dim set"},
      {[](RunConfig& c) { c.model.head_dim = 33; }, "model.head_dim is 33, want an even number"},
      {[](RunConfig& c) { c.model.dim = 100; },
       "model.dim is 100 and model.num_heads is 4, which makes heads 25 wide, want an even width"},
      {[](RunConfig& c) {
         c.model.attention = "mla";
         c.model.qk_rope_head_dim = 33;
       },
       "model.qk_rope_head_dim is 33, want an even number"},
      {[](RunConfig& c) {
         c.model.attention = "mla";
         c.model.v_head_dim = 193;
       },
       "model.v_head_dim is 193 and model.qk_nope_head_dim and model.qk_rope_head_dim make keys "
       "192 wide, want no more"},
      {[](RunConfig& c) {
         c.model.rope_theta = 1.0;
         c.model.rope_factor = 4.0;
       },
       "model.rope_theta is 1 and model.rope_factor is 4, want a base above 1 to stretch"},
      {[](RunConfig& c) { c.model.rope_attention_factor = 1.5; },
       "model.rope_attention_factor is 1.5, model.rope_type is 'yarn' and model.rope_factor is 1, "
       "want 1, or yarn with a factor above 1"},
      {[](RunConfig& c) {
         c.model.rope_attention_factor = 1.5;
         c.model.rope_factor = 2;
         c.model.rope_type = "llama3";
       },
       "model.rope_attention_factor is 1.5, model.rope_type is 'llama3' and model.rope_factor is "
       "2, "
       "want 1, or yarn with a factor above 1"},
      {[](RunConfig& c) {
         c.model.attention = "mla";
         c.model.qk_norm = true;
       },
       "model.qk_norm is true and model.attention is 'mla', want gqa, or no normalised heads"},
      {[](RunConfig& c) { c.model.num_dense_layers = 5; },
       "model.num_dense_layers is 5 and model.num_layers is 4, want no more than there are layers"},
      {[](RunConfig& c) { c.model.num_dense_layers = 1; },
       "model.num_dense_layers is 1 and model.dense_hidden_dim is 0, want a width"},
      {[](RunConfig& c) { c.model.rope_max_seq_len = 255; },
       "model.rope_max_seq_len is 255 and training.seq_len is 256, want at least that, or 0"},
      {[](RunConfig& c) { c.model.rope_beta_slow = 32; },
       "model.rope_beta_fast is 32 and model.rope_beta_slow is 32, want more"},
      {[](RunConfig& c) { c.moe.num_limited_groups = 3; },
       "moe.num_groups is 0 and moe.num_limited_groups is 3, want both or neither"},
      {[](RunConfig& c) { c.moe.num_groups = 2; },
       "moe.num_groups is 2 and moe.num_limited_groups is 0, want both or neither"},
      {[](RunConfig& c) { c.moe.num_groups = 3, c.moe.num_limited_groups = 1; },
       "moe.num_experts is 8 and moe.num_groups is 3, want a multiple"},
      {[](RunConfig& c) { c.moe.num_groups = 8, c.moe.num_limited_groups = 2; },
       "moe.num_experts is 8 and moe.num_groups is 8, want at least 2 experts a group"},
      {[](RunConfig& c) { c.moe.num_groups = 4, c.moe.num_limited_groups = 5; },
       "moe.num_limited_groups is 5 and moe.num_groups is 4, want no more than there are groups"},
      {[](RunConfig& c) { c.moe.num_groups = 4, c.moe.num_limited_groups = 2, c.moe.top_k = 5; },
       "moe.top_k is 5 and moe.num_limited_groups is 2, which hold 4 experts, want no more than "
       "those"},
      {[](RunConfig& c) { c.training.global_batch_size = 24; },
       "training.global_batch_size is 24 and training.local_batch_size is 16, want a multiple"},
      {[](RunConfig& c) { c.training.batch_ramp_start = 24; },
       "training.batch_ramp_start is 24 and training.batch_ramp_steps is 0, want both or neither "
       "above 0"},
      {[](RunConfig& c) {
         c.profiling.num_steps = 1;
         c.profiling.start_step = 501;
       },
       "profiling.start_step is 501 and training.steps is 500, want a step of the run"},
      {[](RunConfig& c) {
         c.data.path = {"a", "b"};
         c.data.weights = {1};
       },
       "data.weights has 1 and data.path has 2 elements, want one weight for each file"},
      {[](RunConfig& c) { c.data.weights = {1}; },
       "data.weights has 1 and data.path has 0 elements, want one weight for each file"},
      {[](RunConfig& c) {
         c.data.path = {"a", ""};
       },
       "data.path[1] is empty, want the path of a file"},
      {[](RunConfig& c) { c.checkpoint.keep_latest_k = 1; },
       "checkpoint.keep_latest_k is 1: 0 keeps all, 2 or more keep the latest"},
      {[](RunConfig& c) { c.checkpoint.keep_every = 750; },
       "checkpoint.keep_every is 750 and checkpoint.interval is 500, want a multiple: "
       "other steps are not saved"},
      {[](RunConfig& c) { c.checkpoint.export_dtype = "bfloat16"; },
       "checkpoint.export_dtype is 'bfloat16' and checkpoint.last_save_model_only is false, "
       "want true: only that checkpoint has another type"},
      {[](RunConfig& c) {
         c.run.max_wall_minutes = 1;
         c.run.stop_margin_seconds = 60;
       },
       "run.max_wall_minutes is 1 and run.stop_margin_seconds is 60, want more time than the "
       "margin"},
      {[](RunConfig& c) {
         c.checkpoint.enable = false;
         c.checkpoint.resume = "auto";
       },
       "checkpoint.resume is 'auto' and checkpoint.enable is false, want true to resume"},
      {[](RunConfig& c) { c.checkpoint.resume = ""; },
       "checkpoint.resume is empty, want none, auto or a checkpoint's folder"},
      {[](RunConfig& c) { c.run.folder = ""; }, "run.folder is empty, want a path"},
      // Ranges hold for values set in code too.
      {[](RunConfig& c) { c.data.weights = {0}; }, "'data.weights[0]' got 0.0, want more than 0"},
      {[](RunConfig& c) { c.training.steps = 0; },
       "'training.steps' got 0, want at least 1 and at most 1000000000"},
      {[](RunConfig& c) { c.training.seq_len = 1; },
       "'training.seq_len' got 1, want at least 2 and at most 16777216"},
      {[](RunConfig& c) { c.training.local_batch_size = 0; },
       "'training.local_batch_size' got 0, want at least 1 and at most 1048576"},
      {[](RunConfig& c) { c.data.validation_fraction = 1; },
       "'data.validation_fraction' got 1.0, want at least 0 and less than 1"},
      {[](RunConfig& c) { c.data.validation_fraction = -0.1; },
       "'data.validation_fraction' got -0.1, want at least 0 and less than 1"},
      {[](RunConfig& c) { c.lr_scheduler.min_lr_factor = 1.5; },
       "'lr_scheduler.min_lr_factor' got 1.5, want at least 0 and at most 1"},
      {[](RunConfig& c) { c.moe.capacity_factor = 0; },
       "'moe.capacity_factor' got 0.0, want more than 0"},
      {[](RunConfig& c) { c.moe.balance_coeff = -1e-3; },
       "'moe.balance_coeff' got -0.001, want at least 0"},
      {[](RunConfig& c) { c.optimizer.lr = std::numeric_limits<double>::infinity(); },
       "'optimizer.lr' got inf, want a finite number"},
      {[](RunConfig& c) { c.model.kv_lora_rank = 0; },
       "'model.kv_lora_rank' got 0, want at least 1 and at most 1048576"},
      {[](RunConfig& c) { c.model.qk_rope_head_dim = 0; },
       "'model.qk_rope_head_dim' got 0, want at least 2 and at most 1048576"},
      {[](RunConfig& c) { c.model.rope_factor = 0.5; },
       "'model.rope_factor' got 0.5, want at least 1"},
      {[](RunConfig& c) { c.moe.z_loss_coeff = -1; },
       "'moe.z_loss_coeff' got -1.0, want at least 0"},
      {[](RunConfig& c) { c.model.attention = "mha"; },
       "'model.attention' got 'mha', want one of gqa, mla; did you mean 'mla'?"},
      {[](RunConfig& c) { c.moe.score_function = "relu"; },
       "'moe.score_function' got 'relu', want one of softmax, sigmoid"},
      {[](RunConfig& c) { c.training.activation_checkpoint = "ful"; },
       "'training.activation_checkpoint' got 'ful', want one of none, full, selective; did you "
       "mean 'full'?"},
      {[](RunConfig& c) { c.moe.compute_backend = "grouped"; },
       "'moe.compute_backend' got 'grouped', want one of auto, fused, grouped_mm, "
       "batched_mm_padded, "
       "batched_mm_capacity, for_loop"},
  };
  for (const Case& c : cases) {
    RunConfig config;
    c.change(config);
    EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { check_config(config); }),
              "configuration: " + c.want);
  }
}

TEST(RunConfig, TakesTheEdgesOfTheRules) {
  const std::vector<std::function<void(RunConfig&)>> changes = {
      [](RunConfig& c) { c.lr_scheduler.warmup_steps = 2 * c.training.steps; },
      [](RunConfig& c) { c.moe.top_k = c.moe.num_experts; },
      [](RunConfig& c) { c.model.dim = 130, c.model.head_dim = 32; },
      [](RunConfig& c) { c.training.global_batch_size = 2 * c.training.local_batch_size; },
      [](RunConfig& c) { c.training.batch_ramp_start = 16, c.training.batch_ramp_steps = 1; },
      [](RunConfig& c) { c.profiling.num_steps = 1, c.profiling.start_step = 500; },
      [](RunConfig& c) { c.profiling.start_step = 501; },
      // Of the other kind of attention nothing is asked.
      [](RunConfig& c) { c.model.attention = "mla", c.model.num_heads = 3, c.model.dim = 100; },
      [](RunConfig& c) { c.model.qk_rope_head_dim = 33; },
      [](RunConfig& c) {
        c.model.num_dense_layers = c.model.num_layers, c.model.dense_hidden_dim = 1;
      },
      [](RunConfig& c) { c.model.rope_max_seq_len = c.training.seq_len; },
      [](RunConfig& c) { c.moe.num_groups = 4, c.moe.num_limited_groups = 2, c.moe.top_k = 4; },
      [](RunConfig& c) { c.moe.num_groups = 1, c.moe.num_limited_groups = 1; },
      [](RunConfig& c) { c.checkpoint.keep_latest_k = 2; },
      [](RunConfig& c) { c.checkpoint.enable = false; },
      [](RunConfig& c) { c.checkpoint.resume = "runs/a/checkpoints/step-5"; },
      [](RunConfig& c) {
        c.data.path = {"a", "b"}, c.data.weights = {1, 0.5};
      },
      [](RunConfig& c) { c.data.validation_fraction = 0; },
      [](RunConfig& c) { c.moe.num_shared_experts = 0; },
  };
  for (size_t index = 0; index < changes.size(); ++index) {
    RunConfig config;
    changes[index](config);
    EXPECT_NO_THROW(check_config(config)) << index;
  }
}

TEST(RunConfig, NamesTheSuccessorsOfRetiredSpellings) {
  struct Case {
    std::string path;
    std::string text;
    std::string want;
  };
  const std::string advice =
      " is no longer taken: use moe.compute_backend (auto, grouped_mm, for_loop, "
      "batched_mm_padded, ...)";
  const std::vector<Case> cases = {
      {"use_grouped_mm", "true", "'use_grouped_mm'" + advice},
      {"moe.use_grouped_mm", "false", "'moe.use_grouped_mm'" + advice},
      {"model.experts.use_grouped_mm", "true", "'model.experts.use_grouped_mm'" + advice},
      {"moe.compute_backend", "bmm",
       "'moe.compute_backend' value 'bmm' is no longer taken: use batched_mm_capacity"},
      {"moe.compute_backend", "bmm_nodrop",
       "'moe.compute_backend' value 'bmm_nodrop' is no longer taken: use batched_mm_padded"},
  };
  for (const Case& c : cases) {
    RunConfig config;
    formats::Schema schema = make_schema(config);
    EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { schema.apply_override(c.path, c.text); }),
              "command line: " + c.want);
  }
}

TEST(RunConfig, WrittenConfigurationReadsBack) {
  RunConfig config;
  formats::Schema schema = make_schema(config);
  schema.apply_override("data.path", "a.txt,b.txt");
  schema.apply_override("optimizer.lr", "1e-5");
  schema.apply_override("sample.prompt", "say \"amen\"");
  const std::string text = schema.write_toml(true);

  RunConfig copy;
  formats::Schema copy_schema = make_schema(copy);
  copy_schema.apply(formats::parse_toml(text, "config.toml"), "config.toml");
  EXPECT_EQ(formats::write_json(copy_schema.to_value()), formats::write_json(schema.to_value()));
  EXPECT_EQ(copy.data.path, config.data.path);
  for (const formats::Key& key : copy_schema.keys()) {
    EXPECT_TRUE(copy_schema.is_set(key.path)) << key.path << " is missing from the file";
  }
}

}  // namespace
}  // namespace amoeba::train
