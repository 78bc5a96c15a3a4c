// A case on the GPU: its tensors and workspaces in one arena, NaN-filled between guards.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "amoeba/kernels.h"
#include "support/kernels/stored.h"

namespace amoeba::test {

bool has_gpu();

// Skips the test with a message when there is no GPU.
#define SKIP_WITHOUT_GPU() \
  if (!has_gpu()) GTEST_SKIP() << "no CUDA device"

// Throws on a CUDA error.
void check(cudaError_t status);

// Device memory that lives as long as the object.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(int64_t size);
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  char* data() const { return data_; }

 private:
  char* data_ = nullptr;
};

// One case placed on the device. Every run starts from the same bytes.
class DeviceExperts {
 public:
  DeviceExperts(const KernelCase& kernel_case, kernels::DType dtype, const KernelValues& values,
                const KernelValues& previous, std::string_view variant);

  const kernels::Variant& variant() const { return variant_; }
  kernels::ExpertsArguments& arguments() { return arguments_; }
  kernels::ExpertsGradients& gradients() { return gradients_; }
  kernels::View expert_ids() { return stored_.expert_ids(); }
  StoredExperts& stored() { return stored_; }

  // Outputs and workspaces as they were at the start.
  void reset();
  void forward(cudaStream_t stream);
  void backward(cudaStream_t stream);
  // Copies back; reports guards and changed inputs as failures of the test.
  KernelResults results();

 private:
  struct Place {
    char* data;
    int64_t size;
  };
  Place take(int64_t size);

  const KernelCase& case_;
  StoredExperts stored_;
  const kernels::Variant& variant_;
  DeviceBuffer arena_;
  int64_t used_ = 0;
  std::vector<std::vector<char>> start_;  // bytes of every tensor at the start
  std::vector<Place> tensors_;
  Place saved_, forward_scratch_, backward_scratch_;
  kernels::ExpertsArguments arguments_;
  kernels::ExpertsGradients gradients_;
  kernels::View y_, dy_;
};

// Forward and backward of a CUDA variant.
KernelResults run_cuda(std::string_view variant, const KernelCase& kernel_case,
                       kernels::DType dtype, const KernelValues& values,
                       const KernelValues& previous);

}  // namespace amoeba::test
