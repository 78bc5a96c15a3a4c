#include "formats/train_bpe.h"

#include <gtest/gtest.h>

#include "formats/byte_alphabet.h"
#include "formats/tokenizer_json.h"
#include "formats/value.h"
#include "support/errors.h"
#include "support/memory_file_system.h"

namespace amoeba::formats {
namespace {

std::string train(const std::string& text, TrainBpeOptions options) {
  test::MemoryFileSystem files;
  const auto file = files.create("/t.txt");
  file->write(text);
  file->close();
  options.inputs = {"/t.txt"};
  return train_bpe(files, options);
}

std::vector<std::string> merges_of(const std::string& json) {
  std::vector<std::string> merges;
  const Value root = parse_json(json, "t");
  for (const Value& merge : root.at("model", "t").array_at("merges", "t")) {
    const Array& pair = *merge.get_if<Array>();
    merges.push_back(cat(*pair[0].get_if<std::string>(), " ", *pair[1].get_if<std::string>()));
  }
  return merges;
}

std::unique_ptr<Tokenizer> load(const std::string& json) {
  test::MemoryFileSystem files;
  const auto file = files.create("/t.json");
  file->write(json);
  file->close();
  return load_tokenizer_json(files, "/t.json");
}

TEST(ByteAlphabet, EveryByteHasACharacterOfItsOwn) {
  std::string bytes;
  for (int b = 0; b < 256; ++b) bytes += static_cast<char>(b);
  EXPECT_EQ(byte_level_text(byte_level_token(bytes)), bytes);
  EXPECT_EQ(byte_level_token(" a\n\xAD"), "\u0120a\u010A\u0143");
  EXPECT_EQ(byte_level_text("a b"), std::nullopt);
}

TEST(TrainBpe, MergesTheMostFrequentPairs) {
  TrainBpeOptions options;
  options.vocab_size = 257 + 3;
  // "a b" is there 5 times; then "c ab" and "\u0120 ab" twice, and c comes before \u0120.
  const std::string json = train("ab ab ab cab cab xy", options);
  EXPECT_EQ(merges_of(json), (std::vector<std::string>{"a b", "c ab", "\u0120 ab"}));
  options.vocab_size = 10000;  // the text has no more pairs than these
  EXPECT_EQ(merges_of(train("abab", options)), (std::vector<std::string>{"a b", "ab ab"}));
}

TEST(TrainBpe, TheTokenizerLoadsAndGivesTheBytesBack) {
  TrainBpeOptions options;
  options.vocab_size = 300;
  options.special_tokens = {"<|endoftext|>", "<|user|>"};
  std::string text;
  for (int i = 0; i < 300; ++i) {
    text +=
        cat("caf\u00E9 ", static_cast<char>('a' + i % 23), static_cast<char>('a' + i % 17), "\n");
  }
  const auto tokenizer = load(train(text, options));
  EXPECT_EQ(tokenizer->vocab_size(), 300);
  EXPECT_EQ(tokenizer->end_of_document(), 0);
  EXPECT_EQ(tokenizer->encode_prompt("<|user|>").at(0), 1);
  const std::vector<int32_t> ids = tokenizer->encode(text);
  EXPECT_LT(ids.size(), text.size() / 2);
  EXPECT_EQ(tokenizer->decode(ids), text);
}

TEST(TrainBpe, ThreadsDoNotChangeTheResult) {
  TrainBpeOptions options;
  options.vocab_size = 600;
  options.document_separator = ";";
  std::string text;
  for (int i = 0; i < 2000; ++i) text += cat("word", i % 97, " and ", i * 7919 % 1009, ";");
  options.num_threads = 1;
  const std::string one = train(text, options);
  options.num_threads = 4;
  EXPECT_EQ(train(text, options), one);
}

TEST(TrainBpe, ASpecialTokenIsNoMerge) {
  TrainBpeOptions options;
  options.vocab_size = 300;
  options.special_tokens = {"</s>", "ab"};
  const std::string json = train("ab ab ab abc", options);
  const auto merges = merges_of(json);
  EXPECT_EQ(std::count(merges.begin(), merges.end(), "a b"), 0);
  EXPECT_EQ(load(json)->encode_prompt("ab"), (std::vector<int32_t>{1}));
}

TEST(TrainBpe, RefusesWhatMakesNoSense) {
  const auto error = [](ErrorKind kind, const TrainBpeOptions& options) {
    return test::error_message(kind, [&] { train("text", options); });
  };
  TrainBpeOptions options;
  options.vocab_size = 256;
  EXPECT_EQ(error(ErrorKind::kUsage, options),
            "tokenizer train: vocabulary size is 256, want 257 (special tokens and bytes) to "
            "16777216");
  options.vocab_size = 300;
  options.special_tokens = {"a", "a"};
  EXPECT_EQ(error(ErrorKind::kUsage, options),
            "tokenizer train: special token 'a' is empty, not UTF-8 or there twice");
  options.special_tokens.clear();
  EXPECT_EQ(error(ErrorKind::kUsage, options),
            "tokenizer train: special tokens are missing, want one that ends a document");
  options.special_tokens = {"</s>"};
  options.pattern = "\\w+";
  EXPECT_EQ(error(ErrorKind::kData, options),
            "tokenizer train: pattern '\\w+' uses '\\w', which is not supported");
  options.pattern = "a";
  options.stop = [] { return true; };
  EXPECT_EQ(error(ErrorKind::kUsage, options), "tokenizer train: stopped");
}

}  // namespace
}  // namespace amoeba::formats
