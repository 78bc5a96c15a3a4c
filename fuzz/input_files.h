// The files that an entry reads: texts that stay where they are. Nothing is copied but by read(),
// so that a fuzzer is fast, an address sanitizer sees a read past the end of the input, and what a
// reader allocates is its own.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "amoeba/error.h"
#include "base/file_system.h"

namespace amoeba::fuzz {

class InputFiles final : public FileSystem {
 public:
  explicit InputFiles(std::vector<std::pair<std::string, std::string_view>> files)
      : files_(std::move(files)) {}

  std::string read(const std::string& path) override { return std::string(require(path)); }
  std::unique_ptr<MappedFile> map(const std::string& path) override {
    return std::make_unique<Mapped>(require(path));
  }
  bool exists(const std::string& path) override { return find(path) != nullptr; }
  bool is_directory(const std::string& path) override {
    return std::ranges::any_of(
        files_, [&](const auto& file) { return file.first.starts_with(path + "/"); });
  }

  std::vector<std::string> list(const std::string&) override { refuse(); }
  std::unique_ptr<WritableFile> create(const std::string&) override { refuse(); }
  std::unique_ptr<WritableFile> append(const std::string&) override { refuse(); }
  void create_directories(const std::string&) override { refuse(); }
  void sync_directory(const std::string&) override { refuse(); }
  void rename(const std::string&, const std::string&) override { refuse(); }
  void remove_all(const std::string&) override { refuse(); }
  int64_t free_bytes(const std::string&) override { refuse(); }

 private:
  class Mapped final : public MappedFile {
   public:
    explicit Mapped(std::string_view text) : text_(text) {}
    std::span<const std::byte> data() const override { return std::as_bytes(std::span(text_)); }

   private:
    std::string_view text_;
  };

  [[noreturn]] static void refuse() {
    fail(ErrorKind::kInternal, "input files: readers neither list nor change them");
  }
  const std::string_view* find(const std::string& path) const {
    for (const auto& [name, text] : files_) {
      if (name == path) return &text;
    }
    return nullptr;
  }
  std::string_view require(const std::string& path) const {
    const std::string_view* text = find(path);
    AMOEBA_CHECK_KIND(kData, text != nullptr, "read '", path, "': No such file or directory");
    return *text;
  }

  std::vector<std::pair<std::string, std::string_view>> files_;
};

}  // namespace amoeba::fuzz
