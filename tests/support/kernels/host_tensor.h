// A typed, strided tensor in host memory whose every byte that no element owns is a guard.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "amoeba/kernels.h"

namespace amoeba::test {

// `value` as the nearest value of the dtype.
double round_to(kernels::DType dtype, double value);
// Distance to the next larger value of the dtype at |value|; 0 for 0.
double ulp_of(kernels::DType dtype, double value);

class HostTensor {
 public:
  HostTensor() = default;
  // Filled with NaN (-1 for integers). `row_padding`: elements between the rows of the last
  // dimension.
  HostTensor(kernels::DType dtype, std::array<int64_t, 3> size, int rank, int64_t row_padding = 0);

  bool is_given() const { return rank_ > 0; }
  kernels::DType dtype() const { return dtype_; }
  int64_t num_elements() const { return size_[0] * size_[1] * size_[2]; }

  // Points to `placed` when that is set: the same bytes on a device.
  kernels::View view();
  template <typename T>
  T* data() {
    return static_cast<T*>(view().data);
  }

  double get(int64_t i, int64_t j = 0, int64_t k = 0) const;
  void set(double value, int64_t i, int64_t j = 0, int64_t k = 0);

  // "" or where a byte that belongs to no element has changed.
  std::string broken_guard() const;

  std::vector<char> bytes;  // guards before, after and between the rows
  void* placed = nullptr;   // where the device keeps `bytes`

 private:
  int64_t position(int64_t i, int64_t j, int64_t k) const;

  kernels::DType dtype_ = kernels::DType::kF32;
  int rank_ = 0;
  std::array<int64_t, 3> size_ = {0, 0, 0};
  std::array<int64_t, 3> stride_ = {0, 0, 0};
};

// `size` bytes of NaN between guards, aligned to 256 bytes.
class GuardedMemory {
 public:
  explicit GuardedMemory(int64_t size);
  void* data() { return bytes_.data() + begin_; }
  bool is_intact() const;

 private:
  std::vector<char> bytes_;
  int64_t size_, begin_;
};

}  // namespace amoeba::test
