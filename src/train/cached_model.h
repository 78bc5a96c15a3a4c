// A model that reads token by token: keys and values of what it has read are kept.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "amoeba/model.h"

namespace amoeba::train {

// Several sequences, one a row. A row's numbers do not depend on what other rows hold; products
// over the tokens of several rows may round otherwise than those of one.
class CachedModel {
 public:
  // Rows of at most `context` tokens; memory grows with what they hold. The model must outlive
  // this.
  CachedModel(nn::Model& model, int64_t num_rows, int64_t context);

  // Tokens that the row holds.
  int64_t length(int64_t row) const { return caches_[0].lengths[static_cast<size_t>(row)]; }
  // Forgets the tokens from `length` on.
  void truncate(int64_t row, int64_t length);
  // Appends tokens.size() / rows.size() tokens to each of `rows` -> hidden [tokens.size(), D].
  at::Tensor read(std::span<const int64_t> rows, std::span<const int32_t> tokens);
  // hidden [T, D] -> logits [T, V] fp32 on the CPU.
  at::Tensor logits(const at::Tensor& hidden) const;

 private:
  void make_room(int64_t num_positions);

  nn::Model& model_;
  int64_t context_;
  std::vector<nn::KvCache> caches_;
};

}  // namespace amoeba::train
