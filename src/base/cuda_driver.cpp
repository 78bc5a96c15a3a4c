#include "base/cuda_driver.h"

#include <dlfcn.h>

namespace amoeba {

namespace {

// CUdevice_attribute values of cuda.h.
constexpr int kCapabilityMajor = 75;
constexpr int kCapabilityMinor = 76;

template <typename Function>
Function symbol(void* library, const char* name) {
  return reinterpret_cast<Function>(dlsym(library, name));
}

}  // namespace

std::optional<CudaDeviceInfo> query_cuda_device(int index) {
  // Never closed: torch, when it uses CUDA, holds the same library to the end.
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr) return std::nullopt;
  const auto init = symbol<int (*)(unsigned)>(driver, "cuInit");
  const auto get = symbol<int (*)(int*, int)>(driver, "cuDeviceGet");
  const auto attribute = symbol<int (*)(int*, int, int)>(driver, "cuDeviceGetAttribute");
  const auto name = symbol<int (*)(char*, int, int)>(driver, "cuDeviceGetName");
  const auto memory = symbol<int (*)(size_t*, int)>(driver, "cuDeviceTotalMem_v2");
  if (!init || !get || !attribute || !name || !memory) return std::nullopt;
  int device = 0, major = 0, minor = 0;
  char text[256] = {};
  size_t bytes = 0;
  const bool ok = init(0) == 0 && get(&device, index) == 0 &&
                  attribute(&major, kCapabilityMajor, device) == 0 &&
                  attribute(&minor, kCapabilityMinor, device) == 0 &&
                  name(text, sizeof text - 1, device) == 0 && memory(&bytes, device) == 0;
  if (!ok) return std::nullopt;
  return CudaDeviceInfo{text, 10 * major + minor, static_cast<int64_t>(bytes)};
}

}  // namespace amoeba
