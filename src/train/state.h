// Model and optimizer to the entries of a checkpoint and back, bit for bit.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "amoeba/model.h"
#include "formats/safetensors.h"

namespace amoeba::train {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

// "[3, 4]", for messages.
std::string shape_text(at::IntArrayRef shape);

// Masters by parameter name and the balance bias as `expert_bias` [L, E].
std::vector<NamedTensor> weight_tensors(nn::Model& model);
// `<parameter>.exp_avg` and `<parameter>.exp_avg_sq`.
std::vector<NamedTensor> optimizer_tensors(nn::Model& model);

// Entries over the tensors' bytes; `storage` keeps copies of what is not contiguous on the CPU.
std::vector<formats::TensorEntry> to_entries(const std::vector<NamedTensor>& tensors,
                                             std::vector<at::Tensor>& storage);

// Copies entries into tensors of the same names. Error(kData) for a missing or unknown name, or a
// dtype or shape that differs, naming the tensor and `source`.
void load_entries(const std::vector<formats::TensorEntry>& entries,
                  const std::vector<NamedTensor>& tensors, const std::string& source);

}  // namespace amoeba::train
