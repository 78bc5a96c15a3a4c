// What both devices make of the contract's arguments before any kernel runs: their checks, the
// sizes, and every stored parameter as the strides of its logical matrix, so that no kernel knows
// layouts. Legend: T tokens, D model width, H expert hidden width, E experts, K choices, R routed
// rows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "amoeba/kernels.h"

namespace amoeba::kernels {

int64_t bytes_of(DType dtype);
const char* name_of(DType dtype);

struct Sizes {
  int64_t num_rows;     // R
  int64_t num_tokens;   // T; R in the rows entry
  int64_t num_choices;  // K; 0 in the rows entry
  int64_t num_experts;  // E
  int64_t model_dim;    // D
  int64_t hidden_dim;   // H
  bool has_slots;       // the tokens entry
};
Sizes sizes_of(const ExpertsArguments& arguments);

// Element (e, row, column) at data + e * stride[0] + row * stride[1] + column * stride[2], in
// elements.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t stride[3] = {0, 0, 0};
};

struct Matrices {
  Matrix gate, up;            // [E, H, D]
  Matrix down;                // [E, D, H]
  Matrix gate_bias, up_bias;  // [E, H, 1]
  Matrix down_bias;           // [E, D, 1]
};
Matrices parameters_of(const ExpertsArguments& arguments, const ExpertsOptions& options);
Matrices gradients_of(const ExpertsGradients& gradients, const ExpertsArguments& arguments,
                      const ExpertsOptions& options);

// Throw Error(kUsage) with the operation, what was got and what was wanted. They read no data
// behind the views.
void check_route(const RouteArguments& arguments);
void check_experts(std::string_view operation, const ExpertsArguments& arguments,
                   const ExpertsOptions& options);
// y or dy: like x.
void check_like_x(std::string_view operation, std::string_view name, const View& view,
                  const ExpertsArguments& arguments);
void check_gradients(std::string_view operation, const ExpertsGradients& gradients,
                     const ExpertsArguments& arguments, const ExpertsOptions& options);

}  // namespace amoeba::kernels
