#include "support/faults.h"

#include <mutex>
#include <utility>

#include "amoeba/error.h"

namespace amoeba::test {

const char* operation_name(Operation operation) {
  constexpr const char* kNames[kNumOperationKinds] = {
      "create", "append",        "write",       "sync",   "close",  "read",      "map",
      "list",   "create folder", "sync folder", "rename", "remove", "free space"};
  return kNames[static_cast<int>(operation)];
}

struct FaultyFileSystem::Plan {
  enum class Fault { kNone, kFail, kShortWrite, kPowerLoss };

  Fault fault = Fault::kNone;
  std::optional<Operation> kind;  // unset: `index` counts all operations
  int64_t index = 0;
  std::string reason;
  bool for_good = false;

  std::mutex mutex;     // over all of the plan
  bool broken = false;  // the fault has happened and stays
  std::array<int64_t, kNumOperationKinds> counts{};
  std::vector<std::string> log;

  // In place: open files share the plan.
  void reset() {
    fault = Fault::kNone;
    kind.reset();
    broken = false;
    counts = {};
    log.clear();
  }

  // Counts one operation; at the fault runs `half_done` where the fault leaves traces, and throws.
  template <typename HalfDone>
  void pass(Operation operation, const std::string& path, HalfDone&& half_done) {
    const std::lock_guard lock(mutex);
    const int64_t number =
        kind ? counts[static_cast<size_t>(operation)] : static_cast<int64_t>(log.size());
    ++counts[static_cast<size_t>(operation)];
    log.push_back(cat(operation_name(operation), " ", path));
    const bool chosen =
        fault != Fault::kNone && number == index && (!kind || *kind == operation) && !broken;
    if (!chosen && !broken) return;
    if (chosen) broken = for_good;
    if (chosen && (fault == Fault::kShortWrite || fault == Fault::kPowerLoss)) half_done();
    if (fault == Fault::kPowerLoss) throw PowerLoss();
    fail(ErrorKind::kData, cat(operation_name(operation), " '", path, "': ", reason));
  }
  void pass(Operation operation, const std::string& path) {
    pass(operation, path, [] {});
  }
};

class FaultyFileSystem::File final : public WritableFile {
 public:
  File(std::unique_ptr<WritableFile> inner, std::string path, std::shared_ptr<Plan> plan)
      : inner_(std::move(inner)), path_(std::move(path)), plan_(std::move(plan)) {}

  void write(std::span<const std::byte> data) override {
    plan_->pass(Operation::kWrite, path_, [&] { inner_->write(data.first(data.size() / 2)); });
    inner_->write(data);
  }
  void sync() override {
    plan_->pass(Operation::kSync, path_);
    inner_->sync();
  }
  void close() override {
    plan_->pass(Operation::kClose, path_);
    inner_->close();
  }

 private:
  std::unique_ptr<WritableFile> inner_;
  std::string path_;
  std::shared_ptr<Plan> plan_;
};

FaultyFileSystem::FaultyFileSystem(FileSystem& inner)
    : inner_(inner), plan_(std::make_shared<Plan>()) {}
FaultyFileSystem::~FaultyFileSystem() = default;

void FaultyFileSystem::fail_at(int64_t index, std::string reason, bool for_good) {
  plan_->reset();
  plan_->fault = Plan::Fault::kFail;
  plan_->index = index;
  plan_->reason = std::move(reason);
  plan_->for_good = for_good;
}

void FaultyFileSystem::fail_at(Operation kind, int64_t index, std::string reason, bool for_good) {
  fail_at(index, std::move(reason), for_good);
  plan_->kind = kind;
}

void FaultyFileSystem::short_write_at(int64_t index, std::string reason) {
  fail_at(index, std::move(reason));
  plan_->fault = Plan::Fault::kShortWrite;
}

void FaultyFileSystem::lose_power_at(int64_t index) {
  fail_at(index, "", true);
  plan_->fault = Plan::Fault::kPowerLoss;
}

int64_t FaultyFileSystem::num_operations() const { return static_cast<int64_t>(plan_->log.size()); }
int64_t FaultyFileSystem::num_operations(Operation kind) const {
  return plan_->counts[static_cast<size_t>(kind)];
}
const std::vector<std::string>& FaultyFileSystem::log() const { return plan_->log; }

std::unique_ptr<WritableFile> FaultyFileSystem::create(const std::string& path) {
  plan_->pass(Operation::kCreate, path);
  return std::make_unique<File>(inner_.create(path), path, plan_);
}
std::unique_ptr<WritableFile> FaultyFileSystem::append(const std::string& path) {
  plan_->pass(Operation::kAppend, path);
  return std::make_unique<File>(inner_.append(path), path, plan_);
}
std::string FaultyFileSystem::read(const std::string& path) {
  plan_->pass(Operation::kRead, path);
  return inner_.read(path);
}
std::unique_ptr<MappedFile> FaultyFileSystem::map(const std::string& path) {
  plan_->pass(Operation::kMap, path);
  return inner_.map(path);
}
bool FaultyFileSystem::exists(const std::string& path) { return inner_.exists(path); }
bool FaultyFileSystem::is_directory(const std::string& path) { return inner_.is_directory(path); }
std::vector<std::string> FaultyFileSystem::list(const std::string& directory) {
  plan_->pass(Operation::kList, directory);
  return inner_.list(directory);
}
void FaultyFileSystem::create_directories(const std::string& path) {
  plan_->pass(Operation::kMakeFolder, path);
  inner_.create_directories(path);
}
void FaultyFileSystem::sync_directory(const std::string& path) {
  plan_->pass(Operation::kSyncFolder, path);
  inner_.sync_directory(path);
}
void FaultyFileSystem::rename(const std::string& from, const std::string& to) {
  plan_->pass(Operation::kRename, from);
  inner_.rename(from, to);
}
void FaultyFileSystem::remove_all(const std::string& path) {
  plan_->pass(Operation::kRemove, path, [&] {
    if (!inner_.is_directory(path)) return;
    const std::vector<std::string> names = inner_.list(path);
    for (size_t i = 0; i < names.size(); i += 2) inner_.remove_all(path + "/" + names[i]);
  });
  inner_.remove_all(path);
}
int64_t FaultyFileSystem::free_bytes(const std::string& path) {
  plan_->pass(Operation::kFreeBytes, path);
  return inner_.free_bytes(path);
}

}  // namespace amoeba::test
