#include "ops/host_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "amoeba/error.h"

namespace amoeba::ops {
namespace {

struct Block {
  void* data;
  int64_t bytes;
};

void* map(int64_t bytes) {
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return data == MAP_FAILED ? nullptr : data;
}

class HostMemory {
 public:
  void* take(int64_t bytes) {
    constexpr int64_t kPage = 4096;
    bytes = (bytes + kPage - 1) / kPage * kPage;
    const std::lock_guard lock(mutex_);
    Block block = take_kept(bytes);
    if (block.data == nullptr) {
      drop_kept(std::max(most_in_use_ / 4 * 5 - in_use_ - bytes, int64_t{0}));
      block = {map(bytes), bytes};
    }
    if (block.data == nullptr) {
      drop_kept(0);
      block = {map(bytes), bytes};
    }
    if (block.data == nullptr) return nullptr;
    used_[block.data] = block.bytes;
    in_use_ += block.bytes;
    most_in_use_ = std::max(most_in_use_, in_use_);
    return block.data;
  }

  void give_back(void* data) {
    const std::lock_guard lock(mutex_);
    const auto used = used_.find(data);
    AMOEBA_ASSERT(used != used_.end());
    const Block block{data, used->second};
    used_.erase(used);
    in_use_ -= block.bytes;
    kept_bytes_ += block.bytes;
    kept_.push_back(block);
  }

  HostMemoryBytes bytes() {
    const std::lock_guard lock(mutex_);
    return {in_use_, kept_bytes_};
  }

 private:
  // The smallest kept block that holds `bytes` and is not much larger.
  Block take_kept(int64_t bytes) {
    auto best = kept_.end();
    for (auto it = kept_.begin(); it != kept_.end(); ++it) {
      const bool fits = it->bytes >= bytes && it->bytes - bytes <= bytes / 4;
      if (fits && (best == kept_.end() || it->bytes < best->bytes)) best = it;
    }
    if (best == kept_.end()) return {nullptr, 0};
    const Block block = *best;
    kept_.erase(best);
    kept_bytes_ -= block.bytes;
    return block;
  }

  // Unmaps blocks until at most `limit` bytes are kept, those longest unused first.
  void drop_kept(int64_t limit) {
    size_t count = 0;
    for (; kept_bytes_ > limit; ++count) {
      kept_bytes_ -= kept_[count].bytes;
      munmap(kept_[count].data, static_cast<size_t>(kept_[count].bytes));
    }
    kept_.erase(kept_.begin(), kept_.begin() + static_cast<std::ptrdiff_t>(count));
  }

  std::mutex mutex_;
  std::map<void*, int64_t> used_;  // bytes of each block
  std::vector<Block> kept_;        // in the order they came back
  int64_t in_use_ = 0, kept_bytes_ = 0, most_in_use_ = 0;
};

// Never destroyed: tensors may die after everything else at exit.
HostMemory& host_memory() {
  static auto* memory = new HostMemory;
  return *memory;
}

}  // namespace

void* take_host_memory(int64_t bytes) { return host_memory().take(bytes); }
void give_back_host_memory(void* block) { host_memory().give_back(block); }
HostMemoryBytes host_memory_bytes() { return host_memory().bytes(); }

}  // namespace amoeba::ops
