// How a kernel gets its threads: the caller passes a pool, kernels contain no threading of their
// own.
#pragma once

#include <cstdint>

namespace amoeba {

// Contract: parallel_for calls body(body_context, begin, end) for disjoint ranges that cover
// [0, count) and returns when all are done. Ranges may run at the same time or one after the other
// on one thread, so a body never waits for another range of the same region. `num_threads` is a
// hint for splitting work; no result may depend on it.
struct Executor {
  using Body = void (*)(void* body_context, int64_t begin, int64_t end);

  void* context = nullptr;
  int num_threads = 1;
  void (*parallel_for)(void* context, int64_t count, Body body, void* body_context) = nullptr;
};

// Runs everything on the calling thread.
Executor serial_executor();

}  // namespace amoeba
