// How the caller's workspace is divided: one function serves the sizes and the pointers.
//
// Legend: D model width, H expert hidden width, E experts, R routed rows; z [R, 2H] the product
// before weight and bias.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/epilogues.cuh"
#include "kernels/cuda/rows.h"
#include "kernels/problem.h"

namespace amoeba::kernels::cuda {

// Hands out aligned parts of a buffer; of a null buffer only their sizes.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    constexpr int64_t kAlignment = 256;
    const int64_t at = used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

struct ForwardScratch {
  Grouping grouping;
  void* activated;  // [R, H]
  void* rows;       // [R, D]; tokens entry: of x gathered, later of y
};

struct BackwardScratch {
  Grouping grouping;
  void* dz;                 // [R, 2H]
  void* dpre;               // [R, 2H]; weights before and a gate-up bias
  void* activated;          // [R, H], weighted
  void* rows;               // [R, D]; tokens entry: of dy, x and dx in turn
  float* score_parts;       // [R, parts]
  device::StoredProduct z;  // recomputed; saves nothing
};

device::StoredProduct take_saved(Carver& carver, const Sizes& sizes, Save save);
ForwardScratch take_forward(Carver& carver, const ExpertsArguments& arguments);
BackwardScratch take_backward(Carver& carver, const ExpertsArguments& arguments,
                              const ExpertsOptions& options);

inline int64_t num_score_parts(const Sizes& sizes) {
  return (sizes.hidden_dim + device::kScoreColumns - 1) / device::kScoreColumns;
}

}  // namespace amoeba::kernels::cuda
