#include "train/plain/questions.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "amoeba/error.h"
#include "base/text.h"
#include "train/plain/json_lines.h"
#include "train/plain/metrics.h"

namespace amoeba::train {

namespace {

constexpr const char* kSpace = " \t\n\v\f\r";

std::string_view without_leading_space(std::string_view text) {
  return text.substr(std::min(text.find_first_not_of(kSpace), text.size()));
}

int64_t parse_answer(const formats::Value& value, int64_t num_choices, const std::string& where) {
  int64_t answer = -1;
  std::string got;
  if (const auto* number = value.get_if<int64_t>()) {
    answer = *number;
    got = cat(answer);
  } else if (const auto* letter = value.get_if<std::string>()) {
    if (letter->size() == 1) answer = letter->front() - 'A';
    got = cat("'", printable(*letter), "'");
  } else {
    got = cat("of type ", value.type_name());
  }
  AMOEBA_CHECK_KIND(kData, answer >= 0 && answer < num_choices, where, ": answer is ", got,
                    ", want 0 to ", num_choices - 1, " or a letter A to ",
                    static_cast<char>('A' + std::min<int64_t>(num_choices, 26) - 1));
  return answer;
}

Question parse_question(const JsonLine& line) {
  const auto& [where, value] = line;
  Question question{where, value.string_at("context", where), {}, 0};
  for (const formats::Value& choice : value.array_at("choices", where)) {
    const auto* text = choice.get_if<std::string>();
    const size_t index = question.choices.size();
    AMOEBA_CHECK_KIND(kData, text != nullptr, where, ": choices[", index, "] is of type ",
                      choice.type_name(), ", want a string");
    AMOEBA_CHECK_KIND(kData, !without_leading_space(*text).empty(), where, ": choices[", index,
                      "] is blank, want some text");
    question.choices.push_back(*text);
  }
  const auto num_choices = static_cast<int64_t>(question.choices.size());
  AMOEBA_CHECK_KIND(kData, num_choices >= 2, where, ": there are ", num_choices,
                    " choices, want at least 2");
  question.answer = parse_answer(value.at("answer", where), num_choices, where);
  return question;
}

size_t index_of_largest(std::span<const double> values) {
  return static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

double share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : kMissing;
}

}  // namespace

std::vector<Question> read_questions(FileSystem& files, const std::string& path) {
  std::vector<Question> questions;
  for (const JsonLine& line : read_json_lines(files, path)) {
    questions.push_back(parse_question(line));
  }
  return questions;
}

QuestionTokens encode_question(const formats::Tokenizer& tokenizer, const Question& question,
                               int64_t max_tokens) {
  const std::string_view whole = question.context;
  const std::string_view context = whole.substr(0, whole.find_last_not_of(kSpace) + 1);
  QuestionTokens out;
  out.context = tokenizer.prefix();
  const std::vector<int32_t> context_ids = tokenizer.encode(context);
  out.context.insert(out.context.end(), context_ids.begin(), context_ids.end());
  if (out.context.empty()) out.context = {tokenizer.end_of_document()};
  size_t longest = 0;
  for (size_t i = 0; i < question.choices.size(); ++i) {
    const std::vector<int32_t> ids = tokenizer.encode(cat(whole, question.choices[i]));
    AMOEBA_CHECK_KIND(kData, ids.size() > context_ids.size(), question.where, ": choices[", i,
                      "] has no token of its own: the tokenizer joins it to the context");
    out.choices.emplace_back(ids.begin() + static_cast<std::ptrdiff_t>(context_ids.size()),
                             ids.end());
    longest = std::max(longest, out.choices.back().size());
    AMOEBA_CHECK_KIND(kData, static_cast<int64_t>(longest) <= max_tokens, question.where,
                      ": choices[", i, "] has ", longest, " tokens, want at most the ", max_tokens,
                      " that the model looks back");
  }
  const size_t room = static_cast<size_t>(max_tokens) + 1 - longest;
  if (out.context.size() > room) {
    out.context.erase(out.context.begin(), out.context.end() - static_cast<std::ptrdiff_t>(room));
    out.truncated = true;
  }
  return out;
}

ChoiceScore& ChoiceScore::operator+=(const ChoiceScore& other) {
  questions += other.questions;
  right += other.right;
  right_norm += other.right_norm;
  truncated += other.truncated;
  return *this;
}

double ChoiceScore::accuracy() const { return share(right, questions); }

double ChoiceScore::accuracy_norm() const { return share(right_norm, questions); }

double standard_error(double share, int64_t n) {
  return n < 2 ? kMissing : std::sqrt(share * (1.0 - share) / static_cast<double>(n - 1));
}

ChoiceScore score_question(const Question& question, std::span<const double> log_likelihoods) {
  AMOEBA_ASSERT(log_likelihoods.size() == question.choices.size());
  std::vector<double> per_byte;
  for (size_t i = 0; i < question.choices.size(); ++i) {
    AMOEBA_CHECK_KIND(kNumeric, std::isfinite(log_likelihoods[i]), question.where,
                      ": the log-likelihood of choices[", i, "] is ", log_likelihoods[i],
                      ", want a finite number");
    per_byte.push_back(log_likelihoods[i] /
                       static_cast<double>(without_leading_space(question.choices[i]).size()));
  }
  const auto answer = static_cast<size_t>(question.answer);
  return {1, index_of_largest(log_likelihoods) == answer ? 1 : 0,
          index_of_largest(per_byte) == answer ? 1 : 0, 0};
}

}  // namespace amoeba::train
