// The manifest of a checkpoint whose shards are sound, with the states of the guard and of the data
// loader that it may hold. The bytes are what stands before the hash of the manifest, which is put
// right: nothing behind it would be reached otherwise.
#include "amoeba/error.h"
#include "base/hash.h"
#include "fuzz/target.h"
#include "train/plain/checkpoint.h"
#include "train/plain/data_loader.h"
#include "train/plain/guard.h"

namespace amoeba::fuzz {

namespace {

using formats::Value;
using train::Checkpoint;

constexpr std::string_view kTail = ",\n  \"manifest_hash\": \"";

struct Sample {
  std::vector<std::pair<std::string, std::string>> shards;  // name, content
  std::string manifest;
};

const Sample& sample() {
  static const Sample made = [] {
    test::MemoryFileSystem files;
    const std::string data(64, 'x');
    const auto bytes = std::as_bytes(std::span(data));
    train::CheckpointContent content;
    content.step = 7;
    content.weights = {{"w", "F32", {2, 3}, bytes.first(24)}, {"v", "BF16", {4}, bytes.first(8)}};
    content.optimizer = {{"w.exp_avg", "F32", {2, 3}, bytes.first(24)}};
    content.saved_at = 1;
    content.files = {{"note.txt", "text"}};
    train::Guard guard({}, 3);
    guard.add(1, 2.5, 0.5, false);
    guard.add(2, 9.0, 8.0, true);
    content.state.data = formats::Object{{"tokens_seen", {int64_t{12}}},
                                         {"guard", guard.to_value()},
                                         {"data", train::DataCursor{3, 4, {1, 3}}.to_value()}};
    content.config.data = formats::Object{{"model", {formats::Object{{"dim", {int64_t{3}}}}}}};
    const std::string folder = train::save_checkpoint(files, "/run", content);
    Sample parts;
    for (const std::string& name : files.list(folder)) {
      if (name != "manifest.json") parts.shards.emplace_back(name, files.read(folder + "/" + name));
    }
    parts.manifest = files.read(folder + "/manifest.json");
    parts.manifest.resize(parts.manifest.rfind(kTail));
    return parts;
  }();
  return made;
}

// What a run would go on from.
void check_state(const Value& state) {
  if (const Value* value = state.find("guard")) {
    train::Guard guard({}, 3), again({}, 3);
    guard.restore(*value, "guard");
    again.restore(guard.to_value(), "again");
    expect_same(formats::write_json(again.to_value()) == formats::write_json(guard.to_value()),
                "the guard");
    guard.limits();
  }
  if (const Value* value = state.find("data")) {
    const auto cursor = train::DataCursor::from_value(*value, "data");
    expect_same(train::DataCursor::from_value(cursor.to_value(), "again") == cursor, "the cursor");
  }
}

std::string sealed(std::string_view data) {
  const std::string hash = xxh3_128_hex(std::as_bytes(std::span(data)));
  return cat(data, kTail, hash, "\"\n}\n");
}

InputFiles files_of(const std::string& manifest) {
  std::vector<std::pair<std::string, std::string_view>> parts = {{"/c/manifest.json", manifest}};
  for (const auto& [name, content] : sample().shards) parts.emplace_back("/c/" + name, content);
  return InputFiles(std::move(parts));
}

void read(std::string_view data) {
  const std::string manifest = sealed(data);
  InputFiles input = files_of(manifest);
  train::load_checkpoint(input, "/c");
}

bool run(std::string_view data) {
  const std::string manifest = sealed(data);
  InputFiles input = files_of(manifest);
  Checkpoint checkpoint;
  try {
    train::summarize_checkpoint(input, "/c");
    checkpoint = train::load_checkpoint(input, "/c");
    check_state(checkpoint.state);
  } catch (const Error&) {
    return false;
  }
  std::vector<train::AttachedFile> attached;
  for (const std::string& name : checkpoint.attached) {
    attached.push_back({name, input.read("/c/" + name)});
  }
  test::MemoryFileSystem files;
  const train::CheckpointContent content{.step = checkpoint.step,
                                         .weights_only = checkpoint.weights_only,
                                         .saved_at = checkpoint.saved_at,
                                         .weights = checkpoint.weights,
                                         .optimizer = checkpoint.optimizer,
                                         .files = attached,
                                         .state = checkpoint.state,
                                         .config = checkpoint.config};
  const Checkpoint again =
      train::load_checkpoint(files, train::save_checkpoint(files, "/again", content));
  expect_same(again.step == checkpoint.step, "the step");
  expect_same(again.saved_at == checkpoint.saved_at, "the time");
  expect_same(again.attached == checkpoint.attached, "the attached files");
  expect_same(same_tensors(again.weights, checkpoint.weights), "the weights");
  expect_same(same_tensors(again.optimizer, checkpoint.optimizer), "the optimizer");
  expect_same(formats::write_json(again.state) == formats::write_json(checkpoint.state),
              "the state");
  expect_same(formats::write_json(again.config) == formats::write_json(checkpoint.config),
              "the configuration");
  return true;
}

std::vector<std::string> seeds() { return {sample().manifest}; }

}  // namespace

extern const Target kManifest{"manifest", run, read, seeds};

}  // namespace amoeba::fuzz
