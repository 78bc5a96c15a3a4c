// The CPU kernels against the peak of this CPU: GF/s of useful work by the CPU time of one thread,
// the smallest of several runs, so that other load on the machine disturbs little. Then the same in
// milliseconds for each region: pack, gate and up, down, combine; pack, dA, dx and weights,
// combine.
//
// Usage: bench_kernels [variant[,variant ...]] [rows an expert ...]
// Several variants take turns at each problem.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "amoeba/error.h"
#include "amoeba/kernels.h"
#include "base/rng.h"
#include "kernels/numbers.h"
#include "kernels/problem.h"

namespace amoeba {
namespace {

using kernels::DType;
using kernels::View;
namespace cpu = kernels::cpu;

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// One thread that keeps the CPU time of each region, the smallest over several passes.
class RegionClock {
 public:
  Executor executor() { return {this, 1, parallel_for}; }
  void begin_pass() { next_ = 0; }
  std::string text() const {
    std::string text;
    for (const double seconds : best_) {
      char number[32];
      std::snprintf(number, sizeof number, " %.2f", 1e3 * seconds);
      text += number;
    }
    return text;
  }

 private:
  static void parallel_for(void* context, int64_t count, Executor::Body body, void* body_context) {
    auto& clock = *static_cast<RegionClock*>(context);
    const double begin = thread_seconds();
    body(body_context, 0, count);
    const double taken = thread_seconds() - begin;
    if (clock.next_ == clock.best_.size()) clock.best_.push_back(taken);
    double& best = clock.best_[clock.next_++];
    best = std::min(best, taken);
  }

  std::vector<double> best_;
  size_t next_ = 0;
};

// Smallest CPU time of `body` over at least `min_runs` runs and about half a second.
template <typename Body>
double seconds_of(RegionClock& clock, const Body& body, int min_runs = 3) {
  double best = 1e9, total = 0;
  for (int i = 0; i < min_runs || total < 0.5; ++i) {
    clock.begin_pass();
    const double begin = thread_seconds();
    body();
    const double taken = thread_seconds() - begin;
    best = std::min(best, taken);
    total += taken;
  }
  return best;
}

struct Shape {
  int64_t model_dim, hidden_dim, num_experts, num_choices;
};

// A problem of `rows` rows an expert in memory of its own.
class Problem {
 public:
  Problem(const Shape& shape, int64_t rows, DType dtype) : dtype_(dtype) {
    const auto [d, h, e, k] = shape;
    const int64_t num_rows = rows * e, num_tokens = num_rows / k;
    AMOEBA_CHECK(num_rows % k == 0, "bench: ", num_rows, " rows, want a multiple of ", k);
    arguments.num_rows = num_rows;
    arguments.num_experts = e;
    arguments.hidden_dim = h;
    arguments.x = tensor({num_tokens, d, 0}, 1.0);
    dy = tensor({num_tokens, d, 0}, 1.0);
    y = tensor({num_tokens, d, 0}, 0);
    gradients.dx = tensor({num_tokens, d, 0}, 0);
    for (int i = 0; i < 2; ++i) {
      arguments.gate_up[i] = tensor({e, h, d}, 0.03);
      gradients.dgate_up[i] = tensor({e, h, d}, 0);
    }
    arguments.down = tensor({e, d, h}, 0.03);
    gradients.ddown = tensor({e, d, h}, 0);
    dtype_ = DType::kF32;
    arguments.scores = tensor({num_tokens, k, 0}, 0.25);
    gradients.dscores = tensor({num_tokens, k, 0}, 0);
    ids_.resize(static_cast<size_t>(num_rows));
    for (size_t i = 0; i < ids_.size(); ++i) {  // each expert gets `rows`, in mixed order
      ids_[i] = static_cast<int32_t>(static_cast<int64_t>(i * 7919) % e);
    }
    counts_.resize(static_cast<size_t>(e));
    offsets_.resize(static_cast<size_t>(e) + 1);
    row_slot_.resize(ids_.size());
    slot_row_.resize(ids_.size());
    View ids{ids_.data(), DType::kI32, {num_tokens, k, 0}, {k, 1, 0}};
    cpu::route(
        {ids, e, counts_.data(), offsets_.data(), row_slot_.data(), slot_row_.data(), &error_},
        serial_executor());
    arguments.offsets = offsets_.data();
    arguments.row_slot = row_slot_.data();
    arguments.slot_row = slot_row_.data();
    arguments.error = &error_;
  }

  kernels::ExpertsArguments arguments;
  kernels::ExpertsGradients gradients;
  View y, dy;

 private:
  View tensor(std::vector<int64_t> size, double scale) {
    View view;
    view.dtype = dtype_;
    int64_t count = 1;
    for (int i = 2; i >= 0; --i) {
      view.size[i] = size[static_cast<size_t>(i)];
      view.stride[i] = count;
      count *= std::max<int64_t>(view.size[i], 1);
    }
    memory_.emplace_back(static_cast<size_t>(count * kernels::bytes_of(dtype_) + 64));
    char* data = memory_.back().data();
    data += (64 - reinterpret_cast<uintptr_t>(data) % 64) % 64;
    for (int64_t i = 0; scale > 0 && i < count; ++i) {
      const auto value = static_cast<float>(
          scale * (random_uniform(1, memory_.size(), static_cast<uint64_t>(i)) - 0.5));
      if (dtype_ == DType::kF32) {
        reinterpret_cast<float*>(data)[i] = value;
      } else {
        reinterpret_cast<kernels::BFloat16*>(data)[i] = kernels::BFloat16(value);
      }
    }
    view.data = data;
    return view;
  }

  DType dtype_;
  std::vector<std::vector<char>> memory_;
  std::vector<int32_t> ids_, counts_, offsets_, row_slot_, slot_row_;
  int32_t error_ = 0;
};

std::vector<char> aligned(int64_t size, char*& data) {
  std::vector<char> memory(static_cast<size_t>(size) + 256);
  data = memory.data() + (256 - reinterpret_cast<uintptr_t>(memory.data()) % 256) % 256;
  return memory;
}

void measure(const Shape& shape, int64_t rows, DType dtype, const std::string& name) {
  Problem problem(shape, rows, dtype);
  const kernels::ExpertsOptions options;
  const kernels::Variant& variant = cpu::choose_variant(problem.arguments, options, name);
  const auto sizes = cpu::workspace(variant, problem.arguments, options);
  char *saved, *forward_scratch, *backward_scratch;
  const auto memory = {aligned(sizes.saved_bytes, saved),
                       aligned(sizes.forward_scratch_bytes, forward_scratch),
                       aligned(sizes.backward_scratch_bytes, backward_scratch)};
  RegionClock forward_regions, backward_regions;
  const double forward = seconds_of(forward_regions, [&] {
    cpu::experts_forward(variant, problem.arguments, options, problem.y, saved, forward_scratch,
                         forward_regions.executor());
  });
  const double backward = seconds_of(backward_regions, [&] {
    cpu::experts_backward(variant, problem.arguments, options, problem.dy, saved, problem.gradients,
                          backward_scratch, backward_regions.executor());
  });
  const auto num_rows = static_cast<double>(rows * shape.num_experts);
  const double flops = 6 * num_rows * static_cast<double>(shape.model_dim * shape.hidden_dim);
  std::printf(
      "%-12s %s D %4ld H %4ld E %ld rows %3ld: forward %8.2f ms %6.1f GF/s, backward %8.2f ms "
      "%6.1f GF/s |%s |%s\n",
      std::string(variant.name).c_str(), kernels::name_of(dtype), shape.model_dim, shape.hidden_dim,
      shape.num_experts, rows, 1e3 * forward, 1e-9 * flops / forward, 1e3 * backward,
      2e-9 * flops / backward, forward_regions.text().c_str(), backward_regions.text().c_str());
  std::fflush(stdout);
}

}  // namespace
}  // namespace amoeba

int main(int argc, char** argv) try {
  using namespace amoeba;
  std::vector<std::string> names;
  std::istringstream list(argc > 1 ? argv[1] : "auto");
  for (std::string name; std::getline(list, name, ',');) names.push_back(name);
  std::vector<int64_t> rows;
  for (int i = 2; i < argc; ++i) rows.push_back(std::atol(argv[i]));
  if (rows.empty()) rows = {1, 4, 16, 64, 256};
  for (const Shape& shape : {Shape{1024, 512, 32, 4}, Shape{2048, 768, 32, 4}}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const int64_t r : rows) {
        for (const std::string& name : names) {
          const bool is_bf16_only = name.ends_with("_bf16");
          if (dtype == DType::kBF16 || !is_bf16_only) measure(shape, r, dtype, name);
        }
      }
    }
  }
  return 0;
} catch (const amoeba::Error& error) {
  std::fprintf(stderr, "bench_kernels: %s\n", error.what());
  return 2;
}
