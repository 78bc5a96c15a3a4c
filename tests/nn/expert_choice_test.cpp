// Which backend a problem gets: a pure function of plain data, so tested for hardware not at hand.
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "amoeba/error.h"
#include "amoeba/experts.h"

namespace amoeba::nn {
namespace {

constexpr DeviceKind kCpu = DeviceKind::kCpu, kCuda = DeviceKind::kCuda, kXpu = DeviceKind::kXpu;

ExpertProblem problem(DeviceKind device, int compute_capability = 0,
                      at::ScalarType dtype = at::kBFloat16, int64_t model_dim = 128,
                      int64_t hidden_dim = 64) {
  return {device,
          compute_capability,
          dtype,
          model_dim,
          hidden_dim,
          /*num_experts=*/8,
          /*has_output_postprocess=*/false};
}

std::string message_of(std::string_view name, const ExpertProblem& given) {
  try {
    choose_expert_backend(name, given);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return error.what();
  }
  return "";
}

TEST(ExpertChoice, AutoOrder) {
  const auto names = [](DeviceKind device) {
    std::vector<std::string_view> result;
    for (const ExpertBackend* backend : expert_auto_order(device)) result.push_back(backend->name);
    return result;
  };
  using Names = std::vector<std::string_view>;
  EXPECT_EQ(names(kCpu), (Names{"fused", "for_loop", "grouped_mm", "batched_mm_padded"}));
  EXPECT_EQ(names(kCuda), (Names{"fused", "grouped_mm", "batched_mm_padded", "for_loop"}));
  EXPECT_EQ(names(kXpu), (Names{"fused", "grouped_mm", "batched_mm_padded", "for_loop"}));
}

const ExpertBackend& fused() { return expert_backends().front(); }

// Its operators say what they take, so it depends on the machine.
TEST(ExpertChoice, FusedIsTakenWhereTheOperatorsHaveMoreThanTheReference) {
  ASSERT_EQ(fused().name, "fused");
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    const ExpertProblem given = problem(kCpu, 0, dtype, 7, 11);
    EXPECT_EQ(fused().supports(given), "");
    EXPECT_EQ(choose_expert_backend("fused", given).backend, &fused());
    const bool has_kernels = dtype == at::kFloat || dtype == at::kBFloat16;
    const std::string reason = fused().auto_refuses(given);
    const ExpertChoice choice = choose_expert_backend("auto", given);
    if (reason.empty()) {
      EXPECT_TRUE(has_kernels) << dtype;
      EXPECT_EQ(choice.backend, &fused());
      EXPECT_TRUE(choice.refusals.empty());
      continue;
    }
    EXPECT_EQ(reason.rfind("only the plain reference takes it (", 0), 0u) << reason;
    EXPECT_EQ(choice.backend->name, "for_loop");
    ASSERT_EQ(choice.refusals.size(), 1u);
    EXPECT_EQ(choice.refusals[0].name, "fused");
    EXPECT_EQ(choice.refusals[0].reason, reason);
    EXPECT_TRUE(!has_kernels || reason.find("this CPU has no") != std::string::npos ||
                reason.find("this processor") != std::string::npos)
        << reason;
  }
  EXPECT_EQ(message_of("fused", problem(kXpu)),
            "compute_backend: 'fused' cannot run this problem: the operators run on the CPU and on "
            "CUDA");
}

TEST(ExpertChoice, AutoTakesTheFirstThatSupportsTheProblem) {
  struct Line {
    ExpertProblem given;
    const char* chosen;
    const char* grouped_mm_refusal;  // "" when not refused
  };
  const Line lines[] = {
      {problem(kCpu, 0, at::kDouble, 7, 11), "for_loop", ""},
      {problem(kCuda, 80), "grouped_mm", ""},
      {problem(kCuda, 90), "grouped_mm", ""},
      {problem(kCuda, 90, at::kHalf), "grouped_mm", ""},
      {problem(kCuda, 90, at::kFloat, 12, 20), "grouped_mm", ""},
      {problem(kCuda, 75), "batched_mm_padded", "needs compute capability 80, this GPU has 75"},
      {problem(kCuda, 90, at::kDouble), "batched_mm_padded",
       "takes float32, float16 and bfloat16, not Double"},
      {problem(kCuda, 90, at::kBFloat16, 12, 24), "batched_mm_padded",
       "needs rows of a multiple of 16 bytes, got model_dim 12 and hidden_dim 24 at 2 bytes an "
       "element"},
      {problem(kCuda, 80, at::kFloat, 16, 22), "batched_mm_padded",
       "needs rows of a multiple of 16 bytes, got model_dim 16 and hidden_dim 22 at 4 bytes an "
       "element"},
      {problem(kXpu), "batched_mm_padded", "torch has no grouped_mm kernel for XPU"},
  };
  for (const Line& line : lines) {
    const ExpertChoice choice = choose_expert_backend("auto", line.given);
    ASSERT_NE(choice.backend, nullptr);
    if (choice.backend == &fused()) {  // this machine has that GPU
      EXPECT_EQ(line.given.device, kCuda);
      continue;
    }
    EXPECT_EQ(choice.backend->name, line.chosen);
    EXPECT_EQ(choice.refusals.at(0).name, "fused");
    EXPECT_NE(choice.refusals[0].reason, "");
    const std::string reason = line.grouped_mm_refusal;
    ASSERT_EQ(choice.refusals.size(), reason.empty() ? 1u : 2u) << line.chosen;
    if (reason.empty()) continue;
    EXPECT_EQ(choice.refusals[1].name, "grouped_mm");
    EXPECT_EQ(choice.refusals[1].reason, reason);
    EXPECT_EQ(message_of("grouped_mm", line.given),
              "compute_backend: 'grouped_mm' cannot run this problem: " + reason);
  }
}

TEST(ExpertChoice, ANameIsTakenOnEveryDevice) {
  for (const ExpertProblem& given :
       {problem(kCpu), problem(kCuda, 80), problem(kCuda, 90), problem(kXpu)}) {
    for (const char* name : {"for_loop", "batched_mm_padded", "batched_mm_capacity"}) {
      const ExpertChoice choice = choose_expert_backend(name, given);
      EXPECT_EQ(choice.backend->name, name);
      EXPECT_TRUE(choice.refusals.empty());
    }
  }
  EXPECT_EQ(choose_expert_backend("grouped_mm", problem(kCpu)).backend->name, "grouped_mm");
}

TEST(ExpertChoice, UnknownNamesAreRefused) {
  const std::string want =
      "', want one of auto, fused, grouped_mm, batched_mm_padded, batched_mm_capacity, for_loop";
  EXPECT_EQ(message_of("cutlass", problem(kCpu)), "compute_backend: got 'cutlass" + want);
  EXPECT_EQ(message_of("", problem(kCpu)), "compute_backend: got '" + want);
  EXPECT_EQ(message_of("bmm", problem(kCpu)),
            "compute_backend: 'bmm' is an old name, want 'batched_mm_capacity'");
  EXPECT_EQ(message_of("bmm_nodrop", problem(kCpu)),
            "compute_backend: 'bmm_nodrop' is an old name, want 'batched_mm_padded'");
}

TEST(ExpertChoice, ProblemIsReadFromTensors) {
  const ExpertProblem read =
      describe_problem(at::zeros({5, 12}, at::kHalf), at::zeros({3, 20, 12}, at::kHalf), true);
  EXPECT_EQ(read.device, kCpu);
  EXPECT_EQ(read.compute_capability, 0);
  EXPECT_EQ(read.dtype, at::kHalf);
  EXPECT_EQ(read.model_dim, 12);
  EXPECT_EQ(read.hidden_dim, 20);
  EXPECT_EQ(read.num_experts, 3);
  EXPECT_TRUE(read.has_output_postprocess);
  EXPECT_THROW(describe_problem(at::zeros({5}), at::zeros({3, 20, 12}), false), Error);
  EXPECT_THROW(describe_problem(at::zeros({5, 12}, at::TensorOptions(at::kMeta)),
                                at::zeros({3, 20, 12}), false),
               Error);
}

}  // namespace
}  // namespace amoeba::nn
