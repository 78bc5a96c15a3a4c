// The torch-free expert mathematics: pointers, strides and an Executor or a stream.
//
// This header is the contract that the implementations in kernels/cpu and kernels/cuda and the
// registered operators (src/ops/schemas.h) share.
// Legend: T tokens, D model width, H expert hidden width, E experts, K choices, R = T*K routed
// rows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error_word.h"
#include "base/executor.h"

namespace amoeba::kernels {

enum class DType : int32_t { kF64, kF32, kF16, kBF16, kI32, kI64 };

// A strided view of up to three dimensions; strides in elements, any sign and order. Sizes and
// strides past a tensor's rank are not read.
struct View {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t size[3] = {0, 0, 0};
  int64_t stride[3] = {0, 0, 0};
};

// How gate and up are stored; `transposed` swaps the last two dimensions (gpt-oss), down likewise.
enum class GateUpLayout : int32_t {
  kSeparate,      // two of [E, H, D]
  kConcatenated,  // [E, 2H, D], gate rows first
  kInterleaved,   // [E, 2H, D], gate and up rows alternate
};

enum class Activation : int32_t {
  kSwiglu,         // silu(g) * u
  kSwigluClamped,  // gpt-oss: g = min(g, limit), u = clamp(u, -limit, limit), g * sigmoid(alpha g)
                   // * (u + 1)
};

// What forward keeps for backward, per routed row: 2H pre-activations, the same in fp8, or nothing.
enum class Save : int32_t { kPreActivations, kPreActivationsFp8, kNothing };

struct ExpertsOptions {
  GateUpLayout layout = GateUpLayout::kSeparate;
  bool transposed = false;
  Activation activation = Activation::kSwiglu;
  double alpha = 1.702;
  double limit = 7.0;
  bool score_before = false;  // weight the rows before the experts instead of after
  Save save = Save::kPreActivations;
};

// Routing metadata by a stable counting sort.
//   expert_ids [T, K] int32 or int64; -1 and E skip the slot, any other id outside [0, E) is
//   skipped and sets kErrorBadId. counts [E], offsets [E+1], row_slot [R], slot_row [T, K], error
//   [1]: int32. row_slot[r] = t*K + k of sorted row r, -1 past offsets[E]; slot_row is its inverse,
//   -1: skipped.
struct RouteArguments {
  View expert_ids;
  int64_t num_experts = 0;
  int32_t* counts = nullptr;
  int32_t* offsets = nullptr;
  int32_t* row_slot = nullptr;
  int32_t* slot_row = nullptr;
  int32_t* error = nullptr;
};

// Inputs that forward and backward share. Two entries: with row_slot and slot_row, x is [T, D] and
// gather and weighted combine are part of the operation; without them x is [R, D] grouped by
// expert and there are no scores. Routing that contradicts itself (sum(counts) > R, a slot twice)
// sets kErrorCounts and reads and writes nothing out of range.
struct ExpertsArguments {
  View x;                             // [T, D] or [R, D]
  View scores;                        // [T, K] fp32, bf16 or fp64, or data == nullptr: weight 1
  const int32_t* offsets = nullptr;   // [E+1]
  const int32_t* row_slot = nullptr;  // [R] or nullptr
  const int32_t* slot_row = nullptr;  // [T, K] or nullptr
  View gate_up[2];                    // the stored parameter(s); [1] only for kSeparate
  View gate_up_bias[2];               // [E, H] each, or [E, 2H]; data == nullptr: none
  View down;                          // [E, D, H], or [E, H, D] when transposed
  View down_bias;                     // [E, D] or none
  int64_t num_rows = 0;               // R
  int64_t num_experts = 0;            // E
  int64_t hidden_dim = 0;             // H
  int32_t* error = nullptr;           // [1]
};

// Gradients to write; data == nullptr: not wanted, and not computed. Those of stored parameters are
// in fp32 or the dtype of x, dscores in that of the scores. `accumulate` adds the weight gradients
// to what is there instead of overwriting; an expert without rows gets zeros or no addition.
struct ExpertsGradients {
  View dx;
  View dscores;
  View dgate_up[2];
  View dgate_up_bias[2];
  View ddown;
  View ddown_bias;
  bool accumulate = false;
};

// Bytes that depend on shapes and options only, never on the routing. `saved` passes from forward
// to backward unchanged; its content belongs to the implementation.
struct WorkspaceSizes {
  int64_t saved_bytes = 0;
  int64_t forward_scratch_bytes = 0;
  int64_t backward_scratch_bytes = 0;
};

// One way to compute the experts on one device. Best first in its table, the plain reference last.
struct Variant {
  std::string_view name;  // "avx512_bf16", "sm90", "reference"
  std::string_view summary;
  // "" when this machine and the variant can run the problem, otherwise one sentence with the
  // reason.
  std::string (*supports)(const ExpertsArguments& arguments, const ExpertsOptions& options);
};

// Shared by cpu:: and cuda:: below.
//   y [T, D] or [R, D] and dy alike, in the dtype of x. `saved` and `scratch` hold at least what
//   workspace() says for the same arguments, options and variant, aligned to 64 bytes on the CPU
//   and to 256 on a GPU; backward gets the `saved` that forward wrote. Every element of every
//   output is written (or added to, with `accumulate`), except padding between strided rows.
//   Error(kUsage): shapes, dtypes or options that do not fit together, or a variant that refuses
//   the problem, with its reason.
namespace cpu {

const std::vector<Variant>& variants();
// The first that supports the problem, or the one of that name. Error(kUsage) as above.
const Variant& choose_variant(const ExpertsArguments& arguments, const ExpertsOptions& options,
                              std::string_view name = "auto");
WorkspaceSizes workspace(const Variant& variant, const ExpertsArguments& arguments,
                         const ExpertsOptions& options);
void route(const RouteArguments& arguments, const Executor& executor);
void experts_forward(const Variant& variant, const ExpertsArguments& arguments,
                     const ExpertsOptions& options, const View& y, void* saved, void* scratch,
                     const Executor& executor);
void experts_backward(const Variant& variant, const ExpertsArguments& arguments,
                      const ExpertsOptions& options, const View& dy, const void* saved,
                      const ExpertsGradients& gradients, void* scratch, const Executor& executor);

}  // namespace cpu

// All pointers are device memory, work is queued on `stream` (a cudaStream_t) of the current
// device and no call waits for it or allocates: capturable in a CUDA graph. A build without CUDA
// links functions that throw. route() needs `scratch` of route_scratch_bytes().
namespace cuda {

using Stream = void*;

const std::vector<Variant>& variants();
const Variant& choose_variant(const ExpertsArguments& arguments, const ExpertsOptions& options,
                              std::string_view name = "auto");
WorkspaceSizes workspace(const Variant& variant, const ExpertsArguments& arguments,
                         const ExpertsOptions& options);
int64_t route_scratch_bytes(int64_t num_slots, int64_t num_experts);
void route(const RouteArguments& arguments, void* scratch, Stream stream);
void experts_forward(const Variant& variant, const ExpertsArguments& arguments,
                     const ExpertsOptions& options, const View& y, void* saved, void* scratch,
                     Stream stream);
void experts_backward(const Variant& variant, const ExpertsArguments& arguments,
                      const ExpertsOptions& options, const View& dy, const void* saved,
                      const ExpertsGradients& gradients, void* scratch, Stream stream);

}  // namespace cuda

}  // namespace amoeba::kernels
