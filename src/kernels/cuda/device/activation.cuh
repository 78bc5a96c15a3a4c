// The gated activations and their derivatives, in fp32 and one formula without branches:
// a = g sigmoid(alpha g) (u + shift) with g = min(gate, limit), u = clamp(up, -limit, limit).
#pragma once

namespace amoeba::kernels::cuda::device {

// silu(gate) * up: alpha 1, shift 0 and an infinite limit. gpt-oss's form: its alpha and limit,
// shift 1.
struct ActivationRule {
  bool clamped = false;
  float alpha = 1;
  float limit = 0;
  float shift = 0;

  // What a clamp decides: gradients pass on one side only. NaN is on the side that passes.
  __device__ bool gate_is_clamped(float gate) const { return gate > limit; }
  __device__ bool up_is_clamped(float up) const { return up > limit || up < -limit; }
  __device__ float clamped_up(float up) const {
    return (up > limit ? limit : up < -limit ? -limit : up) + shift;
  }
};

struct ActivationGradient {
  float value;  // a
  float dgate;  // da / dgate
  float dup;    // da / dup
};

// Two approximate instructions, each within 2 ulp; exactly 1/2 at 0 and 1 from 32 on.
__device__ inline float sigmoid(float x) {
  constexpr float kLog2E = 1.4426950408889634f;
  float power, result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-kLog2E * x));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + power));
  return result;
}

// kPlain: silu(gate) * up.
template <bool kPlain>
__device__ inline float activate(const ActivationRule& rule, float gate, float up) {
  if (kPlain) return gate * sigmoid(gate) * up;
  const float g = rule.gate_is_clamped(gate) ? rule.limit : gate;
  return g * sigmoid(rule.alpha * g) * rule.clamped_up(up);
}

// With s = sigmoid(alpha g): d(g s)/dg = s (1 + alpha g (1 - s)).
template <bool kPlain>
__device__ inline ActivationGradient activate_gradient(const ActivationRule& rule, float gate,
                                                       float up) {
  const float alpha = kPlain ? 1.0f : rule.alpha;
  const bool gate_is_clamped = !kPlain && rule.gate_is_clamped(gate);
  const float g = gate_is_clamped ? rule.limit : gate;
  const float u = kPlain ? up : rule.clamped_up(up);
  const float s = sigmoid(alpha * g);
  const float gs = g * s;
  return {gs * u, gate_is_clamped ? 0.0f : u * s * (1.0f + alpha * g * (1.0f - s)),
          !kPlain && rule.up_is_clamped(up) ? 0.0f : gs};
}

}  // namespace amoeba::kernels::cuda::device
