// Bytes of tensors alive, counted at the allocator: exact, and blind to everything else. It can
// make one allocation fail.
#pragma once

#include <c10/core/Allocator.h>

#include <cstdint>

namespace amoeba::test {

// While alive, counts what tensors allocate on the CPU, or on the first CUDA device, and give back.
// One at a time.
class CountedMemory {
 public:
  explicit CountedMemory(c10::DeviceType device = c10::kCPU);
  ~CountedMemory();
  CountedMemory(const CountedMemory&) = delete;
  CountedMemory& operator=(const CountedMemory&) = delete;

  int64_t live_bytes() const;  // allocated since construction and not yet given back
  int64_t peak_bytes() const;  // most that were live since construction or reset_peak(); CPU only
  void reset_peak();

  // Allocation number `index` from here on, from 0, fails as LibTorch's does when the system has no
  // memory; once.
  void fail_at(int64_t index);
  bool has_failed() const;

 private:
  c10::DeviceType device_;
  c10::Allocator* before_;
};

}  // namespace amoeba::test
