// From the configuration's words to the model's.
#pragma once

#include "amoeba/model.h"
#include "train/plain/run_config.h"

namespace amoeba::train {

// `tokenizer_vocab_size`: smallest legal vocabulary. Error(kUsage) when model.vocab_size is
// smaller.
nn::ModelConfig make_model_config(const RunConfig& config, int64_t tokenizer_vocab_size);

}  // namespace amoeba::train
