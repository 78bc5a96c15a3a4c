// A region of work on the caller's threads.
#pragma once

#include <cstdint>

#include "base/executor.h"

namespace amoeba::kernels::cpu {

// body(i) for every i of [0, count), in any order and at the same time.
template <typename Body>
void parallel_for_each(const Executor& executor, int64_t count, const Body& body) {
  if (count <= 0) return;
  executor.parallel_for(
      executor.context, count,
      [](void* context, int64_t begin, int64_t end) {
        const Body& call = *static_cast<const Body*>(context);
        for (int64_t i = begin; i < end; ++i) call(i);
      },
      const_cast<Body*>(&body));
}

}  // namespace amoeba::kernels::cpu
