// Tokenizers in the `tokenizer.json` format of Hugging Face's `tokenizers` (0.23): byte-level BPE
// (DeepSeek-V2/V3, Qwen3, OLMoE and other GPT-2 heirs) and SentencePiece-style BPE with byte
// fallback (Llama, Mixtral).
//
// Understood: normalizers Sequence, NFC, Lowercase, Prepend, Replace; pre-tokenizers Sequence,
// Split with every behaviour, Digits, Metaspace, ByteLevel (last); decoders ByteLevel, Metaspace,
// and Sequence of Replace, ByteFallback, Fuse, Strip at the start; post-processors ByteLevel,
// TemplateProcessing and Sequence of them, of which only the tokens before the text are taken.
// Truncation, padding and chat templates are left alone. Text that is not UTF-8 is encoded as if
// each maximal ill-formed part were U+FFFD.
#pragma once

#include <memory>
#include <string>

#include "formats/tokenizer.h"

namespace amoeba::formats {

// End of document: the `eos_token` of tokenizer_config.json beside the file, else the first special
// token with a usual name (<|endoftext|>, </s>, ...). Error(kData) naming the file for anything
// that is not understood, contradicts itself, or has no such token.
std::unique_ptr<Tokenizer> load_tokenizer_json(FileSystem& files, const std::string& path);

}  // namespace amoeba::formats
