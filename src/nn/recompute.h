// Activation checkpointing: a piece of a block that keeps only its input and its routing ids from
// forward to backward, where it is computed again.
//
// Legend: T tokens, D model width, E experts, K choices per token.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace amoeba::nn {

// What a block keeps from forward to backward besides its input and its routing ids, which every
// mode keeps: everything; nothing, the block is computed again; or the attention half only, the
// feed-forward half is computed again.
enum class ActivationCheckpoint { kNone, kFull, kSelective };

struct BlockOutput {
  at::Tensor hidden;      // [T, D]
  at::Tensor expert_ids;  // [T, K]; this and all below undefined in a dense layer
  at::Tensor counts;      // [E]
  at::Tensor aux_loss;
  at::Tensor z_loss;
};

// A pure function of hidden [T, D] and, where defined, the routing ids. `again`: a repetition in
// backward, which must not count or report anything a second time.
using BlockPiece =
    std::function<BlockOutput(const at::Tensor& hidden, const at::Tensor& expert_ids, bool again)>;

// piece(hidden, expert_ids), differentiable in hidden and in the parameters that the piece reads;
// backward repeats it with the ids that it chose, so that the routing is the same to the bit while
// the scores, gathered anew, keep the router's gradient. `anchor` is any tensor that requires a
// gradient: it makes the result part of the graph where hidden is not. What the piece refers to
// must live until backward.
BlockOutput recompute_in_backward(const BlockPiece& piece, const at::Tensor& hidden,
                                  const at::Tensor& expert_ids, const at::Tensor& anchor);

}  // namespace amoeba::nn
