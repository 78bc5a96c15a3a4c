#include "support/torch/memory.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/Exception.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>

namespace amoeba::test {

namespace {

std::atomic<int64_t> live{0}, peak{0}, num_calls{0}, failing_call{-1};
std::atomic<bool> failed{false};

// Counts a request; throws where it is the one to fail.
void admit(const char* text, size_t size) {
  if (num_calls++ != failing_call) return;
  failed = true;
  // The messages are LibTorch's own, without its trace, which takes long to make.
  throw c10::OutOfMemoryError(text + std::to_string(size) + " bytes.", /*backtrace=*/nullptr);
}

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
    admit("DefaultCPUAllocator: can't allocate memory: you tried to allocate ", size);
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

// LibTorch's CUDA allocator cannot be replaced without CUDA's headers. Its `allocate` is exchanged
// in its table of virtual functions (Itanium C++ ABI).
using Allocate = c10::DataPtr (*)(c10::Allocator*, size_t);
Allocate inner_allocate = nullptr;

c10::DataPtr allocate_on_card(c10::Allocator* self, size_t size) {
  admit("CUDA out of memory. Tried to allocate ", size);
  return inner_allocate(self, size);
}

// Returns what was there.
Allocate exchange_allocate(c10::Allocator* allocator, Allocate next) {
  const auto member = &c10::Allocator::allocate;
  uintptr_t offset = 0;  // 1 + bytes into the table
  std::memcpy(&offset, &member, sizeof(offset));
  char* table = nullptr;
  std::memcpy(&table, static_cast<void*>(allocator), sizeof(table));
  char* entry = table + offset - 1;
  const auto page_size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  char* page = entry - reinterpret_cast<uintptr_t>(entry) % page_size;
  TORCH_CHECK(mprotect(page, page_size, PROT_READ | PROT_WRITE) == 0, "the table stays read-only");
  Allocate before = nullptr;
  std::memcpy(&before, entry, sizeof(before));
  std::memcpy(entry, &next, sizeof(next));
  return before;
}

int64_t bytes_on_card() {
  return c10::getDeviceAllocator(c10::kCUDA)->getDeviceStats(0).allocated_bytes[0].current;
}

}  // namespace

CountedMemory::CountedMemory(c10::DeviceType device)
    : device_(device), before_(c10::GetAllocator(device)) {
  live = device == c10::kCPU ? 0 : bytes_on_card();
  peak = 0;
  num_calls = 0;
  failing_call = -1;
  failed = false;
  if (device == c10::kCPU) {
    static auto* counting = new CountingAllocator(before_);
    c10::SetAllocator(c10::kCPU, counting);
  } else {
    inner_allocate = exchange_allocate(before_, &allocate_on_card);
  }
}

CountedMemory::~CountedMemory() {
  if (device_ == c10::kCPU) {
    c10::SetAllocator(c10::kCPU, before_);
  } else {
    exchange_allocate(before_, inner_allocate);
  }
}

int64_t CountedMemory::live_bytes() const {
  return device_ == c10::kCPU ? live.load() : bytes_on_card() - live;
}
int64_t CountedMemory::peak_bytes() const { return peak; }
void CountedMemory::reset_peak() { peak = live.load(); }
void CountedMemory::fail_at(int64_t index) {
  failing_call = num_calls + index;
  failed = false;
}
bool CountedMemory::has_failed() const { return failed; }

}  // namespace amoeba::test
