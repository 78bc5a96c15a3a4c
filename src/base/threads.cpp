#include "base/threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace amoeba {

void run_in_parallel(int64_t num_threads, int64_t count, const std::function<void(int64_t)>& body) {
  if (num_threads == 0) num_threads = std::max<int64_t>(1, std::thread::hardware_concurrency());
  std::atomic<int64_t> next = 0;
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto work = [&] {
    for (int64_t index; (index = next++) < count;) {
      try {
        body(index);
      } catch (...) {
        const std::lock_guard lock(error_mutex);
        error = std::current_exception();
        next = count;
      }
    }
  };
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < std::min(num_threads, count); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace amoeba
