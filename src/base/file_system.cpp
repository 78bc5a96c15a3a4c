// Files on POSIX calls. The standard streams are not used because they hide the reason of a failure
// and cannot sync.
#include "base/file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <utility>

#include "amoeba/error.h"

namespace amoeba {

namespace {

[[noreturn]] void fail_with(const char* operation, const std::string& path,
                            const std::string& reason) {
  fail(ErrorKind::kData, cat(operation, " '", path, "': ", reason));
}

// strerror may be called from several threads since glibc 2.32.
[[noreturn]] void fail_with_errno(const char* operation, const std::string& path) {
  fail_with(operation, path, std::strerror(errno));
}

// A file descriptor that closes itself; -1 when empty.
class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(Descriptor&& other) noexcept : value_(other.release()) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  int get() const { return value_; }
  int release() { return std::exchange(value_, -1); }

 private:
  int value_;
};

Descriptor open_descriptor(const char* operation, const std::string& path, int flags) {
  int value;
  do {
    value = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (value < 0 && errno == EINTR);
  if (value < 0) fail_with_errno(operation, path);
  return Descriptor(value);
}

struct Opened {
  Descriptor descriptor;
  size_t size;
};

// O_NONBLOCK: a named pipe must be refused, not waited for.
Opened open_regular(const char* operation, const std::string& path) {
  Descriptor descriptor = open_descriptor(operation, path, O_RDONLY | O_NONBLOCK);
  struct stat status;
  if (::fstat(descriptor.get(), &status) != 0) fail_with_errno(operation, path);
  if (S_ISDIR(status.st_mode)) fail_with(operation, path, "is a folder, want a file");
  if (!S_ISREG(status.st_mode)) fail_with(operation, path, "is not a regular file");
  return {std::move(descriptor), static_cast<size_t>(status.st_size)};
}

class PosixWritableFile final : public WritableFile {
 public:
  PosixWritableFile(Descriptor descriptor, std::string path)
      : descriptor_(std::move(descriptor)), path_(std::move(path)) {}

  void write(std::span<const std::byte> data) override {
    AMOEBA_ASSERT(descriptor_.get() >= 0);
    while (!data.empty()) {
      const ssize_t written = ::write(descriptor_.get(), data.data(), data.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail_with_errno("write", path_);
      data = data.subspan(static_cast<size_t>(written));
    }
  }

  void sync() override {
    AMOEBA_ASSERT(descriptor_.get() >= 0);
    int result;
    do {
      result = ::fsync(descriptor_.get());
    } while (result != 0 && errno == EINTR);
    if (result != 0) fail_with_errno("sync", path_);
  }

  void close() override {
    AMOEBA_ASSERT(descriptor_.get() >= 0);
    // After EINTR Linux has closed the descriptor; a second close could hit another thread's file.
    if (::close(descriptor_.release()) != 0 && errno != EINTR) fail_with_errno("close", path_);
  }

 private:
  Descriptor descriptor_;
  std::string path_;
};

class PosixMappedFile final : public MappedFile {
 public:
  PosixMappedFile(void* address, size_t size) : address_(address), size_(size) {}
  PosixMappedFile(const PosixMappedFile&) = delete;
  PosixMappedFile& operator=(const PosixMappedFile&) = delete;
  ~PosixMappedFile() override {
    if (size_ > 0) ::munmap(address_, size_);
  }
  std::span<const std::byte> data() const override {
    return {static_cast<const std::byte*>(address_), size_};
  }

 private:
  void* address_;
  size_t size_;
};

}  // namespace

std::unique_ptr<WritableFile> PosixFileSystem::create(const std::string& path) {
  return std::make_unique<PosixWritableFile>(
      open_descriptor("create", path, O_WRONLY | O_CREAT | O_TRUNC), path);
}

std::unique_ptr<WritableFile> PosixFileSystem::append(const std::string& path) {
  return std::make_unique<PosixWritableFile>(
      open_descriptor("append to", path, O_WRONLY | O_CREAT | O_APPEND), path);
}

std::string PosixFileSystem::read(const std::string& path) {
  const Opened file = open_regular("read", path);
  // The size is a hint: files of /proc report 0, and another process may append.
  std::string text(file.size + 1, '\0');
  size_t used = 0;
  while (true) {
    const ssize_t got = ::read(file.descriptor.get(), text.data() + used, text.size() - used);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_with_errno("read", path);
    if (got == 0) break;
    used += static_cast<size_t>(got);
    if (used == text.size()) text.resize(std::max<size_t>(4096, 2 * text.size()));
  }
  text.resize(used);
  return text;
}

std::unique_ptr<MappedFile> PosixFileSystem::map(const std::string& path) {
  const Opened file = open_regular("map", path);
  if (file.size == 0) return std::make_unique<PosixMappedFile>(nullptr, 0);
  void* address = ::mmap(nullptr, file.size, PROT_READ, MAP_PRIVATE, file.descriptor.get(), 0);
  if (address == MAP_FAILED) fail_with_errno("map", path);
  return std::make_unique<PosixMappedFile>(address, file.size);
}

bool PosixFileSystem::exists(const std::string& path) {
  struct stat status;
  return ::stat(path.c_str(), &status) == 0;
}

bool PosixFileSystem::is_directory(const std::string& path) {
  struct stat status;
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

std::vector<std::string> PosixFileSystem::list(const std::string& directory) {
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(::opendir(directory.c_str()), ::closedir);
  if (!stream) fail_with_errno("list", directory);
  std::vector<std::string> names;
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(stream.get());
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  if (errno != 0) fail_with_errno("list", directory);
  std::sort(names.begin(), names.end());
  return names;
}

void PosixFileSystem::create_directories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) fail_with("create folder", path, error.message());
}

void PosixFileSystem::sync_directory(const std::string& path) {
  const Descriptor descriptor = open_descriptor("sync folder", path, O_RDONLY | O_DIRECTORY);
  int result;
  do {
    result = ::fsync(descriptor.get());
  } while (result != 0 && errno == EINTR);
  // EINVAL: a file system that cannot sync folders (some network ones); nothing more can be done.
  if (result != 0 && errno != EINVAL) fail_with_errno("sync folder", path);
}

void PosixFileSystem::rename(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    fail_with_errno("rename", cat(from, "' to '", to));
  }
}

void PosixFileSystem::remove_all(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) fail_with("remove", path, error.message());
}

int64_t PosixFileSystem::free_bytes(const std::string& path) {
  struct statvfs status;
  int result;
  do {
    result = ::statvfs(path.c_str(), &status);
  } while (result != 0 && errno == EINTR);
  if (result != 0) fail_with_errno("free space of", path);
  int64_t bytes;
  if (__builtin_mul_overflow(status.f_bavail, status.f_frsize, &bytes)) {
    return std::numeric_limits<int64_t>::max();
  }
  return bytes;
}

// ---------------------------------------------------------------------------------------------------

std::string parent_folder(const std::string& path) {
  const size_t last = path.find_last_not_of('/');
  if (last == path.npos) return path.empty() ? "." : "/";
  const size_t slash = path.find_last_of('/', last);
  if (slash == path.npos) return ".";
  const size_t end = path.find_last_not_of('/', slash);
  return end == path.npos ? "/" : path.substr(0, end + 1);
}

std::string absolute_path(const std::string& path) {
  return std::filesystem::absolute(path).lexically_normal().string();
}

void create_directories_durably(FileSystem& files, const std::string& path) {
  std::vector<std::string> to_sync = {parent_folder(path)};
  while (!files.is_directory(to_sync.back())) to_sync.push_back(parent_folder(to_sync.back()));
  files.create_directories(path);
  for (const std::string& folder : to_sync) files.sync_directory(folder);
}

void make_atomically(FileSystem& files, const std::string& path,
                     const std::function<void(const std::string& partial)>& make) {
  const std::string partial = path + ".partial";
  try {
    make(partial);
    files.rename(partial, path);
  } catch (const Error&) {
    try {
      files.remove_all(partial);
    } catch (const Error&) {  // the first error is the one to report
    }
    throw;
  }
  files.sync_directory(parent_folder(path));
}

void write_file_atomically(FileSystem& files, const std::string& path, std::string_view text) {
  make_atomically(files, path, [&](const std::string& partial) {
    const std::unique_ptr<WritableFile> file = files.create(partial);
    file->write(text);
    file->sync();
    file->close();
  });
}

}  // namespace amoeba
