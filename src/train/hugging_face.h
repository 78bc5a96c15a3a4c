// Our parameters under the names and in the layouts of a Hugging Face family, both ways.
//
// Experts lie one by one on disk and stacked here. Heads of grouped-query attention rotate halves
// (i, i + hd/2) there and neighbouring pairs (2i, 2i + 1) here, so rows of q, k and their norms
// differ in order; latent attention keeps pairs on both sides.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "amoeba/model.h"
#include "base/file_system.h"
#include "formats/safetensors.h"
#include "train/plain/hf_config.h"
#include "train/state.h"

namespace amoeba::train {

struct HfTensor {
  std::string name;            // theirs
  std::vector<int64_t> shape;  // theirs
  at::Tensor ours;             // a view whose elements in order are those of the tensor on disk
  bool keep_fp32 = false;      // the selection bias: too fine for 16 bits
};

// `tensors`: masters or gradients by our names, and `expert_bias` [M, E], which families without a
// selection bias leave out. Every tensor of the family's checkpoint, in our order.
std::vector<HfTensor> hf_tensors(HfFamily family, const nn::ModelConfig& config,
                                 const std::vector<NamedTensor>& tensors);

// Fills `tensors` from the folder's weights, one after the other straight from the mapped files;
// blocks of fp8 are multiplied by their scales. Error(kData) naming the tensor: one is missing or
// not part of the model, or has another dtype or shape.
void load_hf_weights(FileSystem& files, const std::string& folder, const HfConfig& config,
                     const std::vector<HfTensor>& tensors, int64_t num_layers);

}  // namespace amoeba::train
