// A tokenizer.json, then a text through it.
#include "amoeba/error.h"
#include "formats/tokenizer_json.h"
#include "fuzz/target.h"
#include "support/tokenizer_samples.h"

namespace amoeba::fuzz {

namespace {

std::unique_ptr<formats::Tokenizer> load(std::string_view data) {
  InputFiles files({{"/t.json", data}});
  return formats::load_tokenizer_json(files, "/t.json");
}

void read(std::string_view data) { load(data)->encode("ab  abc"); }

bool run(std::string_view data) {
  std::unique_ptr<formats::Tokenizer> tokenizer;
  std::vector<int32_t> ids;
  const std::string text = "ab  abc é cab\n<tool>a<|endoftext|> \xff a<s>";
  try {
    tokenizer = load(data);
    ids = tokenizer->encode(text);
  } catch (const Error&) {  // a regular expression may give up on a text
    return false;
  }
  expect_same(tokenizer->encode(text) == ids, "the second encoding");
  for (const int32_t id : ids) {
    expect_same(id >= 0 && id < tokenizer->vocab_size(), "the range of an id");
    tokenizer->token_text(id);
  }
  const std::string decoded = tokenizer->decode(ids);
  expect_same(tokenizer->decode(ids) == decoded, "the second decoding");
  expect_same(tokenizer->end_of_document() < tokenizer->vocab_size(), "the range of an id");
  tokenizer->encode_prompt(text);
  return true;
}

std::vector<std::string> seeds() { return {test::kByteLevel, test::kSentencePiece}; }

}  // namespace

extern const Target kTokenizer{"tokenizer", run, read, seeds};

}  // namespace amoeba::fuzz
