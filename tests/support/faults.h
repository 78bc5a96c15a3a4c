// A FileSystem that can fail or stop at a chosen operation. Faults are chosen by number, so a test
// can visit every operation of a procedure: run once to count, then once for each number.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file_system.h"

namespace amoeba::test {

enum class Operation {
  kCreate,
  kAppend,
  kWrite,
  kSync,
  kClose,
  kRead,
  kMap,
  kList,
  kMakeFolder,
  kSyncFolder,
  kRename,
  kRemove,
  kFreeBytes,
};
inline constexpr int kNumOperationKinds = 13;
const char* operation_name(Operation operation);

// The process is gone. Not an amoeba::Error, so that code under test cannot take it for a failure.
struct PowerLoss {};

// Several threads may use it; the fault is chosen and the log read while none does. A removal that
// power is lost in must not run beside others' operations on its folder.
class FaultyFileSystem final : public FileSystem {
 public:
  explicit FaultyFileSystem(FileSystem& inner);
  ~FaultyFileSystem() override;

  // Each picks operation `index` (from 0) among all operations, or among those of one kind. The
  // operation throws Error(kData) "NAME 'PATH': REASON" and has no effect; `for_good`: so do all
  // operations after it.
  void fail_at(int64_t index, std::string reason, bool for_good = false);
  void fail_at(Operation kind, int64_t index, std::string reason, bool for_good = false);
  // The same, but a write leaves the first half of its data behind.
  void short_write_at(int64_t index, std::string reason);
  // Throws PowerLoss, there and at every later operation; a write or removal is half done.
  void lose_power_at(int64_t index);

  int64_t num_operations() const;
  int64_t num_operations(Operation kind) const;
  const std::vector<std::string>& log() const;  // "write runs/a/file", in order

  std::unique_ptr<WritableFile> create(const std::string& path) override;
  std::unique_ptr<WritableFile> append(const std::string& path) override;
  std::string read(const std::string& path) override;
  std::unique_ptr<MappedFile> map(const std::string& path) override;
  bool exists(const std::string& path) override;        // not counted: cannot fail
  bool is_directory(const std::string& path) override;  // not counted
  std::vector<std::string> list(const std::string& directory) override;
  void create_directories(const std::string& path) override;
  void sync_directory(const std::string& path) override;
  void rename(const std::string& from, const std::string& to) override;
  void remove_all(const std::string& path) override;
  int64_t free_bytes(const std::string& path) override;

 private:
  struct Plan;
  class File;
  FileSystem& inner_;
  std::shared_ptr<Plan> plan_;  // shared with the open files
};

}  // namespace amoeba::test
