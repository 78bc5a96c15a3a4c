#include "kernels_cuda/device.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "amoeba/error.h"

namespace amoeba::test {

namespace cuda = kernels::cuda;

namespace {

constexpr int64_t kGuard = 256;
constexpr int64_t kArenaBytes = int64_t{1} << 28;

}  // namespace

bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

void check(cudaError_t status) {
  if (status != cudaSuccess) fail(ErrorKind::kInternal, cudaGetErrorString(status));
}

DeviceBuffer::DeviceBuffer(int64_t size) {
  check(cudaMalloc(reinterpret_cast<void**>(&data_), static_cast<size_t>(size)));
}

DeviceBuffer::~DeviceBuffer() { cudaFree(data_); }

DeviceExperts::DeviceExperts(const KernelCase& kernel_case, kernels::DType dtype,
                             const KernelValues& values, const KernelValues& previous,
                             std::string_view variant)
    : case_(kernel_case),
      stored_(kernel_case, dtype, values, previous),
      variant_(cuda::choose_variant(stored_.arguments(), kernel_case.options, variant)),
      arena_(kArenaBytes) {
  for (HostTensor* tensor : stored_.tensors()) {
    start_.push_back(tensor->bytes);
    tensors_.push_back(take(static_cast<int64_t>(tensor->bytes.size())));
    // The tensor's own guards lie around its elements, at a multiple of 256 bytes.
    tensor->placed = tensors_.back().data + kGuard;
  }
  arguments_ = stored_.arguments();
  gradients_ = stored_.gradients();
  y_ = stored_.y();
  dy_ = stored_.dy();
  const kernels::WorkspaceSizes sizes = cuda::workspace(variant_, arguments_, case_.options);
  saved_ = take(sizes.saved_bytes);
  forward_scratch_ = take(sizes.forward_scratch_bytes);
  backward_scratch_ = take(sizes.backward_scratch_bytes);
  reset();
}

DeviceExperts::Place DeviceExperts::take(int64_t size) {
  const Place place = {arena_.data() + used_ + kGuard, size};
  used_ += (size + 2 * kGuard + kGuard - 1) / kGuard * kGuard;
  AMOEBA_CHECK(used_ <= kArenaBytes, "test arena: case needs ", used_, " bytes");
  return place;
}

void DeviceExperts::reset() {
  check(cudaMemset(arena_.data(), 0xff, static_cast<size_t>(used_)));
  for (size_t i = 0; i < tensors_.size(); ++i) {
    check(cudaMemcpy(tensors_[i].data, start_[i].data(), start_[i].size(), cudaMemcpyDefault));
  }
  check(cudaDeviceSynchronize());
}

void DeviceExperts::forward(cudaStream_t stream) {
  cuda::experts_forward(variant_, arguments_, case_.options, y_, saved_.data, forward_scratch_.data,
                        stream);
}

void DeviceExperts::backward(cudaStream_t stream) {
  cuda::experts_backward(variant_, arguments_, case_.options, dy_, saved_.data, gradients_,
                         backward_scratch_.data, stream);
}

KernelResults DeviceExperts::results() {
  check(cudaDeviceSynchronize());
  std::vector<char> all(static_cast<size_t>(used_));
  check(cudaMemcpy(all.data(), arena_.data(), all.size(), cudaMemcpyDefault));
  const std::vector<HostTensor*> tensors = stored_.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const char* from = all.data() + (tensors_[i].data - arena_.data());
    tensors[i]->bytes.assign(from, from + tensors_[i].size);
  }
  for (const Place& place : {saved_, forward_scratch_, backward_scratch_}) {
    const char* from = all.data() + (place.data - arena_.data());
    const auto is_filled = [](const char* begin, int64_t count) {
      return std::all_of(begin, begin + count, [](char byte) { return byte == '\xff'; });
    };
    EXPECT_TRUE(is_filled(from - kGuard, kGuard) && is_filled(from + place.size, kGuard))
        << "a workspace was left: " << case_;
  }
  EXPECT_EQ(stored_.damage(), "") << variant_.name << " " << case_;
  return stored_.results();
}

KernelResults run_cuda(std::string_view variant, const KernelCase& kernel_case,
                       kernels::DType dtype, const KernelValues& values,
                       const KernelValues& previous) {
  DeviceExperts experts(kernel_case, dtype, values, previous, variant);
  experts.forward(nullptr);
  experts.backward(nullptr);
  const KernelResults results = experts.results();
  EXPECT_EQ(experts.stored().error(), 0) << variant << " " << kernel_case;
  return results;
}

}  // namespace amoeba::test
