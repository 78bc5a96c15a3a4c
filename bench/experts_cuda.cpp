// The CUDA experts behind a C interface, for experts_cuda.py: bf16, tokens entry.
// Legend: T tokens, D model width, H expert hidden width, E experts, K choices, R = T*K.
#include <cstdint>
#include <cstdio>
#include <exception>

#include "amoeba/kernels.h"

namespace kernels = amoeba::kernels;

struct BenchProblem {
  int64_t T, D, H, E, K;
  const char* variant;
  int64_t save;                                  // kernels::Save
  int64_t layout, transposed;                    // kernels::GateUpLayout: separate or concatenated
  int64_t fp32_gradients, accumulate;            // of the weights
  void *ids, *x, *scores, *gate, *up, *down;     // ids int32, scores fp32
  void *counts, *offsets, *row_slot, *slot_row;  // int32
  void *error, *y, *dy, *dx, *dscores, *dgate, *dup, *ddown;
  void *saved, *scratch, *stream;
};

namespace {

kernels::View view(void* data, kernels::DType dtype, int64_t a, int64_t b, int64_t c = 0) {
  kernels::View v;
  v.data = data;
  v.dtype = dtype;
  v.size[0] = a, v.size[1] = b, v.size[2] = c;
  v.stride[2] = c > 0 ? 1 : 0;
  v.stride[1] = c > 0 ? c : 1;
  v.stride[0] = b * v.stride[1];
  return v;
}

constexpr auto kBF16 = kernels::DType::kBF16;
constexpr auto kF32 = kernels::DType::kF32;

// Of rows by columns of every expert, or with both swapped.
kernels::View weights(const BenchProblem& p, void* data, kernels::DType dtype, int64_t rows,
                      int64_t columns) {
  return p.transposed != 0 ? view(data, dtype, p.E, columns, rows)
                           : view(data, dtype, p.E, rows, columns);
}

// The two of gate and up, or the first alone with both behind each other.
void place_gate_up(const BenchProblem& p, void* gate, void* up, kernels::DType dtype,
                   kernels::View (&to)[2]) {
  if (static_cast<kernels::GateUpLayout>(p.layout) == kernels::GateUpLayout::kConcatenated) {
    to[0] = weights(p, gate, dtype, 2 * p.H, p.D);
    return;
  }
  to[0] = weights(p, gate, dtype, p.H, p.D);
  to[1] = weights(p, up, dtype, p.H, p.D);
}

kernels::ExpertsArguments arguments_of(const BenchProblem& p) {
  kernels::ExpertsArguments a;
  a.x = view(p.x, kBF16, p.T, p.D);
  a.scores = view(p.scores, kF32, p.T, p.K);
  a.offsets = static_cast<int32_t*>(p.offsets);
  a.row_slot = static_cast<int32_t*>(p.row_slot);
  a.slot_row = static_cast<int32_t*>(p.slot_row);
  place_gate_up(p, p.gate, p.up, kBF16, a.gate_up);
  a.down = weights(p, p.down, kBF16, p.D, p.H);
  a.num_rows = p.T * p.K;
  a.num_experts = p.E;
  a.hidden_dim = p.H;
  a.error = static_cast<int32_t*>(p.error);
  return a;
}

template <typename F>
int guarded(const F& f) {
  try {
    f();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

template <typename F>
int call(const BenchProblem* p, const F& f) {
  return guarded([&] {
    const kernels::ExpertsArguments arguments = arguments_of(*p);
    kernels::ExpertsOptions options;
    options.layout = static_cast<kernels::GateUpLayout>(p->layout);
    options.transposed = p->transposed != 0;
    options.save = static_cast<kernels::Save>(p->save);
    f(kernels::cuda::choose_variant(arguments, options, p->variant), arguments, options);
  });
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Bytes of saved, forward scratch, backward scratch, route scratch.
EXPORT int bench_workspace(const BenchProblem* p, int64_t* bytes) {
  return call(p, [&](const auto& variant, const auto& arguments, const auto& options) {
    const auto sizes = kernels::cuda::workspace(variant, arguments, options);
    bytes[0] = sizes.saved_bytes;
    bytes[1] = sizes.forward_scratch_bytes;
    bytes[2] = sizes.backward_scratch_bytes;
    bytes[3] = kernels::cuda::route_scratch_bytes(p->T * p->K, p->E);
  });
}

EXPORT int bench_route(const BenchProblem* p) {
  return guarded([&] {
    const auto i32 = [](void* data) { return static_cast<int32_t*>(data); };
    kernels::cuda::route({view(p->ids, kernels::DType::kI32, p->T, p->K), p->E, i32(p->counts),
                          i32(p->offsets), i32(p->row_slot), i32(p->slot_row), i32(p->error)},
                         p->scratch, p->stream);
  });
}

EXPORT int bench_forward(const BenchProblem* p) {
  return call(p, [&](const auto& variant, const auto& arguments, const auto& options) {
    kernels::cuda::experts_forward(variant, arguments, options, view(p->y, kBF16, p->T, p->D),
                                   p->saved, p->scratch, p->stream);
  });
}

EXPORT int bench_backward(const BenchProblem* p) {
  return call(p, [&](const auto& variant, const auto& arguments, const auto& options) {
    kernels::ExpertsGradients gradients;
    gradients.dx = view(p->dx, kBF16, p->T, p->D);
    gradients.dscores = view(p->dscores, kF32, p->T, p->K);
    const kernels::DType dtype = p->fp32_gradients != 0 ? kF32 : kBF16;
    place_gate_up(*p, p->dgate, p->dup, dtype, gradients.dgate_up);
    gradients.ddown = weights(*p, p->ddown, dtype, p->D, p->H);
    gradients.accumulate = p->accumulate != 0;
    kernels::cuda::experts_backward(variant, arguments, options, view(p->dy, kBF16, p->T, p->D),
                                    p->saved, gradients, p->scratch, p->stream);
  });
}
