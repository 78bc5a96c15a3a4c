// Validation: a text shorter than the windows beside it is padded, and has the same numbers.
#include "train/evaluate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "amoeba/error.h"
#include "formats/tokenizer.h"
#include "support/memory_file_system.h"
#include "train/model_config.h"
#include "train/plain_scores.h"

namespace amoeba::test {
namespace {

using train::Evaluation;
using train::RunConfig;

// Windows of 64 tokens, all in one batch.
Evaluation evaluate_texts(const std::vector<std::string>& texts) {
  MemoryFileSystem files;
  RunConfig config;
  for (const std::string& text : texts) {
    config.data.path.push_back(cat("/text", config.data.path.size()));
    files.create(config.data.path.back())->write(text);
  }
  config.model.dim = 32;
  config.model.num_layers = 2;
  config.model.init_std = 0.2;
  config.moe.hidden_dim = 24;
  config.training.seq_len = 64;
  const formats::ByteTokenizer tokenizer;
  nn::Model model(train::make_model_config(config, tokenizer.vocab_size()), at::kCPU, at::kFloat,
                  3);
  config.data.validation_fraction = 1.0;
  const train::ValidationData data = train::open_validation_data(files, config, tokenizer);
  train::EvaluateOptions options;
  options.batch_size = 8;
  return train::evaluate(model, data.set, options);
}

TEST(Evaluate, AShortTextHasTheSameLossWithPaddingBesideALongOne) {
  const std::string text = "In the beginning God created the heaven", full(64, 'a');
  const Evaluation parts[] = {evaluate_texts({text}), evaluate_texts({full})};
  const Evaluation alone = train::total_of(parts), padded = evaluate_texts({text, full});
  EXPECT_EQ(parts[0].tokens, static_cast<int64_t>(text.size()));
  EXPECT_EQ(padded.windows, 2);
  EXPECT_EQ(padded.tokens, alone.tokens);
  EXPECT_GT(parts[0].loss, 4.0);
  EXPECT_NEAR(padded.loss, alone.loss, 1e-6 * alone.loss);
  EXPECT_NEAR(padded.bits_per_byte, alone.bits_per_byte, 1e-6 * alone.bits_per_byte);
  EXPECT_NEAR(alone.bits_per_byte, alone.loss / std::log(2.0), 1e-9);
}

// Whole windows and documents, against each token's probability from a plain pass in fp64 over what
// stands before it in its window.
TEST(Evaluate, LossIsThatOfEachTokenByItself) {
  for (const bool mla : {false, true}) {
    MemoryFileSystem files;
    const std::string documents[] = {"In the beginning was the word, and more", "and it was so",
                                     "a third text, which is long enough for windows of its own"};
    files.create("/text")->write(documents[0] + "|" + documents[1] + "|" + documents[2]);
    RunConfig config = scored_config(mla);
    config.data.path = {"/text"};
    config.data.document_separator = "|";
    config.data.validation_fraction = 1.0;
    const formats::ByteTokenizer tokenizer;
    nn::Model model = scored_model(config, tokenizer.vocab_size(), at::kFloat);
    nn::Model exact = scored_model(config, tokenizer.vocab_size(), at::kDouble);
    const train::ValidationData data = train::open_validation_data(files, config, tokenizer);
    train::EvaluateOptions options;
    options.batch_size = 3;
    const Evaluation got = train::evaluate(model, data.set, options);

    constexpr int32_t kEnd = formats::ByteTokenizer::kEndOfDocument;
    std::vector<int32_t> row = {kEnd};  // stands before the first token and begins no document
    for (const std::string& document : documents) {
      for (const char c : document) row.push_back(static_cast<unsigned char>(c));
      row.push_back(kEnd);
    }
    double loss_sum = 0;
    int64_t tokens = 0, bytes = 0;
    const auto length = static_cast<size_t>(config.training.seq_len);
    const size_t num_windows = (row.size() - 1) / length;
    for (size_t window = 0; window < num_windows; ++window) {
      for (size_t begin = window * length, at = begin; at < (window + 1) * length; ++at) {
        if (row[at] == kEnd && at > 0) {  // a document ends: what follows is not predicted
          begin = at + 1;
          continue;
        }
        const std::vector<int32_t> before(row.begin() + static_cast<std::ptrdiff_t>(begin),
                                          row.begin() + static_cast<std::ptrdiff_t>(at) + 1);
        loss_sum -= log_probabilities(exact, before)[-1][row[at + 1]].item<double>();
        ++tokens;
        bytes += row[at + 1] != kEnd;
      }
    }
    EXPECT_EQ(got.windows, static_cast<int64_t>(num_windows));
    EXPECT_EQ(got.tokens, tokens);
    EXPECT_EQ(got.bytes, bytes);
    EXPECT_TRUE(got.complete);
    EXPECT_NEAR(got.loss, loss_sum / static_cast<double>(tokens), 2e-6 * got.loss);
    EXPECT_NEAR(got.bits_per_byte, loss_sum / std::log(2.0) / static_cast<double>(bytes),
                2e-6 * got.bits_per_byte);
  }
}

TEST(Evaluate, TotalIsOverTokensNotOverFiles) {
  const Evaluation parts[] = {{2.0, 3.0, 5, true, 100, 90},
                              {4.0, 5.0, 1, true, 300, 310},
                              {std::nan(""), std::nan(""), 0, false, 0, 0}};
  const Evaluation total = train::total_of(parts);
  EXPECT_DOUBLE_EQ(total.loss, 3.5);
  EXPECT_DOUBLE_EQ(total.bits_per_byte, 1400 / std::log(2.0) / 400);
  EXPECT_EQ(total.windows, 6);
  EXPECT_EQ(total.tokens, 400);
  EXPECT_EQ(total.bytes, 400);
  EXPECT_FALSE(total.complete);
  EXPECT_TRUE(train::total_of(std::span(parts, 2)).complete);
}

}  // namespace
}  // namespace amoeba::test
