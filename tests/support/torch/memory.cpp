#include "support/torch/memory.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <mutex>
#include <string>
#include <unordered_map>

namespace amoeba::test {

namespace {

std::atomic<int64_t> live{0}, peak{0}, num_calls{0}, failing_call{-1};
std::atomic<bool> failed{false};

std::mutex sizes_mutex;
std::unordered_map<void*, int64_t> sizes;  // of live blocks
c10::DeleterFnPtr inner_deleter = nullptr;

void free_block(void* data) {
  {
    const std::lock_guard lock(sizes_mutex);
    const auto block = sizes.find(data);
    live -= block->second;
    sizes.erase(block);
  }
  inner_deleter(data);
}

// Hands requests on. Lives for ever: tensors may outlive the counting. A block's context is its
// data, as LibTorch's scratch buffers (raw_allocate) want it.
class CountingAllocator : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {
    inner_deleter = inner->raw_deleter();
  }

  c10::DataPtr allocate(size_t size) override {
    if (num_calls++ == failing_call) {
      failed = true;
      // The message of LibTorch's own, without its trace, which takes long to make.
      throw c10::Error("DefaultCPUAllocator: can't allocate memory: you tried to allocate " +
                           std::to_string(size) + " bytes.",
                       /*backtrace=*/nullptr);
    }
    void* data = inner_->allocate(size).release_context();
    if (data == nullptr) return {nullptr, at::kCPU};  // 0 bytes
    {
      const std::lock_guard lock(sizes_mutex);
      sizes[data] = static_cast<int64_t>(size);
    }
    const int64_t now = live += static_cast<int64_t>(size);
    int64_t most = peak;
    while (now > most && !peak.compare_exchange_weak(most, now)) {
    }
    return {data, data, &free_block, at::kCPU};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }

  void copy_data(void* to, const void* from, size_t size) const override {
    inner_->copy_data(to, from, size);
  }

 private:
  c10::Allocator* inner_;
};

}  // namespace

CountedMemory::CountedMemory() : before_(c10::GetAllocator(c10::kCPU)) {
  static auto* counting = new CountingAllocator(before_);
  live = 0;
  peak = 0;
  num_calls = 0;
  failing_call = -1;
  failed = false;
  c10::SetAllocator(c10::kCPU, counting);
}

CountedMemory::~CountedMemory() { c10::SetAllocator(c10::kCPU, before_); }

int64_t CountedMemory::live_bytes() const { return live; }
int64_t CountedMemory::peak_bytes() const { return peak; }
void CountedMemory::reset_peak() { peak = live.load(); }
void CountedMemory::fail_at(int64_t index) {
  failing_call = num_calls + index;
  failed = false;
}
bool CountedMemory::has_failed() const { return failed; }

}  // namespace amoeba::test
