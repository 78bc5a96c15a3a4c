// Text from a trained model, one token at a time with cached keys and values.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "amoeba/model.h"
#include "formats/tokenizer.h"

namespace amoeba::train {

struct GenerateOptions {
  int64_t num_tokens = 200;
  double temperature = 0.8;  // 0: always the likeliest token
  uint64_t seed = 1;
  int64_t context = 0;  // tokens the model was trained to look back; required
  std::function<void(std::string_view piece)> on_text;  // each piece as it comes; may be empty
  std::function<bool()> stop;                           // may be empty
};

struct Generated {
  std::string text;  // without the prompt
  int64_t num_tokens = 0;
};

// Equal arguments give equal text on one machine. Ends early at the end-of-document token. When the
// context is full, the later half of it is kept and read again. Error(kUsage) for an empty prompt.
Generated generate(nn::Model& model, const formats::Tokenizer& tokenizer, std::string_view prompt,
                   const GenerateOptions& options);

}  // namespace amoeba::train
