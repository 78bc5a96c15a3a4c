#include "train/cached_model.h"

#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include "amoeba/error.h"

namespace amoeba::train {

CachedModel::CachedModel(nn::Model& model, int64_t num_rows, int64_t context)
    : model_(model), caches_(model.make_caches(num_rows, context)) {}

void CachedModel::truncate(int64_t row, int64_t length) {
  AMOEBA_ASSERT(length >= 0 && length <= this->length(row));
  for (nn::KvCache& cache : caches_) cache.lengths[static_cast<size_t>(row)] = length;
}

at::Tensor CachedModel::read(std::span<const int64_t> rows, std::span<const int32_t> tokens) {
  const c10::InferenceMode inference;  // a call less at every operator, no losses of the router
  const auto total = static_cast<int64_t>(tokens.size());
  const auto num_rows = static_cast<int64_t>(rows.size());
  AMOEBA_ASSERT(num_rows > 0 && total > 0 && total % num_rows == 0);
  const int64_t each = total / num_rows;
  at::Tensor ids = at::empty({total}, at::kLong), positions = at::empty({total}, at::kLong);
  auto* id = ids.mutable_data_ptr<int64_t>();
  auto* position = positions.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < total; ++i) {
    id[i] = tokens[static_cast<size_t>(i)];
    position[i] = length(rows[static_cast<size_t>(i / each)]) + i % each;
  }
  nn::ModelInput input;
  input.tokens = ids.to(model_.device());
  input.layout.batch_size = num_rows;
  input.layout.seq_len = each;
  input.layout.positions = positions.to(model_.device());
  input.layout.cache_rows.assign(rows.begin(), rows.end());
  return model_.forward(input, &caches_).hidden;
}

at::Tensor CachedModel::logits(const at::Tensor& hidden) const {
  const c10::InferenceMode inference;
  return model_.logits(hidden).to(at::kCPU).contiguous();
}

}  // namespace amoeba::train
