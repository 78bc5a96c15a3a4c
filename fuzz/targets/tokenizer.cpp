// A tokenizer.json, then a text through it.
#include "amoeba/error.h"
#include "formats/tokenizer_json.h"
#include "fuzz/target.h"

namespace amoeba::fuzz {

namespace {

constexpr const char* kByteLevel = R"({
 "added_tokens": [
  {"id": 8, "content": "<|endoftext|>", "special": true, "normalized": false},
  {"id": 9, "content": "<tool>", "special": false, "normalized": false, "lstrip": true}],
 "normalizer": {"type": "NFC"},
 "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
  {"type": "Split", "pattern": {"Regex": " ?\\p{L}+"}, "behavior": "Isolated", "invert": false},
  {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]},
 "post_processor": {"type": "TemplateProcessing",
  "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
  "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [8], "tokens": ["x"]}}},
 "decoder": {"type": "ByteLevel"},
 "model": {"type": "BPE", "dropout": null, "unk_token": null,
  "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "Ã": 4, "©": 5, "ab": 6, "Ġab": 7},
  "merges": ["a b", ["Ġ", "ab"]]}})";

constexpr const char* kSentencePiece = R"({
 "added_tokens": [{"id": 0, "content": "<unk>", "special": true},
                  {"id": 1, "content": "<s>", "special": true},
                  {"id": 2, "content": "</s>", "special": true}],
 "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
   {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
 "pre_tokenizer": null, "post_processor": null,
 "decoder": {"type": "Sequence", "decoders": [
   {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
   {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
 "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
  "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<0xC3>": 3, "<0xA9>": 4, "▁": 5, "a": 6, "▁a": 7},
  "merges": ["▁ a"]}})";

bool run(const std::string& data) {
  test::MemoryFileSystem files;
  put(files, "/t.json", data);
  std::unique_ptr<formats::Tokenizer> tokenizer;
  std::vector<int32_t> ids;
  const std::string text = "ab  abc é cab\n<tool>a<|endoftext|> \xff a<s>";
  try {
    tokenizer = formats::load_tokenizer_json(files, "/t.json");
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

std::vector<std::string> seeds() { return {kByteLevel, kSentencePiece}; }

}  // namespace

extern const Target kTokenizer{"tokenizer", run, seeds};

}  // namespace amoeba::fuzz
