#include "train/state.h"

#include <ATen/ops/from_blob.h>

#include <unordered_map>

#include "amoeba/error.h"

namespace amoeba::train {

std::string shape_text(at::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

std::vector<NamedTensor> weight_tensors(nn::Model& model) {
  std::vector<NamedTensor> tensors;
  for (const auto& parameter : model.store().parameters()) {
    tensors.push_back({parameter->name, parameter->master.detach()});
  }
  tensors.push_back({"expert_bias", model.expert_bias()});
  return tensors;
}

std::vector<NamedTensor> optimizer_tensors(nn::Model& model) {
  std::vector<NamedTensor> tensors;
  for (const auto& parameter : model.store().parameters()) {
    tensors.push_back({parameter->name + ".exp_avg", model.store().exp_avg(*parameter)});
    tensors.push_back({parameter->name + ".exp_avg_sq", model.store().exp_avg_sq(*parameter)});
  }
  return tensors;
}

std::vector<formats::TensorEntry> to_entries(const std::vector<NamedTensor>& tensors,
                                             std::vector<at::Tensor>& storage) {
  std::vector<formats::TensorEntry> entries;
  for (const NamedTensor& named : tensors) {
    AMOEBA_ASSERT(named.tensor.scalar_type() == at::kFloat);
    const at::Tensor host = named.tensor.to(at::kCPU).contiguous();
    storage.push_back(host);
    entries.push_back({named.name, "F32", host.sizes().vec(),
                       std::as_bytes(std::span(host.const_data_ptr<float>(),
                                               static_cast<size_t>(host.numel())))});
  }
  return entries;
}

void load_entries(const std::vector<formats::TensorEntry>& entries,
                  const std::vector<NamedTensor>& tensors, const std::string& source) {
  std::unordered_map<std::string, const formats::TensorEntry*> by_name;
  for (const formats::TensorEntry& entry : entries) by_name[entry.name] = &entry;
  for (const NamedTensor& named : tensors) {
    const auto found = by_name.find(named.name);
    AMOEBA_CHECK_KIND(kData, found != by_name.end(), source, ": tensor '", named.name,
                      "' is missing; was the checkpoint made with another model configuration?");
    const formats::TensorEntry& entry = *found->second;
    AMOEBA_CHECK_KIND(kData, entry.dtype == "F32" && named.tensor.sizes() == entry.shape, source,
                      ": tensor '", named.name, "' is ", entry.dtype, " ", shape_text(entry.shape),
                      ", want F32 ", shape_text(named.tensor.sizes()),
                      "; was the checkpoint made with another model configuration?");
    const at::Tensor view = at::from_blob(const_cast<std::byte*>(entry.data.data()), entry.shape,
                                          at::TensorOptions(at::kFloat));
    at::Tensor(named.tensor).copy_(view);
    by_name.erase(found);
  }
  AMOEBA_CHECK_KIND(kData, by_name.empty(), source, ": tensor '", by_name.begin()->first,
                    "' is not part of this model; was the checkpoint made with another model "
                    "configuration?");
}

}  // namespace amoeba::train
