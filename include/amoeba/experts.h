// Grouped experts: the expert backends behind one table, and the one entry that runs them.
//
// Shapes: T tokens, K choices per token, R routed rows (T*K), D model width, H expert hidden width,
// E experts.
//   x      [R, D]  rows grouped by expert, in expert order
//   counts [E]     int64, rows per expert; rows past sum(counts) are tail rows
//   w1, w3 [E, H, D] gate and up;  w2 [E, D, H] down
//   y      [R, D]  dtype of x; per expert e, on its rows: y = (silu(x w1^T) * (x w3^T)) w2^T
// Every backend computes in the dtype of x: fp32 stays fp32.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace amoeba::nn {

enum class DeviceKind { kCpu, kCuda, kXpu };

// Everything the choice of a backend may look at: plain data, so that it is tested without
// hardware.
struct ExpertProblem {
  DeviceKind device = DeviceKind::kCpu;
  int compute_capability = 0;  // CUDA: 10 * major + minor (80, 90); otherwise 0
  at::ScalarType dtype = at::kFloat;
  int64_t model_dim = 0;                // D
  int64_t hidden_dim = 0;               // H
  int64_t num_experts = 0;              // E
  bool has_output_postprocess = false;  // a module runs on every routed row before the combine
};

// Problem of real tensors; reads device properties, never device memory.
ExpertProblem describe_problem(const at::Tensor& x, const at::Tensor& w1,
                               bool has_output_postprocess);

struct ExpertWeights {
  at::Tensor w1;  // [E, H, D] gate
  at::Tensor w2;  // [E, D, H] down
  at::Tensor w3;  // [E, H, D] up
};

struct ExpertOptions {
  double capacity_factor = 1.25;  // batched_mm_capacity only
};

// What a backend did, summed over calls; fields a backend has no use for stay zero. `dropped_rows`
// is a device scalar (int64) so that counting forces no host sync; undefined when nothing can drop.
struct ExpertStats {
  int64_t calls = 0;
  int64_t rows = 0;         // routed rows given, tail included
  int64_t padded_rows = 0;  // rows multiplied: padding included; for_loop leaves tail rows out
  int64_t host_syncs = 0;   // reads of device data by the host; on the CPU a read stops nothing: 0
  int64_t saved_bytes = 0;  // tensors the backend keeps for backward besides x and the weights
  at::Tensor dropped_rows;
};

// Whole tokens, for a backend that gathers and combines itself.
struct ExpertTokens {
  at::Tensor x;               // [T, D]
  at::Tensor expert_ids;      // [T, K] int64; -1 and E: skipped
  at::Tensor scores;          // [T, K] fp32
  bool score_before = false;  // weight an expert's input instead of its output
};

// One layer's parameters as they are stored. A backend that takes them adds the weight gradients to
// `grad` and returns none.
struct ExpertParameters {
  ExpertWeights compute;  // what forward reads
  ExpertWeights master;   // fp32 leaves: they make the result part of the graph
  ExpertWeights grad;     // fp32; undefined: no weight gradient is kept
};

struct ExpertBackend {
  std::string_view name;
  std::string_view summary;  // one line for `--help` and doctor
  // "" when the backend can run the problem, otherwise one sentence with the reason.
  std::string (*supports)(const ExpertProblem& problem);
  // x [R, D] with R > 0, E > 0; counts checked by run_expert_rows; differentiable in x and weights.
  at::Tensor (*run_rows)(const at::Tensor& x, const at::Tensor& counts,
                         const ExpertWeights& weights, const ExpertOptions& options,
                         ExpertStats& stats);
  // y [T, D] of tokens that run_expert_tokens checked: differentiable in x and scores, gradients of
  // the parameters as above. nullptr: the caller gathers, runs the rows and combines.
  at::Tensor (*run_tokens)(const ExpertTokens& tokens, const ExpertParameters& parameters,
                           ExpertStats& stats, const at::Tensor& error_word) = nullptr;
  // Why "auto" passes over a problem that the backend can run, "" when it does not; nullptr: never.
  std::string (*auto_refuses)(const ExpertProblem& problem) = nullptr;
};

// The table. Names: fused, grouped_mm, batched_mm_padded, batched_mm_capacity, for_loop.
const std::vector<ExpertBackend>& expert_backends();

// What "auto" tries on a device, best first: every exact backend (never batched_mm_capacity, which
// drops rows), in table order, except that for_loop comes second on the CPU, where it measures
// faster than the others.
std::vector<const ExpertBackend*> expert_auto_order(DeviceKind device);

struct ExpertRefusal {
  std::string_view name;
  std::string reason;
};
struct ExpertChoice {
  const ExpertBackend* backend = nullptr;
  std::vector<ExpertRefusal> refusals;  // "auto": those passed over, in order, with reasons
};

// `compute_backend`: "auto" takes the first of expert_auto_order that refuses nothing; a name
// takes that one. Error(kUsage): unknown name (lists the names; old spellings `bmm`, `bmm_nodrop`
// name their successor), or a named backend that cannot run the problem (its reason). Never
// switches silently.
ExpertChoice choose_expert_backend(std::string_view compute_backend, const ExpertProblem& problem);

// Which of fused's kernels runs a problem that fused supports, and why those before it do not:
// "sm80 (sm90: ...)".
std::string describe_fused(const ExpertProblem& problem);
// What fused's kernels are, best first, whether they run the problem or not: name and one sentence.
std::vector<std::pair<std::string, std::string>> fused_kernels(const ExpertProblem& problem);

// Runs `backend` on rows. Handles, the same for every backend, E = 0, R = 0 and all-zero counts
// (empty or zero output that still depends on x and all three weights, so that gradients are zeros,
// not missing) and tail rows (zero output and gradient). Gradients of gradients are refused.
// Error(kUsage) for wrong shapes, dtypes, devices, negative counts or sum(counts) > R on the CPU;
// on other devices the counts are clamped on the device and `error_word` (int32 [1], may be
// undefined) gets kErrorCounts.
at::Tensor run_expert_rows(const ExpertBackend& backend, const at::Tensor& x,
                           const at::Tensor& counts, const ExpertWeights& weights,
                           const ExpertOptions& options, ExpertStats& stats,
                           const at::Tensor& error_word = {});

// "" when run_expert_tokens takes the backend, otherwise why rows are gathered, run by
// run_expert_rows and combined instead.
std::string refuse_tokens(const ExpertBackend& backend, bool has_output_postprocess);

// Runs `backend` on tokens, any number of them and of experts. Error(kUsage) for wrong shapes,
// dtypes and devices; an id outside [-1, E] is skipped and sets kErrorBadId in `error_word` (may be
// undefined). Gradients of gradients are refused.
at::Tensor run_expert_tokens(const ExpertBackend& backend, const ExpertTokens& tokens,
                             const ExpertParameters& parameters, ExpertStats& stats,
                             const at::Tensor& error_word = {});

}  // namespace amoeba::nn
