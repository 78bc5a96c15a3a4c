// One forward and backward of the model in a Hugging Face folder, for comparison with transformers:
// hf_oracle FOLDER INPUT.safetensors OUTPUT.safetensors [--section.key value]...
//
// INPUT holds `tokens` and `targets` [B, S] int64. OUTPUT gets `logits` [T, V], `loss` (the mean
// over valid targets) and `gradient.NAME` by the names and in the layouts of the folder.
#include <ATen/ops/from_blob.h>

#include <iostream>

#include "amoeba/error.h"
#include "amoeba/model.h"
#include "formats/hf_folder.h"
#include "nn_oracle/run_model.h"
#include "train/device.h"
#include "train/hugging_face.h"
#include "train/model_config.h"
#include "train/plain/config_layers.h"
#include "train/start_weights.h"

namespace amoeba::test {
namespace {

at::Tensor find(const formats::SafetensorsFile& file, const std::string& name) {
  for (const formats::TensorEntry& entry : file.tensors) {
    if (entry.name != name) continue;
    return at::from_blob(const_cast<std::byte*>(entry.data.data()), entry.shape,
                         at::TensorOptions(at::kLong));
  }
  fail(ErrorKind::kUsage, cat("hf_oracle: got no tensor ", name, ", want one"));
}

void run(const std::vector<std::string>& arguments) {
  PosixFileSystem files;
  const std::string& folder = arguments[0];
  auto overrides = formats::parse_overrides({arguments.begin() + 3, arguments.end()});
  overrides.emplace_back("model.from", folder);
  overrides.emplace_back("data.tokenizer", "bytes");
  train::RunConfig config = train::load_config(files, {}, overrides)->config;
  config.training.seq_len = config.model.rope_max_seq_len;
  train::check_config(config);
  nn::Model model(train::make_model_config(config, /*tokenizer_vocab_size=*/0), at::kCPU,
                  train::resolve_dtype(config.training.dtype), /*seed=*/1);
  train::load_start_weights(files, config, model, [](LogLevel, std::string_view) {});

  const formats::SafetensorsFile inputs = formats::read_safetensors(files, arguments[1]);
  const OracleRun out = run_model(model, find(inputs, "tokens"), find(inputs, "targets"));

  std::vector<train::NamedTensor> results = {{"logits", out.logits}, {"loss", out.loss}};
  std::vector<train::NamedTensor> gradients;
  for (const auto& parameter : model.store().parameters()) {
    gradients.push_back({parameter->name, parameter->grad});
  }
  const train::HfFamily family =
      config.model.upcycle != "none"
          ? train::fitting_family(config)
          : train::read_hf_config(formats::read_hf_config_json(files, folder), folder).family;
  for (const train::HfTensor& tensor : train::hf_tensors(family, model.config(), gradients)) {
    results.push_back({"gradient." + tensor.name, tensor.ours.reshape(tensor.shape)});
  }
  std::vector<at::Tensor> storage;
  formats::write_safetensors(files, arguments[2], train::to_entries(results, storage, false), {});
}

}  // namespace
}  // namespace amoeba::test

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: hf_oracle FOLDER INPUT.safetensors OUTPUT.safetensors [--key value]...\n";
    return 2;
  }
  try {
    amoeba::test::run({argv + 1, argv + argc});
  } catch (const amoeba::Error& error) {
    std::cerr << error.what() << "\n";
    return 3;
  }
  return 0;
}
