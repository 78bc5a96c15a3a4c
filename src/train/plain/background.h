// One piece of work at a time on a thread beside the caller's, for saving while training goes on.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <thread>

namespace amoeba::train {

// All functions are for one thread, the owner's; the destructor waits for the work.
class BackgroundWork {
 public:
  BackgroundWork() = default;
  BackgroundWork(const BackgroundWork&) = delete;
  BackgroundWork& operator=(const BackgroundWork&) = delete;

  // Nothing may be under way: finish() comes first.
  void start(std::function<void()> work);
  bool started() const { return thread_.joinable(); }  // and not finished by finish()
  bool done() const { return done_.load(std::memory_order_acquire); }
  // Waits for the work and throws what it threw. Everything that it wrote is visible then.
  void finish();

 private:
  std::atomic<bool> done_ = false;
  std::exception_ptr error_;
  std::jthread thread_;  // last: joined before the rest goes
};

}  // namespace amoeba::train
