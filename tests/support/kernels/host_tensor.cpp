#include "support/kernels/host_tensor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "amoeba/error.h"
#include "kernels/numbers.h"
#include "kernels/problem.h"

namespace amoeba::test {
namespace {

using kernels::DType;

constexpr int64_t kGuardBytes = 256;
constexpr char kFill = static_cast<char>(0xff);  // NaN in every floating dtype, -1 in integers

bool is_filled(const char* begin, const char* end) {
  return std::all_of(begin, end, [](char byte) { return byte == kFill; });
}

}  // namespace

double round_to(DType dtype, double value) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<float>(value);
    case DType::kF16:
      return static_cast<double>(static_cast<kernels::Half>(value));
    case DType::kBF16:
      return static_cast<float>(kernels::BFloat16(static_cast<float>(value)));
    default:
      return value;
  }
}

double ulp_of(DType dtype, double value) {
  if (value == 0) return 0;
  const int digits = dtype == DType::kF64   ? 52
                     : dtype == DType::kF32 ? 23
                     : dtype == DType::kF16 ? 10
                                            : 7;
  const int smallest = dtype == DType::kF64 ? -1074 : dtype == DType::kF16 ? -24 : -133;
  return std::max(std::exp2(std::floor(std::log2(std::fabs(value))) - digits),
                  std::ldexp(1.0, dtype == DType::kF32 ? -149 : smallest));
}

HostTensor::HostTensor(DType dtype, std::array<int64_t, 3> size, int rank, int64_t row_padding)
    : dtype_(dtype), rank_(rank), size_(size) {
  for (int i = rank; i < 3; ++i) size_[static_cast<size_t>(i)] = 1;
  int64_t stride = 1;
  for (int i = rank - 1; i >= 0; --i) {
    stride_[static_cast<size_t>(i)] = stride;
    stride *= size_[static_cast<size_t>(i)] + (i == rank - 1 ? row_padding : 0);
  }
  bytes.assign(static_cast<size_t>(stride * kernels::bytes_of(dtype) + 2 * kGuardBytes), kFill);
}

kernels::View HostTensor::view() {
  kernels::View view;
  if (!is_given()) return view;
  view.data = placed != nullptr ? placed : bytes.data() + kGuardBytes;
  view.dtype = dtype_;
  for (size_t i = 0; i < 3; ++i) {
    view.size[i] = size_[i];
    view.stride[i] = stride_[i];
  }
  return view;
}

int64_t HostTensor::position(int64_t i, int64_t j, int64_t k) const {
  return kGuardBytes +
         (i * stride_[0] + j * stride_[1] + k * stride_[2]) * kernels::bytes_of(dtype_);
}

double HostTensor::get(int64_t i, int64_t j, int64_t k) const {
  const char* at = bytes.data() + position(i, j, k);
  const auto load = [&]<typename T>(T value) {
    std::memcpy(&value, at, sizeof value);
    return value;
  };
  switch (dtype_) {
    case DType::kF64:
      return load(double{});
    case DType::kF32:
      return load(float{});
    case DType::kF16:
      return static_cast<double>(load(kernels::Half{}));
    case DType::kBF16:
      return static_cast<float>(load(kernels::BFloat16{}));
    case DType::kI32:
      return load(int32_t{});
    case DType::kI64:
      return static_cast<double>(load(int64_t{}));
  }
  fail(ErrorKind::kInternal, "HostTensor: unknown dtype");
}

void HostTensor::set(double value, int64_t i, int64_t j, int64_t k) {
  char* at = bytes.data() + position(i, j, k);
  const auto store = [&](auto typed) { std::memcpy(at, &typed, sizeof typed); };
  switch (dtype_) {
    case DType::kF64:
      return store(value);
    case DType::kF32:
      return store(static_cast<float>(value));
    case DType::kF16:
      return store(static_cast<kernels::Half>(value));
    case DType::kBF16:
      return store(kernels::BFloat16(static_cast<float>(value)));
    case DType::kI32:
      return store(static_cast<int32_t>(value));
    case DType::kI64:
      return store(static_cast<int64_t>(value));
  }
}

std::string HostTensor::broken_guard() const {
  if (!is_given()) return "";
  const int64_t row_bytes = size_[static_cast<size_t>(rank_) - 1] * kernels::bytes_of(dtype_);
  std::vector<int64_t> row_begins;
  const int64_t rows_i = rank_ > 1 ? size_[0] : 1, rows_j = rank_ > 2 ? size_[1] : 1;
  for (int64_t i = 0; i < rows_i; ++i) {
    for (int64_t j = 0; j < rows_j; ++j) row_begins.push_back(position(i, j, 0));
  }
  int64_t end = 0;  // of the row before
  row_begins.push_back(static_cast<int64_t>(bytes.size()));
  for (const int64_t begin : row_begins) {
    if (!is_filled(bytes.data() + end, bytes.data() + begin)) {
      return cat("written between bytes ", end, " and ", begin, " of ", bytes.size());
    }
    end = begin + row_bytes;
  }
  return "";
}

GuardedMemory::GuardedMemory(int64_t size)
    : bytes_(static_cast<size_t>(size + 3 * kGuardBytes), kFill), size_(size) {
  const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
  begin_ = kGuardBytes + static_cast<int64_t>((256 - address % 256) % 256);
}

bool GuardedMemory::is_intact() const {
  const char* begin = bytes_.data() + begin_;
  return is_filled(bytes_.data(), begin) && is_filled(begin + size_, bytes_.data() + bytes_.size());
}

}  // namespace amoeba::test
