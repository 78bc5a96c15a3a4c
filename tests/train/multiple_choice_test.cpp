// Likelihoods of choices, with the context read once, against reading each whole text in fp64.
#include "train/multiple_choice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "support/errors.h"
#include "train/plain_scores.h"

namespace amoeba::test {
namespace {

using train::ChoiceScore;
using train::Question;

std::vector<Question> some_questions() {
  const std::vector<std::string> choices[] = {
      {" four", " five", " fifty-five"}, {"A", "B"}, {" yes", " no", " y", " no way"}};
  const std::string contexts[] = {"Two and two are", "",
                                  "A context that is longer than its model "};
  std::vector<Question> questions;
  for (int i = 0; i < 24; ++i) {
    const std::string context = contexts[i % 3] + (i < 3 || i % 3 == 1 ? "" : std::to_string(i));
    questions.push_back({cat("q:", i + 1), context, choices[i / 3 % 3], i % 2});
  }
  return questions;
}

// The sum over a choice's tokens, one row of probabilities at a time.
std::vector<double> plain_likelihoods(nn::Model& model, const train::QuestionTokens& question) {
  std::vector<double> sums;
  for (const std::vector<int32_t>& choice : question.choices) {
    std::vector<int32_t> whole = question.context;
    whole.insert(whole.end(), choice.begin(), choice.end());
    const at::Tensor rows = log_probabilities(model, whole);
    double sum = 0;
    for (size_t i = question.context.size(); i < whole.size(); ++i) {
      sum += rows[static_cast<int64_t>(i) - 1][whole[i]].item<double>();
    }
    sums.push_back(sum);
  }
  return sums;
}

class MultipleChoice : public testing::TestWithParam<bool> {
 protected:
  MultipleChoice() {
    train::RunConfig longer = config_;  // room for the last token, which only the oracle reads
    longer.training.seq_len = kContext + 1;
    exact_.emplace(scored_model(longer, tokenizer_.vocab_size(), at::kDouble));
    plain_.emplace(scored_model(longer, tokenizer_.vocab_size(), at::kFloat));
  }

  static constexpr int64_t kContext = 24;
  const train::RunConfig config_ = scored_config(GetParam());
  const formats::ByteTokenizer tokenizer_;
  nn::Model model_ = scored_model(config_, tokenizer_.vocab_size(), at::kFloat);
  std::optional<nn::Model> exact_, plain_;
};

INSTANTIATE_TEST_SUITE_P(Kinds, MultipleChoice, testing::Bool(),
                         [](const auto& row) { return row.param ? "mla" : "gqa"; });

TEST_P(MultipleChoice, LikelihoodsAndScoresAreThoseOfWholeTexts) {
  train::CachedModel cached(model_, 1, kContext);
  std::vector<double> got, plain, want;
  ChoiceScore score;
  const std::vector<Question> questions = some_questions();
  for (const Question& question : questions) {
    const train::QuestionTokens tokens = encode_question(tokenizer_, question, kContext);
    const auto append = [](std::vector<double>& all, const std::vector<double>& more) {
      all.insert(all.end(), more.begin(), more.end());
    };
    append(got, train::choice_log_likelihoods(cached, tokens));
    append(plain, plain_likelihoods(*plain_, tokens));
    const std::vector<double> exact = plain_likelihoods(*exact_, tokens);
    append(want, exact);
    ChoiceScore one = score_question(question, exact);
    one.truncated = tokens.truncated ? 1 : 0;
    score += one;
    EXPECT_EQ(cached.length(0), 0);
  }
  double plain_error = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    plain_error = std::max(plain_error, std::abs(plain[i] - want[i]));
  }
  EXPECT_GT(plain_error, 0);
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_LT(want[i], -1) << i;
    EXPECT_LE(std::abs(got[i] - want[i]), 2 * plain_error + 2.4e-7 * std::abs(want[i])) << i;
  }
  train::ChoiceOptions options;
  options.context = kContext;
  std::vector<int64_t> done;
  options.progress = [&](int64_t now, int64_t total) {
    EXPECT_EQ(total, 24);
    done.push_back(now);
  };
  const ChoiceScore result = answer_questions(model_, tokenizer_, questions, options);
  EXPECT_EQ(result.questions, 24);
  EXPECT_EQ(result.right, score.right);
  EXPECT_EQ(result.right_norm, score.right_norm);
  EXPECT_EQ(result.truncated, score.truncated);
  EXPECT_EQ(result.truncated, 8 + 3);  // the third context, and the first with the longest choice
  EXPECT_GT(result.right, 0);
  EXPECT_LT(result.right, 24);
  ASSERT_EQ(done.size(), 24u);
  EXPECT_EQ(done.back(), 23);
}

TEST(MultipleChoiceRun, StopsEarlyAndRefuses) {
  const train::RunConfig config = scored_config(false);
  const formats::ByteTokenizer tokenizer;
  nn::Model model = scored_model(config, tokenizer.vocab_size(), at::kFloat);
  train::ChoiceOptions options;
  options.context = 24;
  int polls = 0;
  options.stop = [&] { return ++polls > 5; };
  EXPECT_EQ(answer_questions(model, tokenizer, some_questions(), options).questions, 5);
  options.stop = {};
  at::Tensor norm = model.store().parameters().back()->master.detach();
  for (const auto& parameter : model.store().parameters()) {
    if (parameter->name == "norm.weight") norm = parameter->master.detach();
  }
  norm.fill_(NAN);
  model.store().refresh_compute();
  EXPECT_EQ(error_message(ErrorKind::kNumeric,
                          [&] { answer_questions(model, tokenizer, some_questions(), options); }),
            "q:1: the log-likelihood of choices[0] is nan, want a finite number");
}

}  // namespace
}  // namespace amoeba::test
