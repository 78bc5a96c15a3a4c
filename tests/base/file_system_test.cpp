#include "base/file_system.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <functional>

#include "amoeba/error.h"
#include "support/errors.h"
#include "support/faults.h"
#include "support/memory_file_system.h"
#include "support/temporary_folder.h"

namespace amoeba {
namespace {

using test::FaultyFileSystem;
using test::TemporaryFolder;
using Strings = std::vector<std::string>;

class FileSystemTest : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return folder_.path() + "/" + name; }
  void write(const std::string& name, std::string_view text) {
    const auto file = files_.create(path(name));
    file->write(text);
    file->sync();
    file->close();
  }

  TemporaryFolder folder_;
  PosixFileSystem files_;
};

TEST_F(FileSystemTest, WritesAppendsAndReads) {
  write("a", "long old content");
  write("a", "new");
  EXPECT_EQ(files_.read(path("a")), "new");
  const auto file = files_.append(path("a"));
  file->write(std::string_view("er"));
  file->write(std::string_view());
  file->close();
  EXPECT_EQ(files_.read(path("a")), "newer");
  const std::string large(3'000'000, 'x');
  write("b", large);
  EXPECT_EQ(files_.read(path("b")), large);
}

TEST_F(FileSystemTest, ReadsAFileThatReportsNoSize) {
  EXPECT_NE(files_.read("/proc/self/status").find("Pid:"), std::string::npos);
}

TEST_F(FileSystemTest, MapsFilesAndGivesAnEmptySpanForAnEmptyOne) {
  write("a", "abc");
  write("empty", "");
  const auto mapped = files_.map(path("a"));
  ASSERT_EQ(mapped->data().size(), 3u);
  EXPECT_EQ(mapped->data()[2], std::byte{'c'});
  EXPECT_TRUE(files_.map(path("empty"))->data().empty());
}

TEST_F(FileSystemTest, ListsSortedNames) {
  write("b", "");
  write("a", "");
  files_.create_directories(path("c/d"));
  EXPECT_EQ(files_.list(folder_.path()), (Strings{"a", "b", "c"}));
  EXPECT_EQ(files_.list(path("c/d")), Strings{});
}

TEST_F(FileSystemTest, KnowsWhatExists) {
  write("a", "");
  files_.create_directories(path("c"));
  EXPECT_TRUE(files_.exists(path("a")));
  EXPECT_FALSE(files_.is_directory(path("a")));
  EXPECT_TRUE(files_.exists(path("c")));
  EXPECT_TRUE(files_.is_directory(path("c")));
  EXPECT_FALSE(files_.exists(path("d")));
  EXPECT_FALSE(files_.is_directory(path("d")));
}

TEST_F(FileSystemTest, RenamesAndRemoves) {
  files_.create_directories(path("c/d"));
  write("c/d/a", "1");
  write("old", "2");
  files_.rename(path("c"), path("e"));
  files_.rename(path("e/d/a"), path("old"));  // replaces
  EXPECT_EQ(files_.read(path("old")), "1");
  files_.remove_all(path("e"));
  files_.remove_all(path("never there"));
  EXPECT_EQ(files_.list(folder_.path()), (Strings{"old"}));
}

TEST_F(FileSystemTest, FreeBytesIsPositive) { EXPECT_GT(files_.free_bytes(folder_.path()), 0); }

TEST_F(FileSystemTest, ErrorsNameOperationPathAndReason) {
  write("file", "x");
  files_.create_directories(path("folder/inner"));
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  struct Case {
    std::function<void(const std::string&)> call;
    const char* name;
    const char* want;  // @ stands for the folder
  };
  const Case cases[] = {
      {[&](auto& p) { files_.create(p); }, "no/a", "create '@/no/a': No such file or directory"},
      {[&](auto& p) { files_.create(p); }, "folder", "create '@/folder': Is a directory"},
      {[&](auto& p) { files_.append(p); }, "folder", "append to '@/folder': Is a directory"},
      {[&](auto& p) { files_.read(p); }, "no", "read '@/no': No such file or directory"},
      {[&](auto& p) { files_.read(p); }, "folder", "read '@/folder': is a folder, want a file"},
      {[&](auto& p) { files_.read(p); }, "pipe", "read '@/pipe': is not a regular file"},
      {[&](auto& p) { files_.map(p); }, "no", "map '@/no': No such file or directory"},
      {[&](auto& p) { files_.map(p); }, "folder", "map '@/folder': is a folder, want a file"},
      {[&](auto& p) { files_.list(p); }, "file", "list '@/file': Not a directory"},
      {[&](auto& p) { files_.create_directories(p); }, "file/a",
       "create folder '@/file/a': Not a directory"},
      {[&](auto& p) { files_.sync_directory(p); }, "no",
       "sync folder '@/no': No such file or directory"},
      {[&](auto& p) { files_.rename(p, p + "2"); }, "no",
       "rename '@/no' to '@/no2': No such file or directory"},
      {[&](auto& p) { files_.rename(p + "/inner", p); }, "folder",
       "rename '@/folder/inner' to '@/folder': Directory not empty"},
      {[&](auto& p) { files_.free_bytes(p); }, "no",
       "free space of '@/no': No such file or directory"},
  };
  for (const Case& c : cases) {
    std::string want = c.want;
    for (size_t at; (at = want.find('@')) != want.npos;) want.replace(at, 1, folder_.path());
    EXPECT_EQ(test::error_message(ErrorKind::kData, [&] { c.call(path(c.name)); }), want);
  }
}

TEST_F(FileSystemTest, WriteReportsAFullDevice) {
  const auto file = files_.create("/dev/full");
  EXPECT_EQ(test::error_message(ErrorKind::kData, [&] { file->write(std::string_view("x")); }),
            "write '/dev/full': No space left on device");
}

TEST(ParentFolderTest, Cases) {
  const std::pair<const char*, const char*> cases[] = {
      {"a", "."},  {"a/b", "a"}, {"a/b/", "a"}, {"a//b", "a"},
      {"/a", "/"}, {"/", "/"},   {"", "."},     {"/a/b", "/a"},
  };
  for (const auto& [path, want] : cases) EXPECT_EQ(parent_folder(path), want) << path;
}

// ---------------------------------------------------------------------------------------------------

TEST(CreateDirectoriesDurablyTest, SurvivesPowerLoss) {
  test::MemoryFileSystem memory;
  create_directories_durably(memory, "runs/a/checkpoints");
  memory.reboot(test::Survival::kSyncedOnly);
  EXPECT_TRUE(memory.is_directory("runs/a/checkpoints"));
}

// An earlier process may have made the folder and died before its sync.
TEST(CreateDirectoriesDurablyTest, SyncsTheParentOfAnExistingFolder) {
  test::MemoryFileSystem memory;
  memory.create_directories("runs");
  create_directories_durably(memory, "runs");
  memory.reboot(test::Survival::kSyncedOnly);
  EXPECT_TRUE(memory.is_directory("runs"));
}

TEST(WriteFileAtomicallyTest, FailureAtEveryOperationLeavesTheOldFile) {
  test::MemoryFileSystem memory;
  write_file_atomically(memory, "a", "old");
  FaultyFileSystem counting(memory);
  write_file_atomically(counting, "a", "old");
  ASSERT_EQ(counting.num_operations(),
            6);  // create, write, sync, close, rename, sync of the folder
  for (int64_t i = 0; i < counting.num_operations(); ++i) {
    FaultyFileSystem faulty(memory);
    faulty.fail_at(i, "No space left on device");
    const std::string message = test::error_message(
        ErrorKind::kData, [&] { write_file_atomically(faulty, "a", i < 5 ? "new" : "old"); });
    EXPECT_NE(message.find("No space left on device"), std::string::npos) << message;
    EXPECT_EQ(memory.read("a"), "old") << i;
    EXPECT_EQ(memory.list("."), Strings{"a"}) << i;
  }
}

TEST(WriteFileAtomicallyTest, PowerLossLeavesOldOrNew) {
  for (uint64_t seed = 0; seed < 32; ++seed) {
    for (int64_t i = 0; i < 6; ++i) {
      test::MemoryFileSystem memory;
      write_file_atomically(memory, "a", "old");
      FaultyFileSystem faulty(memory);
      faulty.lose_power_at(i);
      EXPECT_THROW(write_file_atomically(faulty, "a", "new"), test::PowerLoss);
      memory.reboot(test::Survival::kTorn, seed);
      const std::string text = memory.read("a");
      EXPECT_TRUE(text == "old" || text == "new") << text << " at " << i << " seed " << seed;
    }
  }
}

TEST(WriteFileAtomicallyTest, IsDurable) {
  test::MemoryFileSystem memory;
  write_file_atomically(memory, "a", "new");
  memory.reboot(test::Survival::kSyncedOnly);
  EXPECT_EQ(memory.read("a"), "new");
}

}  // namespace
}  // namespace amoeba
