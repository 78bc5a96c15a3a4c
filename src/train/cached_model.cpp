#include "train/cached_model.h"

#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "amoeba/error.h"

namespace amoeba::train {

CachedModel::CachedModel(nn::Model& model, int64_t num_rows, int64_t context)
    : model_(model), context_(context), caches_(model.make_caches(num_rows, 0)) {}

void CachedModel::truncate(int64_t row, int64_t length) {
  AMOEBA_ASSERT(length >= 0 && length <= this->length(row));
  for (nn::KvCache& cache : caches_) cache.lengths[static_cast<size_t>(row)] = length;
}

// At least twice what there was, so that few copies are made on the way.
void CachedModel::make_room(int64_t num_positions) {
  const int64_t have = caches_[0].keys.size(2);
  if (num_positions <= have) return;
  const int64_t capacity = std::clamp(2 * have, num_positions, std::max(num_positions, context_));
  for (nn::KvCache& cache : caches_) {
    for (at::Tensor* kept : {&cache.keys, &cache.values}) {
      std::vector<int64_t> sizes = kept->sizes().vec();
      sizes[2] = capacity;
      const at::Tensor wider = at::empty(sizes, kept->options());
      wider.narrow(2, 0, have).copy_(*kept);
      *kept = wider;
    }
  }
}

at::Tensor CachedModel::read(std::span<const int64_t> rows, std::span<const int32_t> tokens) {
  const c10::InferenceMode inference;  // a call less at every operator, no losses of the router
  const auto total = static_cast<int64_t>(tokens.size());
  const auto num_rows = static_cast<int64_t>(rows.size());
  AMOEBA_ASSERT(num_rows > 0 && total > 0 && total % num_rows == 0);
  const int64_t each = total / num_rows;
  at::Tensor ids = at::empty({total}, at::kLong), positions = at::empty({total}, at::kLong);
  for (const int64_t row : rows) {
    AMOEBA_CHECK(length(row) + each <= context_, "generate: row ", row, " holds ", length(row),
                 " tokens and is to read ", each, ", want at most ", context_, " together");
    make_room(length(row) + each);
  }
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
