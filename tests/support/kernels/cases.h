// The cases of the experts kernels as data, on every device, and their inputs as logical fp64
// values. Legend: T tokens, D model width, H expert hidden width, E experts, K choices, R = T*K
// rows.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "amoeba/kernels.h"

namespace amoeba::test {

// Fp32: into fp32 buffers, whatever the dtype of the weights.
enum class Gradients { kOverwrite, kAccumulate, kAccumulateFp32, kOverwriteFp32 };

struct KernelCase {
  std::string name;
  int64_t num_choices = 1, model_dim = 0, hidden_dim = 0;  // K, D, H
  std::vector<int64_t> counts;                             // rows of each expert, [E]
  int64_t num_skipped = 0;  // slots with id -1 or E; rows past the last expert in the rows entry
  int64_t num_bad = 0;      // slots with an id that is an error
  kernels::ExpertsOptions options;
  bool has_slots = true;  // the tokens entry
  bool has_scores = true;
  bool has_biases = false;
  bool is_padded = false;         // rows of every tensor are apart
  bool has_wide_ids = false;      // int64
  bool has_typed_scores = false;  // scores in the dtype of x instead of fp32 (not for fp16)
  Gradients gradients = Gradients::kOverwrite;

  bool accumulates() const {
    return gradients == Gradients::kAccumulate || gradients == Gradients::kAccumulateFp32;
  }
  int64_t num_experts() const { return static_cast<int64_t>(counts.size()); }
  int64_t num_sorted() const;  // rows of all experts
  int64_t num_tokens() const;  // T; R in the rows entry
  int64_t num_rows() const { return has_slots ? num_tokens() * num_choices : num_tokens(); }
  kernels::DType score_dtype(kernels::DType dtype) const;
  kernels::DType gradient_dtype(kernels::DType dtype) const;
  std::string text() const;  // every field on one line, to reproduce a failure
};
std::ostream& operator<<(std::ostream& out, const KernelCase& kernel_case);

// Row counts around every tile edge, hot and empty experts, skewed and repeated ones; each with
// every layout, the other options cycling so that all pairs appear.
const std::vector<KernelCase>& kernel_cases();
// The part of kernel_cases() that can be computed to the bit: no clamped activation.
const std::vector<KernelCase>& exact_cases();

// Logical values, row-major, whatever the layout. Absent: empty.
struct KernelValues {
  std::vector<int64_t> ids;                // [T, K]; of the rows entry: the expert of each row
  std::vector<double> x, dy;               // [T, D]
  std::vector<double> scores;              // [T, K]
  std::vector<double> gate, up;            // [E, H, D]
  std::vector<double> down;                // [E, D, H]
  std::vector<double> gate_bias, up_bias;  // [E, H]
  std::vector<double> down_bias;           // [E, D]
};

// Normal values, rounded to the dtype; other ones for each draw.
KernelValues make_values(const KernelCase& kernel_case, kernels::DType dtype, uint64_t draw = 0);
// Small integers: gate pre-activations are 0 or multiples of 32, where silu is exact in fp32 and
// its derivative 1/2 or 1; scores are powers of 2. A lower density leaves fewer of them different
// from 0.
KernelValues make_exact_values(const KernelCase& kernel_case, double density);
// What gradient buffers hold before they are added to; only the weights' fields.
KernelValues make_previous(const KernelCase& kernel_case, kernels::DType dtype);

}  // namespace amoeba::test
