// The comparator must reject every planted fault and accept clean computations.
#include "support/torch/compare.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "support/torch/cases.h"

namespace amoeba::test {
namespace {

// Rows 0..8 | 9..22 | 23..29 and two tail rows; all of D, H, E, R differ.
const ExpertCase kCase = {"planted", 4, 40, 24, {9, 0, 14, 7}, 2};
constexpr auto kAllDtypes = {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf};

struct Planted {
  ExpertInputs inputs;
  ExpertResults clean, plain, exact;
};

Planted make_planted(const ExpertCase& expert_case, at::ScalarType dtype) {
  Planted planted;
  planted.inputs = make_inputs(expert_case, dtype, at::kCPU);
  nn::ExpertStats stats;
  planted.clean = run_experts(backend_named("for_loop"), planted.inputs, stats);
  planted.plain = reference_experts(planted.inputs);
  planted.exact = reference_experts(planted.inputs.to(at::kDouble));
  return planted;
}

at::Tensor with_counts(const ExpertInputs& inputs, std::vector<int64_t> counts) {
  ExpertInputs changed = inputs;
  changed.counts = at::tensor(at::ArrayRef<int64_t>(counts), at::kLong);
  return reference_experts(changed).y;
}

at::Tensor with_row_from(const ExpertInputs& inputs, int64_t row, int64_t source) {
  ExpertInputs changed = inputs;
  changed.x = inputs.x.clone();
  changed.x.select(0, row).copy_(inputs.x.select(0, source));
  return reference_experts(changed).y;
}

struct Fault {
  const char* name;
  std::function<at::Tensor(const Planted&, at::Tensor y)> plant;  // y: a copy of the clean output
  bool seen_in_half_precision = true;  // false: smaller than the rounding of fp16 and bf16
};

const Fault kOutputFaults[] = {
    {"NaN", [](auto&, at::Tensor y) { return y.select(0, 3).select(0, 5).fill_(NAN), y; }},
    {"infinity",
     [](auto&, at::Tensor y) { return y.select(0, 3).select(0, 5).fill_(INFINITY), y; }},
    {"one element", [](auto&, at::Tensor y) { return y.select(0, 3).select(0, 5).add_(0.5), y; }},
    {"16x16 hole",
     [](auto&, at::Tensor y) { return y.narrow(0, 9, 16).narrow(1, 8, 16).zero_(), y; }},
    {"swapped rows",
     [](auto& p, at::Tensor y) {
       y.select(0, 1).copy_(p.clean.y.select(0, 2));
       y.select(0, 2).copy_(p.clean.y.select(0, 1));
       return y;
     }},
    {"repeated row",
     [](auto& p, at::Tensor y) { return y.select(0, 10).copy_(p.clean.y.select(0, 9)), y; }},
    {"row of the wrong token", [](auto& p, at::Tensor) { return with_row_from(p.inputs, 11, 25); }},
    {"scaled by 0.4 %", [](auto&, at::Tensor y) { return y.mul_(1.004); }, false},
    {"stale output",
     [](auto&, at::Tensor) {
       return reference_experts(make_inputs(kCase, at::kFloat, at::kCPU, /*seed=*/2)).y;
     }},
    {"boundary shifted by one row",
     [](auto& p, at::Tensor) {
       return with_counts(p.inputs, {8, 1, 14, 7});
     }},
    {"pad not zero",
     [](auto&, at::Tensor y) { return y.select(0, 31).select(0, 0).fill_(1e-6), y; }},
    {"sign", [](auto&, at::Tensor y) { return y.select(0, 20).neg_(), y; }},
    {"transposed tile",
     [](auto& p, at::Tensor y) {
       const at::Tensor tile = p.clean.y.narrow(0, 10, 8).narrow(1, 16, 8);
       return y.narrow(0, 10, 8).narrow(1, 16, 8).copy_(tile.t()), y;
     }},
    {"lost last row", [](auto&, at::Tensor y) { return y.select(0, 29).zero_(), y; }},
    {"one row short", [](auto&, at::Tensor y) { return y.narrow(0, 0, 31); }},
    {"another dtype", [](auto&, at::Tensor y) { return y.to(at::kDouble); }},
    {"missing", [](auto&, at::Tensor) { return at::Tensor(); }},
};

const Fault kGradientFaults[] = {
    // on dw1 [E, H, D]
    {"zeroed gradient", [](auto&, at::Tensor dw) { return dw.zero_(); }},
    {"zeroed expert", [](auto&, at::Tensor dw) { return dw.select(0, 3).zero_(), dw; }},
    {"garbage for an empty expert",
     [](auto&, at::Tensor dw) { return dw.select(0, 1).select(0, 0).fill_(1e-6), dw; }},
    {"missing gradient", [](auto&, at::Tensor) { return at::Tensor(); }},
};

TEST(CompareRows, RejectsEveryPlantedFault) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const Planted planted = make_planted(kCase, dtype);
    for (const Fault& fault : kOutputFaults) {
      if (dtype != at::kFloat && !fault.seen_in_half_precision) continue;
      at::Tensor faulty = fault.plant(planted, planted.clean.y.clone());
      if (faulty.defined() && faulty.scalar_type() == at::kFloat) faulty = faulty.to(dtype);
      const Comparison result = compare_rows(faulty, planted.plain.y, planted.exact.y);
      EXPECT_FALSE(result) << fault.name << " in " << dtype;
      EXPECT_NE(result.message, "");
    }
    for (const Fault& fault : kGradientFaults) {
      const at::Tensor faulty = fault.plant(planted, planted.clean.dw1.clone());
      EXPECT_FALSE(compare_rows(faulty, planted.plain.dw1, planted.exact.dw1))
          << fault.name << " in " << dtype;
    }
  }
}

TEST(CompareExact, RejectsEveryPlantedFault) {
  const Planted planted = make_planted(kCase, at::kFloat);
  for (const Fault& fault : kOutputFaults) {
    const at::Tensor faulty = fault.plant(planted, planted.clean.y.clone());
    EXPECT_FALSE(compare_exact(faulty, planted.clean.y)) << fault.name;
  }
  EXPECT_TRUE(compare_exact(planted.clean.y.clone(), planted.clean.y));
  const at::Tensor nan = at::full({2}, NAN);
  EXPECT_FALSE(compare_exact(nan, nan));
}

TEST(CompareFp64, RejectsEveryPlantedFault) {
  const Planted planted = make_planted(kCase, at::kDouble);
  for (const Fault& fault : kOutputFaults) {
    if (std::string_view(fault.name) == "another dtype") continue;  // it changes nothing in fp64
    const at::Tensor faulty = fault.plant(planted, planted.clean.y.clone());
    EXPECT_FALSE(compare_fp64(faulty, planted.exact.y)) << fault.name;
  }
  EXPECT_FALSE(compare_fp64(planted.clean.y.mul(1 + 1e-11), planted.exact.y));
  EXPECT_FALSE(compare_fp64(planted.plain.y.to(at::kFloat), planted.exact.y));
}

TEST(CompareRows, AcceptsTheCleanComputationInEachDtype) {
  for (const at::ScalarType dtype : kAllDtypes) {
    const Planted planted = make_planted(kCase, dtype);
    for (size_t i = 0; i < 5; ++i) {
      const Comparison result = dtype == at::kDouble
                                    ? compare_fp64(planted.clean.list()[i], planted.exact.list()[i])
                                    : compare_rows(planted.clean.list()[i], planted.plain.list()[i],
                                                   planted.exact.list()[i]);
      EXPECT_TRUE(result) << ExpertResults::kNames[i] << " in " << dtype << ": " << result.message;
    }
  }
}

TEST(CompareRows, RejectsAReferenceThatIsNotFinite) {
  const Planted planted = make_planted(kCase, at::kFloat);
  at::Tensor broken = planted.plain.y.clone();
  broken.select(0, 0).fill_(NAN);
  EXPECT_FALSE(compare_rows(planted.clean.y, broken, planted.exact.y));
  EXPECT_FALSE(compare_rows(planted.clean.y, planted.plain.y, broken.to(at::kDouble)));
  EXPECT_FALSE(compare_rows(planted.clean.y, planted.plain.y, planted.exact.y.to(at::kFloat)));
}

TEST(CompareRows, NamesTheWorstRowItsErrorAndItsBound) {
  const at::Tensor want = at::full({3, 2}, 1.0, at::kDouble);
  at::Tensor got = want.to(at::kFloat);
  got.select(0, 1).add_(0.125);
  got.select(0, 2).add_(0.5);
  EXPECT_EQ(compare_rows(got, want.to(at::kFloat), want).message,
            "row 2 of 3: error 0.5, bound 2.38418579102e-07 (plain error 0, largest value 1)");
  EXPECT_EQ(compare_rows(got.narrow(0, 0, 2), want.to(at::kFloat), want).message,
            "got Float [2, 2], want Float [3, 2]");
  EXPECT_EQ(compare_exact(got, want.to(at::kFloat)).message,
            "4 of 6 elements differ, the first at 2: got 1.125, want 1");
}

TEST(CompareRows, BoundIsTwoUlpOfTheRowPlusTwiceThePlainError) {
  struct Line {
    at::ScalarType dtype;
    double value, ulp;
  };
  for (const Line& line :
       {Line{at::kFloat, 1, 0x1p-23}, Line{at::kFloat, 3, 0x1p-22}, Line{at::kHalf, 1, 0x1p-10},
        Line{at::kBFloat16, 1, 0x1p-7}, Line{at::kHalf, 0x1p-20, 0x1p-24}}) {
    const at::Tensor want = at::full({2, 1}, line.value, at::kDouble);
    const at::Tensor plain = want.to(line.dtype);
    const auto off_by = [&](double ulps) { return want.add(ulps * line.ulp).to(line.dtype); };
    EXPECT_TRUE(compare_rows(off_by(2), plain, want)) << line.dtype << " " << line.value;
    EXPECT_FALSE(compare_rows(off_by(3), plain, want)) << line.dtype << " " << line.value;
    at::Tensor rough = off_by(1);  // the plain computation is off by one ulp in some row
    rough.select(0, 0).copy_(plain.select(0, 0));
    EXPECT_TRUE(compare_rows(off_by(4), rough, want)) << line.dtype << " " << line.value;
    EXPECT_FALSE(compare_rows(off_by(5), rough, want)) << line.dtype << " " << line.value;
  }
}

// Why not the origin's rule: its own case has values so small that an absolute 1e-5 sees nothing.
TEST(CompareRows, SeesWhatTheOriginsToleranceOf1e5Accepts) {
  const ExpertCase origin = {"origin", 6, 16, 24, {0, 3, 5, 1, 0, 7}, 0, 0.02};
  const Planted planted = make_planted(origin, at::kFloat);
  const auto origin_accepts = [](const at::Tensor& actual, const at::Tensor& expected) {
    return at::allclose(actual, expected, /*rtol=*/1e-5, /*atol=*/1e-5);
  };
  const at::Tensor scaled = planted.clean.y.mul(1.004);
  EXPECT_TRUE(origin_accepts(scaled, planted.plain.y));
  EXPECT_FALSE(compare_rows(scaled, planted.plain.y, planted.exact.y));
  const at::Tensor scaled_dx = planted.clean.dx.mul(1.004);
  EXPECT_TRUE(origin_accepts(scaled_dx, planted.plain.dx));
  EXPECT_FALSE(compare_rows(scaled_dx, planted.plain.dx, planted.exact.dx));
  const at::Tensor no_gradient = at::zeros_like(planted.clean.dw1);
  EXPECT_FALSE(compare_rows(no_gradient, planted.plain.dw1, planted.exact.dw1));
  EXPECT_TRUE(compare_rows(planted.clean.dw1, planted.plain.dw1, planted.exact.dw1));
}

}  // namespace
}  // namespace amoeba::test
