// What a GPU computes around a model's products, each in one pass over memory: the root-mean-square
// norm, rotary positions, SwiGLU, cross entropy, AdamW. Every array is contiguous and on the
// device, work is queued on `stream`, sums are fp32 and in a fixed order. dtype is fp32, fp16 or
// bf16; no count is too small, 0 included.
//
// Legend: T rows, D their width, H expert hidden width, V vocabulary.
#pragma once

#include <cstdint>

#include "amoeba/kernels.h"

namespace amoeba::kernels::cuda {

// y = x rstd weight with rstd = 1 / sqrt(mean(x^2) + eps)  (Zhang and Sennrich, 2019)
struct RmsNorm {
  DType dtype = DType::kF32;      // of x, y, dy, passed, dx
  const void* x = nullptr;        // [T, D]
  const float* weight = nullptr;  // [D]
  int64_t num_rows = 0;
  int64_t size = 0;
};
void rms_norm(const RmsNorm& norm, double eps, void* y, float* rstd, Stream stream);

// With n = x rstd: dx = passed + rstd (w dy - n mean(w dy n)); dweight += sum over rows of dy n.
struct RmsNormGradient {
  const float* rstd = nullptr;   // [T]
  const void* dy = nullptr;      // [T, D]
  const void* passed = nullptr;  // [T, D], nullptr: 0
  void* dx = nullptr;            // [T, D]
  float* dweight = nullptr;      // [D]
  float* scratch = nullptr;      // [rms_norm_scratch(T), D]
};
int64_t rms_norm_scratch(int64_t num_rows);
void rms_norm_backward(const RmsNorm& norm, const RmsNormGradient& gradient, Stream stream);

// y = x with the last 2 `half` values of each head turned pairwise by the angles of its token's
// position, times `direction` (1 or -1); NaN for a position outside the table. The width of a head
// and of what is turned are multiples of 8, x and y are aligned to 16 bytes.
struct Rope {
  DType dtype = DType::kF32;  // of x, y
  const void* x = nullptr;    // [T, heads, width]
  int64_t num_tokens = 0;
  int64_t num_heads = 0;
  int64_t width = 0;
  const float* cos = nullptr;  // [num_positions, half]
  const float* sin = nullptr;
  int64_t num_positions = 0;
  int64_t half = 0;
  const int64_t* positions = nullptr;  // [T]
};
void rope(const Rope& rope, float direction, void* y, Stream stream);

// y [T, H] = silu(gate) up, gate_up [T, 2H] with gate in the first H columns.
struct SwiGlu {
  DType dtype = DType::kF32;  // of all
  const void* gate_up = nullptr;
  int64_t num_rows = 0;
  int64_t hidden = 0;
};
void swiglu(const SwiGlu& activation, void* y, Stream stream);
void swiglu_backward(const SwiGlu& activation, const void* dy, void* dgate_up, Stream stream);

// losses[t] = log(sum over v of e^logits[t, v]) - logits[t, target]; dlogits = softmax - one hot.
// Of the target kIgnored both are 0; of another outside [0, V) the loss is NaN, the gradient 0.
inline constexpr int64_t kIgnored = -100;
struct CrossEntropy {
  const float* logits = nullptr;     // [T, V]
  const int64_t* targets = nullptr;  // [T]
  int64_t num_rows = 0;
  int64_t vocab = 0;
  float* losses = nullptr;    // [T]
  void* dlogits = nullptr;    // [T, V], nullptr: not wanted
  DType dtype = DType::kF32;  // of dlogits
};
void cross_entropy(const CrossEntropy& arguments, Stream stream);

// AdamW (Loshchilov and Hutter, 2019), step t of every value p with g = grad / grad_scale:
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,
//   p = (1 - lr weight_decay) p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)
// shadow = p in its dtype. Arrays are aligned to 16 bytes. Where *found_inf is not 0 nothing is
// written.
struct AdamW {
  int64_t size = 0;
  float* master = nullptr;  // p
  const float* grad = nullptr;
  float* exp_avg = nullptr;           // m
  float* exp_avg_sq = nullptr;        // v
  void* shadow = nullptr;             // nullptr: none
  DType dtype = DType::kF32;          // of shadow
  const float* num_steps = nullptr;   // t
  const float* grad_scale = nullptr;  // nullptr: 1
  const float* found_inf = nullptr;
  const double* lr = nullptr;
  double beta1 = 0;
  double beta2 = 0;
  double weight_decay = 0;
  double eps = 0;
};
void adamw(const AdamW& arguments, Stream stream);

}  // namespace amoeba::kernels::cuda
