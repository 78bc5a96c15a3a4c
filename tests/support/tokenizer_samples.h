// Two small tokenizer.json: the kinds that Amoeba reads.
#pragma once

namespace amoeba::test {

// Ids of the letters are a: 0, b: 1, c: 2, space: 3, e9's bytes: 4 and 5.
inline constexpr const char* kByteLevel = R"({
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

inline constexpr const char* kSentencePiece = R"({
 "added_tokens": [{"id": 0, "content": "<unk>", "special": true},
                  {"id": 1, "content": "<s>", "special": true},
                  {"id": 2, "content": "</s>", "special": true}],
 "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
   {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
 "pre_tokenizer": null,
 "post_processor": null,
 "decoder": {"type": "Sequence", "decoders": [
   {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
   {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
 "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
  "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<0xC3>": 3, "<0xA9>": 4, "▁": 5, "a": 6, "▁a": 7},
  "merges": ["▁ a"]}})";

}  // namespace amoeba::test
