// Memory of large results on the host. A block comes back when its tensor dies and is handed out
// again: the first touch of new memory costs more than the kernels that write it.
#pragma once

#include <cstdint>

namespace amoeba::ops {

// Results of fewer bytes are LibTorch's to allocate: of blocks that large glibc gives every one
// back to the kernel, smaller ones it learns to keep.
constexpr int64_t kLargeResult = 32 << 20;

// At least `bytes`, aligned to pages, of any content; nullptr when there is no memory.
void* take_host_memory(int64_t bytes);
// Takes what take_host_memory() returned, on any thread.
void give_back_host_memory(void* block);

// Blocks in use and blocks kept for later use are together at most a quarter more bytes than were
// once in use: blocks of a pass that are of another pass's sizes.
struct HostMemoryBytes {
  int64_t in_use, kept;
};
HostMemoryBytes host_memory_bytes();

}  // namespace amoeba::ops
