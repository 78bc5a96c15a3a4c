#include "support/memory_file_system.h"

#include <algorithm>
#include <map>
#include <random>
#include <utility>

#include "amoeba/error.h"
#include "base/text.h"

namespace amoeba::test {

namespace {

[[noreturn]] void fail_with(const char* operation, const std::string& path, const char* reason) {
  fail(ErrorKind::kData, cat(operation, " '", path, "': ", reason));
}

std::vector<std::string> path_parts(const std::string& path) {
  std::vector<std::string> parts = split(path, '/');
  std::erase_if(parts, [](const std::string& part) { return part.empty() || part == "."; });
  return parts;
}

}  // namespace

struct MemoryFileSystem::Node {
  using Entries = std::map<std::string, NodePointer>;

  // One change of names. `node` set: `to` now names it. Else `from` is renamed to `to`, or removed
  // when `to` is empty.
  struct Change {
    NodePointer node;
    std::string from;
    std::string to;

    void apply(Entries& names) const {
      NodePointer target = node;
      if (!target) {
        const auto found = names.find(from);
        if (found == names.end()) return;  // an earlier change did not survive
        target = found->second;
        if (!to.empty() && blocked(names)) return;
        names.erase(from);
      }
      if (!to.empty()) names[to] = target;
    }
    // A folder is never replaced unless it is empty.
    bool blocked(const Entries& names) const {
      const auto found = names.find(to);
      return found != names.end() && found->second->directory && !found->second->entries.empty();
    }
  };

  bool directory = false;
  std::string data;
  std::string durable_data;
  Entries entries;
  Entries durable_entries;
  std::vector<Change> pending;

  void change(Change made) {
    made.apply(entries);
    pending.push_back(std::move(made));
  }

  void reboot(Survival survival, std::mt19937_64& random) {
    if (directory) {
      if (survival == Survival::kSyncedOnly) entries = durable_entries;
      if (survival == Survival::kReordered || survival == Survival::kTorn) {
        entries = durable_entries;
        for (const Change& made : pending) {
          if (random() % 2 == 0) made.apply(entries);
        }
      }
      durable_entries = entries;
      pending.clear();
      for (const auto& [name, node] : entries) node->reboot(survival, random);
      return;
    }
    if (survival == Survival::kSyncedOnly) data = durable_data;
    if (survival == Survival::kReordered && random() % 2 == 0) data = durable_data;
    if (survival == Survival::kTorn && data != durable_data) tear(random);
    durable_data = data;
  }

  // The old data, or the new cut short with some 16-byte blocks never written; bytes that were
  // synced and not changed since stay.
  void tear(std::mt19937_64& random) {
    if (random() % 4 == 0) {
      data = durable_data;
      return;
    }
    const size_t same = static_cast<size_t>(
        std::mismatch(data.begin(), data.end(), durable_data.begin(), durable_data.end()).first -
        data.begin());
    if (random() % 2 == 0) data.resize(same + random() % (data.size() - same + 1));
    for (size_t begin = same; begin < data.size(); begin += 16) {
      if (random() % 8 == 0)
        std::fill_n(data.begin() + static_cast<int64_t>(begin),
                    std::min<size_t>(16, data.size() - begin), '\0');
    }
  }
};

struct MemoryFileSystem::Place {
  NodePointer folder;
  std::string name;
  NodePointer node;  // null when absent
};

class MemoryFileSystem::File final : public WritableFile {
 public:
  File(NodePointer node, std::shared_ptr<std::mutex> mutex)
      : node_(std::move(node)), mutex_(std::move(mutex)) {}
  void write(std::span<const std::byte> data) override {
    const std::lock_guard lock(*mutex_);
    AMOEBA_ASSERT(node_ != nullptr);
    node_->data.append(reinterpret_cast<const char*>(data.data()), data.size());
  }
  void sync() override {
    const std::lock_guard lock(*mutex_);
    AMOEBA_ASSERT(node_ != nullptr);
    node_->durable_data = node_->data;
  }
  void close() override {
    AMOEBA_ASSERT(node_ != nullptr);
    node_ = nullptr;
  }

 private:
  NodePointer node_;
  std::shared_ptr<std::mutex> mutex_;
};

MemoryFileSystem::MemoryFileSystem()
    : mutex_(std::make_shared<std::mutex>()), root_(std::make_shared<Node>()) {
  root_->directory = true;
}
MemoryFileSystem::~MemoryFileSystem() = default;

void MemoryFileSystem::reboot(Survival survival, uint64_t seed) {
  const std::lock_guard lock(*mutex_);
  std::mt19937_64 random(seed);
  root_->reboot(survival, random);
}

void MemoryFileSystem::corrupt(const std::string& path, std::string content) {
  const std::lock_guard lock(*mutex_);
  const NodePointer node = require("corrupt", path, false);
  node->data = node->durable_data = std::move(content);
}

MemoryFileSystem::NodePointer MemoryFileSystem::find(const std::string& path) const {
  NodePointer node = root_;
  for (const std::string& part : path_parts(path)) {
    const auto found = node->entries.find(part);
    if (found == node->entries.end()) return nullptr;
    node = found->second;
  }
  return node;
}

MemoryFileSystem::NodePointer MemoryFileSystem::require(const char* operation,
                                                        const std::string& path,
                                                        bool directory) const {
  NodePointer node = find(path);
  if (!node) fail_with(operation, path, "No such file or directory");
  if (node->directory && !directory) fail_with(operation, path, "is a folder, want a file");
  if (!node->directory && directory) fail_with(operation, path, "Not a directory");
  return node;
}

MemoryFileSystem::Place MemoryFileSystem::place(const char* operation,
                                                const std::string& path) const {
  const std::vector<std::string> parts = path_parts(path);
  AMOEBA_ASSERT(!parts.empty());
  const NodePointer folder = find(parent_folder(path));
  if (!folder) fail_with(operation, path, "No such file or directory");
  if (!folder->directory) fail_with(operation, path, "Not a directory");
  const auto found = folder->entries.find(parts.back());
  return {folder, parts.back(), found == folder->entries.end() ? nullptr : found->second};
}

std::unique_ptr<WritableFile> MemoryFileSystem::open(const char* operation, const std::string& path,
                                                     bool truncate) {
  const std::lock_guard lock(*mutex_);
  Place at = place(operation, path);
  if (at.node && at.node->directory) fail_with(operation, path, "Is a directory");
  if (!at.node) {
    at.node = std::make_shared<Node>();
    at.folder->change({at.node, "", at.name});
  }
  if (truncate) at.node->data.clear();
  return std::make_unique<File>(at.node, mutex_);
}

std::unique_ptr<WritableFile> MemoryFileSystem::create(const std::string& path) {
  return open("create", path, true);
}

std::unique_ptr<WritableFile> MemoryFileSystem::append(const std::string& path) {
  return open("append to", path, false);
}

std::string MemoryFileSystem::read(const std::string& path) {
  const std::lock_guard lock(*mutex_);
  return require("read", path, false)->data;
}

std::unique_ptr<MappedFile> MemoryFileSystem::map(const std::string& path) {
  // Exactly sized heap block, so that the address sanitizer sees a read past the end.
  class Mapped final : public MappedFile {
   public:
    explicit Mapped(const std::string& text)
        : size_(text.size()), bytes_(new std::byte[text.size()]) {
      std::copy(text.begin(), text.end(), reinterpret_cast<char*>(bytes_.get()));
    }
    std::span<const std::byte> data() const override { return {bytes_.get(), size_}; }

   private:
    size_t size_;
    std::unique_ptr<std::byte[]> bytes_;
  };
  const std::lock_guard lock(*mutex_);
  return std::make_unique<Mapped>(require("map", path, false)->data);
}

bool MemoryFileSystem::exists(const std::string& path) {
  const std::lock_guard lock(*mutex_);
  return find(path) != nullptr;
}

bool MemoryFileSystem::is_directory(const std::string& path) {
  const std::lock_guard lock(*mutex_);
  const NodePointer node = find(path);
  return node && node->directory;
}

std::vector<std::string> MemoryFileSystem::list(const std::string& directory) {
  const std::lock_guard lock(*mutex_);
  std::vector<std::string> names;
  for (const auto& [name, node] : require("list", directory, true)->entries) names.push_back(name);
  return names;
}

void MemoryFileSystem::create_directories(const std::string& path) {
  const std::lock_guard lock(*mutex_);
  NodePointer node = root_;
  for (const std::string& part : path_parts(path)) {
    if (!node->directory) fail_with("create folder", path, "Not a directory");
    if (!node->entries.contains(part)) {
      const auto folder = std::make_shared<Node>();
      folder->directory = true;
      node->change({folder, "", part});
    }
    node = node->entries[part];
  }
  if (!node->directory) fail_with("create folder", path, "Not a directory");
}

void MemoryFileSystem::sync_directory(const std::string& path) {
  const std::lock_guard lock(*mutex_);
  const NodePointer node = require("sync folder", path, true);
  node->durable_entries = node->entries;
  node->pending.clear();
}

void MemoryFileSystem::rename(const std::string& from, const std::string& to) {
  const std::lock_guard lock(*mutex_);
  const Place source = place("rename", from);
  const Place target = place("rename", to);
  AMOEBA_ASSERT(source.folder == target.folder);
  if (!source.node) fail_with("rename", from, "No such file or directory");
  const Node::Change made{nullptr, source.name, target.name};
  if (made.blocked(source.folder->entries)) fail_with("rename", from, "Directory not empty");
  source.folder->change(made);
}

void MemoryFileSystem::remove_all(const std::string& path) {
  const std::lock_guard lock(*mutex_);
  remove_tree(path);
}

void MemoryFileSystem::remove_tree(const std::string& path) {
  if (!find(path)) return;
  const Place at = place("remove", path);
  const Node::Entries children = at.node->entries;
  for (const auto& [name, node] : children) remove_tree(path + "/" + name);
  at.folder->change({nullptr, at.name, ""});
}

int64_t MemoryFileSystem::free_bytes(const std::string&) { return free_bytes_; }

}  // namespace amoeba::test
