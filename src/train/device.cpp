#include "train/device.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string_view>

#include "amoeba/error.h"
#include "base/cuda_driver.h"

namespace amoeba::train {

namespace {

// The text after "key:" in a /proc file of "key: value" lines; "" when absent.
std::string proc_field(const char* path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(key, 0) != 0) continue;
    const size_t start = line.find_first_not_of(" \t:", key.size());
    return start == std::string::npos ? "" : line.substr(start);
  }
  return "";
}

int64_t proc_kib(const char* path, std::string_view key) {
  const std::string field = proc_field(path, key);
  return field.empty() ? 0 : std::stoll(field) * 1024;
}

}  // namespace

at::Device resolve_device(const std::string& name) {
  if (name == "cpu") return at::kCPU;
  AMOEBA_CHECK(name == "auto" || name == "cuda", "training.device: got '", name,
               "', want auto, cpu or cuda");
  if (at::hasCUDA() && at::detail::getCUDAHooks().deviceCount() > 0) {
    at::globalContext().lazyInitDevice(at::kCUDA);  // memory is asked for before a tensor exists
    // Bits repeat only without atomics, which LibTorch's operators then avoid; where it keeps them,
    // in cuDNN's backward of attention, it warns. Fresh memory needs no filling for it, and cuBLAS
    // repeats its bits on one stream; this setting, LibTorch's own size, keeps it from being warned
    // of at every call.
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    return at::Device(at::kCUDA, 0);
  }
  AMOEBA_CHECK(name == "auto",
               "training.device: got 'cuda', but this torch sees no CUDA device; want auto or cpu");
  return at::kCPU;
}

at::ScalarType resolve_dtype(const std::string& name) {
  if (name == "float32") return at::kFloat;
  AMOEBA_CHECK(name == "bfloat16", "training.dtype: got '", name, "', want float32 or bfloat16");
  return at::kBFloat16;
}

int64_t loss_chunk_bytes(int64_t mib, at::DeviceType device) {
  constexpr int64_t kMibOnCpu = 64, kMibOnCard = 2048;
  return (mib > 0 ? mib : device == at::kCPU ? kMibOnCpu : kMibOnCard) << 20;
}

void set_num_threads(int64_t num_threads) {
  constexpr int64_t kMaxThreads = 4096;  // OpenMP crashes where the system has no room for more
  AMOEBA_CHECK(num_threads >= 0 && num_threads <= kMaxThreads, "num_threads: got ", num_threads,
               ", want 0 (OMP_NUM_THREADS, or all cores) to ", kMaxThreads);
  // 0 keeps LibTorch's own choice: OMP_NUM_THREADS as launchers set it, or all cores.
  if (num_threads > 0) at::set_num_threads(static_cast<int>(num_threads));
}

int num_threads() { return at::get_num_threads(); }

void keep_freed_memory() {
#if defined(__GLIBC__)
  constexpr int kLargestThreshold = 32 << 20, kNeverTrim = -1;
  mallopt(M_MMAP_THRESHOLD, kLargestThreshold);
  mallopt(M_TRIM_THRESHOLD, kNeverTrim);
#endif
}

std::string device_name(at::Device device) {
  if (device.is_cuda()) {
    const auto info = query_cuda_device(device.index());
    return info ? info->name : "CUDA device";
  }
  const std::string model = proc_field("/proc/cpuinfo", "model name");
  return cat(model.empty() ? "CPU" : model, ", ", num_threads(), " threads");
}

MemoryUsage memory_usage(at::Device device) {
  MemoryUsage usage;
  if (!device.is_cpu()) {
    const auto stats = at::accelerator::getDeviceStats(device.index());
    usage.current_bytes = stats.allocated_bytes[0].current;
    usage.reserved_bytes = stats.reserved_bytes[0].current;
    usage.peak_bytes = stats.allocated_bytes[0].peak;
    const auto info = query_cuda_device(device.index());
    usage.capacity_bytes = info ? info->memory_bytes : 0;
    return usage;
  }
  usage.current_bytes = proc_kib("/proc/self/status", "VmRSS");
  usage.reserved_bytes = proc_kib("/proc/self/status", "VmSize");
  usage.peak_bytes = proc_kib("/proc/self/status", "VmHWM");
  usage.capacity_bytes = proc_kib("/proc/meminfo", "MemTotal");
  return usage;
}

double peak_flops(at::Device device, at::ScalarType dtype) {
  if (!device.is_cuda() || dtype != at::kBFloat16) return 0.0;
  const auto info = query_cuda_device(device.index());
  if (!info) return 0.0;
  // Dense bf16 of the NVIDIA A100 and H100/H200 SXM data sheets.
  if (info->name.find("A100") != std::string::npos) return 312e12;
  if (info->name.find("H100") != std::string::npos) return 989e12;
  if (info->name.find("H200") != std::string::npos) return 989e12;
  return 0.0;
}

}  // namespace amoeba::train
