// Multiple choice by likelihood: the model's answer is the choice it finds likeliest.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "amoeba/model.h"
#include "train/cached_model.h"
#include "train/plain/questions.h"

namespace amoeba::train {

// Log-likelihood of each choice behind the context, in nats: the sum over its tokens. The context
// is read once; row 0 of `model` is used and left empty.
std::vector<double> choice_log_likelihoods(CachedModel& model, const QuestionTokens& question);

struct ChoiceOptions {
  int64_t context = 0;  // tokens the model was trained to look back; required
  std::function<void(int64_t done, int64_t total)> progress;  // may be empty
  std::function<bool()> stop;                                 // may be empty; true ends early
};

// Of the questions answered before `stop`.
ChoiceScore answer_questions(nn::Model& model, const formats::Tokenizer& tokenizer,
                             const std::vector<Question>& questions, const ChoiceOptions& options);

}  // namespace amoeba::train
