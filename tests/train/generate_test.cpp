// Text token by token: streamed or not, stopped anywhere, alone or with others, with caches or
// without, also when the context is full, it is the same.
#include "train/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/rng.h"
#include "support/errors.h"
#include "support/torch/memory.h"
#include "train/plain/plain_text.h"
#include "train/plain_scores.h"

namespace amoeba::test {
namespace {

using train::EndReason;
using train::Generated;
using train::GenerateOptions;

// Letters, pairs of letters and halves of a character; the last id ends a document. encode() takes
// single letters only.
class LetterTokenizer final : public formats::Tokenizer {
 public:
  std::string name() const override { return "letters"; }
  std::string fingerprint() const override { return "letters"; }
  int64_t vocab_size() const override { return static_cast<int64_t>(kTexts.size()); }
  int32_t end_of_document() const override { return static_cast<int32_t>(kTexts.size()) - 1; }
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(c - 'a');
    return ids;
  }
  std::string decode(const std::vector<int32_t>&) const override { return ""; }
  std::string_view token_text(int32_t id) const override { return kTexts[static_cast<size_t>(id)]; }

 private:
  inline static const std::vector<std::string> kTexts = {
      "a", "b", "c", "d", "e", "ab", "bca", "dd", "ace", "\xC3", "\xA9", "e\xE2\x82", ""};
};

class Generate : public testing::TestWithParam<bool> {
 protected:
  Generate() {
    options_.num_tokens = 40;
    options_.context = 24;
    options_.sampling.temperature = 1.0;
  }

  Generated run(const std::string& prompt = "abc") {
    return generate(model_, tokenizer_, prompt, options_);
  }
  // The end-of-document token comes early with most seeds: takes one with a long text.
  void take_long_seed() {
    while (run().num_tokens < options_.num_tokens) ASSERT_LT(++options_.seed, 500u);
  }

  const LetterTokenizer tokenizer_;
  nn::Model model_ = scored_model(scored_config(GetParam()), tokenizer_.vocab_size(), at::kFloat);
  GenerateOptions options_;
};

INSTANTIATE_TEST_SUITE_P(Kinds, Generate, testing::Bool(),
                         [](const auto& row) { return row.param ? "mla" : "gqa"; });

// The documented rule with no cache: everything is read again for every token.
Generated without_cache(nn::Model& model, const formats::Tokenizer& tokenizer,
                        const std::string& prompt, const GenerateOptions& options) {
  std::vector<int32_t> held = tokenizer.encode(prompt);
  const auto keep_last = [&](int64_t count) {
    held.erase(held.begin(), held.end() - static_cast<std::ptrdiff_t>(count));
  };
  if (static_cast<int64_t>(held.size()) > options.context) keep_last(options.context);
  Generated out;
  std::string bytes;
  out.reason = EndReason::kNumTokens;
  while (out.num_tokens < options.num_tokens) {
    if (static_cast<int64_t>(held.size()) > options.context) keep_last(options.context / 2);
    const at::Tensor rows = log_probabilities(model, held).to(at::kFloat).contiguous();
    const float* last = rows.const_data_ptr<float>() + (rows.size(0) - 1) * rows.size(1);
    const double uniform =
        random_uniform(options.seed, 0x73616d706c65, static_cast<uint64_t>(out.num_tokens));
    const int32_t token = train::sample_token({last, static_cast<size_t>(tokenizer.vocab_size())},
                                              options.sampling, uniform);
    ++out.num_tokens;
    if (token == tokenizer.end_of_document()) {
      out.reason = EndReason::kEndOfDocument;
      break;
    }
    bytes += tokenizer.token_text(token);
    held.push_back(token);
  }
  out.text = train::replace_invalid_utf8(bytes);
  return out;
}

TEST_P(Generate, EqualsReadingEverythingAgain) {
  options_.num_tokens = 90;  // the context is full several times
  int64_t longest = 0;
  for (options_.seed = 1; options_.seed <= 12; ++options_.seed) {
    for (const std::string prompt : {"c", "abcdeabcde", "abcdeabcdeabcdeabcdeabcdeabcde"}) {
      const Generated got = run(prompt);
      const Generated want = without_cache(model_, tokenizer_, prompt, options_);
      EXPECT_EQ(got.text, want.text) << options_.seed;
      EXPECT_EQ(got.num_tokens, want.num_tokens);
      EXPECT_EQ(got.reason, want.reason);
      longest = std::max(longest, got.num_tokens);
    }
  }
  EXPECT_GT(longest, 48);
}

TEST_P(Generate, MemoryIsThatOfTheTextNotOfTheContext) {
  options_.num_tokens = 8;
  options_.context = 512;
  CountedMemory memory;
  run();
  const int64_t small = memory.peak_bytes();
  options_.context = int64_t{1} << 40;  // caches of that length would not fit into any machine
  memory.reset_peak();
  run();
  EXPECT_LE(memory.peak_bytes(), small);
}

TEST_P(Generate, StreamsTheText) {
  std::string streamed;
  options_.on_text = [&](int64_t prompt, std::string_view piece) {
    EXPECT_EQ(prompt, 0);
    EXPECT_FALSE(piece.empty());
    EXPECT_EQ(piece, train::replace_invalid_utf8(piece));
    streamed += piece;
  };
  for (options_.seed = 1; options_.seed <= 30; ++options_.seed) {
    streamed.clear();
    EXPECT_EQ(run().text, streamed) << options_.seed;
  }
}

TEST_P(Generate, EqualSeedsEqualText) {
  take_long_seed();
  const std::string text = run().text;
  EXPECT_EQ(run().text, text);
  ++options_.seed;
  EXPECT_NE(run().text, text);
  options_.sampling.temperature = 0;
  const std::string likeliest = run().text;
  ++options_.seed;
  EXPECT_EQ(run().text, likeliest);
}

TEST_P(Generate, StopsAtEveryBorder) {
  take_long_seed();
  const std::string text = run().text;
  ASSERT_GT(text.size(), 40u);
  for (size_t begin = 0; begin < text.size(); ++begin) {
    for (size_t size = 1; size <= 5 && begin + size <= text.size(); ++size) {
      const std::string stop = text.substr(begin, size);
      if (train::replace_invalid_utf8(stop) != stop || stop.find("\xEF") != stop.npos) continue;
      options_.stop_strings = {"zzz", stop};
      const Generated got = run();
      EXPECT_EQ(got.text, text.substr(0, text.find(stop))) << stop;
      EXPECT_EQ(got.reason, EndReason::kStopString);
      EXPECT_EQ(got.stop_string, stop);
      EXPECT_LE(got.num_tokens, options_.num_tokens);
    }
  }
  options_.stop_strings = {"zzz"};
  EXPECT_EQ(run().text, text);
  EXPECT_EQ(run().reason, EndReason::kNumTokens);
}

TEST_P(Generate, EndsWithTheDocument) {
  while (run().reason != EndReason::kEndOfDocument) ASSERT_LT(++options_.seed, 500u);
  const Generated ended = run();
  EXPECT_LE(ended.num_tokens, options_.num_tokens);
  options_.num_tokens = ended.num_tokens - 1;  // all of its text, and no end
  EXPECT_EQ(run().text, ended.text);
  options_.num_tokens = 0;
  EXPECT_EQ(run().text, "");
}

TEST_P(Generate, PromptsTogetherEqualPromptsAlone) {
  options_.num_tokens = 60;
  const std::vector<std::string> prompts = {
      "abc", "d", "eabcdeabcdeabcdeabcdeabcd", "ba", "abc", "ccccccccccc", "e"};
  for (const double temperature : {0.0, 1.0}) {
    options_.sampling = {temperature, 8, 0.95};
    for (options_.seed = 1; options_.seed <= 4; ++options_.seed) {
      std::vector<Generated> alone;
      for (const std::string& prompt : prompts) alone.push_back(run(prompt));
      for (const int64_t batch_size : {2, 3, 16}) {
        options_.batch_size = batch_size;
        std::vector<std::string> streamed(prompts.size());
        options_.on_text = [&](int64_t prompt, std::string_view piece) {
          streamed[static_cast<size_t>(prompt)] += piece;
        };
        train::GenerateTimes times;
        const auto together = generate_all(model_, tokenizer_, prompts, options_, times);
        options_.on_text = {};
        ASSERT_EQ(together.size(), prompts.size());
        int64_t tokens = 0;
        for (size_t i = 0; i < prompts.size(); ++i) {
          EXPECT_EQ(together[i].text, alone[i].text) << prompts[i] << " of " << batch_size;
          EXPECT_EQ(together[i].num_tokens, alone[i].num_tokens);
          EXPECT_EQ(together[i].reason, alone[i].reason);
          EXPECT_EQ(streamed[i], alone[i].text);
          tokens += together[i].num_tokens;
        }
        EXPECT_LE(times.decoded_tokens, tokens - static_cast<int64_t>(prompts.size()));
        EXPECT_GE(times.read_tokens, 3 + 1 + 24 + 2 + 3 + 11 + 1);
      }
    }
  }
}

TEST_P(Generate, AConversationIsOneText) {
  options_.sampling.temperature = 0;
  options_.num_tokens = 3;
  // Answers of letters only, so that the text so far can be a prompt.
  const auto is_plain = [](const Generated& g) {
    return g.reason == EndReason::kNumTokens && g.text.size() == 3 &&
           g.text.find_first_not_of("abcde") == g.text.npos;
  };
  int compared = 0;
  for (const std::string first : {"a", "bb", "cab", "d", "ee", "abc", "dade", "cc", "eb", "bd"}) {
    train::Conversation conversation(model_, tokenizer_, options_);
    std::string said = first;
    Generated answer = conversation.reply(first);
    EXPECT_EQ(answer.text, run(first).text);
    for (const std::string next : {"c", "ea"}) {
      if (!is_plain(answer)) break;
      said += answer.text + next;
      answer = conversation.reply(next);
      EXPECT_EQ(answer.text, run(said).text) << said;
      ++compared;
    }
    EXPECT_EQ(conversation.times_shortened(), 0);
  }
  EXPECT_GT(compared, 0);
}

TEST_P(Generate, AConversationForgetsItsOlderHalf) {
  train::Conversation conversation(model_, tokenizer_, options_);
  for (int turn = 0; turn < 6; ++turn) {
    const Generated answer = conversation.reply("abcdeabcdeabcde");
    EXPECT_GT(answer.num_tokens, 0);
  }
  EXPECT_GE(conversation.times_shortened(), 5);
  EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { conversation.reply(""); }),
            "generate: the text is empty, want at least one character");
}

TEST_P(Generate, IsInterrupted) {
  take_long_seed();
  const Generated whole = run();
  int polls = 0;
  options_.stop = [&] { return ++polls > 7; };
  const Generated part = run();
  EXPECT_EQ(part.num_tokens, 7);
  EXPECT_EQ(part.reason, EndReason::kInterrupted);
  train::GenerateTimes times;
  for (const Generated& none : generate_all(model_, tokenizer_, {"a", "b"}, options_, times)) {
    EXPECT_EQ(none.num_tokens, 0);
    EXPECT_EQ(none.reason, EndReason::kInterrupted);
  }
}

TEST_P(Generate, Refuses) {
  const auto message = [&](ErrorKind kind, const std::string& prompt) {
    return error_message(kind, [&] { run(prompt); });
  };
  EXPECT_EQ(message(ErrorKind::kUsage, ""),
            "generate: the prompt is empty, want at least one character");
  options_.stop_strings = {""};
  EXPECT_EQ(message(ErrorKind::kUsage, "a"),
            "stop: the string is empty, want at least one character");
  options_.stop_strings = {};
  options_.context = 1;
  EXPECT_EQ(message(ErrorKind::kUsage, "a"), "generate: context is 1, want at least 2");
  options_.context = 24;
  options_.batch_size = 0;
  EXPECT_EQ(message(ErrorKind::kUsage, "a"), "generate: batch_size is 0, want at least 1");
  options_.batch_size = 1;
  for (const auto& parameter : model_.store().parameters()) {
    if (parameter->name == "norm.weight") parameter->master.detach().fill_(NAN);
  }
  model_.store().refresh_compute();
  EXPECT_EQ(message(ErrorKind::kNumeric, "a"),
            "sample: the logit of token 0 is nan, want a number");
}

}  // namespace
}  // namespace amoeba::test
