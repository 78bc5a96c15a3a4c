// The gated activations and their derivatives, in fp32.
#pragma once

namespace amoeba::kernels::cuda::device {

// clamped: gpt-oss's form with alpha and limit; otherwise silu(gate) * up.
struct ActivationRule {
  bool clamped = false;
  float alpha = 0;
  float limit = 0;
};

struct ActivationGradient {
  float value;  // a
  float dgate;  // da / dgate
  float dup;    // da / dup
};

__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

__device__ inline float activate(const ActivationRule& rule, float gate, float up) {
  if (!rule.clamped) return gate * sigmoid(gate) * up;
  gate = fminf(gate, rule.limit);
  up = fminf(fmaxf(up, -rule.limit), rule.limit);
  return gate * sigmoid(rule.alpha * gate) * (up + 1.0f);
}

// d silu(g)/dg = s (1 + g (1 - s)) with s = sigmoid(g). A clamped value passes no gradient.
__device__ inline ActivationGradient activate_gradient(const ActivationRule& rule, float gate,
                                                       float up) {
  if (!rule.clamped) {
    const float s = sigmoid(gate);
    const float silu = gate * s;
    return {silu * up, up * s * (1.0f + gate * (1.0f - s)), silu};
  }
  const bool gate_passes = gate <= rule.limit;
  const bool up_passes = up >= -rule.limit && up <= rule.limit;
  gate = fminf(gate, rule.limit);
  up = fminf(fmaxf(up, -rule.limit), rule.limit) + 1.0f;
  const float s = sigmoid(rule.alpha * gate);
  return {gate * s * up, gate_passes ? up * s * (1.0f + rule.alpha * gate * (1.0f - s)) : 0.0f,
          up_passes ? gate * s : 0.0f};
}

}  // namespace amoeba::kernels::cuda::device
