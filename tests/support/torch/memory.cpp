#include "support/torch/memory.h"

#include <atomic>
#include <utility>

namespace amoeba::test {

namespace {

std::atomic<int64_t> live{0}, peak{0};

struct Block {
  c10::DataPtr inner;
  int64_t size;
};

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  live -= block->size;
  delete block;
}

// Hands requests on. Lives for ever: tensors may outlive the counting.
class CountingAllocator : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t size) override {
    auto* block = new Block{inner_->allocate(size), static_cast<int64_t>(size)};
    const int64_t now = live += block->size;
    int64_t most = peak;
    while (now > most && !peak.compare_exchange_weak(most, now)) {
    }
    return {block->inner.get(), block, &free_block, at::kCPU};
  }

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
  c10::SetAllocator(c10::kCPU, counting);
}

CountedMemory::~CountedMemory() { c10::SetAllocator(c10::kCPU, before_); }

int64_t CountedMemory::live_bytes() const { return live; }
int64_t CountedMemory::peak_bytes() const { return peak; }
void CountedMemory::reset_peak() { peak = live.load(); }

}  // namespace amoeba::test
