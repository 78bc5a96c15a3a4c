#include "train/multiple_choice.h"

#include <ATen/ops/log_softmax.h>

#include <array>
#include <span>

#include "amoeba/error.h"

namespace amoeba::train {

std::vector<double> choice_log_likelihoods(CachedModel& model, const QuestionTokens& question) {
  constexpr std::array<int64_t, 1> kRow = {0};
  const auto log_probabilities = [&](const at::Tensor& hidden) {
    return at::log_softmax(model.logits(hidden).to(at::kDouble), 1);
  };
  const auto length = static_cast<int64_t>(question.context.size());
  const at::Tensor context = model.read(kRow, question.context);
  const at::Tensor first = log_probabilities(context.narrow(0, length - 1, 1));  // [1, V]
  std::vector<double> sums;
  for (const std::vector<int32_t>& choice : question.choices) {
    double sum = first.const_data_ptr<double>()[choice[0]];
    if (choice.size() > 1) {
      const std::span<const int32_t> inputs = std::span(choice).first(choice.size() - 1);
      const at::Tensor others = log_probabilities(model.read(kRow, inputs));  // [choice - 1, V]
      const auto* row = others.const_data_ptr<double>();
      for (size_t i = 1; i < choice.size(); ++i, row += others.size(1)) sum += row[choice[i]];
      model.truncate(0, length);
    }
    sums.push_back(sum);
  }
  model.truncate(0, 0);
  return sums;
}

ChoiceScore answer_questions(nn::Model& model, const formats::Tokenizer& tokenizer,
                             const std::vector<Question>& questions, const ChoiceOptions& options) {
  AMOEBA_CHECK(options.context >= 1, "choices: context is ", options.context, ", want at least 1");
  CachedModel cached(model, 1, options.context);
  ChoiceScore score;
  const auto total = static_cast<int64_t>(questions.size());
  for (const Question& question : questions) {
    if (options.stop && options.stop()) break;
    if (options.progress) options.progress(score.questions, total);
    const QuestionTokens tokens = encode_question(tokenizer, question, options.context);
    ChoiceScore one = score_question(question, choice_log_likelihoods(cached, tokens));
    one.truncated = tokens.truncated ? 1 : 0;
    score += one;
  }
  return score;
}

}  // namespace amoeba::train
