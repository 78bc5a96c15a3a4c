#include "ops/schemas.h"

#include <gtest/gtest.h>
#include <torch/csrc/jit/frontend/function_schema_parser.h>

#include <string>

namespace amoeba::ops {
namespace {

struct Case {
  const char* schema;
  const char* name;
  const char* overload;
  size_t arguments;
  size_t results;
  size_t written;  // arguments that the operator writes to
};

const Case kCases[] = {
    {kRoute, "route", "", 2, 5, 0},
    {kExpertsForward, "experts_forward", "", 16, 3, 0},
    {kExpertsBackward, "experts_backward", "", 19, 6, 0},
    {kExpertsBackwardAccumulate, "experts_backward", "accumulate", 22, 2, 4},
    {kExpertsVariants, "experts_variants", "", 16, 1, 0},
    {kRmsNormForward, "rms_norm_forward", "", 3, 2, 0},
    {kRmsNormBackward, "rms_norm_backward", "", 6, 1, 1},
    {kRope, "rope", "", 5, 1, 0},
    {kSwiGluForward, "swiglu_forward", "", 1, 1, 0},
    {kSwiGluBackward, "swiglu_backward", "", 2, 1, 0},
    {kCrossEntropy, "cross_entropy", "", 3, 1, 1},
    {kAdamW, "adamw", "", 13, 0, 4},
};

TEST(Schemas, ParseAsTheOperatorsTheyAreNamedFor) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.schema);
    const c10::FunctionSchema schema = torch::jit::parseSchema(c.schema);
    EXPECT_EQ(schema.name(), c.name);
    EXPECT_EQ(schema.overload_name(), c.overload);
    EXPECT_EQ(schema.arguments().size(), c.arguments);
    EXPECT_EQ(schema.returns().size(), c.results);
    size_t written = 0;
    for (const c10::Argument& argument : schema.arguments())
      written += argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    EXPECT_EQ(written, c.written);
    for (const c10::Argument& result : schema.returns()) EXPECT_FALSE(result.alias_info());
  }
}

TEST(Schemas, BackwardTakesTheInputsAndOptionsOfForwardInTheirOrder) {
  const c10::FunctionSchema forward = torch::jit::parseSchema(kExpertsForward);
  for (const char* text : {kExpertsBackward, kExpertsBackwardAccumulate}) {
    const c10::FunctionSchema backward = torch::jit::parseSchema(text);
    const size_t own = 2;  // dy, saved
    for (size_t i = 0; i < forward.arguments().size(); ++i) {
      EXPECT_EQ(backward.arguments()[own + i].name(), forward.arguments()[i].name());
      EXPECT_EQ(*backward.arguments()[own + i].type(), *forward.arguments()[i].type());
    }
  }
}

}  // namespace
}  // namespace amoeba::ops
