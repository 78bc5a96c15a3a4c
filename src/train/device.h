// Where a run computes: device and dtype by name, threads, memory figures, peak arithmetic rate.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace amoeba::train {

// "auto": CUDA when there is a device, else the CPU. "cuda" without one: Error(kUsage).
at::Device resolve_device(const std::string& name);

// "float32" or "bfloat16".
at::ScalarType resolve_dtype(const std::string& name);

// Bound on the logits that exist at once: `mib`, or for 0 what suits the device. On the CPU few
// rows stay in cache; on a card a product wants many.
int64_t loss_chunk_bytes(int64_t mib, at::DeviceType device);

// Threads of LibTorch's pool, at most 4096; 0: OMP_NUM_THREADS where a launcher set it, else one a
// core. Once a process, before any parallel work.
void set_num_threads(int64_t num_threads);
int num_threads();

// Makes the C library keep what is freed for the next allocation, as far as it can (blocks up to 32
// MiB): a training step frees and takes the same tensors again, and pages that go back to the
// system come back one fault and one clearing at a time.
void keep_freed_memory();

// "NVIDIA H200", or the processor's name and the thread count.
std::string device_name(at::Device device);

struct MemoryUsage {
  int64_t current_bytes = 0;
  int64_t reserved_bytes = 0;  // CPU: address space; CUDA: held by the caching allocator
  int64_t peak_bytes = 0;
  int64_t capacity_bytes = 0;  // of the machine or the card; 0: unknown
};
MemoryUsage memory_usage(at::Device device);

// Peak dense FLOP/s of known devices in this dtype, or 0. Source: the vendors' data sheets.
double peak_flops(at::Device device, at::ScalarType dtype);

}  // namespace amoeba::train
