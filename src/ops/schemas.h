// Schema strings of torch.ops.amoeba.*: the one text that the registering libraries, the engine and
// the Python package agree on. Meaning: include/amoeba/kernels.h and docs/operators.md.
#pragma once

namespace amoeba::ops {

inline constexpr const char* kRoute =
    "route(Tensor expert_ids, int num_experts) -> "
    "(Tensor counts, Tensor offsets, Tensor row_slot, Tensor slot_row, Tensor error)";

inline constexpr const char* kExpertsForward =
    "experts_forward(Tensor x, Tensor? scores, Tensor offsets, Tensor? row_slot, Tensor? slot_row, "
    "Tensor[] gate_up, Tensor[] gate_up_bias, Tensor down, Tensor? down_bias, *, str layout, "
    "bool transposed, str activation, float alpha, float limit, bool score_before, str save) -> "
    "(Tensor y, Tensor saved, Tensor error)";

inline constexpr const char* kExpertsBackward =
    "experts_backward(Tensor dy, Tensor saved, Tensor x, Tensor? scores, Tensor offsets, "
    "Tensor? row_slot, Tensor? slot_row, Tensor[] gate_up, Tensor[] gate_up_bias, Tensor down, "
    "Tensor? down_bias, *, str layout, bool transposed, str activation, float alpha, float limit, "
    "bool score_before, str save, bool[] output_mask) -> "
    "(Tensor dx, Tensor dscores, Tensor[] dgate_up, Tensor[] dgate_up_bias, Tensor ddown, "
    "Tensor ddown_bias)";

// Adds the weight gradients to the given buffers (fp32 or the weights' dtype).
inline constexpr const char* kExpertsBackwardAccumulate =
    "experts_backward.accumulate(Tensor dy, Tensor saved, Tensor x, Tensor? scores, Tensor "
    "offsets, "
    "Tensor? row_slot, Tensor? slot_row, Tensor[] gate_up, Tensor[] gate_up_bias, Tensor down, "
    "Tensor? down_bias, *, str layout, bool transposed, str activation, float alpha, float limit, "
    "bool score_before, str save, Tensor(a!)[] dgate_up, Tensor(b!)[] dgate_up_bias, "
    "Tensor(c!) ddown, Tensor(d!)? ddown_bias) -> (Tensor dx, Tensor dscores)";

// For each variant of the inputs' device, best first: "name<TAB>summary<TAB>reason", reason "" when
// it takes the problem. Reads no data and runs nothing.
inline constexpr const char* kExpertsVariants =
    "experts_variants(Tensor x, Tensor? scores, Tensor offsets, Tensor? row_slot, Tensor? "
    "slot_row, "
    "Tensor[] gate_up, Tensor[] gate_up_bias, Tensor down, Tensor? down_bias, *, str layout, "
    "bool transposed, str activation, float alpha, float limit, bool score_before, str save) -> "
    "str[]";

// Layers of a GPU around the experts (src/kernels/layers.h): for CUDA only.
inline constexpr const char* kRmsNormForward =
    "rms_norm_forward(Tensor x, Tensor weight, float eps) -> (Tensor y, Tensor rstd)";
inline constexpr const char* kRmsNormBackward =
    "rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, Tensor? passed, "
    "Tensor(a!) dweight) -> Tensor dx";
inline constexpr const char* kRope =
    "rope(Tensor x, Tensor cos, Tensor sin, Tensor positions, float direction) -> Tensor y";
inline constexpr const char* kSwiGluForward = "swiglu_forward(Tensor gate_up) -> Tensor y";
inline constexpr const char* kSwiGluBackward =
    "swiglu_backward(Tensor dy, Tensor gate_up) -> Tensor dgate_up";
inline constexpr const char* kCrossEntropy =
    "cross_entropy(Tensor logits, Tensor targets, Tensor(a!)? dlogits) -> Tensor losses";
inline constexpr const char* kAdamW =
    "adamw(Tensor(a!) master, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
    "Tensor(d!)? shadow, Tensor lr, Tensor num_steps, Tensor? grad_scale, Tensor found_inf, *, "
    "float beta1, float beta2, float weight_decay, float eps) -> ()";

}  // namespace amoeba::ops
