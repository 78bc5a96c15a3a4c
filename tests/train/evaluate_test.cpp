// Validation: a text shorter than a window is evaluated with padding, to the same numbers.
#include "train/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "formats/tokenizer.h"
#include "support/memory_file_system.h"
#include "train/model_config.h"

namespace amoeba::test {
namespace {

using train::Evaluation;
using train::RunConfig;

Evaluation evaluate_text(const std::string& text, int64_t seq_len) {
  MemoryFileSystem files;
  files.create("/text")->write(text);
  RunConfig config;
  config.model.dim = 32;
  config.model.num_layers = 2;
  config.model.init_std = 0.2;
  config.moe.hidden_dim = 24;
  config.training.seq_len = 64;
  const formats::ByteTokenizer tokenizer;
  nn::Model model(train::make_model_config(config, tokenizer.vocab_size()), at::kCPU, at::kFloat,
                  3);
  config.training.seq_len = seq_len;
  config.data.path = {"/text"};
  config.data.validation_fraction = 1.0;
  const train::ValidationData data = train::open_validation_data(files, config, tokenizer);
  return train::evaluate(model, data.set, {});
}

TEST(Evaluate, AShortTextWithPaddingHasTheLossOfAFullWindow) {
  const std::string text = "In the beginning God created the heaven";
  const auto size = static_cast<int64_t>(text.size());
  const Evaluation full = evaluate_text(text, size), padded = evaluate_text(text, size + 17);
  EXPECT_EQ(full.windows, 1);
  EXPECT_EQ(padded.windows, 1);
  EXPECT_GT(full.loss, 4.0);
  EXPECT_NEAR(padded.loss, full.loss, 1e-6 * full.loss);
  EXPECT_NEAR(padded.bits_per_byte, full.bits_per_byte, 1e-6 * full.bits_per_byte);
  EXPECT_NEAR(full.bits_per_byte, full.loss / std::log(2.0), 1e-9);
}

}  // namespace
}  // namespace amoeba::test
