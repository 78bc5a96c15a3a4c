#include "train/plain/wall_time.h"

#include <gtest/gtest.h>

namespace amoeba::train {
namespace {

RunSection limited(double minutes, double margin) {
  RunSection run;
  run.max_wall_minutes = minutes;
  run.stop_margin_seconds = margin;
  return run;
}

TEST(WallTimeTest, WithoutALimitItIsNeverUp) {
  WallTime time(limited(0, 60));
  time.add_step(1e9);
  EXPECT_FALSE(time.is_up(1e12, true));
}

TEST(WallTimeTest, EachPartCounts) {
  WallTime time(limited(10, 60));  // 600 seconds
  EXPECT_FALSE(time.is_up(540, true));
  EXPECT_TRUE(time.is_up(540.5, true));
  time.add_step(20);
  EXPECT_FALSE(time.is_up(520, true));
  EXPECT_TRUE(time.is_up(520.5, true));
  time.add_save(30);
  EXPECT_FALSE(time.is_up(490, true));
  EXPECT_TRUE(time.is_up(490.5, true));
  time.add_validation(40);
  EXPECT_FALSE(time.is_up(490, false));
  EXPECT_FALSE(time.is_up(450, true));
  EXPECT_TRUE(time.is_up(450.5, true));
  time.add_save(10);  // the last one counts
  EXPECT_FALSE(time.is_up(470, true));
}

TEST(WallTimeTest, TheLongestOfTheLastTwentySteps) {
  WallTime time(limited(10, 0));
  time.add_step(100);
  for (int step = 0; step < 19; ++step) time.add_step(1);
  EXPECT_TRUE(time.is_up(550, false));
  time.add_step(1);  // the long one is out
  EXPECT_FALSE(time.is_up(550, false));
  EXPECT_TRUE(time.is_up(599.5, false));
}

}  // namespace
}  // namespace amoeba::train
