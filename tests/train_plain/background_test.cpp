// Also run under the thread sanitizer (scripts/test.sh).
#include "train/plain/background.h"

#include <gtest/gtest.h>

#include <latch>

#include "support/errors.h"
#include "support/faults.h"
#include "support/memory_file_system.h"
#include "support/temporary_folder.h"
#include "train/plain/checkpoint.h"
#include "train/plain/metrics.h"

namespace amoeba::train {
namespace {

TEST(Background, WhatTheWorkWroteIsThereAfterFinish) {
  BackgroundWork work;
  EXPECT_FALSE(work.started());
  work.finish();  // nothing to wait for
  int value = 0;
  for (int run = 1; run <= 100; ++run) {
    work.start([&value, run] { value = run; });
    EXPECT_TRUE(work.started());
    work.finish();
    EXPECT_FALSE(work.started());
    EXPECT_EQ(value, run);
  }
}

TEST(Background, DoneIsSeenWithoutWaiting) {
  std::latch go(1);
  BackgroundWork work;
  work.start([&] { go.wait(); });
  EXPECT_FALSE(work.done());
  go.count_down();
  while (!work.done()) std::this_thread::yield();
  EXPECT_TRUE(work.started());
  work.finish();
}

TEST(Background, FinishThrowsWhatTheWorkThrewOnce) {
  BackgroundWork work;
  work.start([] { fail(ErrorKind::kData, "the disk is gone"); });
  EXPECT_EQ(test::error_message(ErrorKind::kData, [&] { work.finish(); }), "the disk is gone");
  work.finish();
  work.start([] { throw test::PowerLoss(); });
  EXPECT_THROW(work.finish(), test::PowerLoss);
}

TEST(Background, TheDestructorWaits) {
  bool done = false;
  {
    BackgroundWork work;
    work.start([&] { done = true; });
  }
  EXPECT_TRUE(done);
}

// A run in small: the state changes while its copy is saved, the copy's memory is used again, and
// the run writes its metrics beside.
void save_while_training(FileSystem& files, const std::string& run, int64_t num_saves) {
  std::string state(4096, '\0');
  std::string copy(state.size(), '\0');
  files.create_directories(run);
  MetricsWriter metrics(files, run + "/metrics.jsonl");
  std::string folder;
  BackgroundWork work;  // last: it uses the others
  const auto finish = [&] {
    if (!work.started()) return;
    work.finish();
    metrics.write(CheckpointRecord{.folder = folder, .error = ""});
  };
  for (int64_t step = 1; step <= num_saves; ++step) {
    std::fill(state.begin(), state.end(), static_cast<char>(step));
    if (work.done()) finish();
    finish();
    copy = state;
    work.start([&, step] {
      CheckpointContent content;
      content.step = step;
      content.weights = {
          {"w", "U8", {static_cast<int64_t>(copy.size())}, std::as_bytes(std::span(copy))}};
      folder = save_checkpoint(files, run, content);
      prune_checkpoints(files, run, 2);
    });
    metrics.write(ValidationRecord{.step = step});
  }
  finish();
  metrics.close();
  const LatestCheckpoint latest = load_latest_checkpoint(files, run);
  ASSERT_TRUE(latest.checkpoint);
  EXPECT_EQ(latest.checkpoint->step, num_saves);
  for (std::byte value : latest.checkpoint->weights[0].data) {
    ASSERT_EQ(value, static_cast<std::byte>(num_saves));
  }
  EXPECT_EQ(find_checkpoints(files, run).size(), 2u);
}

TEST(Background, SavesWhileTrainingGoesOnInMemory) {
  test::MemoryFileSystem files;
  test::FaultyFileSystem counting(files);
  save_while_training(counting, "run", 100);
}

TEST(Background, SavesWhileTrainingGoesOnOnDisk) {
  const test::TemporaryFolder folder;
  PosixFileSystem files;
  save_while_training(files, folder.path() + "/run", 10);
}

}  // namespace
}  // namespace amoeba::train
