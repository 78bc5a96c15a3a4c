// torch.ops.amoeba.*, found by name through LibTorch's dispatcher: nn sees no header of the
// operators. Autograd is the caller's: nothing here records a graph. Meaning: docs/operators.md.
//
// Legend: T tokens, D model width, H expert hidden width, E experts, K choices, R = T*K rows.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "amoeba/experts.h"

namespace amoeba::nn {

// What gathers and combines need; empty in the rows entry but for the offsets.
struct OperatorRoutes {
  at::Tensor offsets;   // [E+1] int32
  at::Tensor row_slot;  // [R] int32
  at::Tensor slot_row;  // [T, K] int32
};

// The inputs that forward and backward share: tokens with scores and slots, or rows with neither.
struct OperatorInputs {
  at::Tensor x;       // [T, D], or [R, D] grouped by expert
  at::Tensor scores;  // [T, K] fp32
  OperatorRoutes routes;
  ExpertWeights weights;
  bool score_before = false;
};

struct OperatorForward {
  at::Tensor y;      // like x
  at::Tensor saved;  // opaque; of size 0 when nothing is to be kept for backward
};

struct OperatorGradients {
  at::Tensor x, scores;
  ExpertWeights weights;
};

struct OperatorWanted {
  bool x, scores, gate_up, down;
};

// expert_ids [T, K] int64 by a stable counting sort. ORs into error_word [1] (may be undefined).
OperatorRoutes route_tokens(const at::Tensor& expert_ids, int64_t num_experts,
                            const at::Tensor& error_word);

OperatorForward experts_forward(const OperatorInputs& inputs, bool keeps_saved,
                                const at::Tensor& error_word);

// Those not wanted are undefined. `saved` of a forward that kept it.
OperatorGradients experts_backward(const at::Tensor& dy, const at::Tensor& saved,
                                   const OperatorInputs& inputs, const OperatorWanted& wanted);

// Gradients of x and scores; those of the weights are added to `sums`.
OperatorGradients experts_backward_accumulate(const at::Tensor& dy, const at::Tensor& saved,
                                              const OperatorInputs& inputs, ExpertWeights sums);

struct OperatorVariant {
  std::string name, summary;
  std::string refusal;  // "": takes the problem
};

// The implementations of the inputs' device, best first; "reference" is the plain one.
std::vector<OperatorVariant> experts_variants(const OperatorInputs& inputs);

// Layers that the CUDA library computes in one pass each: whether it takes x, else LibTorch's
// operators do. Meaning: src/kernels/layers.h.
bool has_card_layers(const at::Tensor& x);

struct OperatorNorm {
  at::Tensor y;     // like x
  at::Tensor rstd;  // [T] fp32
};
OperatorNorm card_rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
// The gradient of x, `passed` (may be undefined) added; adds the weight's to dweight.
at::Tensor card_rms_norm_backward(const at::Tensor& dy, const at::Tensor& x,
                                  const at::Tensor& weight, const at::Tensor& rstd,
                                  const at::Tensor& passed, at::Tensor& dweight);
// Whether card_rope takes heads of x of which the last `turned` values are turned.
bool has_card_rope(const at::Tensor& x, int64_t turned);
at::Tensor card_rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                     const at::Tensor& positions, double direction);
at::Tensor card_swiglu(const at::Tensor& gate_up);
at::Tensor card_swiglu_backward(const at::Tensor& dy, const at::Tensor& gate_up);
// Losses [T] fp32; writes softmax - one hot to dlogits (may be undefined).
at::Tensor card_cross_entropy(const at::Tensor& logits, const at::Tensor& targets,
                              const at::Tensor& dlogits);
// One step of AdamW; shadow, grad_scale may be undefined. Scalars are fp32 on the device, lr fp64.
struct OperatorAdamW {
  at::Tensor master, grad, exp_avg, exp_avg_sq;  // [N] fp32
  at::Tensor shadow;                             // [N]
  at::Tensor lr, num_steps, grad_scale, found_inf;
  double beta1, beta2, weight_decay, eps;
};
void card_adamw(const OperatorAdamW& step);

// Loads the operators' CUDA library, once: "" or why that failed.
std::string load_cuda_operators();

}  // namespace amoeba::nn
