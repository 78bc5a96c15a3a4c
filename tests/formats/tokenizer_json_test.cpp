#include "formats/tokenizer_json.h"

#include <gtest/gtest.h>

#include "support/errors.h"
#include "support/memory_file_system.h"
#include "support/mutation.h"
#include "support/tokenizer_samples.h"

namespace amoeba::formats {
namespace {

using Ids = std::vector<int32_t>;

using test::kByteLevel;
using test::kSentencePiece;

std::unique_ptr<Tokenizer> load(const std::string& json, const std::string& config = "") {
  test::MemoryFileSystem files;
  const auto put = [&](const std::string& path, const std::string& text) {
    const auto file = files.create(path);
    file->write(text);
    file->close();
  };
  put("/t.json", json);
  if (!config.empty()) put("/tokenizer_config.json", config);
  return load_tokenizer_json(files, "/t.json");
}

std::string load_error(const std::string& json, const std::string& config = "") {
  return test::error_message(ErrorKind::kData, [&] { load(json, config); });
}

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, text.npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(TokenizerJson, ByteLevel) {
  const auto tokenizer = load(kByteLevel);
  EXPECT_EQ(tokenizer->name(), "/t.json");
  EXPECT_EQ(tokenizer->vocab_size(), 10);
  EXPECT_EQ(tokenizer->end_of_document(), 8);
  EXPECT_EQ(tokenizer->prefix(), (Ids{8}));
  EXPECT_EQ(tokenizer->encode("ab abc"), (Ids{6, 7, 2}));
  EXPECT_EQ(tokenizer->encode("e\u0301"), (Ids{4, 5}));          // NFC; e alone is no token
  EXPECT_EQ(tokenizer->encode("a <tool>b"), (Ids{0, 9, 1}));     // not special: found in data too
  EXPECT_EQ(tokenizer->encode("a<|endoftext|>b"), (Ids{0, 1}));  // as text; no tokens for it
  EXPECT_EQ(tokenizer->encode_prompt("a<|endoftext|>b"), (Ids{8, 0, 8, 1}));
  EXPECT_EQ(tokenizer->decode({6, 7, 8, 9, 4, 5, 77}), "ab ab<tool>\u00E9");
  EXPECT_EQ(tokenizer->token_text(7), " ab");
  EXPECT_EQ(tokenizer->token_text(8), "");
  EXPECT_EQ(tokenizer->token_text(-1), "");
  EXPECT_EQ(tokenizer->added_bytes(7), 0);
  EXPECT_EQ(test::error_message(ErrorKind::kUsage, [&] { tokenizer->decode({-1}); }),
            "decode: token id is -1, want at least 0");
}

TEST(TokenizerJson, SentencePieceStyle) {
  const auto tokenizer = load(kSentencePiece);
  EXPECT_EQ(tokenizer->end_of_document(), 2);
  EXPECT_TRUE(tokenizer->prefix().empty());
  EXPECT_EQ(tokenizer->encode("a a\u00E9x"), (Ids{7, 7, 3, 4, 0}));
  EXPECT_EQ(tokenizer->encode(" a"), (Ids{5, 7}));
  EXPECT_EQ(tokenizer->encode("\xFFx"), (Ids{5, 0}));  // U+FFFD, no byte tokens for it
  EXPECT_EQ(tokenizer->encode_prompt("</s>a"), (Ids{2, 7}));
  EXPECT_EQ(tokenizer->decode({1, 7, 7, 3, 4}), "a a\u00E9");
  EXPECT_EQ(tokenizer->decode({5, 7}), " a");
  EXPECT_EQ(tokenizer->token_text(7), " a");
  EXPECT_EQ(tokenizer->added_bytes(7), 1);
  EXPECT_EQ(tokenizer->added_bytes(6), 0);
}

TEST(TokenizerJson, EndOfDocument) {
  const std::string two =
      replaced(kByteLevel, "\"special\": false", "\"special\": true");  // <tool>
  EXPECT_EQ(load(two)->end_of_document(), 8);
  EXPECT_EQ(load(two, R"({"eos_token": "<tool>"})")->end_of_document(), 9);
  EXPECT_EQ(load(two, R"({"eos_token": {"content": "<tool>"}})")->end_of_document(), 9);
  EXPECT_EQ(load(two, R"({"eos_token": null})")->end_of_document(), 8);
  EXPECT_EQ(load_error(two, R"({"eos_token": "<x>"})"),
            "/t.json: eos_token of tokenizer_config.json is '<x>', want a special token of "
            "added_tokens");
  EXPECT_EQ(
      load_error(replaced(kByteLevel, "\"<|endoftext|>\", \"special\"", "\"<x>\", \"special\""))
          .find("/t.json: no token ends a document, want an eos_token in "),
      0u);
}

TEST(TokenizerJson, NamesWhatItDoesNotUnderstand) {
  const struct {
    const char *from, *to, *message;
  } cases[] = {
      {"\"NFC\"", "\"NFKC\"",
       "/t.json: normalizer: type 'NFKC' is not supported, want one of Sequence, NFC, Lowercase, "
       "Prepend, Replace"},
      {"\"Split\"", "\"Whitespace\"",
       "/t.json: pre_tokenizer: type 'Whitespace' is not supported, want one of Sequence, Split, "
       "Digits, Metaspace, ByteLevel"},
      {"\"Isolated\"", "\"Merged\"",
       "/t.json: pre_tokenizer: type 'Merged' is not supported, want one of Removed, Isolated, "
       "MergedWithPrevious, MergedWithNext, Contiguous"},
      {" ?\\\\p{L}+", "\\\\w+",
       "/t.json: pre_tokenizer: pattern '\\w+' uses '\\w', which is not supported"},
      {"\"TemplateProcessing\"", "\"BertProcessing\"",
       "/t.json: post_processor: type 'BertProcessing' is not supported, want one of Sequence, "
       "ByteLevel, TemplateProcessing"},
      {"\"ids\": [8]", "\"ids\": [10]",
       "/t.json: post_processor: id is 10, want one below the vocabulary's 10"},
      {"{\"type\": \"ByteLevel\"}", "{\"type\": \"WordPiece\"}",
       "/t.json: decoder: type 'WordPiece' is not supported, want one of ByteLevel, Metaspace, or "
       "a Sequence of Replace, ByteFallback, Fuse, Strip"},
      {"{\"type\": \"ByteLevel\"}", "{\"type\": \"Fuse\"}",
       "/t.json: the decoder is not ByteLevel, want it as the pre_tokenizer"},
      {"{\"type\": \"ByteLevel\"}", "null", "/t.json: decoder is null, want one"},
      {"\"BPE\"", "\"Unigram\"", "/t.json: model: type is 'Unigram', want BPE"},
      {"\"dropout\": null", "\"dropout\": 0.1",
       "/t.json: model: dropout is set, want none (it is not supported)"},
      {"\"unk_token\": null", "\"unk_token\": \"q\"",
       "/t.json: model: unk_token is 'q', want a token of the vocabulary"},
      {"\"a b\"", "\"a\"", "/t.json: model: merge 'a', want two tokens and one space"},
      {"\"a b\"", "\"a q\"", "/t.json: model: merge 'a q', want two tokens of the vocabulary"},
      {"\"a b\"", "\"b a\"", "/t.json: model: merge 0 gives 'ba', want a token of the vocabulary"},
      {"\"a b\"", "7", "/t.json: model: a merge is integer, want a text or two of them"},
      {"\"b\": 1", "\"b\": 0", "/t.json: model: tokens 'a' and 'b' both have id 0"},
      {"\"b\": 1", "\"b\": -1", "/t.json: model: id is -1, want 0 to 16777215"},
      {"\"b\": 1", "\"b\": 9999999", "/t.json: token 'b' has id 9999999 among 10 tokens"},
      {"\"b\": 1", "\"b\": \"1\"", "/t.json: model: token 'b' is string, want an integer"},
      {"\"id\": 9", "\"id\": 1e3", "added_tokens"},
  };
  for (const auto& c : cases) {
    const std::string message = load_error(replaced(kByteLevel, c.from, c.to));
    EXPECT_NE(message.find(c.message), message.npos) << message << "\nwant: " << c.message;
  }
  EXPECT_EQ(load_error("[]").find("/t.json"), 0u);
}

TEST(TokenizerJson, DamagedFilesAreErrorsNotCrashes) {
  int num_loaded = 0;
  for (const std::string seed : {kByteLevel, kSentencePiece}) {
    for (uint64_t i = 0; i < 3000; ++i) {
      try {
        const auto tokenizer = load(test::mutated(seed, i));
        const Ids ids = tokenizer->encode_prompt("a ab <tool> \u00E9\u4E00</s>");
        for (const int32_t id : ids) ASSERT_LT(id, tokenizer->vocab_size());
        tokenizer->decode(ids);
        ++num_loaded;
      } catch (const Error& error) {
        ASSERT_EQ(error.kind(), ErrorKind::kData) << error.what();
        ASSERT_EQ(std::string(error.what()).find("/t.json"), 0u) << error.what();
      }
    }
  }
  EXPECT_GT(num_loaded, 100);
}

}  // namespace
}  // namespace amoeba::formats
