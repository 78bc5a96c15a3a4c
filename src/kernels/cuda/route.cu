// Routing metadata: a stable counting sort of the slots by expert in three launches, every size
// fixed by the shapes. A warp owns kSlots slots in a row, so ranks follow the order of slots
// whatever the schedule.
//
// Legend: T tokens, K choices, E experts, R = T*K slots, B blocks of kSlots slots.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "amoeba/kernels.h"
#include "base/error_word.h"
#include "kernels/cuda/device/scan.cuh"
#include "kernels/cuda/launch.h"

namespace amoeba::kernels::cuda {

namespace {

constexpr int64_t kSlots = 512;
constexpr int64_t kMaxExperts = 12288;  // counters of a block in 48 KiB of shared memory
constexpr int kScanThreads = 256;       // eight experts a block
constexpr int kScanLoads = 8;           // of a thread at once

struct RouteKernelArguments {
  const char* ids;
  int64_t stride[2];  // bytes
  bool wide;          // int64 ids
  int64_t num_slots;
  uint32_t num_choices;
  int32_t num_experts;
  int32_t num_blocks;     // B
  int32_t* block_counts;  // [B, E]: counts, then ranks of a block's first slots
  int32_t* blocks_done;   // [1]
  int32_t* counts;
  int32_t* offsets;
  int32_t* row_slot;
  int32_t* slot_row;
  int32_t* error;
};

// The expert of a slot, or -1.
__device__ int32_t expert_of_slot(const RouteKernelArguments& p, int64_t slot, bool* bad) {
  const uint32_t token = static_cast<uint32_t>(slot) / p.num_choices;
  const uint32_t choice = static_cast<uint32_t>(slot) - token * p.num_choices;
  const char* at = p.ids + token * p.stride[0] + choice * p.stride[1];
  const int64_t id = p.wide ? *reinterpret_cast<const int64_t*>(at)
                            : static_cast<int64_t>(*reinterpret_cast<const int32_t*>(at));
  if (id < -1 || id > p.num_experts) *bad = true;
  return id < 0 || id >= p.num_experts ? -1 : static_cast<int32_t>(id);
}

// Calls visit(slot, expert, place) for the block's slots in order, 32 at a time: place is
// counter[expert], which each slot raises by one. All ids are on their way before the first is
// used.
template <typename Visit>
__device__ void for_each_slot(const RouteKernelArguments& p, int32_t* counter, bool* bad,
                              const Visit& visit) {
  constexpr int kSteps = kSlots / 32;
  const int lane = threadIdx.x;
  const int64_t first = blockIdx.x * kSlots + lane;
  int32_t experts[kSteps];
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int64_t slot = first + i * 32;
    experts[i] = slot < p.num_slots ? expert_of_slot(p, slot, bad) : -1;
  }
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int64_t slot = first + i * 32;
    const int32_t expert = experts[i];
    const unsigned same = __match_any_sync(0xffffffffu, expert);
    const int32_t before = expert >= 0 ? counter[expert] : 0;
    __syncwarp();
    if (expert >= 0 && lane == __ffs(static_cast<int>(same)) - 1) {
      counter[expert] = before + __popc(same);
    }
    __syncwarp();
    if (slot < p.num_slots) visit(slot, expert, before + __popc(same & ((1u << lane) - 1)));
  }
}

__global__ void __launch_bounds__(32) count_slots(RouteKernelArguments p) {
  extern __shared__ int32_t counter[];
  for (int32_t e = threadIdx.x; e < p.num_experts; e += 32) counter[e] = 0;
  __syncwarp();
  bool bad = false;
  for_each_slot(p, counter, &bad, [](int64_t, int32_t, int32_t) {});
  int32_t* out = p.block_counts + static_cast<int64_t>(blockIdx.x) * p.num_experts;
  for (int32_t e = threadIdx.x; e < p.num_experts; e += 32) out[e] = counter[e];
  if (blockIdx.x == 0 && threadIdx.x == 0) *p.blocks_done = 0;
  if (bad) atomicOr(p.error, kErrorBadId);
}

// A warp an expert: prefix over the blocks. The last block to finish makes the offsets.
__global__ void __launch_bounds__(kScanThreads) scan_counts(RouteKernelArguments p) {
  __shared__ int32_t shared[32];
  __shared__ bool is_last;
  const int lane = threadIdx.x & 31;
  const int64_t expert = blockIdx.x * (kScanThreads / 32) + (threadIdx.x >> 5);
  if (expert < p.num_experts) {
    int32_t sum = 0;
    for (int64_t first = lane; first - lane < p.num_blocks; first += 32 * kScanLoads) {
      int32_t counts[kScanLoads];
#pragma unroll
      for (int i = 0; i < kScanLoads; ++i) {
        const int64_t block = first + i * 32;
        counts[i] = block < p.num_blocks ? p.block_counts[block * p.num_experts + expert] : 0;
      }
#pragma unroll
      for (int i = 0; i < kScanLoads; ++i) {
        const int64_t block = first + i * 32;
        int32_t prefix = counts[i];
        for (int distance = 1; distance < 32; distance *= 2) {
          const int32_t below = __shfl_up_sync(0xffffffffu, prefix, distance);
          if (lane >= distance) prefix += below;
        }
        if (block < p.num_blocks) {
          p.block_counts[block * p.num_experts + expert] = sum + prefix - counts[i];
        }
        sum += __shfl_sync(0xffffffffu, prefix, 31);
      }
    }
    if (lane == 0) p.counts[expert] = sum;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(p.blocks_done, 1) == static_cast<int>(gridDim.x) - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  int32_t total = 0;
  for (int64_t first = 0; first < p.num_experts; first += kScanThreads) {
    const int64_t e = first + threadIdx.x;
    const int32_t count = e < p.num_experts ? __ldcg(p.counts + e) : 0;
    const int32_t end = total + device::scan_block<kScanThreads>(count, shared);
    if (e < p.num_experts) p.offsets[e + 1] = end;
    __syncthreads();
    if (threadIdx.x == kScanThreads - 1) shared[0] = end;
    __syncthreads();
    total = shared[0];
  }
  if (threadIdx.x == 0) p.offsets[0] = 0;
}

__global__ void __launch_bounds__(32) place_slots(RouteKernelArguments p) {
  extern __shared__ int32_t counter[];
  const int32_t* ranks = p.block_counts + static_cast<int64_t>(blockIdx.x) * p.num_experts;
  for (int32_t e = threadIdx.x; e < p.num_experts; e += 32) counter[e] = p.offsets[e] + ranks[e];
  __syncwarp();
  bool bad = false;
  const int32_t num_rows = p.offsets[p.num_experts];
  for_each_slot(p, counter, &bad, [&](int64_t slot, int32_t expert, int32_t place) {
    const int32_t row = expert < 0 ? -1 : place;
    p.slot_row[slot] = row;
    if (row >= 0) p.row_slot[row] = static_cast<int32_t>(slot);
    if (slot >= num_rows) p.row_slot[slot] = -1;  // no slot is placed there
  });
}

int64_t num_blocks(int64_t num_slots) { return ceil_div(num_slots, kSlots); }

}  // namespace

int64_t route_scratch_bytes(int64_t num_slots, int64_t num_experts) {
  return (num_blocks(num_slots) * num_experts + 1) * static_cast<int64_t>(sizeof(int32_t));
}

void route(const RouteArguments& arguments, void* scratch, Stream stream) {
  const View& ids = arguments.expert_ids;
  const int64_t num_slots = ids.size[0] * ids.size[1];
  AMOEBA_CHECK(ids.dtype == DType::kI32 || ids.dtype == DType::kI64,
               "route: dtype of expert_ids is ", static_cast<int>(ids.dtype),
               ", want int32 or int64");
  AMOEBA_CHECK(arguments.num_experts >= 0 && arguments.num_experts <= kMaxExperts,
               "route: num_experts is ", arguments.num_experts, ", want 0 to ", kMaxExperts);
  AMOEBA_CHECK(num_slots <= INT32_MAX, "route: T*K is ", num_slots, ", want at most ", INT32_MAX);
  const int64_t id_bytes = ids.dtype == DType::kI64 ? 8 : 4;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  int32_t* ints = static_cast<int32_t*>(scratch);

  RouteKernelArguments p = {};
  p.ids = static_cast<const char*>(ids.data);
  p.stride[0] = ids.stride[0] * id_bytes;
  p.stride[1] = ids.stride[1] * id_bytes;
  p.wide = ids.dtype == DType::kI64;
  p.num_slots = num_slots;
  p.num_choices = static_cast<uint32_t>(ids.size[1]);
  p.num_experts = static_cast<int32_t>(arguments.num_experts);
  p.num_blocks = static_cast<int32_t>(num_blocks(num_slots));
  p.blocks_done = ints;
  p.block_counts = ints + 1;
  p.counts = arguments.counts;
  p.offsets = arguments.offsets;
  p.row_slot = arguments.row_slot;
  p.slot_row = arguments.slot_row;
  p.error = arguments.error;

  if (num_slots == 0) {
    check_cuda(cudaMemsetAsync(p.counts, 0, sizeof(int32_t) * arguments.num_experts, cuda_stream),
               "route: zero counts");
    check_cuda(
        cudaMemsetAsync(p.offsets, 0, sizeof(int32_t) * (arguments.num_experts + 1), cuda_stream),
        "route: zero offsets");
    return;
  }
  const unsigned blocks = static_cast<unsigned>(p.num_blocks);
  const size_t shared = sizeof(int32_t) * static_cast<size_t>(arguments.num_experts);
  count_slots<<<blocks, 32, shared, cuda_stream>>>(p);
  check_launch("route: count_slots");
  const unsigned scan_blocks =
      grid_blocks(std::max<int64_t>(arguments.num_experts, 1), kScanThreads / 32);
  scan_counts<<<scan_blocks, kScanThreads, 0, cuda_stream>>>(p);
  check_launch("route: scan_counts");
  place_slots<<<blocks, 32, shared, cuda_stream>>>(p);
  check_launch("route: place_slots");
}

}  // namespace amoeba::kernels::cuda
