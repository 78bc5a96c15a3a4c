// Every backend against the plain computation, and against every other: outputs and gradients.
#include "amoeba/experts.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>

#include "amoeba/error.h"
#include "support/torch/cases.h"
#include "support/torch/compare.h"

namespace amoeba::test {
namespace {

using nn::ExpertBackend;
using nn::ExpertOptions;
using nn::ExpertStats;

constexpr at::ScalarType kDtypes[] = {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf};

const ExpertCase kCases[] = {
    {"published_function", 6, 16, 24, {0, 3, 5, 1, 0, 7}, 0, 0.02},
    {"published_module", 4, 12, 20, {4, 0, 3, 2}},
    {"published_odd_sizes", 5, 7, 11, {4, 0, 3, 1, 2}},
    {"published_odd_sizes_2", 5, 7, 11, {3, 0, 2, 1, 4}},
    {"published_origin_bf16", 4, 64, 128, {8, 0, 5, 3}},
    {"one_hot_expert", 5, 16, 24, {0, 0, 19, 0, 0}},
    {"one_row", 3, 40, 24, {0, 1, 0}},
    {"all_equal", 4, 24, 16, {5, 5, 5, 5}},
    {"one_expert", 1, 16, 40, {7}},
    {"tail_rows", 3, 24, 16, {3, 0, 4}, 5},
    {"tail_rows_odd_sizes", 3, 9, 5, {0, 4, 2}, 3},
    {"all_zero_counts", 3, 16, 24, {0, 0, 0}, 4},
    {"no_rows", 3, 16, 24, {0, 0, 0}},
    {"no_experts", 0, 16, 24, {}, 3},
    {"no_experts_no_rows", 0, 16, 24, {}},
    {"one_feature", 3, 1, 1, {2, 0, 3}},
    {"many_rows", 3, 40, 24, {1100, 3, 520}, 2, 0.1},
};

std::string refusal(const ExpertBackend& backend, const ExpertInputs& inputs) {
  return backend.supports(nn::describe_problem(inputs.x, inputs.weights.w1, false));
}

int64_t capacity_of(const ExpertInputs& inputs, double factor) {  // the published formula
  const int64_t num_rows = inputs.x.size(0), num_experts = inputs.counts.size(0);
  if (num_rows == 0 || num_experts == 0) return 0;
  const double mean = static_cast<double>(num_rows) / static_cast<double>(num_experts);
  return std::min(num_rows, std::max<int64_t>(1, static_cast<int64_t>(std::ceil(mean * factor))));
}

using PlainErrors = std::array<double, ExpertResults::kNames.size()>;

// The largest of many draws.
PlainErrors plain_errors(const ExpertCase& expert_case, at::ScalarType dtype, at::Device device) {
  constexpr uint64_t kNumDraws = 40;
  PlainErrors errors = {};
  for (uint64_t seed = 1; seed <= kNumDraws; ++seed) {
    const ExpertInputs inputs = make_inputs(expert_case, dtype, device, seed);
    const auto plain = reference_experts(inputs).list();
    const auto exact = reference_experts(inputs.to(at::kDouble)).list();
    for (size_t i = 0; i < errors.size(); ++i) {
      errors[i] = std::max(errors[i], plain_error(plain[i], exact[i]));
    }
  }
  return errors;
}

// `many_draws` is asked for when one draw is violated.
void expect_close(
    const ExpertResults& actual, const ExpertResults& plain, const ExpertResults& exact,
    const std::string& what,
    const std::function<PlainErrors()>& many_draws = [] { return PlainErrors{}; }) {
  for (size_t i = 0; i < ExpertResults::kNames.size(); ++i) {
    const at::Tensor got = actual.list()[i], want = exact.list()[i];
    const bool is_fp64 = got.defined() && got.scalar_type() == at::kDouble;
    Comparison result =
        is_fp64 ? compare_fp64(got, want) : compare_rows(got, plain.list()[i], want);
    if (!result && !is_fp64) result = compare_rows(got, plain.list()[i], want, many_draws()[i]);
    EXPECT_TRUE(result) << what << " " << ExpertResults::kNames[i] << ": " << result.message;
  }
}

void expect_same_bits(const ExpertResults& actual, const ExpertResults& expected,
                      const std::string& what) {
  for (size_t i = 0; i < ExpertResults::kNames.size(); ++i) {
    const Comparison result = compare_exact(actual.list()[i], expected.list()[i]);
    EXPECT_TRUE(result) << what << " " << ExpertResults::kNames[i] << ": " << result.message;
  }
}

// Calls body(inputs, name of the combination, plain_errors of it) for every device, dtype and case.
template <typename Body>
void for_each_problem(const Body& body) {
  for (const at::Device device : available_devices()) {
    for (const at::ScalarType dtype : kDtypes) {
      for (const ExpertCase& expert_case : kCases) {
        body(make_inputs(expert_case, dtype, device),
             cat(expert_case.name, " ", dtype, " on ", device),
             [&] { return plain_errors(expert_case, dtype, device); });
      }
    }
  }
}

TEST(ExpertBackends, AgreeWithThePlainComputationAndWithEachOther) {
  const NanFilledMemory nan_filled;
  int num_grouped_runs = 0;
  for_each_problem([&](const ExpertInputs& inputs, const std::string& name,
                       const std::function<PlainErrors()>& many_draws) {
    const ExpertResults plain = reference_experts(inputs);
    const ExpertResults exact = reference_experts(inputs.to(at::kDouble));
    struct Run {
      std::string backend;
      ExpertResults results;
    };
    std::vector<Run> runs;
    for (const ExpertBackend& backend : nn::expert_backends()) {
      if (!refusal(backend, inputs).empty()) continue;
      num_grouped_runs += backend.name == "grouped_mm" ? 1 : 0;
      ExpertStats stats;  // a capacity of all rows drops nothing
      const ExpertOptions options = {.capacity_factor = 1e9};
      runs.push_back({std::string(backend.name), run_experts(backend, inputs, stats, options)});
      expect_close(runs.back().results, plain, exact, runs.back().backend + " " + name, many_draws);
    }
    for (const Run& a : runs) {
      for (const Run& b : runs) {
        if (b.backend == "fused") continue;  // sums in blocks: closer to fp64 than the others are
        expect_close(a.results, b.results, exact, a.backend + " like " + b.backend + " " + name,
                     many_draws);
      }
    }
  });
  EXPECT_GE(num_grouped_runs, 30);  // sizes that it takes are among the cases
}

TEST(ExpertBackends, AgreeToTheBitOnIntegers) {
  const NanFilledMemory nan_filled;
  const ExpertCase cases[] = {
      {"mixed", 6, 16, 24, {0, 3, 5, 1, 0, 7}}, {"tail", 4, 24, 16, {8, 0, 5, 3}, 4},
      {"one_hot", 5, 8, 32, {0, 0, 19, 0, 0}},  {"equal", 4, 16, 8, {5, 5, 5, 5}},
      {"odd", 5, 7, 11, {4, 0, 3, 1, 2}},       {"blocks", 2, 8, 16, {600, 20}, 1},
  };
  for (const at::Device device : available_devices()) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const ExpertCase& expert_case : cases) {
        const ExpertInputs inputs = make_integer_inputs(expert_case, dtype, device);
        const ExpertInputs as_float = inputs.to(at::kFloat);
        ExpertResults want = reference_experts(as_float);
        for (at::Tensor* tensor : {&want.y, &want.dx, &want.dw1, &want.dw2, &want.dw3}) {
          ASSERT_GT(tensor->abs().max().item<double>(), 0);  // the case says something
          *tensor = tensor->to(dtype);
        }
        for (const ExpertBackend& backend : nn::expert_backends()) {
          if (!refusal(backend, inputs).empty()) continue;
          ExpertStats stats;
          expect_same_bits(run_experts(backend, inputs, stats, {.capacity_factor = 1e9}), want,
                           cat(backend.name, " ", expert_case.name, " ", dtype, " on ", device));
        }
      }
    }
  }
}

// Whatever the tail rows hold, nothing of it is seen.
TEST(ExpertBackends, IgnoreNanInTailRows) {
  const ExpertCase expert_case = {"tail", 3, 24, 16, {3, 0, 4}, 5};
  for (const at::Device device : available_devices()) {
    for (const at::ScalarType dtype : kDtypes) {
      const ExpertInputs clean = make_inputs(expert_case, dtype, device);
      ExpertInputs dirty = clean;
      dirty.x = clean.x.clone();
      dirty.dy = clean.dy.clone();
      for (const at::Tensor& rows : {dirty.x, dirty.dy}) rows.narrow(0, 7, 5).fill_(NAN);
      for (const ExpertBackend& backend : nn::expert_backends()) {
        if (!refusal(backend, clean).empty()) continue;
        ExpertStats stats;
        expect_same_bits(run_experts(backend, dirty, stats), run_experts(backend, clean, stats),
                         cat(backend.name, " ", dtype, " on ", device));
      }
    }
  }
}

TEST(ExpertBackends, NoRowsGiveZeroGradientsWhateverTheWeightsHold) {
  for (const ExpertCase& expert_case :
       {ExpertCase{"no_rows", 3, 16, 24, {0, 0, 0}}, ExpertCase{"no_experts", 0, 16, 24, {}, 2}}) {
    ExpertInputs inputs = make_inputs(expert_case, at::kFloat, at::kCPU);
    inputs.weights.w1.fill_(NAN);
    inputs.x.fill_(NAN);
    for (const ExpertBackend& backend : nn::expert_backends()) {
      ExpertStats stats;
      const ExpertResults results = run_experts(backend, inputs, stats);
      for (const at::Tensor& tensor : results.list()) {
        ASSERT_TRUE(tensor.defined()) << backend.name;
        EXPECT_TRUE(compare_exact(tensor, at::zeros(tensor.sizes(), tensor.options())));
      }
    }
  }
}

TEST(ExpertBackends, TakeStridedInputsAndExpandedGradients) {
  const ExpertCase expert_case = {"strided", 3, 24, 16, {3, 0, 4}, 1};
  for (const at::Device device : available_devices()) {
    for (const at::ScalarType dtype : kDtypes) {
      const ExpertInputs dense = make_inputs(expert_case, dtype, device);
      const auto transposed = [](const at::Tensor& tensor) {
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2);
      };
      for (const ExpertBackend& backend : nn::expert_backends()) {
        if (!refusal(backend, dense).empty()) continue;
        const auto leaf = [](const at::Tensor& tensor) { return tensor.detach().requires_grad_(); };
        const auto run = [&](const at::Tensor& x, const nn::ExpertWeights& weights) {
          ExpertStats stats;
          const at::Tensor y = nn::run_expert_rows(backend, x, dense.counts, weights, {}, stats);
          y.sum().backward();
          return ExpertResults{y.detach(), x.grad(), weights.w1.grad(), weights.w2.grad(),
                               weights.w3.grad()};
        };
        const auto& [w1, w2, w3] = dense.weights;
        const ExpertResults strided =
            run(leaf(transposed(dense.x)),
                {leaf(transposed(w1)), leaf(transposed(w2)), leaf(transposed(w3))});
        ExpertInputs ones = dense;
        ones.dy = at::full(dense.dy.sizes(), 1, dense.dy.options());
        const bool drops = backend.name == "batched_mm_capacity";
        const int64_t capacity = drops ? capacity_of(dense, 1.25) : -1;
        expect_close(strided, reference_experts(ones, capacity),
                     reference_experts(ones.to(at::kDouble), capacity),
                     cat(backend.name, " ", dtype, " on ", device));
      }
    }
  }
}

TEST(ExpertBackends, SkipFrozenInputsAndChangeNothingElse) {
  const ExpertInputs inputs =
      make_inputs({"frozen", 3, 24, 16, {3, 0, 4}, 1}, at::kFloat, at::kCPU);
  for (const ExpertBackend& backend : nn::expert_backends()) {
    ExpertStats stats;
    const ExpertResults all = run_experts(backend, inputs, stats);
    for (size_t wanted = 0; wanted < 4; ++wanted) {  // x, w1, w2, w3
      std::array<at::Tensor, 4> leaves = {inputs.x, inputs.weights.w1, inputs.weights.w2,
                                          inputs.weights.w3};
      for (at::Tensor& leaf : leaves) leaf = leaf.detach();
      leaves[wanted].requires_grad_();
      nn::run_expert_rows(backend, leaves[0], inputs.counts, {leaves[1], leaves[2], leaves[3]}, {},
                          stats)
          .backward(inputs.dy);
      for (size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(leaves[i].grad().defined(), i == wanted) << backend.name;
      }
      const Comparison result = compare_exact(leaves[wanted].grad(), all.list()[wanted + 1]);
      EXPECT_TRUE(result) << backend.name << ": " << result.message;
    }
  }
}

TEST(ExpertBackends, RunBackwardTwiceButRefuseGradientsOfGradients) {
  const ExpertInputs inputs = make_inputs({"twice", 3, 24, 16, {3, 0, 4}}, at::kFloat, at::kCPU);
  for (const ExpertBackend& backend : nn::expert_backends()) {
    ExpertStats stats;
    const at::Tensor x = inputs.x.detach().requires_grad_();
    const at::Tensor y = nn::run_expert_rows(backend, x, inputs.counts, inputs.weights, {}, stats);
    y.backward(inputs.dy, /*retain_graph=*/true);
    const at::Tensor once = x.grad().clone();
    y.backward(inputs.dy, /*retain_graph=*/true);
    EXPECT_TRUE(compare_exact(x.grad(), once.mul(2))) << backend.name;
    try {
      y.backward(inputs.dy, /*retain_graph=*/true, /*create_graph=*/true);
      ADD_FAILURE() << backend.name << " accepted create_graph";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_STREQ(error.what(),
                   "experts: gradients of gradients are not supported, got a backward with "
                   "create_graph, want one without");
    }
  }
}

TEST(ExpertBackends, GiveTheSameBitsWhenRepeated) {
  const NanFilledMemory nan_filled;
  const ExpertCase expert_case = {"repeated", 3, 40, 24, {1100, 3, 520}, 2};
  for (const at::Device device : available_devices()) {
    for (const at::ScalarType dtype : kDtypes) {
      const ExpertInputs inputs = make_inputs(expert_case, dtype, device);
      for (const ExpertBackend& backend : nn::expert_backends()) {
        if (!refusal(backend, inputs).empty()) continue;
        ExpertStats stats;
        const ExpertResults first = run_experts(backend, inputs, stats);
        for (int repeat = 0; repeat < 3; ++repeat) {
          expect_same_bits(run_experts(backend, inputs, stats), first,
                           cat(backend.name, " ", dtype, " on ", device));
        }
      }
    }
  }
}

// Only up to products of about 768 terms: beyond, MKL splits sums by its number of threads.
TEST(ExpertBackends, GiveTheSameBitsForOneAndTwoThreads) {
  const int num_threads = at::get_num_threads();
  const ExpertInputs inputs =
      make_inputs({"threads", 5, 128, 96, {700, 0, 600, 40, 333}, 7, 0.1}, at::kFloat, at::kCPU);
  for (const ExpertBackend& backend : nn::expert_backends()) {
    ExpertStats stats;
    at::set_num_threads(1);
    const ExpertResults one = run_experts(backend, inputs, stats);
    at::set_num_threads(2);
    expect_same_bits(run_experts(backend, inputs, stats), one, std::string(backend.name));
  }
  at::set_num_threads(num_threads);
}

TEST(ExpertCapacity, DroppedRowsAreZeroAndCounted) {
  struct Line {
    ExpertCase expert_case;
    double factor;
    int64_t capacity, dropped;
  };
  const Line lines[] = {
      {{"published", 4, 24, 16, {3, 0, 5, 2}}, 0.4, 1, 7},
      {{"published_no_drops", 4, 24, 16, {3, 0, 5, 2}}, 4.0, 10, 0},
      {{"published_odd", 5, 7, 11, {4, 0, 3, 1, 2}}, 1.25, 3, 1},
      {{"published_odd_2", 5, 7, 11, {3, 0, 2, 1, 4}}, 1.25, 3, 1},
      {{"rounded_up", 3, 9, 5, {5, 1, 1}, 3}, 1.0, 4, 1},
      {{"at_least_one", 4, 9, 5, {2, 0, 1, 0}}, 1e-9, 1, 1},
      {{"all_on_one", 4, 9, 5, {0, 8, 0, 0}}, 1.25, 3, 5},
      {{"all_zero", 4, 9, 5, {0, 0, 0, 0}, 3}, 1.25, 1, 0},
  };
  const ExpertBackend& backend = backend_named("batched_mm_capacity");
  const NanFilledMemory nan_filled;
  for (const at::Device device : available_devices()) {
    for (const at::ScalarType dtype : kDtypes) {
      for (const auto& [expert_case, factor, capacity, dropped] : lines) {
        ExpertInputs inputs = make_inputs(expert_case, dtype, device);
        EXPECT_EQ(capacity_of(inputs, factor), capacity) << expert_case.name;
        const ExpertResults plain = reference_experts(inputs, capacity);
        const ExpertResults exact = reference_experts(inputs.to(at::kDouble), capacity);
        // What dropped rows hold is never seen.
        int64_t begin = 0;
        for (const int64_t count : expert_case.counts) {
          const int64_t kept = std::min(count, capacity);
          inputs.x.narrow(0, begin + kept, count - kept).fill_(NAN);
          inputs.dy.narrow(0, begin + kept, count - kept).fill_(NAN);
          begin += count;
        }
        ExpertStats stats;
        expect_close(run_experts(backend, inputs, stats, {.capacity_factor = factor}), plain, exact,
                     cat(expert_case.name, " ", dtype, " on ", device));
        EXPECT_EQ(stats.dropped_rows.item<int64_t>(), dropped) << expert_case.name;
        EXPECT_EQ(stats.padded_rows, capacity * expert_case.num_experts) << expert_case.name;
        EXPECT_EQ(stats.host_syncs, 0);
      }
    }
  }
}

TEST(ExpertCapacity, DropsAreSummedOverCalls) {
  const ExpertInputs inputs = make_inputs({"drops", 4, 8, 16, {3, 0, 5, 2}}, at::kFloat, at::kCPU);
  ExpertStats stats;
  for (int call = 0; call < 3; ++call) {
    run_experts(backend_named("batched_mm_capacity"), inputs, stats, {.capacity_factor = 0.4});
  }
  EXPECT_EQ(stats.dropped_rows.item<int64_t>(), 21);
  EXPECT_EQ(stats.calls, 3);
}

TEST(ExpertStats, CountWorkAndMemory) {
  // E 3, D 24, H 16, R 9: gate and up of n rows take 2 * n * H * 4 bytes.
  const ExpertInputs inputs = make_inputs({"stats", 3, 24, 16, {3, 0, 4}, 2}, at::kFloat, at::kCPU);
  struct Line {
    const char* backend;
    int64_t padded_rows, saved_bytes;
  };
  for (const Line& line : {
           Line{"fused", 9, (9 + 15 * 3) * 2 * 16 * 4 + 512 + 4 * 4},  // lanes of experts, offsets
           Line{"for_loop", 7, 2 * 9 * 16 * 4},
           Line{"grouped_mm", 9, 2 * 9 * 16 * 4 + 3 * 4 + 9},         // ends, tail mask
           Line{"batched_mm_padded", 12, 2 * 12 * 16 * 4 + 9 * 8},    // place of each row
           Line{"batched_mm_capacity", 12, 2 * 12 * 16 * 4 + 9 * 8},  // 9 / 3 * 1.25 -> 4
       }) {
    ExpertStats stats;
    run_experts(backend_named(line.backend), inputs, stats);
    EXPECT_EQ(stats.calls, 1) << line.backend;
    EXPECT_EQ(stats.rows, 9) << line.backend;
    EXPECT_EQ(stats.padded_rows, line.padded_rows) << line.backend;
    EXPECT_EQ(stats.host_syncs, 0) << line.backend;
    EXPECT_EQ(stats.saved_bytes, line.saved_bytes) << line.backend;
    EXPECT_EQ(stats.dropped_rows.defined(), line.backend == std::string("batched_mm_capacity"));
    const at::NoGradGuard no_grad;
    nn::run_expert_rows(backend_named(line.backend), inputs.x, inputs.counts, inputs.weights, {},
                        stats);
    EXPECT_EQ(stats.saved_bytes, line.saved_bytes) << line.backend << " without gradients";
    EXPECT_EQ(stats.calls, 2);
  }
}

// What run_expert_rows refuses, for every backend alike.
TEST(ExpertErrors, NameTheArgumentAndItsValue) {
  const ExpertInputs good = make_inputs({"good", 3, 8, 16, {3, 0, 4}}, at::kFloat, at::kCPU);
  const auto counts = [](std::vector<int64_t> values) {
    return at::tensor(at::ArrayRef<int64_t>(values), at::kLong);
  };
  struct Line {
    const char* message;
    std::function<void(ExpertInputs&)> spoil;
  };
  const Line lines[] = {
      {"experts: counts[1] is -2, want >= 0",
       [&](auto& i) {
         i.counts = counts({3, -2, 4});
       }},
      {"experts: counts up to expert 2 sum to 4 + 4, want at most the 7 rows of x",
       [&](auto& i) {
         i.counts = counts({3, 1, 4});
       }},
      {"experts: counts up to expert 1 sum to 3 + 9223372036854775807, want at most the 7 rows of "
       "x",
       [&](auto& i) {
         i.counts = counts({3, INT64_MAX, 4});
       }},
      {"experts: counts is Long [2] on cpu, want Long [3] on cpu",
       [&](auto& i) {
         i.counts = counts({3, 4});
       }},
      {"experts: counts is Int [3] on cpu, want Long [3] on cpu",
       [&](auto& i) { i.counts = i.counts.to(at::kInt); }},
      {"experts: counts is undefined, want Long [3] on cpu",
       [&](auto& i) { i.counts = at::Tensor(); }},
      {"experts: x is undefined, want floating point [R, D]", [&](auto& i) { i.x = at::Tensor(); }},
      {"experts: x is Long [7, 8], want floating point [R, D]",
       [&](auto& i) { i.x = i.x.to(at::kLong); }},
      {"experts: x is Float [7, 8, 1], want floating point [R, D]",
       [&](auto& i) { i.x = i.x.unsqueeze(2); }},
      {"experts: w1 is [16, 8], want [E, H, D]",
       [&](auto& i) { i.weights.w1 = i.weights.w1.select(0, 0); }},
      {"experts: w1 is undefined, want [E, H, D]", [&](auto& i) { i.weights.w1 = at::Tensor(); }},
      {"experts: w1 is [3, 16, 7], want [3, 16, 8]",
       [&](auto& i) { i.weights.w1 = i.weights.w1.narrow(2, 0, 7); }},
      {"experts: w2 is [3, 16, 8], want [3, 8, 16]",
       [&](auto& i) { i.weights.w2 = i.weights.w2.transpose(1, 2); }},
      {"experts: w3 is Double on cpu, want Float on cpu like x",
       [&](auto& i) { i.weights.w3 = i.weights.w3.to(at::kDouble); }},
      {"experts: w3 is undefined, want [3, 16, 8]", [&](auto& i) { i.weights.w3 = at::Tensor(); }},
      {"experts: D is 8 and H is 0, want both > 0",
       [&](auto& i) { i.weights.w1 = i.weights.w1.narrow(1, 0, 0); }},
  };
  for (const ExpertBackend& backend : nn::expert_backends()) {
    for (const Line& line : lines) {
      ExpertInputs bad = good;
      line.spoil(bad);
      ExpertStats stats;
      try {
        nn::run_expert_rows(backend, bad.x, bad.counts, bad.weights, {}, stats);
        ADD_FAILURE() << "accepted: " << line.message;
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kUsage);
        EXPECT_STREQ(error.what(), line.message);
      }
    }
  }
}

TEST(ExpertErrors, CapacityFactorMustBePositiveAndFinite) {
  const ExpertInputs good = make_inputs({"good", 3, 8, 16, {3, 0, 4}}, at::kFloat, at::kCPU);
  for (const double factor : {0.0, -1.0, double{NAN}, double{INFINITY}}) {
    ExpertStats stats;
    try {
      run_experts(backend_named("batched_mm_capacity"), good, stats, {.capacity_factor = factor});
      ADD_FAILURE() << "accepted " << factor;
    } catch (const Error& error) {
      EXPECT_EQ(error.what(), cat("batched_mm_capacity: capacity_factor is ", factor,
                                  ", want a finite number > 0"));
    }
  }
}

}  // namespace
}  // namespace amoeba::test
