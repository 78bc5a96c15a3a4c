// A file system in memory, for several threads, that knows what a power loss would leave: file data
// is durable after sync() of the file, a new name, a rename or a removal after sync_directory() of
// its folder, nothing else.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/file_system.h"

namespace amoeba::test {

// What reboot() keeps of the changes that were not synced.
enum class Survival {
  kSyncedOnly,  // none
  kAll,         // all: a killed process, not a power loss
  kReordered,   // random ones: each name change or not; of each file the old data or the new
  kTorn,        // the same, but of file data a part, holes as zeros
};

class MemoryFileSystem final : public FileSystem {
 public:
  MemoryFileSystem();
  ~MemoryFileSystem() override;

  void reboot(Survival survival, uint64_t seed = 0);
  void set_free_bytes(int64_t bytes) { free_bytes_ = bytes; }
  // Overwrites the whole file in place, as a failing disk would: durable, without any operation.
  void corrupt(const std::string& path, std::string content);

  std::unique_ptr<WritableFile> create(const std::string& path) override;
  std::unique_ptr<WritableFile> append(const std::string& path) override;
  std::string read(const std::string& path) override;
  std::unique_ptr<MappedFile> map(const std::string& path) override;
  bool exists(const std::string& path) override;
  bool is_directory(const std::string& path) override;
  std::vector<std::string> list(const std::string& directory) override;
  void create_directories(const std::string& path) override;
  void sync_directory(const std::string& path) override;
  void rename(const std::string& from, const std::string& to) override;  // within one folder
  void remove_all(const std::string& path) override;
  int64_t free_bytes(const std::string& path) override;

 private:
  struct Node;
  using NodePointer = std::shared_ptr<Node>;
  class File;
  struct Place;  // a folder and a name in it

  NodePointer find(const std::string& path) const;  // null when absent
  NodePointer require(const char* operation, const std::string& path, bool directory) const;
  Place place(const char* operation, const std::string& path) const;
  std::unique_ptr<WritableFile> open(const char* operation, const std::string& path, bool truncate);

  void remove_tree(const std::string& path);

  std::shared_ptr<std::mutex> mutex_;  // over all below; shared with the open files
  NodePointer root_;
  int64_t free_bytes_ = std::numeric_limits<int64_t>::max();
};

}  // namespace amoeba::test
