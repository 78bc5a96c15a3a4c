// Work recorded once on a GPU and queued again with one launch.
#pragma once

#include <functional>
#include <memory>

namespace amoeba::train {

class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  // Queues the recorded work on the current stream.
  virtual void replay() = 0;
};

// Records what `work` queues, without doing it; nullptr where the build has no CUDA. `work` may
// neither read from the device nor copy from the host. Memory that it takes stays the graph's. What
// work throws is passed on, and nothing was done.
std::unique_ptr<DeviceGraph> record_graph(const std::function<void()>& work);

}  // namespace amoeba::train
