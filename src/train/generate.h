// Text from a trained model, one token at a time with cached keys and values.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "amoeba/model.h"
#include "formats/tokenizer.h"
#include "train/plain/sampler.h"

namespace amoeba::train {

struct GenerateOptions {
  int64_t num_tokens = 200;
  SamplingOptions sampling;
  uint64_t seed = 1;
  int64_t context = 0;  // tokens the model was trained to look back; required
  std::vector<std::string> stop_strings;
  int64_t batch_size = 16;  // prompts at once
  // Text of a prompt as it comes, valid UTF-8; may be empty.
  std::function<void(int64_t prompt, std::string_view text)> on_text;
  std::function<bool()> stop;  // may be empty
};

enum class EndReason { kNumTokens, kEndOfDocument, kStopString, kInterrupted };

// "num_tokens", "end_of_document", "stop_string" or "interrupted".
std::string_view name_of(EndReason reason);

struct Generated {
  std::string text;  // without the prompt and the stop string; valid UTF-8
  int64_t num_tokens = 0;
  EndReason reason = EndReason::kInterrupted;
  std::string stop_string;  // the one that ended it
};

// What reading and writing took.
struct GenerateTimes {
  int64_t read_tokens = 0;  // prompts, and what is read again
  double read_seconds = 0;
  int64_t decoded_tokens = 0;  // each from the one before it
  double decode_seconds = 0;
};

// Continues each prompt on its own; equal arguments give equal text on one machine. A text ends
// after num_tokens, at the end-of-document token or at a stop string. When the context is full, the
// later half of it is kept and read again. Prompts share the steps of decoding, where products over
// several tokens may round otherwise than those over one: but for that each text is the one that
// its prompt gives alone. Error(kUsage) for an empty prompt.
std::vector<Generated> generate_all(nn::Model& model, const formats::Tokenizer& tokenizer,
                                    const std::vector<std::string>& prompts,
                                    const GenerateOptions& options, GenerateTimes& times);

Generated generate(nn::Model& model, const formats::Tokenizer& tokenizer, std::string_view prompt,
                   const GenerateOptions& options);

// A text that grows by turns: what someone says and what the model answers.
class Conversation {
 public:
  // The model and the tokenizer must outlive it.
  Conversation(nn::Model& model, const formats::Tokenizer& tokenizer,
               const GenerateOptions& options);
  ~Conversation();

  // Appends `text` to what was said and continues it. Error(kUsage) when it is empty.
  Generated reply(std::string_view text);

  const GenerateTimes& times() const;
  int64_t times_shortened() const;  // how often the context was full

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace amoeba::train
