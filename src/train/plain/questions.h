// Multiple-choice questions: their files, their tokens, and what counts as a right answer.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "formats/tokenizer.h"

namespace amoeba::train {

struct Question {
  std::string where;  // "FILE:LINE", for messages
  std::string context;
  std::vector<std::string> choices;  // at least 2, none blank
  int64_t answer = 0;                // index of the right one
};

// JSONL: {"context": TEXT, "choices": [TEXT, ...], "answer": INDEX or LETTER} a line; indexes count
// from 0, letters from A; other keys are left alone. Error(kData) with file and line for the rest.
std::vector<Question> read_questions(FileSystem& files, const std::string& path);

struct QuestionTokens {
  std::vector<int32_t> context;               // at least one
  std::vector<std::vector<int32_t>> choices;  // at least one token each
  bool truncated = false;                     // the context lost tokens at its start
};

// As lm-evaluation-harness has it: white space at the end of the context goes to the choices, the
// whole text is encoded, and a choice's tokens are those behind as many as the context alone has.
// The tokenizer's prefix comes first; an empty context is the end-of-document token. When context
// and longest choice do not fit into `max_tokens` (the last one is never read), the context loses
// its first tokens. Error(kData) for a choice without tokens of its own, or one that does not fit.
QuestionTokens encode_question(const formats::Tokenizer& tokenizer, const Question& question,
                               int64_t max_tokens);

// What was answered right.
struct ChoiceScore {
  int64_t questions = 0;
  int64_t right = 0;       // the likeliest choice
  int64_t right_norm = 0;  // the choice of the largest log-likelihood a byte
  int64_t truncated = 0;   // questions whose context was
  ChoiceScore& operator+=(const ChoiceScore& other);

  double accuracy() const;  // NaN without questions
  double accuracy_norm() const;
};

// Of a share of n yes-or-no answers: sqrt(share (1 - share) / (n - 1)); NaN for n < 2.
double standard_error(double share, int64_t n);

// One question's score, from the log-likelihood of each choice; of equal ones the first is taken.
// Bytes are those of the choice's UTF-8 text without white space at its start.
ChoiceScore score_question(const Question& question, std::span<const double> log_likelihoods);

}  // namespace amoeba::train
