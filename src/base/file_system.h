// Every file operation of Amoeba goes through this interface, so that a test can make each one
// fail. All functions throw Error(kData) with the operation, the path and the system's reason. They
// may be called from several threads at once; an open file is for one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace amoeba {

// A file open for writing. Data is durable only after sync(); close() reports late write errors.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  virtual void write(std::span<const std::byte> data) = 0;
  virtual void sync() = 0;
  virtual void close() = 0;
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
};

// A whole file mapped read-only; an empty file gives an empty span.
class MappedFile {
 public:
  virtual ~MappedFile() = default;
  virtual std::span<const std::byte> data() const = 0;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual std::unique_ptr<WritableFile> create(const std::string& path) = 0;  // truncates
  virtual std::unique_ptr<WritableFile> append(const std::string& path) = 0;
  virtual std::string read(const std::string& path) = 0;
  virtual std::unique_ptr<MappedFile> map(const std::string& path) = 0;
  virtual bool exists(const std::string& path) = 0;
  virtual bool is_directory(const std::string& path) = 0;
  virtual std::vector<std::string> list(const std::string& directory) = 0;  // names, sorted
  virtual void create_directories(const std::string& path) = 0;
  virtual void sync_directory(const std::string& path) = 0;
  virtual void rename(const std::string& from, const std::string& to) = 0;
  virtual void remove_all(const std::string& path) = 0;
  virtual int64_t free_bytes(const std::string& path) = 0;  // for an unprivileged writer
};

class PosixFileSystem final : public FileSystem {
 public:
  std::unique_ptr<WritableFile> create(const std::string& path) override;
  std::unique_ptr<WritableFile> append(const std::string& path) override;
  std::string read(const std::string& path) override;
  std::unique_ptr<MappedFile> map(const std::string& path) override;
  bool exists(const std::string& path) override;
  bool is_directory(const std::string& path) override;
  std::vector<std::string> list(const std::string& directory) override;
  void create_directories(const std::string& path) override;
  void sync_directory(const std::string& path) override;
  void rename(const std::string& from, const std::string& to) override;
  void remove_all(const std::string& path) override;
  int64_t free_bytes(const std::string& path) override;
};

// "a/b/" -> "a", "a" -> ".", "/a" -> "/".
std::string parent_folder(const std::string& path);

// `path` from the root on, as the working folder makes it.
std::string absolute_path(const std::string& path);

// create_directories, then a sync of the parent of `path` and of every folder that was missing.
void create_directories_durably(FileSystem& files, const std::string& path);

// Has `make` make and sync a file or a new folder at a temporary path beside `path`, then renames
// it and syncs the folder both are in. When something fails nothing is left at the temporary path.
void make_atomically(FileSystem& files, const std::string& path,
                     const std::function<void(const std::string& partial)>& make);

// Writes `text` to `path` so that a crash leaves the old file or the new one.
void write_file_atomically(FileSystem& files, const std::string& path, std::string_view text);

}  // namespace amoeba
