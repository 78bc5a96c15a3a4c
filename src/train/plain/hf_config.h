// Between config.json of a Hugging Face folder and the settings of model.* and moe.*.
//
// A key of config.json that changes the mathematics and that this engine cannot express is an error
// which names key and value; so is a key that no table here knows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "amoeba/error.h"
#include "formats/value.h"
#include "train/plain/run_config.h"

namespace amoeba::train {

// Model families by their model_type. The last two are the origin's own layouts: latent attention
// under DeepSeek's tensor names whatever the router, and grouped-query attention with a selection
// bias and shared experts.
enum class HfFamily {
  kMixtral,
  kOlmoe,
  kQwen3Moe,
  kDeepseekV2,
  kDeepseekV3,
  kLlama,
  kQwen3,
  kOriginLatent,
  kOriginGrouped,
};

std::string_view model_type(HfFamily family);
// An Error of `kind` with the names that there are, about `what`.
HfFamily family_of(std::string_view model_type, std::string_view what, ErrorKind kind);

struct HfSetting {
  std::string key;   // of config.json: "num_hidden_layers"
  std::string path;  // ours: "model.num_layers"
  formats::Value value;
};

struct HfConfig {
  HfFamily family = HfFamily::kMixtral;
  std::vector<HfSetting> settings;  // what the model is: nothing else is legal
  std::vector<HfSetting> defaults;  // what training takes unless told otherwise
  int64_t num_extra_layers = 0;     // multi-token prediction, behind the model's own layers
  bool fp8 = false;                 // some weights in blocks of 128 x 128 with a scale each
};

// `config`: of read_hf_config_json, `path` names it in errors, which are Error(kData).
HfConfig read_hf_config(const formats::Value& config, const std::string& path);

// The family whose structure `config` has.
HfFamily fitting_family(const RunConfig& config);
HfFamily fitting_origin_family(const RunConfig& config);

struct HfExport {
  HfFamily family = HfFamily::kMixtral;
  int64_t vocab_size = 0;
  std::string dtype;         // "float32", "bfloat16" or "float16"
  int64_t end_of_text = -1;  // id; -1: none
};

// config.json of a model of that family. Error(kUsage) naming the first setting that the family
// cannot express.
formats::Value write_hf_config(const RunConfig& config, const HfExport& options);

}  // namespace amoeba::train
