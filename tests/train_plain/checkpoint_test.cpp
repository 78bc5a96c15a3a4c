#include "train/plain/checkpoint.h"

#include <gtest/gtest.h>

#include <deque>
#include <functional>

#include "base/hash.h"
#include "support/errors.h"
#include "support/faults.h"
#include "support/memory_file_system.h"
#include "support/temporary_folder.h"

namespace amoeba::train {
namespace {

using formats::Array;
using formats::Object;
using formats::TensorEntry;
using formats::Value;
using test::FaultyFileSystem;
using test::MemoryFileSystem;
using test::Operation;
using test::Survival;

constexpr int64_t kShardBytes = 64;  // small, so that there are several shards
constexpr const char* kRun = "runs/a";

Value text(const char* value) { return {std::string(value)}; }
Value number(int64_t value) { return {value}; }

// A content and the memory its tensors point into.
struct Sample {
  std::deque<std::string> storage;
  CheckpointContent content;

  Sample(int64_t step, char fill) {
    content.step = step;
    content.weights = {tensor("embed.weight", "F32", {4, 3}, fill),
                       tensor("norm.weight", "F32", {3}, fill),
                       tensor("large.weight", "BF16", {50}, fill),  // alone larger than a shard
                       tensor("unused.weight", "F32", {0, 3}, fill)};
    content.optimizer = {tensor("embed.weight", "F32", {4, 3}, fill),
                         tensor("embed.weight.second", "F32", {4, 3}, fill)};
    content.files = {{"tokenizer.json", std::string("{\"fill\": \"") + fill + "\"}"}};
    content.saved_at = 1700000000 + step;
    content.state = {Object{{"tokens_seen", number(step * 4096)},
                            {"cursor", {Object{{"epoch", number(1)}, {"loss", {0.1}}}}}}};
    content.config = {Object{{"training", {Object{{"seed", number(1)}}}},
                             {"name", text(fill == 'a' ? "first" : "other")}}};
  }

 private:
  TensorEntry tensor(const char* name, const char* dtype, std::vector<int64_t> shape, char fill) {
    int64_t bytes = formats::dtype_size(dtype);
    for (int64_t size : shape) bytes *= size;
    std::string& data = storage.emplace_back(static_cast<size_t>(bytes), fill);
    for (size_t i = 0; i < data.size(); i += 2) data[i] = static_cast<char>(i + storage.size());
    return {name, dtype, std::move(shape), std::as_bytes(std::span(data))};
  }
};

// Everything a checkpoint says, as one text to compare.
template <typename Content>
std::string content_text(const Content& content) {
  std::string out = cat(content.step, " ", content.saved_at, content.weights_only ? " weights" : "",
                        write_json(content.state), write_json(content.config));
  for (const auto* group : {&content.weights, &content.optimizer}) {
    for (const TensorEntry& entry : *group) {
      out += cat("\n", entry.name, " ", entry.dtype);
      for (int64_t size : entry.shape) out += cat(" ", size);
      out += cat(" ", xxh3_128_hex(entry.data));
    }
  }
  return out;
}

std::string save(FileSystem& files, const Sample& sample) {
  return save_checkpoint(files, kRun, sample.content, kShardBytes);
}

// The content of the newest checkpoint that verifies, "none" without one; no folder may be torn.
std::string latest_text(FileSystem& files) {
  const LatestCheckpoint latest = load_latest_checkpoint(files, kRun);
  for (const std::string& reason : latest.skipped) ADD_FAILURE() << reason;
  return latest.checkpoint ? content_text(*latest.checkpoint) : "none";
}

std::string load_error(FileSystem& files, const std::string& folder) {
  return test::error_message(ErrorKind::kData, [&] { load_checkpoint(files, folder); });
}

void expect_contains(const std::string& message, const std::string& part) {
  EXPECT_NE(message.find(part), std::string::npos) << message << "\nwant: " << part;
}

TEST(CheckpointTest, RoundTrip) {
  MemoryFileSystem files;
  const Sample sample(100, 'a');
  const std::string folder = save(files, sample);
  EXPECT_EQ(folder, "runs/a/checkpoints/step-00000100");
  EXPECT_EQ(content_text(load_checkpoint(files, folder)), content_text(sample.content));
  EXPECT_EQ(files.list("runs/a/checkpoints"), std::vector<std::string>{"step-00000100"});
}

TEST(CheckpointTest, RoundTripOnDisk) {
  const test::TemporaryFolder temporary;
  PosixFileSystem files;
  const Sample sample(3, 'a');
  const std::string folder = save_checkpoint(files, temporary.path() + "/run", sample.content);
  EXPECT_EQ(content_text(load_checkpoint(files, folder)), content_text(sample.content));
  save_checkpoint(files, temporary.path() + "/run", sample.content);  // the same step again
  const LatestCheckpoint latest = load_latest_checkpoint(files, temporary.path() + "/run");
  ASSERT_TRUE(latest.checkpoint);
  EXPECT_EQ(content_text(*latest.checkpoint), content_text(sample.content));
  EXPECT_EQ(files.list(temporary.path() + "/run/checkpoints").size(), 1u);
}

TEST(CheckpointTest, ShardsNeverSplitATensor) {
  MemoryFileSystem files;
  const std::string folder = save(files, Sample(100, 'a'));
  EXPECT_EQ(files.list(folder),
            (std::vector<std::string>{"manifest.json", "optimizer-00001-of-00002.safetensors",
                                      "optimizer-00002-of-00002.safetensors", "tokenizer.json",
                                      "weights-00001-of-00003.safetensors",
                                      "weights-00002-of-00003.safetensors",
                                      "weights-00003-of-00003.safetensors"}));
  // 48 + 12 bytes fit into 64; 100 bytes are alone.
  const auto names = [&](const char* file) {
    std::string joined;
    for (const auto& tensor : formats::read_safetensors(files, folder + "/" + file).tensors) {
      joined += tensor.name + " ";
    }
    return joined;
  };
  EXPECT_EQ(names("weights-00001-of-00003.safetensors"), "embed.weight norm.weight ");
  EXPECT_EQ(names("weights-00002-of-00003.safetensors"), "large.weight ");
  EXPECT_EQ(names("weights-00003-of-00003.safetensors"), "unused.weight ");
}

TEST(CheckpointTest, WithoutTensors) {
  MemoryFileSystem files;
  CheckpointContent content;
  const std::string folder = save_checkpoint(files, kRun, content);
  EXPECT_EQ(files.list(folder), std::vector<std::string>{"manifest.json"});
  EXPECT_EQ(content_text(load_checkpoint(files, folder)), content_text(content));
}

TEST(CheckpointTest, AttachedFilesAreKeptAsTheyAre) {
  MemoryFileSystem files;
  const Sample sample(100, 'a');
  const std::string folder = save(files, sample);
  EXPECT_EQ(files.read(folder + "/tokenizer.json"), "{\"fill\": \"a\"}");
  EXPECT_EQ(load_checkpoint(files, folder).attached, std::vector<std::string>{"tokenizer.json"});
}

TEST(CheckpointTest, WeightsOnly) {
  MemoryFileSystem files;
  Sample sample(100, 'a');
  sample.content.weights_only = true;
  expect_contains(test::error_message(ErrorKind::kUsage, [&] { save(files, sample); }),
                  "save checkpoint: weights_only is true and optimizer holds 2 tensors, want none");
  sample.content.optimizer.clear();
  const std::string folder = save(files, sample);
  const Checkpoint loaded = load_checkpoint(files, folder);
  EXPECT_TRUE(loaded.weights_only);
  EXPECT_EQ(content_text(loaded), content_text(sample.content));
}

TEST(CheckpointTest, SummaryOfTheManifest) {
  MemoryFileSystem files;
  const std::string folder = save(files, Sample(100, 'a'));
  FaultyFileSystem counting(files);
  const CheckpointSummary summary = summarize_checkpoint(counting, folder);
  EXPECT_EQ(counting.num_operations(), 1);
  EXPECT_EQ(summary.step, 100);
  EXPECT_EQ(summary.schema, 2);
  EXPECT_FALSE(summary.weights_only);
  EXPECT_EQ(summary.saved_at, 1700000100);
  EXPECT_EQ(summary.tokens_seen, 409600);
  EXPECT_EQ(summary.bytes, 48 + 12 + 100 + 48 + 48 + 13);
}

// A checkpoint as version 0.1.0 wrote it before schema 2, byte by byte.
TEST(CheckpointTest, SchemaOneIsMigrated) {
  MemoryFileSystem files;
  const std::string folder = "runs/a/checkpoints/step-00000007";
  files.create_directories(folder);
  const std::string header = R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})"
                             "  ";  // to a multiple of 8
  ASSERT_EQ(header.size(), 56u);
  const std::string data = "abcdefgh";
  files.create(folder + "/weights-00001-of-00001.safetensors")
      ->write(std::string("\x38\0\0\0\0\0\0\0", 8) + header + data);
  const auto manifest = [&](const std::string& schema) {
    const std::string body = cat(R"({
  "format": "amoeba.checkpoint",
  "schema": )",
                                 schema, R"(,
  "step": 7,
  "state": {"optimizer_steps": 6, "tokens_seen": 70},
  "config": {"data": {"tokenizer": "words/tokenizer.json"}},
  "amoeba_version": "0.1.0",
  "tensors": [
    {"name": "w", "group": "weights", "file": "weights-00001-of-00001.safetensors",
     "dtype": "F32", "shape": [2], "bytes": 8, "hash": ")",
                                 xxh3_128_hex(std::as_bytes(std::span(data))), R"("}
  ])");
    return cat(body, ",\n  \"manifest_hash\": \"", xxh3_128_hex(std::as_bytes(std::span(body))),
               "\"\n}\n");
  };
  files.create(folder + "/manifest.json")->write(manifest("1"));
  const Checkpoint loaded = load_checkpoint(files, folder);
  EXPECT_EQ(loaded.step, 7);
  EXPECT_FALSE(loaded.weights_only);
  EXPECT_EQ(loaded.saved_at, 0);
  EXPECT_TRUE(loaded.attached.empty());
  EXPECT_EQ(write_json(loaded.state),
            R"({"optimizer_steps":6,"tokens_seen":70,)"
            R"("tokenizer":{"name":"words/tokenizer.json","fingerprint":""}})");
  ASSERT_EQ(loaded.weights.size(), 1u);
  EXPECT_EQ(loaded.weights[0].name, "w");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(loaded.weights[0].data.data()), 8), data);
  EXPECT_EQ(summarize_checkpoint(files, folder).schema, 1);

  files.corrupt(folder + "/manifest.json", manifest("3"));
  expect_contains(load_error(files, folder),
                  "schema is 3, newer than this version of Amoeba (0.1.0) reads, 2");
}

TEST(CheckpointTest, SaveRefusesBadContent) {
  struct Case {
    std::function<void(CheckpointContent&)> change;
    int64_t max_shard_bytes;
    const char* want;
  };
  const Case cases[] = {
      {[](auto& c) { c.step = -1; }, 64, "save checkpoint: step is -1, want >= 0"},
      {[](auto&) {}, 0, "save checkpoint: max_shard_bytes is 0, want > 0"},
      {[](auto& c) { c.weights.push_back(c.weights[0]); }, 64,
       "save checkpoint: weights tensor 'embed.weight' appears twice"},
      {[](auto& c) { c.optimizer[1] = c.optimizer[0]; }, 64,
       "save checkpoint: optimizer tensor 'embed.weight' appears twice"},
      {[](auto& c) { c.files[0].name = "../tokenizer.json"; }, 64,
       "save checkpoint: '../tokenizer.json' cannot be attached"},
      {[](auto& c) { c.files[0].name = "manifest.json"; }, 64,
       "save checkpoint: 'manifest.json' cannot be attached"},
      {[](auto& c) { c.files[0].name = "weights-00001-of-00003.safetensors"; }, 64,
       "cannot be attached"},
      {[](auto& c) { c.files.push_back(c.files[0]); }, 64,
       "save checkpoint: 'tokenizer.json' cannot be attached"},
      {[](auto& c) { c.optimizer[1].shape = {5}; }, 64,
       "tensor 'embed.weight.second': data has 48 bytes, F32 [5] does not"},
  };
  for (const Case& c : cases) {
    MemoryFileSystem files;
    Sample sample(100, 'a');
    c.change(sample.content);
    expect_contains(test::error_message(
                        ErrorKind::kUsage,
                        [&] { save_checkpoint(files, kRun, sample.content, c.max_shard_bytes); }),
                    c.want);
    EXPECT_EQ(latest_text(files), "none");
    if (files.is_directory("runs/a/checkpoints")) {
      EXPECT_TRUE(files.list("runs/a/checkpoints").empty());
    }
  }
}

TEST(CheckpointTest, ChecksTheFreeSpaceFirst) {
  MemoryFileSystem files;
  files.set_free_bytes(1000);
  FaultyFileSystem counting(files);
  EXPECT_EQ(
      test::error_message(ErrorKind::kData, [&] { save(counting, Sample(100, 'a')); }),
      "save checkpoint step-00000100: need 1.0 MiB free in 'runs/a/checkpoints', have 1000 B");
  EXPECT_EQ(counting.num_operations(Operation::kCreate), 0);
}

TEST(CheckpointTest, SavesOverAStalePartialFolder) {
  MemoryFileSystem files;
  files.create_directories("runs/a/checkpoints/step-00000100.partial/junk");
  const Sample sample(100, 'a');
  EXPECT_FALSE(files.exists(save(files, sample) + "/junk"));
  EXPECT_EQ(latest_text(files), content_text(sample.content));
}

// ---- faults while saving ------------------------------------------------------------------------

// What the disk holds before the save under test.
enum class Before { kNothing, kOlderStep, kSameStep };

class CheckpointFaultTest : public ::testing::TestWithParam<Before> {
 protected:
  void prepare(MemoryFileSystem& files) const {
    if (GetParam() != Before::kNothing) save(files, older());
  }
  Sample older() const { return Sample(GetParam() == Before::kSameStep ? 200 : 100, 'a'); }
  std::string older_text() const {
    return GetParam() == Before::kNothing ? "none" : content_text(older().content);
  }
  // Operations of the save, and how many of them come before the new folder has its name.
  std::pair<int64_t, int64_t> count() const {
    MemoryFileSystem files;
    prepare(files);
    FaultyFileSystem counting(files);
    save(counting, newer_);
    int64_t publishing = 0;
    for (size_t i = 0; i < counting.log().size(); ++i) {
      if (counting.log()[i] == "rename runs/a/checkpoints/step-00000200.partial") {
        publishing = static_cast<int64_t>(i);
      }
    }
    EXPECT_GT(publishing, 30);
    return {counting.num_operations(), publishing};
  }

  const Sample newer_{200, 'b'};
};

TEST_P(CheckpointFaultTest, EveryFailingOperationLeavesTheOlderCheckpoint) {
  struct Mode {
    const char* reason;
    bool for_good;
    bool short_write;
  };
  const Mode modes[] = {
      {"No space left on device", false, false}, {"No space left on device", true, false},
      {"No space left on device", false, true},  {"Input/output error", false, false},
      {"Input/output error", true, false},       {"Disk quota exceeded", false, true},
      {"Read-only file system", true, false},
  };
  const auto [num_operations, publishing] = count();
  for (const Mode& mode : modes) {
    for (int64_t i = 0; i < num_operations; ++i) {
      SCOPED_TRACE(cat(mode.reason, " at operation ", i));
      MemoryFileSystem files;
      prepare(files);
      FaultyFileSystem faulty(files);
      if (mode.short_write) {
        faulty.short_write_at(i, mode.reason);
      } else {
        faulty.fail_at(i, mode.reason, mode.for_good);
      }
      const std::string message =
          test::error_message(ErrorKind::kData, [&] { save(faulty, newer_); });
      expect_contains(message, cat("': ", mode.reason));
      EXPECT_EQ(latest_text(files), i <= publishing ? older_text() : content_text(newer_.content));
      if (!mode.for_good && i <= publishing) {
        EXPECT_FALSE(files.exists("runs/a/checkpoints/step-00000200.partial"));
      }
      save(files, newer_);  // the next try works
      EXPECT_EQ(latest_text(files), content_text(newer_.content));
      EXPECT_EQ(files.list("runs/a/checkpoints").size(),
                GetParam() == Before::kOlderStep ? 2u : 1u);
    }
  }
}

TEST_P(CheckpointFaultTest, PowerLossAtEveryOperationLeavesTheOlderOrTheNewerCheckpoint) {
  const auto [num_operations, publishing] = count();
  const auto visit = [&](int64_t i, Survival survival, uint64_t seed) {
    SCOPED_TRACE(cat("operation ", i, ", seed ", seed));
    MemoryFileSystem files;
    prepare(files);
    FaultyFileSystem faulty(files);
    faulty.lose_power_at(i);
    EXPECT_THROW(save(faulty, newer_), test::PowerLoss);
    files.reboot(survival, seed);
    const std::string found = latest_text(files);
    if (found != older_text()) {
      EXPECT_EQ(found, content_text(newer_.content));
      EXPECT_GT(i, publishing);
    }
    save(files, newer_);  // the run goes on
    files.reboot(Survival::kSyncedOnly);
    EXPECT_EQ(latest_text(files), content_text(newer_.content));
  };
  for (int64_t i = 0; i < num_operations; ++i) {
    visit(i, Survival::kSyncedOnly, 0);
    visit(i, Survival::kAll, 0);
    for (uint64_t seed = 0; seed < 16; ++seed) visit(i, Survival::kTorn, seed);
  }
}

TEST_P(CheckpointFaultTest, AFinishedSaveIsDurable) {
  for (uint64_t seed = 0; seed < 64; ++seed) {
    MemoryFileSystem files;
    prepare(files);
    save(files, newer_);
    files.reboot(seed == 0 ? Survival::kSyncedOnly : Survival::kTorn, seed);
    const LatestCheckpoint latest = load_latest_checkpoint(files, kRun);
    ASSERT_TRUE(latest.checkpoint);
    EXPECT_EQ(content_text(*latest.checkpoint), content_text(newer_.content));
    EXPECT_TRUE(latest.skipped.empty());
  }
}

std::string before_name(const ::testing::TestParamInfo<Before>& before) {
  constexpr const char* kNames[] = {"Nothing", "OlderStep", "SameStep"};
  return kNames[static_cast<int>(before.param)];
}

INSTANTIATE_TEST_SUITE_P(Before, CheckpointFaultTest,
                         ::testing::Values(Before::kNothing, Before::kOlderStep, Before::kSameStep),
                         before_name);

// ---- damage -------------------------------------------------------------------------------------

class CheckpointDamageTest : public ::testing::Test {
 protected:
  CheckpointDamageTest() {
    save(files_, older_);
    folder_ = save(files_, newer_);
  }

  // Loading the damaged folder is Error; the run falls back to the older checkpoint and says why.
  std::string expect_refused() {
    const std::string message = load_error(files_, folder_);
    expect_contains(message, folder_);
    const LatestCheckpoint latest = load_latest_checkpoint(files_, kRun);
    EXPECT_TRUE(latest.checkpoint && latest.checkpoint->step == 100);
    EXPECT_LE(latest.skipped.size(), 1u);
    for (const std::string& reason : latest.skipped) {
      EXPECT_EQ(reason, cat("skipped checkpoint '", folder_, "': ", message));
    }
    return message;
  }

  // Replaces the manifest by a changed one with a right hash.
  void seal(std::string body) {
    while (body.ends_with('}') || body.ends_with('\n')) body.pop_back();
    const std::string hash = xxh3_128_hex(std::as_bytes(std::span(body)));
    files_.corrupt(folder_ + "/manifest.json",
                   body + ",\n  \"manifest_hash\": \"" + hash + "\"\n}\n");
  }
  Value manifest() {
    Value value = formats::parse_json(files_.read(folder_ + "/manifest.json"), "manifest");
    auto& members = std::get<Object>(value.data);
    EXPECT_EQ(members.back().first, "manifest_hash");
    members.pop_back();
    return value;
  }
  static Value& member(Value& object, std::string_view key) {
    for (auto& [name, value] : std::get<Object>(object.data)) {
      if (name == key) return value;
    }
    throw std::runtime_error(std::string(key));
  }
  static Value& file(Value& manifest) {
    return std::get<Array>(member(manifest, "files").data).at(0);
  }
  static Value& tensor(Value& manifest, size_t index) {
    return std::get<Array>(member(manifest, "tensors").data).at(index);
  }

  MemoryFileSystem files_;
  const Sample older_{100, 'a'};
  const Sample newer_{200, 'b'};
  std::string folder_;
};

TEST_F(CheckpointDamageTest, EverySingleBitFlipIsFoundAndNamed) {
  for (const std::string& name : files_.list(folder_)) {
    const std::string path = folder_ + "/" + name;
    const std::string intact = files_.read(path);
    std::vector<std::pair<size_t, std::string>>
        data_names;  // offset where a tensor begins, its name
    if (name.ends_with(".safetensors")) {
      const auto file = formats::read_safetensors(files_, path);
      for (const TensorEntry& entry : file.tensors) {
        data_names.emplace_back(entry.data.data() - file.mapping->data().data(), entry.name);
      }
    }
    for (size_t at = 0; at < intact.size(); ++at) {
      for (int bit = 0; bit < 8; ++bit) {
        std::string damaged = intact;
        damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
        files_.corrupt(path, damaged);
        const std::string message = load_error(files_, folder_);
        ASSERT_NE(message.find(path), std::string::npos) << message;
        std::string tensor_name;
        for (const auto& [begin, owner] : data_names) {
          if (begin <= at && begin < intact.size()) tensor_name = owner;
        }
        ASSERT_NE(message.find(tensor_name), std::string::npos) << message;
      }
    }
    files_.corrupt(path, intact);
  }
  EXPECT_EQ(latest_text(files_), content_text(newer_.content));
}

TEST_F(CheckpointDamageTest, EveryTruncationIsFound) {
  for (const std::string& name : files_.list(folder_)) {
    const std::string path = folder_ + "/" + name;
    const std::string intact = files_.read(path);
    for (size_t size = 0; size < intact.size(); ++size) {
      files_.corrupt(path, intact.substr(0, size));
      const std::string message = load_error(files_, folder_);
      ASSERT_NE(message.find(path), std::string::npos) << message;
    }
    files_.corrupt(path, intact + " ");
    expect_contains(load_error(files_, folder_), path);
    files_.corrupt(path, intact);
  }
}

TEST_F(CheckpointDamageTest, MissingFilesAreNamed) {
  for (const std::string& name : files_.list(folder_)) {
    const std::string path = folder_ + "/" + name;
    const std::string intact = files_.read(path);
    files_.remove_all(path);
    expect_contains(expect_refused(), "'" + path + "': No such file or directory");
    const auto file = files_.create(path);
    file->write(intact);
  }
}

TEST_F(CheckpointDamageTest, SwappedShards) {
  const std::string first = folder_ + "/weights-00001-of-00003.safetensors";
  const std::string second = folder_ + "/weights-00002-of-00003.safetensors";
  const std::string first_content = files_.read(first);
  files_.corrupt(first, files_.read(second));
  files_.corrupt(second, first_content);
  EXPECT_EQ(expect_refused(), first + ": tensor 'embed.weight' of the manifest is missing");
}

TEST_F(CheckpointDamageTest, ShardOfAnotherStep) {
  const std::string name = "/optimizer-00001-of-00002.safetensors";
  files_.corrupt(folder_ + name, files_.read("runs/a/checkpoints/step-00000100" + name));
  const std::string message = expect_refused();
  expect_contains(message, folder_ + name + ": tensor 'embed.weight': data has hash ");
  expect_contains(message, ": the file is damaged");
}

TEST_F(CheckpointDamageTest, TensorThatTheManifestDoesNotHave) {
  const std::string path = folder_ + "/weights-00001-of-00003.safetensors";
  auto file = formats::read_safetensors(files_, path);
  file.tensors.push_back({"extra", "U8", {0}, {}});
  formats::write_safetensors(files_, path, file.tensors, {});
  EXPECT_EQ(expect_refused(), path + ": tensor 'extra' is not in the manifest");
}

TEST_F(CheckpointDamageTest, FolderOfAnotherStep) {
  files_.rename(folder_, "runs/a/checkpoints/step-00000300");
  const LatestCheckpoint latest = load_latest_checkpoint(files_, kRun);
  EXPECT_TRUE(latest.checkpoint && latest.checkpoint->step == 100);
  ASSERT_EQ(latest.skipped.size(), 1u);
  expect_contains(latest.skipped[0], "manifest.json: step is 200, the folder's name says 300");
}

TEST_F(CheckpointDamageTest, BadManifests) {
  struct Case {
    std::function<void(Value&)> change;
    const char* want;
  };
  const Case cases[] = {
      {[](Value& m) { member(m, "schema") = number(3); },
       "schema is 3, newer than this version of Amoeba (0.1.0) reads, 2"},
      {[](Value& m) { member(m, "schema") = number(0); }, "schema is 0, want 1 to 2"},
      {[](Value& m) { member(m, "content") = text("some"); },
       "content is 'some', want full or weights"},
      {[](Value& m) { member(m, "content") = text("weights"); },
       "content is weights, but there are optimizer tensors"},
      {[](Value& m) { member(m, "saved_at") = text("today"); }, "saved_at"},
      {[](Value& m) { member(m, "files") = number(0); }, "files"},
      {[](Value& m) { member(file(m), "name") = text("../tokenizer.json"); },
       "file '../tokenizer.json': want a plain name"},
      {[](Value& m) { member(file(m), "name") = text("vocabulary.json"); },
       "vocabulary.json': No such file or directory"},
      {[](Value& m) { member(file(m), "bytes") = number(12); },
       "tokenizer.json: has 13 bytes, the manifest says 12"},
      {[](Value& m) { member(file(m), "hash") = text("00"); }, "tokenizer.json: content has hash "},
      {[](Value& m) { member(m, "schema") = text("1"); }, "schema"},
      {[](Value& m) { member(m, "format") = text("other"); },
       "format is 'other', want 'amoeba.checkpoint'"},
      {[](Value& m) { member(m, "step") = number(-1); }, "step is -1, want >= 0"},
      {[](Value& m) { member(m, "step") = {0.5}; }, "step"},
      {[](Value& m) { member(m, "tensors") = text("none"); }, "tensors"},
      {[](Value& m) {
         std::erase_if(std::get<Object>(m.data), [](auto& p) { return p.first == "state"; });
       },
       "state"},
      {[](Value& m) {
         std::erase_if(std::get<Object>(m.data), [](auto& p) { return p.first == "config"; });
       },
       "config"},
      {[](Value& m) { tensor(m, 0) = number(1); }, "name"},
      {[](Value& m) { member(tensor(m, 0), "name") = text("other"); },
       "tensor 'other' of the manifest is missing"},
      {[](Value& m) { tensor(m, 1) = tensor(m, 0); },
       "weights tensor 'embed.weight' appears twice"},
      {[](Value& m) {
         std::get<Array>(member(m, "tensors").data)
             .erase(std::get<Array>(member(m, "tensors").data).begin() + 1);
       },
       "weights-00001-of-00003.safetensors: tensor 'norm.weight' is not in the manifest"},
      {[](Value& m) { member(tensor(m, 0), "group") = text("other"); },
       "tensor 'embed.weight': group is 'other', want weights or optimizer"},
      {[](Value& m) { member(tensor(m, 0), "file") = text("weights-/../../secret"); },
       "tensor 'embed.weight': file is 'weights-/../../secret', want a weights file in the same"},
      {[](Value& m) {
         member(tensor(m, 0), "file") = text("optimizer-00001-of-00002.safetensors");
       },
       "want a weights file in the same folder"},
      {[](Value& m) { member(tensor(m, 0), "file") = text("weights-7"); },
       "weights-7': No such file or directory"},
      {[](Value& m) { member(tensor(m, 0), "dtype") = text("I32"); },
       "tensor 'embed.weight': dtype is F32, the manifest says I32"},
      {[](Value& m) {
         member(tensor(m, 0), "shape") = {Array{number(3), number(4)}};
       },
       "tensor 'embed.weight': shape differs from the manifest's"},
      {[](Value& m) { member(tensor(m, 0), "shape") = {Array{text("3")}}; },
       "tensor 'embed.weight': shape holds string, want integers"},
      {[](Value& m) { member(tensor(m, 0), "bytes") = number(47); },
       "tensor 'embed.weight': has 48 bytes, the manifest says 47"},
      {[](Value& m) { member(tensor(m, 5), "hash") = text("00"); },
       "tensor 'embed.weight.second': data has hash "},
  };
  for (const Case& c : cases) {
    Value changed = manifest();
    const std::string intact = files_.read(folder_ + "/manifest.json");
    c.change(changed);
    seal(write_json(changed, 2));
    expect_contains(expect_refused(), c.want);
    files_.corrupt(folder_ + "/manifest.json", intact);
  }
}

TEST_F(CheckpointDamageTest, SealedManifestWithoutChangesIsRead) {
  seal(write_json(manifest(), 2));
  EXPECT_EQ(latest_text(files_), content_text(newer_.content));
}

TEST_F(CheckpointDamageTest, DuplicateKeyInTheManifest) {
  std::string body = write_json(manifest(), 2);
  const std::string step = "\"step\": 200,";
  ASSERT_NE(body.find(step), std::string::npos) << body;
  body.insert(body.find(step), step);
  seal(body);
  expect_contains(expect_refused(), "duplicate key 'step'");
}

// A later version may end its manifest in another way: its number is still what is reported.
TEST_F(CheckpointDamageTest, ManifestWithoutItsHash) {
  Value changed = manifest();
  files_.corrupt(folder_ + "/manifest.json", write_json(changed, 2));
  expect_contains(expect_refused(), "manifest.json: does not end with its manifest_hash");
  member(changed, "schema") = number(7);
  files_.corrupt(folder_ + "/manifest.json", write_json(changed, 2));
  expect_contains(expect_refused(), "schema is 7, newer than");
}

TEST_F(CheckpointDamageTest, ReadErrorsAreReportedAndPassedOver) {
  FaultyFileSystem counting(files_);
  load_checkpoint(counting, folder_);
  ASSERT_EQ(counting.num_operations(), 7);  // the manifest, tokenizer.json and five shards
  for (int64_t i = 0; i < counting.num_operations(); ++i) {
    FaultyFileSystem faulty(files_);
    faulty.fail_at(i, "Input/output error");
    expect_contains(load_error(faulty, folder_), "': Input/output error");
  }
  FaultyFileSystem faulty(files_);
  faulty.fail_at(Operation::kMap, 2, "Input/output error");
  const LatestCheckpoint latest = load_latest_checkpoint(faulty, kRun);
  EXPECT_TRUE(latest.checkpoint && latest.checkpoint->step == 100);
  EXPECT_EQ(latest.skipped.size(), 1u);
}

// ---- finding and removing -----------------------------------------------------------------------

std::string found_folders(FileSystem& files) {
  std::string joined;
  for (const CheckpointFolder& found : find_checkpoints(files, kRun)) {
    joined +=
        cat(found.step, ":", found.folder.substr(std::string("runs/a/checkpoints/").size()), " ");
  }
  return joined;
}

TEST(FindCheckpointsTest, ListsFoldersWithAManifestNewestFirst) {
  MemoryFileSystem files;
  EXPECT_EQ(found_folders(files), "");
  for (const char* name :
       {"step-00000100", "step-00000020", "step-123456789", "step-00000100.replaced",
        "step-00000007.replaced", "step-00000300.partial", "step-300", "step-", "step-0000030x",
        "step--0000030", "step-99999999999999999999999", "other",
        "step-00000100.replaced.partial"}) {
    files.create_directories(cat("runs/a/checkpoints/", name));
    files.create(cat("runs/a/checkpoints/", name, "/manifest.json"));
  }
  files.create_directories("runs/a/checkpoints/step-00000500");  // no manifest
  files.create("runs/a/checkpoints/step-00000600");              // no folder
  EXPECT_EQ(found_folders(files),
            "123456789:step-123456789 100:step-00000100 100:step-00000100.replaced "
            "20:step-00000020 7:step-00000007.replaced ");
}

TEST(FindCheckpointsTest, LoadsTheReplacedFolderWhenItIsAlone) {
  MemoryFileSystem files;
  const Sample sample(100, 'a');
  save(files, sample);
  files.rename("runs/a/checkpoints/step-00000100", "runs/a/checkpoints/step-00000100.replaced");
  EXPECT_EQ(latest_text(files), content_text(sample.content));
}

class PruneCheckpointsTest : public ::testing::Test {
 protected:
  void prepare(FileSystem& files) const {
    for (int64_t step : {100, 200, 300, 400}) save(files, Sample(step, 'a'));
    files.create_directories("runs/a/checkpoints/step-00000500.partial/inner");
  }
};

TEST_F(PruneCheckpointsTest, KeepsTheNewest) {
  MemoryFileSystem files;
  prepare(files);
  EXPECT_EQ(prune_checkpoints(files, kRun, 5),
            (std::vector<std::string>{"runs/a/checkpoints/step-00000500.partial"}));
  EXPECT_EQ(prune_checkpoints(files, kRun, 4), std::vector<std::string>{});
  EXPECT_EQ(prune_checkpoints(files, kRun, 2),
            (std::vector<std::string>{"runs/a/checkpoints/step-00000100",
                                      "runs/a/checkpoints/step-00000200"}));
  EXPECT_EQ(found_folders(files), "400:step-00000400 300:step-00000300 ");
  EXPECT_EQ(files.list("runs/a/checkpoints").size(), 2u);
  EXPECT_EQ(latest_text(files), content_text(Sample(400, 'a').content));
}

TEST_F(PruneCheckpointsTest, MultiplesOfKeepEveryStay) {
  MemoryFileSystem files;
  prepare(files);
  save(files, Sample(500, 'a'));
  EXPECT_EQ(prune_checkpoints(files, kRun, 2, 200),
            (std::vector<std::string>{"runs/a/checkpoints/step-00000100",
                                      "runs/a/checkpoints/step-00000300"}));
  EXPECT_EQ(found_folders(files), "500:step-00000500 400:step-00000400 200:step-00000200 ");
}

TEST_F(PruneCheckpointsTest, ZeroKeepsAllAndRemovesLeftovers) {
  MemoryFileSystem files;
  prepare(files);
  prune_checkpoints(files, kRun, 0);
  EXPECT_EQ(files.list("runs/a/checkpoints").size(), 4u);
}

TEST_F(PruneCheckpointsTest, RefusesOtherCounts) {
  MemoryFileSystem files;
  prepare(files);
  for (int64_t keep : {1, -1}) {
    EXPECT_EQ(test::error_message(ErrorKind::kUsage, [&] { prune_checkpoints(files, kRun, keep); }),
              cat("checkpoint.keep_latest_k is ", keep, ", want 0 (keep all) or at least 2"));
  }
  EXPECT_EQ(files.list("runs/a/checkpoints").size(), 5u);
}

TEST_F(PruneCheckpointsTest, RemovesNothingWhenTheNewestDoesNotVerify) {
  MemoryFileSystem files;
  prepare(files);
  const std::string path = "runs/a/checkpoints/step-00000400/optimizer-00001-of-00002.safetensors";
  std::string content = files.read(path);
  content.back() ^= 1;
  files.corrupt(path, content);
  expect_contains(test::error_message(ErrorKind::kData, [&] { prune_checkpoints(files, kRun, 2); }),
                  path);
  EXPECT_EQ(files.list("runs/a/checkpoints").size(), 5u);
}

TEST_F(PruneCheckpointsTest, WithoutCheckpointsDoesNothing) {
  MemoryFileSystem files;
  EXPECT_TRUE(prune_checkpoints(files, kRun, 2).empty());
  files.create_directories("runs/a/checkpoints/step-00000500.partial");
  EXPECT_TRUE(prune_checkpoints(files, kRun, 2).empty());
  EXPECT_TRUE(files.exists("runs/a/checkpoints/step-00000500.partial"));
}

TEST_F(PruneCheckpointsTest, FaultsAndPowerLossNeverTouchTheKeptOnes) {
  MemoryFileSystem prepared;
  prepare(prepared);
  FaultyFileSystem counting(prepared);
  prune_checkpoints(counting, kRun, 2);
  const int64_t num_operations = counting.num_operations();
  ASSERT_GT(num_operations, 10);
  const auto expect_kept = [](FileSystem& files) {
    EXPECT_EQ(latest_text(files), content_text(Sample(400, 'a').content));
    const Checkpoint second = load_checkpoint(files, "runs/a/checkpoints/step-00000300");
    EXPECT_EQ(content_text(second), content_text(Sample(300, 'a').content));
  };
  for (int64_t i = 0; i < num_operations; ++i) {
    SCOPED_TRACE(i);
    MemoryFileSystem failing;
    prepare(failing);
    FaultyFileSystem faulty(failing);
    faulty.fail_at(i, "Input/output error");
    expect_contains(
        test::error_message(ErrorKind::kData, [&] { prune_checkpoints(faulty, kRun, 2); }),
        "Input/output error");
    expect_kept(failing);
    for (uint64_t seed = 0; seed < 8; ++seed) {
      MemoryFileSystem files;
      prepare(files);
      FaultyFileSystem stopping(files);
      stopping.lose_power_at(i);
      EXPECT_THROW(prune_checkpoints(stopping, kRun, 2), test::PowerLoss);
      files.reboot(seed == 0 ? Survival::kSyncedOnly : Survival::kTorn, seed);
      expect_kept(files);
      prune_checkpoints(files, kRun, 2);
      EXPECT_EQ(files.list("runs/a/checkpoints").size(), 2u);
    }
  }
}

}  // namespace
}  // namespace amoeba::train
