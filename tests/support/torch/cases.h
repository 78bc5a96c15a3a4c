// Cases of the expert tests as data, their seeded inputs, and the plain computation they are held
// to.
//
// Shapes: R rows, D model, H hidden, E experts.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "amoeba/experts.h"

namespace amoeba::test {

struct ExpertCase {
  std::string name;
  int64_t num_experts, model_dim, hidden_dim;
  std::vector<int64_t> counts;
  int64_t tail_rows = 0;
  double weight_scale = 0.3;

  int64_t num_counted_rows() const;
};
std::ostream& operator<<(std::ostream& out,
                         const ExpertCase& expert_case);  // gtest's failure lines

struct ExpertInputs {
  at::Tensor x;       // [R, D]
  at::Tensor counts;  // [E] int64
  nn::ExpertWeights weights;
  at::Tensor dy;  // [R, D]

  // The same values in another dtype: fp64 of rounded inputs is what a reference starts from.
  ExpertInputs to(at::ScalarType dtype) const;
};

// Normal values by the seed, rounded to dtype; equal on every device.
ExpertInputs make_inputs(const ExpertCase& expert_case, at::ScalarType dtype, at::Device device,
                         uint64_t seed = 1);

// Small integers that every backend must compute to the bit: the gate pre-activation of a row is 0
// or a multiple of 32 (silu exact, its derivative 1/2 or 1); not for fp64, where silu(32) is
// not 32.
ExpertInputs make_integer_inputs(const ExpertCase& expert_case, at::ScalarType dtype,
                                 at::Device device, uint64_t seed = 1);

struct ExpertResults {
  at::Tensor y, dx, dw1, dw2, dw3;

  static constexpr std::array<const char*, 5> kNames = {"y", "dx", "dw1", "dw2", "dw3"};
  std::array<at::Tensor, 5> list() const { return {y, dx, dw1, dw2, dw3}; }
};

// The plain computation, one expert at a time through autograd, in the dtype of the inputs. Rows of
// an expert past `capacity` (none when negative) and tail rows give zeros.
ExpertResults reference_experts(const ExpertInputs& inputs, int64_t capacity = -1);

// Output and gradients of a backend.
ExpertResults run_experts(const nn::ExpertBackend& backend, const ExpertInputs& inputs,
                          nn::ExpertStats& stats, const nn::ExpertOptions& options = {});

const nn::ExpertBackend& backend_named(std::string_view name);

// The CPU, and a GPU when there is one.
std::vector<at::Device> available_devices();

// While alive, fresh memory of tensors is filled with NaN, so that what nobody writes is seen.
class NanFilledMemory {
 public:
  NanFilledMemory();
  ~NanFilledMemory();
  NanFilledMemory(const NanFilledMemory&) = delete;
  NanFilledMemory& operator=(const NanFilledMemory&) = delete;
};

}  // namespace amoeba::test
