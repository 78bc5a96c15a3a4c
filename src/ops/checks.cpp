#include "ops/checks.h"

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>

#include "amoeba/error.h"
#include "ops/host_memory.h"

namespace amoeba::ops {
namespace {

using kernels::DType;
using torch::headeronly::ScalarType;

struct DTypeName {
  DType dtype;
  ScalarType scalar_type;
  const char* name;
  int64_t bytes;
};

constexpr DTypeName kDTypes[] = {
    {DType::kF64, ScalarType::Double, "float64", 8},
    {DType::kF32, ScalarType::Float, "float32", 4},
    {DType::kF16, ScalarType::Half, "float16", 2},
    {DType::kBF16, ScalarType::BFloat16, "bfloat16", 2},
    {DType::kI32, ScalarType::Int, "int32", 4},
    {DType::kI64, ScalarType::Long, "int64", 8},
};

const DTypeName* find_dtype(ScalarType scalar_type) {
  for (const DTypeName& entry : kDTypes)
    if (entry.scalar_type == scalar_type) return &entry;
  return nullptr;
}

const DTypeName& entry_of(DType dtype) {
  for (const DTypeName& entry : kDTypes)
    if (entry.dtype == dtype) return entry;
  fail(ErrorKind::kInternal, "dtype without a name");
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (int64_t size : shape) {
    if (text.size() > 1) text += ", ";
    text += size == kAny ? "*" : std::to_string(size);
  }
  return text + "]";
}

std::string device_text(const Tensor& tensor) {
  const torch::stable::Device device = tensor.device();
  if (device.is_cpu()) return "cpu";
  const std::string index = std::to_string(device.index());
  return device.is_cuda() ? "cuda:" + index : "device " + index;
}

std::string dtype_text(ScalarType scalar_type) {
  if (scalar_type == ScalarType::Byte) return "uint8";
  const DTypeName* entry = find_dtype(scalar_type);
  return entry ? entry->name : cat("dtype ", static_cast<int>(scalar_type));
}

std::string describe(const Tensor& tensor) {
  return cat(dtype_text(tensor.scalar_type()), " ", shape_text(shape_of(tensor)), " on ",
             device_text(tensor));
}

std::string describe(const Want& want, const Tensor& like) {
  std::string dtypes;
  for (DType dtype : want.dtypes) {
    if (!dtypes.empty()) dtypes += " or ";
    dtypes += entry_of(dtype).name;
  }
  return cat(dtypes, " ", shape_text(want.shape), " on ", device_text(like));
}

bool shape_fits(const Tensor& tensor, const std::vector<int64_t>& want) {
  const auto sizes = tensor.sizes();
  return std::equal(sizes.begin(), sizes.end(), want.begin(), want.end(),
                    [](int64_t got, int64_t size) { return size == kAny || got == size; });
}

}  // namespace

void check_tensor(const char* operation, const std::string& name, const Tensor& tensor,
                  const Want& want, const Tensor& like) {
  const DTypeName* got = find_dtype(tensor.scalar_type());
  const bool dtype_fits =
      got != nullptr && std::count(want.dtypes.begin(), want.dtypes.end(), got->dtype) > 0;
  AMOEBA_CHECK(dtype_fits && shape_fits(tensor, want.shape) && tensor.device() == like.device(),
               operation, ": ", name, " is ", describe(tensor), ", want ", describe(want, like));
}

void check_bytes(const char* operation, const std::string& name, const Tensor& tensor,
                 int64_t count, const Tensor& like) {
  AMOEBA_CHECK(tensor.scalar_type() == ScalarType::Byte && tensor.dim() == 1 &&
                   tensor.numel() == count && tensor.device() == like.device(),
               operation, ": ", name, " is ", describe(tensor), ", want uint8 [", count, "] on ",
               device_text(like));
  check_contiguous(operation, name, tensor);
}

void check_contiguous(const char* operation, const std::string& name, const Tensor& tensor) {
  AMOEBA_CHECK(tensor.is_contiguous(), operation, ": ", name, " has strides ",
               shape_text({tensor.strides().begin(), tensor.strides().end()}),
               ", want contiguous memory");
}

void check_no_overlap(const char* operation, const std::string& name, const Tensor& tensor) {
  // Sorted by stride, every dimension must step over all that the smaller ones cover.
  std::vector<std::pair<int64_t, int64_t>> dimensions;
  for (int64_t i = 0; i < tensor.dim(); ++i)
    if (tensor.sizes()[i] > 1) dimensions.emplace_back(tensor.strides()[i], tensor.sizes()[i]);
  std::sort(dimensions.begin(), dimensions.end());
  int64_t covered = 1;
  for (const auto& [stride, size] : dimensions) {
    AMOEBA_CHECK(tensor.numel() == 0 || stride >= covered, operation, ": ", name, " has strides ",
                 shape_text({tensor.strides().begin(), tensor.strides().end()}),
                 ", want elements that do not overlap");
    covered = stride * (size - 1) + covered;
  }
}

DType dtype_of(const char* operation, const std::string& name, const Tensor& tensor) {
  const DTypeName* entry = find_dtype(tensor.scalar_type());
  AMOEBA_CHECK(entry != nullptr, operation, ": ", name, " is ", describe(tensor),
               ", want a dtype of ", kDTypes[0].name, ", ", kDTypes[1].name, ", ", kDTypes[2].name,
               ", ", kDTypes[3].name);
  return entry->dtype;
}

int64_t bytes_of(DType dtype) { return entry_of(dtype).bytes; }

kernels::View view_of(const Tensor& tensor, DType dtype) {
  AMOEBA_ASSERT(tensor.dim() <= 3);
  kernels::View view;
  view.data = tensor.data_ptr();
  view.dtype = dtype;
  std::copy(tensor.sizes().begin(), tensor.sizes().end(), view.size);
  std::copy(tensor.strides().begin(), tensor.strides().end(), view.stride);
  return view;
}

namespace {

// On the host and large: its memory goes back to ops/host_memory.h; nothing where there is none.
std::optional<Tensor> new_large(const std::vector<int64_t>& shape, ScalarType type, int64_t bytes) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0; stride *= shape[i]) strides[i] = stride;
  void* data = take_host_memory(bytes);
  if (data == nullptr) return std::nullopt;
  return torch::stable::from_blob(data, shape, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), type,
                                  give_back_host_memory);
}

// The stable ABI of torch 2.11 says only that a call failed. Sizes are checked: what is left is
// memory.
Tensor new_memory(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type,
                  int64_t element_bytes) {
  int64_t bytes = element_bytes;
  for (const int64_t size : shape) bytes *= size;
  std::optional<Tensor> tensor;
  if (like.is_cpu() && bytes >= kLargeResult) {
    tensor = new_large(shape, type, bytes);
  } else {
    try {
      tensor = torch::stable::new_empty(like, shape, type);
    } catch (const std::exception&) {
    }
  }
  if (tensor) return *tensor;
  fail(ErrorKind::kUsage, cat("experts: can't allocate memory: you tried to allocate ", bytes,
                              " bytes; out of memory"));
}

}  // namespace

Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, DType dtype) {
  return new_memory(like, shape, entry_of(dtype).scalar_type, bytes_of(dtype));
}

Tensor new_bytes(const Tensor& like, int64_t count) {
  return new_memory(like, {count}, ScalarType::Byte, 1);
}

std::vector<int64_t> shape_of(const Tensor& tensor) {
  return {tensor.sizes().begin(), tensor.sizes().end()};
}

}  // namespace amoeba::ops
