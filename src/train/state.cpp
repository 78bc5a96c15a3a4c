#include "train/state.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <unordered_map>

#include "amoeba/error.h"
#include "train/float_types.h"

namespace amoeba::train {

std::string shape_text(at::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

namespace {

std::string stored_name(at::ScalarType scalar_type) {
  const FloatType* type = find_float_type(&FloatType::type, scalar_type);
  AMOEBA_ASSERT(type != nullptr);
  return std::string(type->stored);
}

}  // namespace

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
                                             std::vector<at::Tensor>& storage, bool copy) {
  storage.resize(tensors.size());
  std::vector<formats::TensorEntry> entries;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& tensor = tensors[i].tensor;
    if (copy || !tensor.is_cpu() || !tensor.is_contiguous()) {
      at::Tensor& kept = storage[i];
      const bool fits = kept.defined() && kept.sizes() == tensor.sizes() &&
                        kept.scalar_type() == tensor.scalar_type() && !kept.is_alias_of(tensor);
      if (!fits) kept = at::empty(tensor.sizes(), tensor.options().device(at::kCPU));
      kept.copy_(tensor);
    } else {
      storage[i] = tensor;
    }
    entries.push_back(
        {tensors[i].name,
         stored_name(tensor.scalar_type()),
         tensor.sizes().vec(),
         {static_cast<const std::byte*>(storage[i].const_data_ptr()), storage[i].nbytes()}});
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
    const FloatType* type = find_float_type(&FloatType::stored, entry.dtype);
    AMOEBA_CHECK_KIND(kData, type != nullptr && named.tensor.sizes() == entry.shape, source,
                      ": tensor '", named.name, "' is ", entry.dtype, " ", shape_text(entry.shape),
                      ", want F32 ", shape_text(named.tensor.sizes()),
                      "; was the checkpoint made with another model configuration?");
    const at::Tensor view = at::from_blob(const_cast<std::byte*>(entry.data.data()), entry.shape,
                                          at::TensorOptions(type->type));
    at::Tensor(named.tensor).copy_(view);
    by_name.erase(found);
  }
  AMOEBA_CHECK_KIND(kData, by_name.empty(), source, ": tensor '", by_name.begin()->first,
                    "' is not part of this model; was the checkpoint made with another model "
                    "configuration?");
}

}  // namespace amoeba::train
