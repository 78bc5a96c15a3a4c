#include "train/batch.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include "nn/loss.h"

namespace amoeba::train {

namespace {

static_assert(kIgnoredTarget == nn::kIgnoreIndex, "the loader and the loss agree on it");

// To a card by way of pinned memory, which is copied while the host goes on; LibTorch keeps it
// until then.
template <typename T>
at::Tensor to_tensor(const std::vector<T>& values, at::ScalarType dtype, at::Device device) {
  const at::Tensor view =
      at::from_blob(const_cast<T*>(values.data()), {static_cast<int64_t>(values.size())},
                    at::TensorOptions(c10::CppTypeToScalarType<T>::value));
  if (device.is_cpu()) return view.to(dtype, /*non_blocking=*/false, /*copy=*/true);
  const auto pinned = at::TensorOptions(dtype).pinned_memory(true);
  return at::empty(view.sizes(), pinned).copy_(view).to(device, /*non_blocking=*/true);
}

}  // namespace

at::Tensor to_device(const std::vector<double>& numbers, at::Device device) {
  return to_tensor(numbers, at::kDouble, device);
}

DeviceBatch to_device(const MicroBatch& batch, at::Device device) {
  DeviceBatch out;
  out.input.tokens = to_tensor(batch.tokens, at::kLong, device);
  out.targets = to_tensor(batch.targets, at::kLong, device);
  if (!batch.token_mask.empty()) {
    out.input.token_mask = to_tensor(batch.token_mask, at::kBool, device);
  }
  out.input.layout.batch_size = batch.batch_size;
  out.input.layout.seq_len = batch.seq_len;
  out.input.layout.positions = to_tensor(batch.positions, at::kLong, device);
  if (static_cast<int64_t>(batch.segments.size()) > batch.batch_size) {
    for (const Segment& segment : batch.segments) {
      out.input.layout.segments.push_back({segment.row, segment.begin, segment.length});
    }
  }
  return out;
}

}  // namespace amoeba::train
