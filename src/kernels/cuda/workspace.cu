#include "kernels/cuda/workspace.h"

#include "kernels/cuda/launch.h"

namespace amoeba::kernels::cuda {

namespace {

constexpr int64_t kElementBytes = 2;

Grouping take_grouping(Carver& carver, const Sizes& sizes, bool weighted) {
  Grouping grouping;
  grouping.max_tiles = ceil_div(sizes.num_rows, device::kTileRows) + sizes.num_experts;
  grouping.offsets = carver.take<int32_t>(sizes.num_experts + 1);
  grouping.tiles = carver.take<int2>(grouping.max_tiles);
  grouping.num_tiles = carver.take<int32_t>(1);
  grouping.drawn = carver.take<uint32_t>(2);
  if (sizes.has_slots) grouping.row_token = carver.take<int32_t>(sizes.num_rows);
  if (weighted) grouping.row_weight = carver.take<float>(sizes.num_rows);
  return grouping;
}

void* take_elements(Carver& carver, int64_t rows, int64_t columns) {
  return carver.take<char>(rows * columns * kElementBytes);
}

}  // namespace

device::StoredProduct take_saved(Carver& carver, const Sizes& sizes, Save save) {
  const int64_t columns = 2 * sizes.hidden_dim;
  device::StoredProduct z;
  z.columns = columns;
  if (save == Save::kPreActivations) z.data = take_elements(carver, sizes.num_rows, columns);
  if (save == Save::kPreActivationsFp8) {
    z.data = carver.take<uint8_t>(sizes.num_rows * columns);
    z.scales = carver.take<uint8_t>(sizes.num_rows * ceil_div(columns, device::kScaleColumns));
  }
  return z;
}

ForwardScratch take_forward(Carver& carver, const ExpertsArguments& arguments) {
  const Sizes sizes = sizes_of(arguments);
  ForwardScratch scratch = {};
  scratch.grouping = take_grouping(carver, sizes, arguments.scores.data != nullptr);
  scratch.activated = take_elements(carver, sizes.num_rows, sizes.hidden_dim);
  if (sizes.has_slots) scratch.rows = take_elements(carver, sizes.num_rows, sizes.model_dim);
  return scratch;
}

BackwardScratch take_backward(Carver& carver, const ExpertsArguments& arguments,
                              const ExpertsOptions& options) {
  const Sizes sizes = sizes_of(arguments);
  const bool weighted = arguments.scores.data != nullptr;
  BackwardScratch scratch = {};
  scratch.grouping = take_grouping(carver, sizes, weighted);
  scratch.dz = take_elements(carver, sizes.num_rows, 2 * sizes.hidden_dim);
  if (weighted && options.score_before && arguments.gate_up_bias[0].data != nullptr) {
    scratch.dpre = take_elements(carver, sizes.num_rows, 2 * sizes.hidden_dim);
  }
  scratch.activated = take_elements(carver, sizes.num_rows, sizes.hidden_dim);
  if (sizes.has_slots) scratch.rows = take_elements(carver, sizes.num_rows, sizes.model_dim);
  if (weighted) scratch.score_parts = carver.take<float>(sizes.num_rows * num_score_parts(sizes));
  if (options.save == Save::kNothing) {
    scratch.z = take_saved(carver, sizes, Save::kPreActivations);
  }
  return scratch;
}

}  // namespace amoeba::kernels::cuda
