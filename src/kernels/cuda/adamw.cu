// AdamW on flat buffers: a thread has two float4 of each, so that all it reads is under way at
// once.
#include <cmath>

#include "kernels/cuda/dtype.h"
#include "kernels/cuda/launch.h"
#include "kernels/layers.h"

namespace amoeba::kernels::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWidth = 4;  // values of an access
constexpr int kSteps = 2;  // accesses of a thread to each array
constexpr int64_t kBlock = int64_t{kThreads} * kWidth * kSteps;

// Numbers of the step that the host knows.
struct Scalars {
  float weight_decay;
  float beta1;
  float rest1;  // 1 - beta1, not as fp32 would subtract it
  float log_beta1;
  float beta2;
  float rest2;
  float log_beta2;
  float eps;
};

// Those that it does not.
struct Update {
  float grad_factor;
  float decay;        // lr weight_decay
  float step_size;    // lr / (1 - beta1^t)
  float root_factor;  // 1 / sqrt(1 - beta2^t)
};

__device__ Update update_of(const AdamW& p, const Scalars& s) {
  const float t = *p.num_steps;
  const float lr = static_cast<float>(*p.lr);
  return {p.grad_scale == nullptr ? 1.0f : 1.0f / *p.grad_scale, lr * s.weight_decay,
          lr / -expm1f(t * s.log_beta1), rsqrtf(-expm1f(t * s.log_beta2))};
}

__device__ void step_value(const Scalars& s, const Update& u, float grad, float& p, float& m,
                           float& v) {
  const float g = grad * u.grad_factor;
  m = fmaf(s.rest1, g, s.beta1 * m);
  v = fmaf(s.rest2 * g, g, s.beta2 * v);
  p = fmaf(-u.decay, p, p);
  p -= u.step_size * m / fmaf(sqrtf(v), u.root_factor, s.eps);
}

template <typename T>
__device__ void store_shadow(T* to, const float4& p) {
  if constexpr (sizeof(T) == 4) {
    *reinterpret_cast<float4*>(to) = p;
  } else {
    *reinterpret_cast<uint2*>(to) =
        make_uint2(device::pack<T>(p.x, p.y), device::pack<T>(p.z, p.w));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) adamw_kernel(AdamW p, Scalars s) {
  if (*p.found_inf != 0) return;
  const Update u = update_of(p, s);
  T* shadow = static_cast<T*>(p.shadow);
  const int64_t first = blockIdx.x * kBlock + threadIdx.x * kWidth;
  float4 master[kSteps], grad[kSteps], m[kSteps], v[kSteps];
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int64_t at = first + i * kThreads * kWidth;
    if (at + kWidth > p.size) continue;
    grad[i] = __ldcs(reinterpret_cast<const float4*>(p.grad + at));
    master[i] = __ldcs(reinterpret_cast<const float4*>(p.master + at));
    m[i] = __ldcs(reinterpret_cast<const float4*>(p.exp_avg + at));
    v[i] = __ldcs(reinterpret_cast<const float4*>(p.exp_avg_sq + at));
  }
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int64_t at = first + i * kThreads * kWidth;
    if (at + kWidth > p.size) continue;
    step_value(s, u, grad[i].x, master[i].x, m[i].x, v[i].x);
    step_value(s, u, grad[i].y, master[i].y, m[i].y, v[i].y);
    step_value(s, u, grad[i].z, master[i].z, m[i].z, v[i].z);
    step_value(s, u, grad[i].w, master[i].w, m[i].w, v[i].w);
    __stcs(reinterpret_cast<float4*>(p.master + at), master[i]);
    __stcs(reinterpret_cast<float4*>(p.exp_avg + at), m[i]);
    __stcs(reinterpret_cast<float4*>(p.exp_avg_sq + at), v[i]);
    if (shadow != nullptr) store_shadow(shadow + at, master[i]);
  }
  const int64_t last = p.size - p.size % kWidth + threadIdx.x;  // of the few after the last access
  if (blockIdx.x > 0 || last >= p.size) return;
  step_value(s, u, p.grad[last], p.master[last], p.exp_avg[last], p.exp_avg_sq[last]);
  if (shadow != nullptr) shadow[last] = static_cast<T>(p.master[last]);
}

}  // namespace

void adamw(const AdamW& arguments, Stream stream) {
  if (arguments.size == 0) return;
  const auto narrow = [](double value) { return static_cast<float>(value); };
  const Scalars scalars = {.weight_decay = narrow(arguments.weight_decay),
                           .beta1 = narrow(arguments.beta1),
                           .rest1 = narrow(1 - arguments.beta1),
                           .log_beta1 = narrow(std::log(arguments.beta1)),
                           .beta2 = narrow(arguments.beta2),
                           .rest2 = narrow(1 - arguments.beta2),
                           .log_beta2 = narrow(std::log(arguments.beta2)),
                           .eps = narrow(arguments.eps)};
  with_type(arguments.dtype, "adamw", [&]<typename T>(T) {
    adamw_kernel<T>
        <<<grid_blocks(arguments.size, kBlock), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            arguments, scalars);
  });
  check_launch("adamw");
}

}  // namespace amoeba::kernels::cuda
