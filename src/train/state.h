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

// Entries over the tensors' bytes in host memory. `storage` holds what they point into: the tensors
// themselves, and copies of what is elsewhere, is not contiguous or, with `copy`, of all. Copies go
// into the tensors that an earlier call left in `storage` where they fit.
std::vector<formats::TensorEntry> to_entries(const std::vector<NamedTensor>& tensors,
                                             std::vector<at::Tensor>& storage, bool copy);

// Copies entries into tensors of the same names. Error(kData) for a missing or unknown name, a type
// that is no float of 16 or 32 bits, or a shape that differs, naming the tensor and `source`.
void load_entries(const std::vector<formats::TensorEntry>& entries,
                  const std::vector<NamedTensor>& tensors, const std::string& source);

}  // namespace amoeba::train
