// Every CUDA variant over every case: the per-row rule against fp64, integer cases to the bit,
// repeats, graphs, masks and errors.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <thread>
#include <vector>

#include "base/error_word.h"
#include "kernels_cuda/device.h"
#include "support/errors.h"
#include "support/kernels/cases.h"
#include "support/kernels/host_tensor.h"
#include "support/kernels/oracle.h"
#include "support/kernels/stored.h"

namespace amoeba::test {
namespace {

namespace cuda = kernels::cuda;
using kernels::DType;
using kernels::Save;
using kernels::Variant;

constexpr DType kDTypes[] = {DType::kBF16, DType::kF16};

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// The shared cases with dims that the matrix kernels take, and rows and dims around the edges of
// their tiles.
std::vector<KernelCase> make_cuda_cases() {
  struct Shape {
    const char* name;
    int64_t model_dim, hidden_dim;
    std::vector<int64_t> counts;
  };
  const Shape shapes[] = {
      {"rows_around_tiles", 136, 72, {127, 0, 128, 129, 1}},
      {"columns_around_tiles", 264, 136, {64, 65, 63, 0, 31}},
      {"deep", 520, 248, {33, 7, 0, 130}},
      {"hot_rows", 72, 200, {0, 700, 3}},
  };
  std::vector<KernelCase> cases = kernel_cases();
  for (KernelCase& c : cases) {
    c.model_dim = round_up(c.model_dim, 8);
    c.hidden_dim = round_up(c.hidden_dim, 8);
  }
  const size_t num_shared = cases.size();
  for (size_t i = 0; i < 96; ++i) {
    KernelCase c = cases[i * 7 % num_shared];
    const Shape& shape = shapes[i % 4];
    c.name = std::string(shape.name) + "_" + std::to_string(i);
    c.model_dim = shape.model_dim;
    c.hidden_dim = shape.hidden_dim;
    c.counts = shape.counts;
    cases.push_back(c);
  }
  // Every stored layout with gradients in fp32, the other options cycling.
  for (size_t i = 0; i < 48; ++i) {
    KernelCase c = cases[num_shared + i * 5 % 96];
    const Shape& shape = shapes[i % 4];
    c.name = std::string(shape.name) + "_fp32_" + std::to_string(i);
    c.model_dim = shape.model_dim;
    c.hidden_dim = shape.hidden_dim;
    c.counts = shape.counts;
    c.options.layout = static_cast<kernels::GateUpLayout>(i / 4 % 3);
    c.options.transposed = i / 12 % 2 == 1;
    c.gradients = i / 24 == 0 ? Gradients::kOverwriteFp32 : Gradients::kAccumulateFp32;
    cases.push_back(c);
  }
  return cases;
}

const std::vector<KernelCase>& cuda_cases() {
  static const std::vector<KernelCase> cases = make_cuda_cases();
  return cases;
}

// work(i) for every i below count, on every core.
void in_parallel(size_t count, const std::function<void(size_t)>& work) {
  std::atomic<size_t> next = 0;
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) {
    threads.emplace_back([&] {
      for (size_t at = next++; at < count; at = next++) work(at);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

std::string refusal(const Variant& variant, const KernelCase& c, DType dtype) {
  StoredExperts stored(c, dtype, make_values(c, dtype), make_previous(c, dtype));
  return variant.supports(stored.arguments(), c.options);
}

bool same_bits(const KernelResults& a, const KernelResults& b) {
  for (size_t i = 0; i < KernelResults::kCount; ++i) {
    if (*a.list()[i] != *b.list()[i]) return false;
  }
  return true;
}

TEST(CudaVariants, KeepTheRowRule) {
  SKIP_WITHOUT_GPU();
  struct Prepared {
    KernelCase c;
    KernelValues values, previous;
    KernelResults exact;
    PlainErrors plain;
  };
  size_t num_run = 0;
  for (const DType dtype : kDTypes) {
    std::vector<Prepared> prepared(cuda_cases().size());
    in_parallel(prepared.size(), [&](size_t i) {
      Prepared& p = prepared[i];
      p.values = make_values(cuda_cases()[i], dtype);
      p.c = with_clear_limit(cuda_cases()[i], p.values);
      p.previous = make_previous(p.c, p.c.gradient_dtype(dtype));
      p.exact = oracle_experts(p.c, p.values, p.previous).results;
      p.plain = reference_errors(cuda_cases()[i], dtype, 1);
    });
    // Violations by what one draw of the plain computation gives, to be judged by many: one draw of
    // few rows samples the largest plain error badly.
    struct Doubt {
      size_t index;
      std::string_view variant;
      KernelResults actual;
    };
    std::vector<Doubt> doubts;
    for (size_t i = 0; i < prepared.size(); ++i) {
      const Prepared& p = prepared[i];
      for (const Variant& variant : cuda::variants()) {
        if (!refusal(variant, p.c, dtype).empty()) continue;
        ++num_run;
        const KernelResults actual = run_cuda(variant.name, p.c, dtype, p.values, p.previous);
        if (compare_rows(p.c, dtype, actual, p.plain, p.exact).empty()) continue;
        doubts.push_back({i, variant.name, actual});
      }
    }
    in_parallel(doubts.size(), [&](size_t i) {
      prepared[doubts[i].index].plain = reference_errors(cuda_cases()[doubts[i].index], dtype, 40);
    });
    for (const Doubt& doubt : doubts) {
      const Prepared& p = prepared[doubt.index];
      EXPECT_EQ(compare_rows(p.c, dtype, doubt.actual, p.plain, p.exact), "")
          << doubt.variant << " " << p.c;
    }
    EXPECT_LE(doubts.size(), cuda_cases().size() / 10);
  }
  EXPECT_GE(num_run, 3 * cuda_cases().size());
}

TEST(CudaVariants, ComputeIntegersToTheBit) {
  SKIP_WITHOUT_GPU();
  size_t num_run = 0;
  for (const DType dtype : kDTypes) {
    std::vector<KernelCase> cases = cuda_cases();
    std::erase_if(cases, [](const KernelCase& c) {
      return c.options.activation != kernels::Activation::kSwiglu;
    });
    std::vector<ExactProblem> problems(cases.size());
    in_parallel(cases.size(), [&](size_t i) {
      problems[i] =
          make_exact_problem(cases[i], make_previous(cases[i], cases[i].gradient_dtype(dtype)));
    });
    for (size_t i = 0; i < cases.size(); ++i) {
      const KernelCase& c = cases[i];
      for (const Variant& variant : cuda::variants()) {
        if (!refusal(variant, c, dtype).empty()) continue;
        const KernelResults actual = run_cuda(variant.name, c, dtype, problems[i].values,
                                              make_previous(c, c.gradient_dtype(dtype)));
        EXPECT_EQ(compare_exact(c, dtype, actual, problems[i].results), "")
            << variant.name << " " << c;
        ++num_run;
      }
    }
  }
  EXPECT_GE(num_run, 300u);
}

// Copies that keep the memory busy while a kernel runs on another stream.
class Load {
 public:
  Load() : from_(kBytes), to_(kBytes) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~Load() {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  void start() {
    for (int i = 0; i < 20; ++i) {
      check(cudaMemcpyAsync(to_.data(), from_.data(), kBytes, cudaMemcpyDefault, stream_));
    }
  }

 private:
  static constexpr int64_t kBytes = int64_t{1} << 26;
  DeviceBuffer from_, to_;
  cudaStream_t stream_ = nullptr;
};

// Every `step`-th case, `num_runs` times.
void repeat_under_load(size_t step, int num_runs) {
  Load load;
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (size_t i = 0; i < cuda_cases().size(); i += step) {
    const KernelCase& c = cuda_cases()[i];
    for (const Variant& variant : cuda::variants()) {
      if (!refusal(variant, c, DType::kBF16).empty()) continue;
      DeviceExperts experts(c, DType::kBF16, make_values(c, DType::kBF16),
                            make_previous(c, c.gradient_dtype(DType::kBF16)), variant.name);
      KernelResults first;
      for (int run = 0; run < num_runs; ++run) {
        experts.reset();
        if (run % 16 == 0) load.start();
        experts.forward(stream);
        experts.backward(stream);
        const KernelResults results = experts.results();
        if (run == 0) first = results;
        ASSERT_TRUE(same_bits(first, results)) << "run " << run << " " << variant.name << " " << c;
      }
    }
  }
  check(cudaStreamDestroy(stream));
}

TEST(CudaVariants, RepeatToTheBitUnderLoad) {
  SKIP_WITHOUT_GPU();
  repeat_under_load(9, 3);
}

// Minutes: asked for with --gtest_also_run_disabled_tests.
TEST(CudaVariants, DISABLED_RepeatAThousandTimes) {
  SKIP_WITHOUT_GPU();
  repeat_under_load(cuda_cases().size() / 5, 1000);
}

// A graph captured with one routing and replayed with another gives what a plain call gives.
TEST(CudaVariants, ReplayAGraphWithAnotherRouting) {
  SKIP_WITHOUT_GPU();
  for (const Variant& variant : cuda::variants()) {
    KernelCase first;
    first.name = "captured";
    first.num_choices = 2;
    first.model_dim = 136;
    first.hidden_dim = 72;
    first.counts = {10, 200, 0, 90};
    KernelCase second = first;
    second.name = "replayed";
    second.counts = {0, 1, 298, 1};
    const DType dtype = DType::kBF16;
    if (!refusal(variant, first, dtype).empty()) continue;
    const KernelValues previous = make_previous(first, dtype);
    const KernelValues values = make_values(second, dtype);
    const KernelResults plain_call = run_cuda(variant.name, second, dtype, values, previous);

    KernelValues captured_values = values;
    captured_values.ids = make_values(first, dtype).ids;
    DeviceExperts captured(first, dtype, captured_values, previous, variant.name);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    captured.forward(stream);
    captured.backward(stream);
    check(cudaStreamEndCapture(stream, &graph));
    check(cudaGraphInstantiate(&executable, graph, 0));
    check(cudaGraphLaunch(executable, stream));
    check(cudaStreamSynchronize(stream));
    captured.reset();
    const Routing routing = naive_routing(second, values);
    const auto put = [](const int32_t* to, const std::vector<int32_t>& from) {
      check(cudaMemcpy(const_cast<int32_t*>(to), from.data(), from.size() * 4, cudaMemcpyDefault));
    };
    put(captured.arguments().offsets, routing.offsets);
    put(captured.arguments().row_slot, routing.row_slot);
    put(captured.arguments().slot_row, routing.slot_row);
    check(cudaGraphLaunch(executable, stream));
    check(cudaStreamSynchronize(stream));
    captured.stored().accept_inputs();
    EXPECT_TRUE(same_bits(captured.results(), plain_call)) << variant.name;
    check(cudaGraphExecDestroy(executable));
    check(cudaGraphDestroy(graph));
    check(cudaStreamDestroy(stream));
  }
}

// A gradient that is not wanted stays as it was, and the others do not change by a bit.
TEST(CudaVariants, ComputeOnlyWantedGradients) {
  SKIP_WITHOUT_GPU();
  const DType dtype = DType::kBF16;
  for (size_t i = 0; i < cuda_cases().size(); i += 12) {
    const KernelCase& c = cuda_cases()[i];
    const KernelValues values = make_values(c, dtype);
    const KernelValues previous = make_previous(c, c.gradient_dtype(dtype));
    for (const Variant& variant : cuda::variants()) {
      if (!refusal(variant, c, dtype).empty()) continue;
      const KernelResults all = run_cuda(variant.name, c, dtype, values, previous);
      for (int left_out = 0; left_out < 8; ++left_out) {
        DeviceExperts experts(c, dtype, values, previous, variant.name);
        kernels::ExpertsGradients& g = experts.gradients();
        kernels::View* views[] = {&g.dx,          &g.dscores,          &g.dgate_up[0],
                                  &g.dgate_up[1], &g.dgate_up_bias[0], &g.dgate_up_bias[1],
                                  &g.ddown,       &g.ddown_bias};
        if (views[left_out]->data == nullptr) continue;
        views[left_out]->data = nullptr;
        experts.forward(nullptr);
        experts.backward(nullptr);
        const KernelResults some = experts.results();
        const bool both_in_one = c.options.layout != kernels::GateUpLayout::kSeparate;
        const std::vector<size_t> unwritten[] = {
            {1},
            {2},
            both_in_one ? std::vector<size_t>{3, 4} : std::vector<size_t>{3},
            {4},
            both_in_one ? std::vector<size_t>{6, 7} : std::vector<size_t>{6},
            {7},
            {5},
            {8}};
        for (size_t at = 1; at < KernelResults::kCount; ++at) {
          const auto& list = unwritten[left_out];
          if (std::find(list.begin(), list.end(), at) != list.end()) continue;
          EXPECT_EQ(*some.list()[at], *all.list()[at])
              << KernelResults::kNames[at] << " without " << left_out << " " << c;
        }
      }
    }
  }
}

// Adding nothing to a number below the smallest normal one leaves it.
TEST(CudaVariants, AddToSubnormals) {
  SKIP_WITHOUT_GPU();
  const DType dtype = DType::kBF16;
  for (size_t i = 0; i < cuda_cases().size(); i += 10) {
    KernelCase c = cuda_cases()[i];
    c.gradients = Gradients::kAccumulateFp32;
    KernelValues values = make_values(c, dtype);
    std::fill(values.dy.begin(), values.dy.end(), 0.0);
    KernelValues previous = make_previous(c, DType::kF32);
    for (std::vector<double>* field :
         {&previous.gate, &previous.up, &previous.down, &previous.gate_bias, &previous.up_bias,
          &previous.down_bias}) {
      for (double& value : *field) value = round_to(DType::kF32, value * 1e-40);
    }
    for (const Variant& variant : cuda::variants()) {
      if (!refusal(variant, c, dtype).empty()) continue;
      const KernelResults results = run_cuda(variant.name, c, dtype, values, previous);
      const KernelResults exact = oracle_experts(c, values, previous).results;
      for (size_t at = 3; at < KernelResults::kCount; ++at) {
        EXPECT_EQ(*results.list()[at], *exact.list()[at])
            << KernelResults::kNames[at] << " " << variant.name << " " << c;
      }
    }
  }
}

// Pre-activations kept in fp8 leave y as it is and move gradients by fp8's rounding only: a
// relative error of 1/16 for each factor. A clamp decides anew near its limit, so it is left out,
// and sums of few terms may cancel.
TEST(CudaVariants, KeepPreActivationsInFp8) {
  SKIP_WITHOUT_GPU();
  for (const DType dtype : kDTypes) {
    for (size_t i = 0; i < cuda_cases().size(); i += 5) {
      KernelCase c = cuda_cases()[i];
      if (c.options.activation == kernels::Activation::kSwigluClamped) continue;
      const KernelValues values = make_values(c, dtype);
      const KernelValues previous = make_previous(c, c.gradient_dtype(dtype));
      for (const Variant& variant : cuda::variants()) {
        if (!refusal(variant, c, dtype).empty()) continue;
        c.options.save = Save::kPreActivations;
        const KernelResults full = run_cuda(variant.name, c, dtype, values, previous);
        c.options.save = Save::kPreActivationsFp8;
        const KernelResults fp8 = run_cuda(variant.name, c, dtype, values, previous);
        EXPECT_EQ(fp8.y, full.y) << variant.name << " " << c;
        for (size_t at = 1; at < KernelResults::kCount; ++at) {
          if (full.list()[at]->size() < 32) continue;
          double difference = 0, size = 0;
          for (size_t j = 0; j < full.list()[at]->size(); ++j) {
            const double a = (*full.list()[at])[j], b = (*fp8.list()[at])[j];
            ASSERT_TRUE(std::isfinite(a) && std::isfinite(b));
            difference += (a - b) * (a - b);
            size += a * a;
          }
          EXPECT_LE(std::sqrt(difference), 0.1 * std::sqrt(size))
              << KernelResults::kNames[at] << " " << variant.name << " " << c;
        }
      }
    }
  }
}

// Gradients whose rows lie where the weights have columns.
TEST(CudaVariants, WriteGradientsStoredOtherwiseThanWeights) {
  SKIP_WITHOUT_GPU();
  using kernels::GateUpLayout;
  const DType dtype = DType::kBF16;
  for (int i = 0; i < 8; ++i) {
    KernelCase c;
    c.name = "otherwise";
    c.num_choices = 2;
    c.model_dim = 136;
    c.hidden_dim = 72;
    c.counts = {10, 200, 0, 90};
    c.options.layout = i % 2 == 0 ? GateUpLayout::kSeparate : GateUpLayout::kConcatenated;
    c.options.transposed = i / 2 % 2 == 1;
    c.gradients = Gradients::kOverwriteFp32;
    const int64_t num_experts = c.num_experts(), d = c.model_dim, h = c.hidden_dim;
    const KernelValues values = make_values(c, dtype);
    const KernelValues previous = make_previous(c, DType::kF32);
    for (const Variant& variant : cuda::variants()) {
      if (!refusal(variant, c, dtype).empty()) continue;
      const KernelResults want = run_cuda(variant.name, c, dtype, values, previous);
      DeviceExperts experts(c, dtype, values, previous, variant.name);
      const bool accumulate = i / 4 == 1;
      std::vector<float> actual(static_cast<size_t>(num_experts * 2 * h * d));
      DeviceBuffer buffer(static_cast<int64_t>(actual.size()) * 4);
      check(cudaMemset(buffer.data(), accumulate ? 0 : 0xff, actual.size() * 4));
      experts.gradients().accumulate = accumulate;
      const bool is_separate = c.options.layout == GateUpLayout::kSeparate;
      kernels::View(&views)[2] = experts.gradients().dgate_up;
      for (int part = 0; part < (is_separate ? 2 : 1); ++part) {
        kernels::View& view = views[part];
        view.data = buffer.data() + part * num_experts * h * d * 4;
        view.stride[0] = view.size[1] * view.size[2];
        view.stride[1] = 1;
        view.stride[2] = view.size[1];
      }
      experts.forward(nullptr);
      experts.backward(nullptr);
      experts.results();
      check(cudaMemcpy(actual.data(), buffer.data(), actual.size() * 4, cudaMemcpyDefault));
      size_t num_wrong = 0;
      for (int64_t at = 0; at < num_experts * 2 * h * d; ++at) {
        const int64_t expert = at / (2 * h * d), row = at / d % (2 * h), column = at % d;
        const bool is_up = row >= h;
        const kernels::View& view = views[is_separate && is_up ? 1 : 0];
        const int64_t stored_row = is_separate ? row % h : row;
        const int64_t offset =
            (view.data == views[0].data ? 0 : num_experts * h * d) + expert * view.stride[0] +
            (c.options.transposed ? column * view.stride[1] + stored_row * view.stride[2]
                                  : stored_row * view.stride[1] + column * view.stride[2]);
        const auto& logical = is_up ? want.dup : want.dgate;
        num_wrong += actual[static_cast<size_t>(offset)] !=
                     logical[static_cast<size_t>((expert * h + row % h) * d + column)];
      }
      EXPECT_EQ(num_wrong, 0u) << variant.name << " " << c;
    }
  }
}

TEST(CudaVariants, RefuseContradictingOffsets) {
  SKIP_WITHOUT_GPU();
  KernelCase c;
  c.name = "contradiction";
  c.num_choices = 2;
  c.model_dim = 24;
  c.hidden_dim = 16;
  c.counts = {3, 5};
  const KernelValues values = make_values(c, DType::kBF16);
  for (const Variant& variant : cuda::variants()) {
    for (const std::vector<int32_t>& offsets :
         {std::vector<int32_t>{0, 5, 3}, {0, 4, 9}, {1, 4, 8}, {0, -1, 8}}) {
      DeviceExperts experts(c, DType::kBF16, values, make_previous(c, DType::kBF16), variant.name);
      check(cudaMemcpy(const_cast<int32_t*>(experts.arguments().offsets), offsets.data(), 12,
                       cudaMemcpyDefault));
      experts.forward(nullptr);
      experts.backward(nullptr);
      experts.stored().accept_inputs();
      const KernelResults results = experts.results();
      EXPECT_EQ(experts.stored().error(), kErrorCounts);
      for (const std::vector<double>* values_of : results.list()) {
        EXPECT_EQ(*values_of, std::vector<double>(values_of->size(), 0.0));
      }
    }
  }
}

TEST(CudaVariants, TakeEveryStoredLayout) {
  SKIP_WITHOUT_GPU();
  for (int i = 0; i < 12; ++i) {
    KernelCase c;
    c.name = "layout";
    c.num_choices = 2;
    c.model_dim = 24;
    c.hidden_dim = 16;
    c.counts = {3, 5};
    c.options.layout = static_cast<kernels::GateUpLayout>(i % 3);
    c.options.transposed = i / 3 % 2 == 1;
    c.is_padded = i / 6 == 1;
    for (const Variant& variant : cuda::variants()) {
      const std::string reason = refusal(variant, c, DType::kBF16);
      if (reason.find("compute capability") != std::string::npos) continue;
      EXPECT_EQ(reason, "") << variant.name << " " << c;
    }
  }
}

TEST(CudaVariants, SayWhyTheyRefuse) {
  SKIP_WITHOUT_GPU();
  KernelCase c;
  c.name = "refused";
  c.num_choices = 2;
  c.model_dim = 20;
  c.hidden_dim = 16;
  c.counts = {3, 5};
  EXPECT_NE(refusal(cuda::variants().back(), c, DType::kBF16).find("multiples of 8"),
            std::string::npos);
  c.model_dim = 24;
  EXPECT_NE(refusal(cuda::variants().back(), c, DType::kF32).find("bf16 or fp16"),
            std::string::npos);
  StoredExperts stored(c, DType::kBF16, make_values(c, DType::kBF16),
                       make_previous(c, DType::kBF16));
  kernels::ExpertsArguments arguments = stored.arguments();
  arguments.x.stride[1] = 2;
  EXPECT_NE(cuda::variants().back().supports(arguments, c.options).find("x has strides"),
            std::string::npos);
}

}  // namespace
}  // namespace amoeba::test
