#include "train/plain/background.h"

#include <utility>

#include "amoeba/error.h"

namespace amoeba::train {

void BackgroundWork::start(std::function<void()> work) {
  AMOEBA_ASSERT(!started());
  done_.store(false, std::memory_order_relaxed);
  thread_ = std::jthread([this, work = std::move(work)] {
    try {
      work();
    } catch (...) {
      error_ = std::current_exception();
    }
    done_.store(true, std::memory_order_release);
  });
}

void BackgroundWork::finish() {
  if (!started()) return;
  thread_.join();
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

}  // namespace amoeba::train
