// Arguments that do not fit together are refused with the operation, what was got and what was
// wanted; routing data that contradicts itself sets a bit and computes nothing.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "amoeba/error.h"
#include "base/error_word.h"
#include "support/errors.h"
#include "support/kernels/cases.h"
#include "support/kernels/stored.h"

namespace amoeba::test {
namespace {

using kernels::DType;
using kernels::ExpertsArguments;
using kernels::ExpertsGradients;
using kernels::ExpertsOptions;
using kernels::GateUpLayout;
using kernels::Variant;
using kernels::View;

KernelCase small_case() {
  KernelCase c;
  c.name = "small";
  c.num_choices = 2;
  c.model_dim = 5;
  c.hidden_dim = 3;
  c.counts = {3, 0, 4};
  c.num_skipped = 1;
  c.has_biases = true;
  return c;
}

struct Call {
  ExpertsArguments arguments;
  ExpertsOptions options;
  View y, dy;
  ExpertsGradients gradients;
};

// The message of the Error that the call gives after `change`.
std::string refusal_of(const std::function<void(Call&)>& change) {
  const KernelCase c = small_case();
  StoredExperts stored(c, DType::kF32, make_values(c, DType::kF32), make_previous(c, DType::kF32));
  Call call{stored.arguments(), c.options, stored.y(), stored.dy(), stored.gradients()};
  change(call);
  std::string message = error_message(ErrorKind::kUsage, [&] {
    const Variant& variant = kernels::cpu::variants().back();
    GuardedMemory saved(1 << 16), scratch(1 << 16);
    kernels::cpu::experts_forward(variant, call.arguments, call.options, call.y, saved.data(),
                                  scratch.data(), serial_executor());
    kernels::cpu::experts_backward(variant, call.arguments, call.options, call.dy, saved.data(),
                                   call.gradients, scratch.data(), serial_executor());
  });
  return message;
}

struct Mistake {
  const char* message;
  std::function<void(Call&)> make;
};

const Mistake kMistakes[] = {
    {"x has dtype int32, want fp64 or fp32 or fp16 or bf16",
     [](Call& c) { c.arguments.x.dtype = DType::kI32; }},
    {"x is a null pointer, want [4, 5]", [](Call& c) { c.arguments.x.data = nullptr; }},
    {"num_rows is 7, want a multiple of 4 tokens", [](Call& c) { c.arguments.num_rows = 7; }},
    {"want none negative and dims of at least 1", [](Call& c) { c.arguments.num_experts = -1; }},
    {"only one of row_slot and slot_row is given", [](Call& c) { c.arguments.row_slot = nullptr; }},
    {"num_rows is 8, want the 4 rows of x: no slots are given",
     [](Call& c) { c.arguments.row_slot = c.arguments.slot_row = nullptr; }},
    {"scores are given without row_slot and slot_row, want none",
     [](Call& c) {
       c.arguments.row_slot = c.arguments.slot_row = nullptr;
       c.arguments.num_rows = 4;
     }},
    {"scores is [4, 3], want [4, 2]", [](Call& c) { c.arguments.scores.size[1] = 3; }},
    {"scores has dtype fp16, want fp32 or bf16 or fp64",
     [](Call& c) { c.arguments.scores.dtype = DType::kF16; }},
    {"offsets or error is a null pointer", [](Call& c) { c.arguments.offsets = nullptr; }},
    {"gate_up[1] is [3, 3, 4], want [3, 3, 5]",
     [](Call& c) { c.arguments.gate_up[1].size[2] = 4; }},
    {"gate_up[0] is [3, 3, 5], want [3, 5, 3]", [](Call& c) { c.options.transposed = true; }},
    {"gate_up[0] is [3, 3, 5], want [3, 6, 5]",
     [](Call& c) { c.options.layout = GateUpLayout::kConcatenated; }},
    {"gate_up[1] is given, want one parameter",
     [](Call& c) {
       c.options.layout = GateUpLayout::kInterleaved;
       c.arguments.gate_up[0].size[1] = 6;
     }},
    {"down has dtype bf16, want fp32", [](Call& c) { c.arguments.down.dtype = DType::kBF16; }},
    {"gate_up_bias[0] is [3, 4], want [3, 3]",
     [](Call& c) { c.arguments.gate_up_bias[0].size[1] = 4; }},
    {"down_bias is [2, 5], want [3, 5]", [](Call& c) { c.arguments.down_bias.size[0] = 2; }},
    {"experts_forward: y is [5, 5], want [4, 5]", [](Call& c) { c.y.size[0] = 5; }},
    {"experts_backward: dy is [5, 5], want [4, 5]", [](Call& c) { c.dy.size[0] = 5; }},
    {"dx is [4, 6], want [4, 5]", [](Call& c) { c.gradients.dx.size[1] = 6; }},
    {"dscores has dtype bf16, want fp32",
     [](Call& c) { c.gradients.dscores.dtype = DType::kBF16; }},
    {"dscores is given without scores", [](Call& c) { c.arguments.scores.data = nullptr; }},
    {"dgate_up[1] has dtype bf16, want fp32 or fp32",
     [](Call& c) { c.gradients.dgate_up[1].dtype = DType::kBF16; }},
    {"ddown is [3, 5, 4], want [3, 5, 3]", [](Call& c) { c.gradients.ddown.size[2] = 4; }},
    {"dgate_up_bias is given without gate_up_bias",
     [](Call& c) {
       c.arguments.gate_up_bias[0].data = c.arguments.gate_up_bias[1].data = nullptr;
     }},
    {"ddown_bias is given without down_bias",
     [](Call& c) { c.arguments.down_bias.data = nullptr; }},
};

TEST(CpuChecks, RefuseEveryMistakeWithItsReason) {
  for (const Mistake& mistake : kMistakes) {
    EXPECT_NE(refusal_of(mistake.make).find(mistake.message), std::string::npos)
        << "want: " << mistake.message << "\ngot: " << refusal_of(mistake.make);
  }
}

TEST(CpuChecks, RouteRefusesWhatItCannotRead) {
  KernelCase c = small_case();
  StoredExperts stored(c, DType::kF32, make_values(c, DType::kF32), make_previous(c, DType::kF32));
  kernels::RouteArguments arguments;
  arguments.expert_ids = stored.expert_ids();
  arguments.num_experts = 3;
  const auto message = [&] {
    return error_message(ErrorKind::kUsage,
                         [&] { kernels::cpu::route(arguments, serial_executor()); });
  };
  EXPECT_EQ(message(),
            "route: an output is a null pointer, want counts, offsets, row_slot, slot_row, error");
  arguments.num_experts = -1;
  EXPECT_EQ(message(), "route: num_experts is -1, want 0 to 2^31 - 2");
  arguments.expert_ids.dtype = DType::kF32;
  EXPECT_EQ(message(), "route: expert_ids has dtype fp32, want int32 or int64");
}

TEST(CpuVariants, AreChosenByNameOrBestFirst) {
  const KernelCase c = small_case();
  StoredExperts stored(c, DType::kF64, make_values(c, DType::kF64), make_previous(c, DType::kF64));
  const ExpertsArguments arguments = stored.arguments();
  const auto choose = [&](std::string_view name) {
    return std::string(kernels::cpu::choose_variant(arguments, c.options, name).name);
  };
  EXPECT_EQ(choose("auto"), "reference");  // alone takes fp64
  EXPECT_EQ(choose("reference"), "reference");
  EXPECT_EQ(kernels::cpu::variants().back().name, "reference");
  const std::string message = error_message(ErrorKind::kUsage, [&] { choose("fastest"); });
  EXPECT_NE(message.find("no CPU variant is named fastest, want auto"), std::string::npos);
  EXPECT_NE(message.find("reference"), std::string::npos);
}

TEST(CpuVariants, RefuseWithAReasonWhatOnlyTheReferenceTakes) {
  const KernelCase c = small_case();
  StoredExperts half(c, DType::kF16, make_values(c, DType::kF16), make_previous(c, DType::kF16));
  StoredExperts single(c, DType::kF32, make_values(c, DType::kF32), make_previous(c, DType::kF32));
  ExpertsArguments apart = single.arguments();
  apart.x.stride[1] = 2;
  ExpertsOptions fp8;
  fp8.save = kernels::Save::kPreActivationsFp8;
  for (const Variant& variant : kernels::cpu::variants()) {
    const bool is_reference = variant.name == "reference";
    EXPECT_EQ(variant.supports(half.arguments(), c.options).empty(), is_reference) << variant.name;
    EXPECT_EQ(variant.supports(apart, c.options).empty(), is_reference) << variant.name;
    EXPECT_EQ(variant.supports(single.arguments(), fp8).empty(), is_reference) << variant.name;
    const auto choose = [&] {
      kernels::cpu::choose_variant(half.arguments(), c.options, variant.name);
    };
    if (is_reference) {
      choose();
    } else {
      EXPECT_NE(error_message(ErrorKind::kUsage, choose)
                    .find(cat("experts: ", variant.name, " refuses: ")),
                std::string::npos);
    }
  }
}

// `target` (a variant or an implementation) gives zeros and breaks no guard.
template <typename Target>
void expect_nothing_computed(const Target& target, const Variant& variant, DType dtype,
                             const std::function<void(Routing&)>& damage) {
  const KernelCase c = small_case();
  const KernelValues values = make_values(c, dtype);
  StoredExperts stored(c, dtype, values, make_previous(c, dtype));
  Routing routing = naive_routing(c, values);
  damage(routing);
  ExpertsArguments arguments = stored.arguments();
  arguments.offsets = routing.offsets.data();
  arguments.row_slot = routing.row_slot.data();
  arguments.slot_row = routing.slot_row.data();
  if (!variant.supports(arguments, c.options).empty()) return;
  const auto sizes = kernels::cpu::workspace(target, arguments, c.options);
  GuardedMemory saved(sizes.saved_bytes), forward(sizes.forward_scratch_bytes),
      backward(sizes.backward_scratch_bytes);
  kernels::cpu::experts_forward(target, arguments, c.options, stored.y(), saved.data(),
                                forward.data(), serial_executor());
  EXPECT_EQ(stored.error(), kErrorCounts);
  kernels::cpu::experts_backward(target, arguments, c.options, stored.dy(), saved.data(),
                                 stored.gradients(), backward.data(), serial_executor());
  EXPECT_EQ(stored.damage(), "");
  const KernelResults results = stored.results();
  for (const auto* tensor : results.list()) {
    for (const double value : *tensor) EXPECT_EQ(value, 0) << variant.name;
  }
}

// Every variant: routing that contradicts itself sets the bit.
TEST(CpuVariants, ComputeNothingFromContradictoryRouting) {
  struct Damage {
    const char* name;
    std::function<void(Routing&)> make;
  };
  const Damage damages[] = {
      {"an offset past R", [](Routing& r) { r.offsets.back() = 9; }},
      {"a falling offset", [](Routing& r) { r.offsets[1] = 6; }},
      {"a first offset that is not 0", [](Routing& r) { r.offsets[0] = 1; }},
      {"a slot past R", [](Routing& r) { r.row_slot[2] = 8; }},
      {"a slot twice", [](Routing& r) { r.row_slot[2] = r.row_slot[3]; }},
      {"a row past R", [](Routing& r) { r.slot_row[1] = 1000; }},
  };
  for (const Damage& damage : damages) {
    SCOPED_TRACE(damage.name);
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const Variant& variant : kernels::cpu::variants()) {
        expect_nothing_computed(variant, variant, dtype, damage.make);
      }
      for (const auto* implementation : unlisted_implementations()) {
        expect_nothing_computed(*implementation, implementation->variant, dtype, damage.make);
      }
    }
  }
}

TEST(NoCuda, SaysSo) {
  if (!kernels::cuda::variants().empty()) GTEST_SKIP() << "built with CUDA";
  EXPECT_EQ(error_message(ErrorKind::kUsage, [] { kernels::cuda::route({}, nullptr, nullptr); }),
            "route: built without CUDA");
}

}  // namespace
}  // namespace amoeba::test
