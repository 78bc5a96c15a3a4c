#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/StreamGuard.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>

#include "train/device_graph.h"

namespace amoeba::train {

namespace {

class CudaGraph : public DeviceGraph {
 public:
  void replay() override { graph.replay(); }
  at::cuda::CUDAGraph graph;
};

}  // namespace

std::unique_ptr<DeviceGraph> record_graph(const std::function<void()>& work) {
  auto recorded = std::make_unique<CudaGraph>();
  // The graph's memory is its own: what steps before it left over would be held twice.
  c10::cuda::device_synchronize();
  c10::cuda::CUDACachingAllocator::emptyCache();
  const c10::StreamGuard guard(c10::cuda::getStreamFromPool());
  // Relaxed: other threads, autograd's among them, may allocate meanwhile.
  recorded->graph.capture_begin({0, 0}, cudaStreamCaptureModeRelaxed);
  try {
    work();
  } catch (...) {
    try {
      recorded->graph.capture_end();
    } catch (const std::exception&) {
      // The first error is the cause.
    }
    throw;
  }
  recorded->graph.capture_end();
  return recorded;
}

}  // namespace amoeba::train
