// The gated activations and their derivatives, in fp32 and one formula without branches:
// a = g sigmoid(alpha g) (u + shift) with g = min(gate, limit), u = clamp(up, -limit, limit).
#pragma once

namespace amoeba::kernels::cuda::device {

// silu(gate) * up: alpha 1, shift 0 and an infinite limit. gpt-oss's form: its alpha and limit, shift
// 1.
struct ActivationRule {
  bool clamped = false;
  float alpha = 1;
  float limit = 0;
  float shift = 0;

  // What a clamp decides: gradients pass on one side only. NaN is on the side that passes.
  __device__ bool gate_is_clamped(float gate) const { return gate > limit; }
  __device__ bool up_is_clamped(float up) const { return up > limit || up < -limit; }
};

struct ActivationGradient {
  float value;  // a
  float dgate;  // da / dgate
  float dup;    // da / dup
};

__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

__device__ inline float clamped_up(const ActivationRule& rule, float up) {
  return (up > rule.limit ? rule.limit : up < -rule.limit ? -rule.limit : up) + rule.shift;
}

__device__ inline float activate(const ActivationRule& rule, float gate, float up) {
  const float g = rule.gate_is_clamped(gate) ? rule.limit : gate;
  return g * sigmoid(rule.alpha * g) * clamped_up(rule, up);
}

// With s = sigmoid(alpha g): d(g s)/dg = s (1 + alpha g (1 - s)).
__device__ inline ActivationGradient activate_gradient(const ActivationRule& rule, float gate,
                                                       float up) {
  const float g = rule.gate_is_clamped(gate) ? rule.limit : gate;
  const float u = clamped_up(rule, up);
  const float s = sigmoid(rule.alpha * g);
  const float gs = g * s;
  return {gs * u, rule.gate_is_clamped(gate) ? 0.0f : u * s * (1.0f + rule.alpha * g * (1.0f - s)),
          rule.up_is_clamped(up) ? 0.0f : gs};
}

}  // namespace amoeba::kernels::cuda::device
