// Independent pieces of work on threads of their own, for work that takes seconds.
#pragma once

#include <cstdint>
#include <functional>

namespace amoeba {

// Calls body(index) for every index in [0, count) on up to `num_threads` threads (0: one a core),
// lower ones first. When calls throw, the rest are left out and one of the exceptions is thrown.
void run_in_parallel(int64_t num_threads, int64_t count, const std::function<void(int64_t)>& body);

}  // namespace amoeba
