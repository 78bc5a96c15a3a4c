// Multiple-choice files, their tokens at the border of context and choice, and scores by hand.
#include "train/plain/questions.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/errors.h"
#include "support/memory_file_system.h"

namespace amoeba::train {
namespace {

using test::error_message;

std::vector<Question> read(const std::string& text) {
  test::MemoryFileSystem files;
  files.create("/q.jsonl")->write(text);
  return read_questions(files, "/q.jsonl");
}

TEST(Questions, AreRead) {
  const auto questions = read(
      "{\"context\": \"Two and two are\", \"choices\": [\" four\", \" five\"], \"answer\": 0}\r\n"
      "\n"
      "{\"id\": 7, \"answer\": \"C\", \"choices\": [\"a\", \"b\", \"c\"], \"context\": \"\"}");
  ASSERT_EQ(questions.size(), 2u);
  EXPECT_EQ(questions[0].where, "/q.jsonl:1");
  EXPECT_EQ(questions[0].context, "Two and two are");
  EXPECT_EQ(questions[0].choices, (std::vector<std::string>{" four", " five"}));
  EXPECT_EQ(questions[0].answer, 0);
  EXPECT_EQ(questions[1].where, "/q.jsonl:3");
  EXPECT_EQ(questions[1].context, "");
  EXPECT_EQ(questions[1].answer, 2);
}

TEST(Questions, RefusesNameFileAndLine) {
  struct Case {
    const char* line;
    const char* message;
  };
  const Case cases[] = {
      {"[1]", "/q.jsonl:2: is of type array, want an object"},
      {R"({"choices": ["a", "b"], "answer": 0})", "/q.jsonl:2: 'context' is missing"},
      {R"({"context": 3, "choices": ["a", "b"], "answer": 0})", "/q.jsonl:2: 'context'"},
      {R"({"context": "", "answer": 0})", "/q.jsonl:2: 'choices' is missing"},
      {R"({"context": "", "choices": ["a", 1], "answer": 0})",
       "/q.jsonl:2: choices[1] is of type integer, want a string"},
      {R"({"context": "", "choices": ["a", " \n"], "answer": 0})",
       "/q.jsonl:2: choices[1] is blank, want some text"},
      {R"({"context": "", "choices": ["a"], "answer": 0})",
       "/q.jsonl:2: there are 1 choices, want at least 2"},
      {R"({"context": "", "choices": ["a", "b"]})", "/q.jsonl:2: 'answer' is missing"},
      {R"({"context": "", "choices": ["a", "b"], "answer": 2})",
       "/q.jsonl:2: answer is 2, want 0 to 1 or a letter A to B"},
      {R"({"context": "", "choices": ["a", "b"], "answer": -1})",
       "/q.jsonl:2: answer is -1, want 0 to 1 or a letter A to B"},
      {R"({"context": "", "choices": ["a", "b"], "answer": "C"})",
       "/q.jsonl:2: answer is 'C', want 0 to 1 or a letter A to B"},
      {R"({"context": "", "choices": ["a", "b"], "answer": "a"})",
       "/q.jsonl:2: answer is 'a', want 0 to 1 or a letter A to B"},
      {R"({"context": "", "choices": ["a", "b"], "answer": "AB"})",
       "/q.jsonl:2: answer is 'AB', want 0 to 1 or a letter A to B"},
      {R"({"context": "", "choices": ["a", "b"], "answer": true})",
       "/q.jsonl:2: answer is of type boolean, want 0 to 1 or a letter A to B"},
      {R"({"context": "", "choices")", "/q.jsonl:2:1:"},
  };
  for (const Case& c : cases) {
    const std::string good = R"({"context": "", "choices": ["a", "b"], "answer": 0})";
    const std::string message =
        error_message(ErrorKind::kData, [&] { read(good + "\n" + c.line + "\n"); });
    EXPECT_TRUE(message.starts_with(c.message)) << message << "\nwant " << c.message;
  }
  EXPECT_EQ(error_message(ErrorKind::kData, [] { read("\n \n"); }),
            "/q.jsonl: has no lines, want a JSON object on each");
}

// A tokenizer of words: "ab" and " c" are tokens of two bytes, a text begins with <s> = 300.
class PairTokenizer final : public formats::Tokenizer {
 public:
  explicit PairTokenizer(bool has_prefix) : has_prefix_(has_prefix) {}
  std::string name() const override { return "pairs"; }
  std::string fingerprint() const override { return "pairs"; }
  int64_t vocab_size() const override { return 301; }
  int32_t end_of_document() const override { return 299; }
  std::vector<int32_t> prefix() const override {
    return has_prefix_ ? std::vector<int32_t>{300} : std::vector<int32_t>{};
  }
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (size_t at = 0; at < text.size(); ++at) {
      const std::string_view pair = text.substr(at, 2);
      if (pair == "ab" || pair == " c") {
        ids.push_back(pair == "ab" ? 256 : 257);
        ++at;
      } else {
        ids.push_back(static_cast<unsigned char>(text[at]));
      }
    }
    return ids;
  }
  std::string decode(const std::vector<int32_t>&) const override { return ""; }
  std::string_view token_text(int32_t) const override { return ""; }

 private:
  bool has_prefix_;
};

using Ids = std::vector<int32_t>;

TEST(Questions, TokensAtTheBorder) {
  const PairTokenizer plain(false), prefixed(true);
  const auto encode = [](const formats::Tokenizer& tokenizer, const std::string& context,
                         const std::vector<std::string>& choices) {
    return encode_question(tokenizer, {"q:1", context, choices, 0}, 100);
  };
  // A space before the choice, on either side of the border, is the choice's.
  for (const auto& [context, choices] :
       {std::pair<std::string, std::vector<std::string>>{"x", {" c", " d"}}, {"x ", {"c", "d"}}}) {
    const QuestionTokens got = encode(plain, context, choices);
    EXPECT_EQ(got.context, (Ids{'x'}));
    EXPECT_EQ(got.choices, (std::vector<Ids>{{257}, {' ', 'd'}}));
    EXPECT_FALSE(got.truncated);
  }
  // The prefix begins the text; the choice's tokens are those behind the context's.
  const QuestionTokens got = encode(prefixed, "xab", {"ab", "b"});
  EXPECT_EQ(got.context, (Ids{300, 'x', 256}));
  EXPECT_EQ(got.choices, (std::vector<Ids>{{256}, {'b'}}));
  // An empty context, or one of spaces only.
  EXPECT_EQ(encode(plain, "", {"d", "e"}).context, (Ids{299}));
  EXPECT_EQ(encode(prefixed, "", {"d", "e"}).context, (Ids{300}));
  EXPECT_EQ(encode(plain, " \n", {"d", "e"}).choices[0], (Ids{' ', '\n', 'd'}));
  // "xa" is two tokens, "xab" too: as many, so nothing is left for the choice.
  EXPECT_EQ(error_message(ErrorKind::kData,
                          [&] {
                            encode(plain, "xa", {"c", "b"});
                          }),
            "q:1: choices[1] has no token of its own: the tokenizer joins it to the context");
}

TEST(Questions, LongContextLosesItsStart) {
  const PairTokenizer tokenizer(true);
  const auto encode = [&](int64_t max_tokens) {
    return encode_question(tokenizer, {"q:1", "12345", {"xyz", "v"}, 0}, max_tokens);
  };
  EXPECT_EQ(encode(8).context, (Ids{300, '1', '2', '3', '4', '5'}));  // reads 6 + 3 - 1
  EXPECT_FALSE(encode(8).truncated);
  EXPECT_EQ(encode(7).context, (Ids{'1', '2', '3', '4', '5'}));
  EXPECT_TRUE(encode(7).truncated);
  EXPECT_EQ(encode(3).context, (Ids{'5'}));
  EXPECT_EQ(error_message(ErrorKind::kData, [&] { encode(2); }),
            "q:1: choices[0] has 3 tokens, want at most the 2 that the model looks back");
}

TEST(Questions, ScoresByHand) {
  // Log-likelihoods -6 of 3 bytes, -5 of 1 byte (two with the space), -8 of 8 bytes in UTF-8.
  const std::vector<std::string> choices = {" abc", " d", "\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9"};
  const double sums[] = {-6, -5, -8};  // a byte: -2, -5, -1
  for (int64_t answer = 0; answer < 3; ++answer) {
    const ChoiceScore score = score_question({"q:1", "", choices, answer}, sums);
    EXPECT_EQ(score.questions, 1);
    EXPECT_EQ(score.right, answer == 1) << answer;
    EXPECT_EQ(score.right_norm, answer == 2) << answer;
  }
  const double equal[] = {-3, -3};
  EXPECT_EQ(score_question({"q:1", "", {"a", "b"}, 0}, equal).right, 1);
  EXPECT_EQ(score_question({"q:1", "", {"a", "b"}, 1}, equal).right, 0);
  const double broken[] = {-1, NAN};
  EXPECT_EQ(error_message(ErrorKind::kNumeric,
                          [&] {
                            score_question({"q:9", "", {"a", "b"}, 0}, broken);
                          }),
            "q:9: the log-likelihood of choices[1] is nan, want a finite number");
}

TEST(Questions, SharesAndErrors) {
  ChoiceScore sum;
  EXPECT_TRUE(std::isnan(sum.accuracy()));
  sum += {4, 3, 1, 2};
  sum += {1, 0, 1, 0};
  EXPECT_EQ(sum.questions, 5);
  EXPECT_EQ(sum.truncated, 2);
  EXPECT_DOUBLE_EQ(sum.accuracy(), 0.6);
  EXPECT_DOUBLE_EQ(sum.accuracy_norm(), 0.4);
  // Sample variance of 1 1 1 0 0: 0.3; over 5 answers: sqrt(0.06).
  EXPECT_DOUBLE_EQ(standard_error(0.6, 5), std::sqrt(0.06));
  EXPECT_TRUE(std::isnan(standard_error(1.0, 1)));
}

}  // namespace
}  // namespace amoeba::train
