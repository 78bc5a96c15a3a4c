// LibTorch's own thread pool for code that is compiled without OpenMP.
#pragma once

#include <cstdint>
#include <functional>

namespace amoeba::nn {

// Calls body(begin, end) for disjoint ranges that cover [0, count), possibly at the same time, with
// gradients off; operators inside run on one thread. The first exception is rethrown.
// (at::parallel_for runs serially unless the caller links the OpenMP that torch carries.)
void parallel_for(int64_t count, const std::function<void(int64_t, int64_t)>& body);

}  // namespace amoeba::nn
