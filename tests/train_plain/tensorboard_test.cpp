#include "train/plain/tensorboard.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>

namespace amoeba::train {
namespace {

std::map<std::string, double> by_tag(const std::vector<formats::Scalar>& scalars) {
  std::map<std::string, double> values;
  for (const formats::Scalar& scalar : scalars) {
    EXPECT_TRUE(values.emplace(scalar.tag, scalar.value).second) << scalar.tag << " twice";
  }
  return values;
}

TEST(Tensorboard, AStepGivesItsScalarsUnderTorchtitansTags) {
  StepRecord record;
  record.loss = 2.5;
  record.aux_loss = 1.25;
  record.z_loss = 3.5;
  record.grad_norm = 0.5;
  record.lr = 1e-3;
  record.tokens_per_second = 1000;
  record.tflops = 0.75;
  record.mfu = 12;
  record.step_seconds = 4;
  record.data_seconds = 1;
  record.memory_peak_bytes = int64_t{3} << 30;
  record.memory_percent = 40;
  record.tokens_seen = 4096;
  record.experts = {{0, {1, 3}}, {1, {2, 2}}, {2, {0, 0}}};  // the last one has no rows
  EXPECT_EQ(by_tag(to_scalars(record)),
            (std::map<std::string, double>{{"loss_metrics/global_avg_loss", 2.5},
                                           {"loss_metrics/aux_loss", 1.25},
                                           {"loss_metrics/z_loss", 3.5},
                                           {"grad_norm", 0.5},
                                           {"lr", 1e-3},
                                           {"throughput(tps)", 1000},
                                           {"tflops", 0.75},
                                           {"mfu(%)", 12},
                                           {"time_metrics/end_to_end(s)", 4},
                                           {"time_metrics/data_loading(s)", 1},
                                           {"time_metrics/data_loading(%)", 25},
                                           {"memory/max_active(GiB)", 3},
                                           {"memory/max_active(%)", 40},
                                           {"n_tokens_seen", 4096},
                                           {"experts/layer_0/max_over_mean", 1.5},
                                           {"experts/layer_1/max_over_mean", 1}}));
}

TEST(Tensorboard, WhatIsMissingOrNotFiniteIsLeftOut) {
  StepRecord record;
  record.loss = std::numeric_limits<double>::infinity();
  record.rejected = true;
  EXPECT_EQ(by_tag(to_scalars(record)),
            (std::map<std::string, double>{{"memory/max_active(GiB)", 0}, {"n_tokens_seen", 0}}));
  EXPECT_EQ(by_tag(to_scalars(ValidationRecord{7, 1.5, kMissing, 3})),
            (std::map<std::string, double>{{"validation_metrics/loss", 1.5}}));
}

TEST(Tensorboard, TheGuardHasAScalarForEachAction) {
  EXPECT_EQ(by_tag(to_scalars(GuardRecord{7, "skip", "why", 7})),
            (std::map<std::string, double>{{"guard/rejected_step", 1}}));
  EXPECT_EQ(by_tag(to_scalars(GuardRecord{7, "rollback", "why", 3})),
            (std::map<std::string, double>{{"guard/rollback_to_step", 3}}));
}

}  // namespace
}  // namespace amoeba::train
