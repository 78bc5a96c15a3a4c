#include <ATen/Config.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <torch/headeronly/version.h>

#include <cstdio>

#include "amoeba/error.h"
#include "amoeba/experts.h"
#include "amoeba/version.h"
#include "apps/options.h"
#include "apps/verbs.h"
#include "base/cuda_driver.h"
#include "base/text.h"
#include "train/device.h"

namespace amoeba::apps {

namespace {

void print_cpu() {
#if defined(__x86_64__)
  const std::pair<const char*, bool> features[] = {
      {"avx2", __builtin_cpu_supports("avx2")},
      {"fma", __builtin_cpu_supports("fma")},
      {"avx512f", __builtin_cpu_supports("avx512f")},
      {"avx512bf16", __builtin_cpu_supports("avx512bf16")},
  };
  std::printf("features:     ");
  for (const auto& [name, present] : features) std::printf("%s %s  ", name, present ? "yes" : "no");
  std::printf("\n");
#endif
}

// A layer's sizes, as a model has them.
struct Shape {
  const char* name;
  int64_t model_dim, hidden_dim, num_experts;
};
constexpr Shape kShape = {"10B_2B", 2048, 1408, 36};

nn::ExpertProblem problem_of(at::Device device, int compute_capability, at::ScalarType dtype,
                             const Shape& shape) {
  nn::ExpertProblem problem;
  problem.device = device.is_cuda() ? nn::DeviceKind::kCuda : nn::DeviceKind::kCpu;
  problem.compute_capability = compute_capability;
  problem.dtype = dtype;
  problem.model_dim = shape.model_dim;
  problem.hidden_dim = shape.hidden_dim;
  problem.num_experts = shape.num_experts;
  return problem;
}

// What each shape gets, and why not what comes before it.
void print_kernels(at::Device device, int compute_capability) {
  const Shape shapes[] = {{"demo", 128, 128, 8},           {"2B", 1024, 1024, 24},
                          {"4B", 1536, 1024, 24},          kShape,
                          {"Qwen3-30B", 2048, 768, 128},   {"Mixtral", 4096, 14336, 8},
                          {"gpt-oss-20b", 2880, 2880, 32}, {"odd sizes", 33, 17, 5}};
  std::printf("\nkernels of fused on %s, best first\n", device.str().c_str());
  const nn::ExpertProblem any = problem_of(device, compute_capability, at::kFloat, kShape);
  for (const auto& [name, summary] : nn::fused_kernels(any)) {
    std::printf("  %-12s %s\n", name.c_str(), summary.c_str());
  }
  std::printf("\nwhich of them runs what (auto's choice where fused refuses)\n");
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const Shape& shape : shapes) {
      const nn::ExpertProblem problem = problem_of(device, compute_capability, dtype, shape);
      const std::string refusal = nn::expert_backends().front().supports(problem);
      const std::string text = refusal.empty()
                                   ? nn::describe_fused(problem)
                                   : cat(nn::choose_expert_backend("auto", problem).backend->name,
                                         " (fused: ", refusal, ")");
      std::printf("  %-10s %-12s D %-5d H %-6d E %-4d %s\n", c10::toString(dtype), shape.name,
                  static_cast<int>(shape.model_dim), static_cast<int>(shape.hidden_dim),
                  static_cast<int>(shape.num_experts), text.c_str());
    }
  }
}

void print_backends(at::Device device, int compute_capability) {
  std::printf("\nexpert backends on %s, model width %d, hidden width %d\n", device.str().c_str(),
              static_cast<int>(kShape.model_dim), static_cast<int>(kShape.hidden_dim));
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    const nn::ExpertProblem problem = problem_of(device, compute_capability, dtype, kShape);
    const nn::ExpertChoice choice = nn::choose_expert_backend("auto", problem);
    std::printf("  %-10s auto takes %s\n", c10::toString(dtype),
                std::string(choice.backend->name).c_str());
    for (const nn::ExpertBackend& backend : nn::expert_backends()) {
      std::string reason = backend.supports(problem);
      if (reason.empty()) {
        reason = "can run";
        const std::string passed_over =
            backend.auto_refuses == nullptr ? "" : backend.auto_refuses(problem);
        if (!passed_over.empty()) reason += cat("; not by auto: ", passed_over);
      }
      std::printf("             %-20s %s\n", std::string(backend.name).c_str(), reason.c_str());
    }
  }
}

}  // namespace

int run_doctor(const Arguments& arguments) {
  const Command command{"doctor", "Prints what this machine has and what amoeba makes of it.", {}};
  if (parse(command, arguments).help_shown) return 0;
  train::set_num_threads(0);
  std::printf("amoeba:       %s\n", kVersion);
  std::printf("torch:        %s (headers it was built with)\n", TORCH_VERSION);
  std::printf("processor:    %s\n", train::device_name(at::kCPU).c_str());
  print_cpu();
  const train::MemoryUsage memory = train::memory_usage(at::kCPU);
  std::printf("memory:       %s\n", format_bytes(memory.capacity_bytes).c_str());
  const auto driver = query_cuda_device(0);
  const at::Device device = train::resolve_device("auto");
  if (driver) {
    std::printf(
        "GPU:          %s, compute capability %d.%d, %s%s\n", driver->name.c_str(),
        driver->compute_capability / 10, driver->compute_capability % 10,
        format_bytes(driver->memory_bytes).c_str(),
        device.is_cuda() ? "" : " (this torch cannot use it: CPU build, or no driver match)");
  } else {
    std::printf("GPU:          none: no NVIDIA driver, or no device\n");
  }
  print_backends(at::kCPU, 0);
  print_kernels(at::kCPU, 0);
  if (device.is_cuda()) {
    const int compute_capability = driver ? driver->compute_capability : 0;
    print_backends(device, compute_capability);
    print_kernels(device, compute_capability);
  }
  return 0;
}

}  // namespace amoeba::apps
