// The manifest of a checkpoint whose shards are sound. The bytes are what stands before the hash of
// the manifest, which is put right: nothing behind it would be reached otherwise.
#include "amoeba/error.h"
#include "base/hash.h"
#include "fuzz/target.h"
#include "train/plain/checkpoint.h"

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
    content.state.data = formats::Object{{"tokens_seen", {int64_t{12}}}};
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

bool same(const std::vector<formats::TensorEntry>& a, const std::vector<formats::TensorEntry>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].name != b[i].name || a[i].dtype != b[i].dtype || a[i].shape != b[i].shape ||
        as_text(a[i].data) != as_text(b[i].data))
      return false;
  }
  return true;
}

bool run(const std::string& data) {
  test::MemoryFileSystem files;
  files.create_directories("/c");
  for (const auto& [name, content] : sample().shards) put(files, "/c/" + name, content);
  const std::string hash = xxh3_128_hex(std::as_bytes(std::span(data)));
  put(files, "/c/manifest.json", cat(data, kTail, hash, "\"\n}\n"));
  Checkpoint checkpoint;
  try {
    checkpoint = train::load_checkpoint(files, "/c");
  } catch (const Error&) {
    return false;
  }
  const train::CheckpointContent content{.step = checkpoint.step,
                                         .weights_only = checkpoint.weights_only,
                                         .weights = checkpoint.weights,
                                         .optimizer = checkpoint.optimizer,
                                         .files = {},
                                         .state = checkpoint.state,
                                         .config = checkpoint.config};
  const Checkpoint again =
      train::load_checkpoint(files, train::save_checkpoint(files, "/again", content));
  expect_same(again.step == checkpoint.step, "the step");
  expect_same(same(again.weights, checkpoint.weights), "the weights");
  expect_same(same(again.optimizer, checkpoint.optimizer), "the optimizer");
  expect_same(formats::write_json(again.state) == formats::write_json(checkpoint.state),
              "the state");
  expect_same(formats::write_json(again.config) == formats::write_json(checkpoint.config),
              "the configuration");
  return true;
}

std::vector<std::string> seeds() { return {sample().manifest}; }

}  // namespace

extern const Target kManifest{"manifest", run, seeds};

}  // namespace amoeba::fuzz
