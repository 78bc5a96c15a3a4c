// The test file systems themselves: a fault that does not happen would prove anything.
#include "support/faults.h"

#include <gtest/gtest.h>

#include <set>

#include "support/errors.h"
#include "support/memory_file_system.h"

namespace amoeba::test {
namespace {

using Strings = std::vector<std::string>;

void put(FileSystem& files, const std::string& path, std::string_view text, bool sync) {
  const auto file = files.create(path);
  file->write(text);
  if (sync) file->sync();
  file->close();
}

TEST(MemoryFileSystemTest, DropsWhatWasNotSynced) {
  struct Case {
    bool sync_file;
    bool sync_folder;
    const char* want;
  };
  for (const Case& c : {Case{true, true, "new"}, Case{false, true, ""}, Case{true, false, "gone"},
                        Case{false, false, "gone"}}) {
    MemoryFileSystem files;
    put(files, "a", "new", c.sync_file);
    if (c.sync_folder) files.sync_directory(".");
    files.reboot(Survival::kSyncedOnly);
    EXPECT_EQ(files.exists("a") ? files.read("a") : "gone", c.want);
  }
}

TEST(MemoryFileSystemTest, UndoesUnsyncedNames) {
  MemoryFileSystem files;
  files.create_directories("d");
  put(files, "d/a", "1", true);
  files.sync_directory("d");
  files.sync_directory(".");
  files.rename("d/a", "d/b");
  files.remove_all("d");
  files.reboot(Survival::kSyncedOnly);
  EXPECT_EQ(files.list("d"), Strings{"a"});
  files.rename("d/a", "d/b");
  files.reboot(Survival::kAll);
  EXPECT_EQ(files.list("d"), Strings{"b"});
}

TEST(MemoryFileSystemTest, TornRebootsDiffer) {
  std::set<std::string> seen;
  for (uint64_t seed = 0; seed < 64; ++seed) {
    MemoryFileSystem files;
    put(files, "a", "0123456789abcdefghij", false);
    files.reboot(Survival::kTorn, seed);
    seen.insert(files.exists("a") ? files.read("a") : "gone");
  }
  EXPECT_TRUE(seen.contains("gone"));
  EXPECT_TRUE(seen.contains(""));
  EXPECT_TRUE(seen.contains("0123456789abcdefghij"));
  EXPECT_GT(seen.size(), 8u);
}

TEST(FaultyFileSystemTest, CountsAndFailsTheChosenOperation) {
  MemoryFileSystem memory;
  FaultyFileSystem files(memory);
  put(files, "a", "text", true);
  files.read("a");
  files.map("a");
  files.list(".");
  files.create_directories("d");
  files.sync_directory("d");
  files.rename("a", "b");
  files.append("b");
  files.free_bytes(".");
  files.remove_all("b");
  EXPECT_EQ(files.log(), (Strings{"create a", "write a", "sync a", "close a", "read a", "map a",
                                  "list .", "create folder d", "sync folder d", "rename a",
                                  "append b", "free space .", "remove b"}));
  EXPECT_EQ(files.num_operations(), kNumOperationKinds);
  EXPECT_EQ(files.num_operations(Operation::kMap), 1);

  files.fail_at(Operation::kCreate, 1, "Read-only file system");
  put(files, "a", "1", true);
  EXPECT_EQ(error_message(ErrorKind::kData, [&] { put(files, "b", "2", true); }),
            "create 'b': Read-only file system");
  EXPECT_FALSE(memory.exists("b"));
  put(files, "b", "2", true);  // only that one

  files.fail_at(1, "Input/output error", true);
  EXPECT_EQ(error_message(ErrorKind::kData, [&] { put(files, "b", "3", true); }),
            "write 'b': Input/output error");
  EXPECT_EQ(error_message(ErrorKind::kData, [&] { files.read("a"); }),
            "read 'a': Input/output error");
}

TEST(FaultyFileSystemTest, ShortWriteLeavesAPrefix) {
  MemoryFileSystem memory;
  FaultyFileSystem files(memory);
  files.short_write_at(1, "No space left on device");
  EXPECT_EQ(error_message(ErrorKind::kData, [&] { put(files, "a", "12345", true); }),
            "write 'a': No space left on device");
  EXPECT_EQ(memory.read("a"), "12");
}

TEST(FaultyFileSystemTest, PowerLossStopsEverythingAfterIt) {
  MemoryFileSystem memory;
  FaultyFileSystem files(memory);
  files.lose_power_at(2);
  EXPECT_THROW(put(files, "a", "12345", true), PowerLoss);
  EXPECT_EQ(memory.read("a"), "12345");
  EXPECT_THROW(files.remove_all("a"), PowerLoss);
  EXPECT_TRUE(memory.exists("a"));
}

}  // namespace
}  // namespace amoeba::test
