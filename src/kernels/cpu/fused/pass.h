// What one forward or backward pass of the fused kernels shares: the problem, how its rows are
// split, and where its intermediate results lie. Plain data: the kernels of one instruction set
// must not call inline functions that other code shares, lest the linker pick theirs for a CPU
// without it.
//
// Rows of an expert come in blocks of at most kMaxVectors vectors. A block's operands are panels:
// unit u of its lanes side by side, [units][num_lanes], where a lane is a routed row and a unit is
// one fp32 value or two neighbouring bf16 values. Lanes without a row hold zeros. Legend: T tokens,
// D model width, H expert hidden width, E experts, K choices, R routed rows.
#pragma once

#include <cstdint>

#include "base/executor.h"
#include "kernels/problem.h"

namespace amoeba::kernels::cpu {

struct Block {
  int64_t expert;
  int64_t row, num_rows;    // sorted rows
  int64_t lane, num_lanes;  // position among the lanes of all blocks; num_rows rounded up
};

// Strips of all experts, strip s of expert e being e * num_strips + s, cut into slices of about
// equal work: slice i is [begin[i], begin[i + 1]).
struct Slices {
  const int64_t* begin = nullptr;
  int64_t num_slices = 0;
  int64_t num_strips = 0;
};

struct Pass {
  Sizes sizes;
  Matrices weights, gradients;
  Activation activation;
  float alpha, limit;
  bool score_before, accumulate, streams;  // streams: weight gradients go past the caches
  bool gate_up_dots, down_dots;  // blocks of few rows keep the operand as rows, see dots.h
  View x, scores, dy, dscores;
  View output;  // y or dx
  const int32_t *offsets, *row_slot, *slot_row;

  const Block* blocks;         // by expert
  const int64_t* first_block;  // [E+1]
  Slices hidden_slices, model_slices, gradient_slices;
  int64_t group_bytes;  // of panels that are to stay in the second cache

  int64_t row_stride;                               // of x_rows and dy_rows, in units
  char *x_panels, *hidden_panels;                   // D and H units
  char* saved_gate;                                 // [2][H][lanes] of each block, or nullptr
  char *dy_panels, *dgate_panels, *dup_panels;      // D, H and H units
  char *dgate_tokens, *dup_tokens, *hidden_tokens;  // [H][lanes] of each block; the last weighted
  char *x_rows, *dy_rows;                           // [units of lanes][row_stride]
  float* lane_scores;                               // [lanes]
  float* score_parts;                               // [strips of H + 1][R], or nullptr
  char* rows;                                       // [R, D]: what combine() adds up
  int64_t rows_stride;
};

// The regions of one instruction set and dtype. Each takes a Pass and a range of blocks, slices or
// tokens.
struct FusedKernels {
  int64_t lanes, max_vectors;
  int64_t strip;            // outputs
  int64_t values_per_unit;  // 2: bf16 pairs
  Executor::Body pack_forward, gate_up, down, combine;
  Executor::Body pack_backward, dhidden, dinput, dweights, combine_backward;
};

}  // namespace amoeba::kernels::cpu
