// SwiGLU on its own, for the dense layers: a block has a row.
#include "kernels/cuda/device/activation.cuh"
#include "kernels/cuda/device/row.cuh"
#include "kernels/cuda/dtype.h"
#include "kernels/cuda/launch.h"
#include "kernels/layers.h"

namespace amoeba::kernels::cuda {

using device::kPiece;

namespace {

constexpr int kThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* gate_up, T* y, int64_t hidden, bool wide) {
  const int64_t row = blockIdx.x;
  const T* in = gate_up + 2 * row * hidden;
  T* out = y + row * hidden;
  for (int64_t h = threadIdx.x * kPiece; h < hidden; h += kThreads * kPiece) {
    float gate[kPiece], up[kPiece];
    device::load_piece(gate, in + h, hidden - h, wide);
    device::load_piece(up, in + hidden + h, hidden - h, wide);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) gate[i] = device::activate<true>({}, gate[i], up[i]);
    device::store_piece(out + h, gate, hidden - h, wide);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const T* gate_up, const T* dy, T* dgate_up, int64_t hidden, bool wide) {
  const int64_t row = blockIdx.x;
  const T* in = gate_up + 2 * row * hidden;
  const T* grad = dy + row * hidden;
  T* out = dgate_up + 2 * row * hidden;
  for (int64_t h = threadIdx.x * kPiece; h < hidden; h += kThreads * kPiece) {
    float gate[kPiece], up[kPiece], d[kPiece];
    device::load_piece(gate, in + h, hidden - h, wide);
    device::load_piece(up, in + hidden + h, hidden - h, wide);
    device::load_piece(d, grad + h, hidden - h, wide);
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      const auto derivative = device::activate_gradient<true>({}, gate[i], up[i]);
      gate[i] = d[i] * derivative.dgate;
      up[i] = d[i] * derivative.dup;
    }
    device::store_piece(out + h, gate, hidden - h, wide);
    device::store_piece(out + hidden + h, up, hidden - h, wide);
  }
}

}  // namespace

void swiglu(const SwiGlu& activation, void* y, Stream stream) {
  if (activation.num_rows == 0 || activation.hidden == 0) return;
  const bool wide = device::rows_are_wide(activation.hidden, activation.gate_up, y);
  with_type(activation.dtype, "swiglu", [&]<typename T>(T) {
    forward_kernel<T>
        <<<grid_blocks(activation.num_rows, 1), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<const T*>(activation.gate_up), static_cast<T*>(y), activation.hidden, wide);
  });
  check_launch("swiglu");
}

void swiglu_backward(const SwiGlu& activation, const void* dy, void* dgate_up, Stream stream) {
  if (activation.num_rows == 0 || activation.hidden == 0) return;
  const bool wide = device::rows_are_wide(activation.hidden, activation.gate_up, dy, dgate_up);
  with_type(activation.dtype, "swiglu_backward", [&]<typename T>(T) {
    backward_kernel<T>
        <<<grid_blocks(activation.num_rows, 1), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<const T*>(activation.gate_up), static_cast<const T*>(dy),
            static_cast<T*>(dgate_up), activation.hidden, wide);
  });
  check_launch("swiglu_backward");
}

}  // namespace amoeba::kernels::cuda
