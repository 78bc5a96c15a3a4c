// The arguments that the expert operators share, and the problem they describe once checked.
//
// Legend: T tokens, D model width, H expert hidden width, E experts, K choices, R = T*K rows.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "amoeba/kernels.h"
#include "ops/checks.h"
#include "ops/stack.h"

namespace amoeba::ops {

// As in the schemas, in their order.
struct ExpertsInputs {
  Tensor x;
  std::optional<Tensor> scores;
  Tensor offsets;
  std::optional<Tensor> row_slot;
  std::optional<Tensor> slot_row;
  std::vector<Tensor> gate_up;
  std::vector<Tensor> gate_up_bias;
  Tensor down;
  std::optional<Tensor> down_bias;
  std::string layout;
  bool transposed;
  std::string activation;
  double alpha;
  double limit;
  bool score_before;
  std::string save;
};

ExpertsInputs read_inputs(StackReader& reader);

// Checked inputs as the kernels take them; `arguments.error` is left to the caller.
struct ExpertsProblem {
  kernels::ExpertsArguments arguments;
  kernels::ExpertsOptions options;
  kernels::DType dtype;         // of x and the weights
  kernels::DType scores_dtype;  // kF32 without scores
};

ExpertsProblem check_inputs(const char* operation, const ExpertsInputs& inputs);

}  // namespace amoeba::ops
