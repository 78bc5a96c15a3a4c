#include "train/plain/checkpoint.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <map>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "amoeba/error.h"
#include "amoeba/version.h"
#include "base/hash.h"
#include "base/text.h"

namespace amoeba::train {

using formats::Array;
using formats::Object;
using formats::SafetensorsFile;
using formats::TensorEntry;
using formats::Value;

std::string step_name(int64_t step) {
  char text[32];
  std::snprintf(text, sizeof text, "step-%08lld", static_cast<long long>(step));
  return text;
}

namespace {

constexpr const char* kFormat = "amoeba.checkpoint";
constexpr const char* kManifest = "/manifest.json";
constexpr const char* kFull = "full";
constexpr const char* kWeightsOnly = "weights";
constexpr const char* kPartial = ".partial";
constexpr const char* kReplaced = ".replaced";

// The last lines of a manifest: the hash of every byte before them. Without it a flipped bit in the
// step or the data cursor would be believed.
constexpr std::string_view kHashStart = ",\n  \"manifest_hash\": \"";
constexpr std::string_view kHashEnd = "\"\n}\n";
constexpr size_t kHashDigits = 32;

std::string checkpoints_folder(const std::string& run_folder) {
  return run_folder + "/checkpoints";
}

// The step of a name that step_name() makes.
std::optional<int64_t> parse_step_name(std::string_view name) {
  constexpr std::string_view kPrefix = "step-";
  if (!name.starts_with(kPrefix) || name.size() > kPrefix.size() + 18) return std::nullopt;
  int64_t step = 0;
  for (char c : name.substr(kPrefix.size())) {
    if (c < '0' || c > '9') return std::nullopt;
    step = 10 * step + (c - '0');
  }
  if (step_name(step) != name) return std::nullopt;
  return step;
}

Value value_of(std::string text) { return {std::move(text)}; }
Value value_of(int64_t number) { return {number}; }
Value value_of(size_t number) { return {static_cast<int64_t>(number)}; }

std::string hash_of(std::string_view text) { return xxh3_128_hex(std::as_bytes(std::span(text))); }

// ---- saving -------------------------------------------------------------------------------------

struct Shard {
  std::string file;
  std::span<const TensorEntry> tensors;
};

std::vector<Shard> make_shards(const std::string& group, std::span<const TensorEntry> tensors,
                               int64_t max_shard_bytes) {
  const auto limit = static_cast<size_t>(max_shard_bytes);
  std::vector<Shard> shards;
  for (size_t begin = 0; begin < tensors.size();) {
    size_t bytes = tensors[begin].data.size();
    size_t end = begin + 1;
    while (end < tensors.size() && bytes <= limit && tensors[end].data.size() <= limit - bytes) {
      bytes += tensors[end++].data.size();
    }
    shards.push_back({"", tensors.subspan(begin, end - begin)});
    begin = end;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    char name[64];
    std::snprintf(name, sizeof name, "-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    shards[i].file = group + name;
  }
  return shards;
}

void check_unique_names(const std::string& group, std::span<const TensorEntry> tensors) {
  std::set<std::string_view> names;
  for (const TensorEntry& tensor : tensors) {
    AMOEBA_CHECK(names.insert(tensor.name).second, "save checkpoint: ", group, " tensor '",
                 printable(tensor.name), "' appears twice");
  }
}

// A plain name that stands for no other part of a checkpoint.
bool can_be_attached(std::string_view name) {
  return !name.empty() && name.find('/') == name.npos && !name.starts_with('.') &&
         !name.starts_with("weights-") && !name.starts_with("optimizer-") &&
         name != std::string_view(kManifest).substr(1);
}

void check_attached(std::span<const AttachedFile> attached) {
  std::set<std::string_view> names;
  for (const AttachedFile& file : attached) {
    AMOEBA_CHECK(can_be_attached(file.name) && names.insert(file.name).second, "save checkpoint: '",
                 printable(file.name), "' cannot be attached, want plain names",
                 " that are not the checkpoint's own, each once");
  }
}

Value describe(const AttachedFile& file) {
  return {Object{{"name", value_of(file.name)},
                 {"bytes", value_of(file.text.size())},
                 {"hash", value_of(hash_of(file.text))}}};
}

Value describe(const TensorEntry& tensor, const std::string& group, const std::string& file) {
  Array shape;
  for (int64_t size : tensor.shape) shape.push_back(value_of(size));
  return {Object{{"name", value_of(tensor.name)},
                 {"group", value_of(group)},
                 {"file", value_of(file)},
                 {"dtype", value_of(tensor.dtype)},
                 {"shape", {std::move(shape)}},
                 {"bytes", value_of(tensor.data.size())},
                 {"hash", value_of(xxh3_128_hex(tensor.data))}}};
}

std::string manifest_text(const CheckpointContent& content, Array tensors) {
  Array attached;
  for (const AttachedFile& file : content.files) attached.push_back(describe(file));
  const char* kind = content.weights_only ? kWeightsOnly : kFull;
  const Value manifest = {Object{{"format", value_of(std::string(kFormat))},
                                 {"schema", value_of(kCheckpointSchema)},
                                 {"content", value_of(std::string(kind))},
                                 {"step", value_of(content.step)},
                                 {"saved_at", value_of(content.saved_at)},
                                 {"state", content.state},
                                 {"config", content.config},
                                 {"amoeba_version", value_of(std::string(kVersion))},
                                 {"files", {std::move(attached)}},
                                 {"tensors", {std::move(tensors)}}}};
  std::string text = formats::write_json(manifest, 2);
  const size_t end = text.find_last_not_of("}\n ");
  AMOEBA_ASSERT(end != text.npos);
  text.resize(end + 1);
  return cat(text, kHashStart, hash_of(text), kHashEnd);
}

// Room for the tensors, their headers and the manifest: an early refusal instead of a late ENOSPC.
void check_free_space(FileSystem& files, const std::string& folder,
                      const CheckpointContent& content) {
  constexpr int64_t kBytesPerTensor = 1024;  // header and manifest lines, generously
  constexpr int64_t kFixedBytes = 1 << 20;
  int64_t need = kFixedBytes;
  for (const auto* tensors : {&content.weights, &content.optimizer}) {
    for (const TensorEntry& tensor : *tensors) {
      need += static_cast<int64_t>(tensor.data.size()) + kBytesPerTensor;
    }
  }
  for (const AttachedFile& file : content.files) need += static_cast<int64_t>(file.text.size());
  const int64_t have = files.free_bytes(folder);
  AMOEBA_CHECK_KIND(kData, have >= need, "save checkpoint ", step_name(content.step), ": need ",
                    format_bytes(need), " free in '", folder, "', have ", format_bytes(have));
}

void write_synced(FileSystem& files, const std::string& path, std::string_view text) {
  const std::unique_ptr<WritableFile> file = files.create(path);
  file->write(text);
  file->sync();
  file->close();
}

void write_content(FileSystem& files, const std::string& folder, const CheckpointContent& content,
                   int64_t max_shard_bytes) {
  files.create_directories(folder);
  Array descriptions;
  const auto write_group = [&](const std::string& group, std::span<const TensorEntry> tensors) {
    for (const Shard& shard : make_shards(group, tensors, max_shard_bytes)) {
      formats::write_safetensors(files, folder + "/" + shard.file, shard.tensors, {});
      for (const TensorEntry& tensor : shard.tensors) {
        descriptions.push_back(describe(tensor, group, shard.file));
      }
    }
  };
  write_group("weights", content.weights);
  write_group("optimizer", content.optimizer);
  for (const AttachedFile& file : content.files) {
    write_synced(files, folder + "/" + file.name, file.text);
  }
  write_synced(files, folder + kManifest, manifest_text(content, std::move(descriptions)));
  files.sync_directory(folder);
}

// ---- loading ------------------------------------------------------------------------------------

// A parsed manifest, its hash verified when it has one at its end.
struct Manifest {
  Value value;
  bool hashed = false;
};

Manifest read_manifest(FileSystem& files, const std::string& path) {
  const std::string text = files.read(path);
  Manifest manifest;
  const size_t tail = kHashStart.size() + kHashDigits + kHashEnd.size();
  const size_t body = text.size() < tail ? 0 : text.size() - tail;
  manifest.hashed = text.size() >= tail &&
                    std::string_view(text).substr(body).starts_with(kHashStart) &&
                    text.ends_with(kHashEnd);
  if (manifest.hashed) {
    const std::string want = text.substr(body + kHashStart.size(), kHashDigits);
    const std::string got = hash_of(std::string_view(text).substr(0, body));
    AMOEBA_CHECK_KIND(kData, got == want, path, ": content has hash ", got, ", manifest_hash is ",
                      printable(want), ": the file is damaged");
  }
  // A tensor's line has ten values in more than a hundred bytes, a window's one in ten.
  const auto max_values = static_cast<int64_t>(4096 + text.size() / 8);
  manifest.value = formats::parse_json(text, path, max_values);
  return manifest;
}

// ---- older schemas ------------------------------------------------------------------------------

Value* find_member(Value& object, std::string_view key) {
  return const_cast<Value*>(std::as_const(object).find(key));
}

// Schema 1 held full checkpoints without a date, attached files or the tokenizer's fingerprint.
void migrate_from_1(Value& manifest) {
  Object& members = std::get<Object>(manifest.data);
  members.emplace_back("content", value_of(std::string(kFull)));
  members.emplace_back("saved_at", value_of(int64_t{0}));
  members.emplace_back("files", Value{Array{}});
  Value* state = find_member(manifest, "state");
  if (state == nullptr || state->get_if<Object>() == nullptr) return;  // refused where it is read
  std::string name = "bytes";
  if (const Value* config = manifest.find("config")) {
    const Value* data = config->find("data");
    const Value* tokenizer = data == nullptr ? nullptr : data->find("tokenizer");
    if (tokenizer != nullptr && tokenizer->get_if<std::string>() != nullptr) {
      name = *tokenizer->get_if<std::string>();
    }
  }
  std::get<Object>(state->data)
      .emplace_back("tokenizer", Value{Object{{"name", value_of(std::move(name))},
                                              {"fingerprint", value_of(std::string())}}});
}

// From each older schema to the next one, in order.
struct Migration {
  int64_t from;
  void (*apply)(Value& manifest);
};
constexpr Migration kMigrations[] = {{1, migrate_from_1}};
static_assert(std::size(kMigrations) == kCheckpointSchema - 1);

// The schema as written; afterwards the manifest is of kCheckpointSchema.
int64_t check_format(Manifest& manifest, const std::string& path) {
  const std::string& format = manifest.value.string_at("format", path);
  AMOEBA_CHECK_KIND(kData, format == kFormat, path, ": format is '", printable(format), "', want '",
                    kFormat, "'");
  const int64_t schema = manifest.value.integer_at("schema", path);
  AMOEBA_CHECK_KIND(kData, schema <= kCheckpointSchema, path, ": schema is ", schema,
                    ", newer than this version of Amoeba (", kVersion, ") reads, ",
                    kCheckpointSchema);
  AMOEBA_CHECK_KIND(kData, schema >= 1, path, ": schema is ", schema, ", want 1 to ",
                    kCheckpointSchema);
  AMOEBA_CHECK_KIND(kData, manifest.hashed, path, ": does not end with its manifest_hash");
  for (const Migration& migration : kMigrations) {
    if (migration.from >= schema) migration.apply(manifest.value);
  }
  return schema;
}

// What a manifest says beside its tensors.
struct Heading {
  int64_t schema = 0;
  int64_t step = 0;
  bool weights_only = false;
  int64_t saved_at = 0;
};

Heading read_heading(Manifest& manifest, const std::string& path) {
  Heading heading;
  heading.schema = check_format(manifest, path);
  const std::string& content = manifest.value.string_at("content", path);
  AMOEBA_CHECK_KIND(kData, content == kFull || content == kWeightsOnly, path, ": content is '",
                    printable(content), "', want ", kFull, " or ", kWeightsOnly);
  heading.weights_only = content == kWeightsOnly;
  heading.step = manifest.value.integer_at("step", path);
  AMOEBA_CHECK_KIND(kData, heading.step >= 0, path, ": step is ", heading.step, ", want >= 0");
  heading.saved_at = manifest.value.integer_at("saved_at", path);
  return heading;
}

// ---- files and tensors --------------------------------------------------------------------------

void check_file(FileSystem& files, const Value& want, const std::string& folder,
                Checkpoint& checkpoint) {
  const std::string manifest = folder + kManifest;
  const std::string& name = want.string_at("name", manifest + ": files");
  const std::string what = cat(manifest, ": file '", printable(name), "'");
  AMOEBA_CHECK_KIND(kData, can_be_attached(name), what, ": want a plain name");
  const std::string path = folder + "/" + name;
  const std::unique_ptr<MappedFile> file = files.map(path);
  const int64_t bytes = want.integer_at("bytes", what);
  AMOEBA_CHECK_KIND(kData, static_cast<int64_t>(file->data().size()) == bytes, path, ": has ",
                    file->data().size(), " bytes, the manifest says ", bytes);
  const std::string got = xxh3_128_hex(file->data());
  const std::string& hash = want.string_at("hash", what);
  AMOEBA_CHECK_KIND(kData, got == hash, path, ": content has hash ", got, ", the manifest says ",
                    printable(hash), ": the file is damaged");
  checkpoint.attached.push_back(name);
}

// One line of the manifest's "tensors".
struct Description {
  std::string name;
  std::string group;
  std::string file;
  std::string dtype;
  std::vector<int64_t> shape;
  int64_t bytes = 0;
  std::string hash;
};

Description read_description(const Value& value, const std::string& path) {
  Description tensor;
  tensor.name = value.string_at("name", path);
  const std::string what = cat(path, ": tensor '", printable(tensor.name), "'");
  tensor.group = value.string_at("group", what);
  tensor.file = value.string_at("file", what);
  tensor.dtype = value.string_at("dtype", what);
  for (const Value& size : value.array_at("shape", what)) {
    const int64_t* number = size.get_if<int64_t>();
    AMOEBA_CHECK_KIND(kData, number != nullptr, what, ": shape holds ", size.type_name(),
                      ", want integers");
    tensor.shape.push_back(*number);
  }
  tensor.bytes = value.integer_at("bytes", what);
  tensor.hash = value.string_at("hash", what);
  AMOEBA_CHECK_KIND(kData, tensor.group == "weights" || tensor.group == "optimizer", what,
                    ": group is '", printable(tensor.group), "', want weights or optimizer");
  AMOEBA_CHECK_KIND(
      kData,
      tensor.file.starts_with(tensor.group + "-") && tensor.file.find('/') == tensor.file.npos,
      what, ": file is '", printable(tensor.file), "', want a ", tensor.group,
      " file in the same folder");
  return tensor;
}

void check_tensor(const TensorEntry& got, const Description& want, const std::string& file) {
  const std::string what = cat(file, ": tensor '", printable(want.name), "': ");
  AMOEBA_CHECK_KIND(kData, got.dtype == want.dtype, what, "dtype is ", got.dtype,
                    ", the manifest says ", printable(want.dtype));
  AMOEBA_CHECK_KIND(kData, got.shape == want.shape, what, "shape differs from the manifest's");
  AMOEBA_CHECK_KIND(kData, static_cast<int64_t>(got.data.size()) == want.bytes, what, "has ",
                    got.data.size(), " bytes, the manifest says ", want.bytes);
  const std::string hash = xxh3_128_hex(got.data);
  AMOEBA_CHECK_KIND(kData, hash == want.hash, what, "data has hash ", hash, ", the manifest says ",
                    printable(want.hash), ": the file is damaged");
}

// A shard's tensors by name, to be taken one by one.
using TensorsByName = std::map<std::string, TensorEntry, std::less<>>;

TensorsByName open_shard(FileSystem& files, const std::string& path,
                         std::vector<SafetensorsFile>& opened) {
  opened.push_back(formats::read_safetensors(files, path));
  TensorsByName tensors;
  for (const TensorEntry& tensor : opened.back().tensors) tensors.emplace(tensor.name, tensor);
  return tensors;
}

void load_tensors(FileSystem& files, const Array& descriptions, const std::string& manifest,
                  Checkpoint& checkpoint) {
  std::map<std::string, TensorsByName> shards;
  std::set<std::pair<std::string, std::string>> names;  // group, name
  for (const Value& value : descriptions) {
    const Description want = read_description(value, manifest);
    AMOEBA_CHECK_KIND(kData, names.emplace(want.group, want.name).second, manifest, ": ",
                      want.group, " tensor '", printable(want.name), "' appears twice");
    const std::string path = checkpoint.folder + "/" + want.file;
    if (!shards.contains(want.file)) {
      shards.emplace(want.file, open_shard(files, path, checkpoint.files));
    }
    TensorsByName& shard = shards.at(want.file);
    const auto found = shard.find(want.name);
    AMOEBA_CHECK_KIND(kData, found != shard.end(), path, ": tensor '", printable(want.name),
                      "' of the manifest is missing");
    check_tensor(found->second, want, path);
    (want.group == "weights" ? checkpoint.weights : checkpoint.optimizer)
        .push_back(std::move(found->second));
    shard.erase(found);
  }
  for (const auto& [file, shard] : shards) {
    AMOEBA_CHECK_KIND(kData, shard.empty(), checkpoint.folder, "/", file, ": tensor '",
                      printable(shard.begin()->first), "' is not in the manifest");
  }
}

// First gives the folder, durably, a name that no reader takes: a removal cut short leaves no
// checkpoint with half its files, and the next pruning finds the rest.
void remove_checkpoint(FileSystem& files, const std::string& folder) {
  const std::string doomed = folder + kPartial;
  files.remove_all(doomed);
  files.rename(folder, doomed);
  files.sync_directory(parent_folder(folder));
  files.remove_all(doomed);
}

}  // namespace

std::string save_checkpoint(FileSystem& files, const std::string& run_folder,
                            const CheckpointContent& content, int64_t max_shard_bytes) {
  AMOEBA_CHECK(content.step >= 0, "save checkpoint: step is ", content.step, ", want >= 0");
  AMOEBA_CHECK(max_shard_bytes > 0, "save checkpoint: max_shard_bytes is ", max_shard_bytes,
               ", want > 0");
  check_unique_names("weights", content.weights);
  check_unique_names("optimizer", content.optimizer);
  check_attached(content.files);
  AMOEBA_CHECK(!content.weights_only || content.optimizer.empty(),
               "save checkpoint: weights_only is true and optimizer holds ",
               content.optimizer.size(), " tensors, want none");

  const std::string parent = checkpoints_folder(run_folder);
  const std::string folder = parent + "/" + step_name(content.step);
  const std::string partial = folder + kPartial;
  const std::string replaced = folder + kReplaced;
  create_directories_durably(files, parent);
  files.remove_all(partial);
  check_free_space(files, parent, content);
  try {
    write_content(files, partial, content, max_shard_bytes);
    if (files.exists(folder)) {
      files.remove_all(replaced);
      files.rename(folder, replaced);
    }
    files.rename(partial, folder);
  } catch (const Error&) {
    try {
      files.remove_all(partial);
    } catch (const Error&) {  // the first error is the one to report; the next save tries again
    }
    throw;
  }
  files.sync_directory(parent);
  if (files.exists(replaced)) remove_checkpoint(files, replaced);
  return folder;
}

Checkpoint load_checkpoint(FileSystem& files, const std::string& folder) {
  const std::string path = folder + kManifest;
  Manifest manifest = read_manifest(files, path);
  const Heading heading = read_heading(manifest, path);
  Checkpoint checkpoint;
  checkpoint.folder = folder;
  checkpoint.step = heading.step;
  checkpoint.weights_only = heading.weights_only;
  checkpoint.saved_at = heading.saved_at;
  checkpoint.state = manifest.value.at("state", path);
  checkpoint.config = manifest.value.at("config", path);
  for (const Value& file : manifest.value.array_at("files", path)) {
    check_file(files, file, folder, checkpoint);
  }
  load_tensors(files, manifest.value.array_at("tensors", path), path, checkpoint);
  AMOEBA_CHECK_KIND(kData, !checkpoint.weights_only || checkpoint.optimizer.empty(), path,
                    ": content is ", kWeightsOnly, ", but there are optimizer tensors");
  return checkpoint;
}

CheckpointSummary summarize_checkpoint(FileSystem& files, const std::string& folder) {
  const std::string path = folder + kManifest;
  Manifest manifest = read_manifest(files, path);
  const Heading heading = read_heading(manifest, path);
  CheckpointSummary summary{
      heading.step, heading.schema, heading.weights_only, heading.saved_at, 0, 0};
  for (const char* list : {"files", "tensors"}) {
    for (const Value& item : manifest.value.array_at(list, path)) {
      const int64_t bytes = item.integer_at("bytes", path);
      AMOEBA_CHECK_KIND(kData,
                        bytes >= 0 && !__builtin_add_overflow(summary.bytes, bytes, &summary.bytes),
                        path, ": ", list, " holds ", bytes, " bytes, want a length");
    }
  }
  const Value& state = manifest.value.at("state", path);
  if (state.find("tokens_seen") != nullptr) {
    summary.tokens_seen = state.integer_at("tokens_seen", path);
  }
  return summary;
}

std::vector<CheckpointFolder> find_checkpoints(FileSystem& files, const std::string& run_folder) {
  const std::string parent = checkpoints_folder(run_folder);
  std::vector<CheckpointFolder> found;
  if (!files.is_directory(parent)) return found;
  for (const std::string& name : files.list(parent)) {
    std::string_view step_part = name;
    if (step_part.ends_with(kReplaced)) step_part.remove_suffix(std::string_view(kReplaced).size());
    const std::optional<int64_t> step = parse_step_name(step_part);
    const std::string folder = parent + "/" + name;
    if (step && files.exists(folder + kManifest)) found.push_back({*step, folder});
  }
  // Of one step the replaced folder, whose name is longer, comes last: it is the older one.
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return std::tuple(-a.step, a.folder.size()) < std::tuple(-b.step, b.folder.size());
  });
  return found;
}

LatestCheckpoint load_latest_checkpoint(FileSystem& files, const std::string& run_folder) {
  LatestCheckpoint latest;
  for (const CheckpointFolder& candidate : find_checkpoints(files, run_folder)) {
    try {
      Checkpoint checkpoint = load_checkpoint(files, candidate.folder);
      AMOEBA_CHECK_KIND(kData, checkpoint.step == candidate.step, candidate.folder, kManifest,
                        ": step is ", checkpoint.step, ", the folder's name says ", candidate.step);
      latest.checkpoint = std::move(checkpoint);
      return latest;
    } catch (const Error& error) {
      latest.skipped.push_back(cat("skipped checkpoint '", candidate.folder, "': ", error.what()));
    }
  }
  return latest;
}

std::vector<std::string> prune_checkpoints(FileSystem& files, const std::string& run_folder,
                                           int64_t keep_latest_k, int64_t keep_every) {
  AMOEBA_CHECK(keep_latest_k == 0 || keep_latest_k >= 2, "checkpoint.keep_latest_k is ",
               keep_latest_k, ", want 0 (keep all) or at least 2");
  const std::vector<CheckpointFolder> found = find_checkpoints(files, run_folder);
  if (found.empty()) return {};

  std::vector<std::string> checkpoints;  // to remove, oldest first
  std::set<int64_t> steps;
  for (const CheckpointFolder& checkpoint : found) {
    steps.insert(checkpoint.step);
    if (keep_every > 0 && checkpoint.step % keep_every == 0) continue;
    if (keep_latest_k > 0 && static_cast<int64_t>(steps.size()) > keep_latest_k) {
      checkpoints.insert(checkpoints.begin(), checkpoint.folder);
    }
  }
  const std::string parent = checkpoints_folder(run_folder);
  std::vector<std::string> leftovers;
  for (const std::string& name : files.list(parent)) {
    if (name.starts_with("step-") && name.ends_with(kPartial))
      leftovers.push_back(parent + "/" + name);
  }
  if (checkpoints.empty() && leftovers.empty()) return {};

  load_checkpoint(files, found.front().folder);
  for (const std::string& folder : leftovers) files.remove_all(folder);
  for (const std::string& folder : checkpoints) remove_checkpoint(files, folder);
  files.sync_directory(parent);
  leftovers.insert(leftovers.end(), checkpoints.begin(), checkpoints.end());
  return leftovers;
}

void remove_checkpoints_after(FileSystem& files, const std::string& run_folder, int64_t step) {
  for (const CheckpointFolder& checkpoint : find_checkpoints(files, run_folder)) {
    if (checkpoint.step <= step) return;
    remove_checkpoint(files, checkpoint.folder);
  }
}

}  // namespace amoeba::train
