#include "train/export.h"

#include <ATen/ops/aminmax.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <cstdio>

#include "amoeba/error.h"
#include "base/text.h"
#include "train/float_types.h"
#include "train/hugging_face.h"
#include "train/plain/tokenizer_files.h"
#include "train/state.h"

namespace amoeba::train {

namespace {

using formats::Object;
using formats::TensorEntry;
using formats::Value;

const FloatType& float_type_of(const std::string& name) {
  const FloatType* type = find_float_type(&FloatType::name, name);
  AMOEBA_CHECK(type != nullptr, "export: dtype is '", printable(name),
               "', want float32, bfloat16 or float16");
  return *type;
}

// The model's tensors, converted when their turn comes.
class Tensors {
 public:
  Tensors(std::vector<HfTensor> tensors, const FloatType& dtype)
      : tensors_(std::move(tensors)), dtype_(dtype) {
    for (const HfTensor& tensor : tensors_) {
      const FloatType& stored = dtype_for(tensor);
      entries_.push_back({tensor.name, std::string(stored.stored), tensor.shape, {}});
      bytes_.push_back(tensor.ours.numel() * static_cast<int64_t>(at::elementSize(stored.type)));
    }
  }

  std::span<const TensorEntry> entries() const { return entries_; }
  const std::vector<int64_t>& bytes() const { return bytes_; }

  // Valid until the next call.
  std::span<const std::byte> data_of(const TensorEntry& entry) {
    const HfTensor& tensor = tensors_[static_cast<size_t>(&entry - entries_.data())];
    const at::ScalarType type = dtype_for(tensor).type;
    current_ = at::Tensor();  // before the next one is made
    current_ = at::empty(tensor.ours.sizes(), at::TensorOptions(type));
    current_.copy_(tensor.ours);
    if (type == at::kHalf && current_.numel() > 0) check_range(tensor.name);
    return {static_cast<const std::byte*>(current_.const_data_ptr()), current_.nbytes()};
  }

 private:
  const FloatType& dtype_for(const HfTensor& tensor) const {
    return tensor.keep_fp32 ? kFloatTypes[0] : dtype_;
  }

  void check_range(const std::string& name) const {
    const auto [least, largest] = at::aminmax(current_);
    AMOEBA_CHECK_KIND(
        kNumeric, std::isfinite(least.item<float>()) && std::isfinite(largest.item<float>()),
        "export: tensor '", name, "' holds values that float16 cannot, want float32 or bfloat16");
  }

  std::vector<HfTensor> tensors_;
  const FloatType& dtype_;
  std::vector<TensorEntry> entries_;
  std::vector<int64_t> bytes_;
  at::Tensor current_;
};

void write_text(FileSystem& files, const std::string& path, std::string_view text) {
  const std::unique_ptr<WritableFile> file = files.create(path);
  file->write(text);
  file->sync();
  file->close();
}

// Number of tensors in each shard: full ones, but a tensor is never split.
std::vector<size_t> shard_sizes(const std::vector<int64_t>& bytes, int64_t max_shard_bytes) {
  std::vector<size_t> sizes;
  int64_t filled = 0;
  for (int64_t size : bytes) {
    if (sizes.empty() || filled + size > max_shard_bytes) {
      sizes.push_back(0);
      filled = 0;
    }
    ++sizes.back();
    filled += size;
  }
  return sizes;
}

void write_weights(FileSystem& files, const std::string& folder, Tensors& tensors,
                   int64_t max_shard_bytes) {
  const std::vector<size_t> sizes = shard_sizes(tensors.bytes(), max_shard_bytes);
  const auto data_of = [&](const TensorEntry& entry) { return tensors.data_of(entry); };
  const std::vector<std::pair<std::string, std::string>> metadata = {{"format", "pt"}};
  Object weight_map;
  size_t begin = 0;
  for (size_t shard = 0; shard < sizes.size(); ++shard) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", shard + 1, sizes.size());
    const std::string file = sizes.size() == 1 ? "model.safetensors" : name;
    const auto entries = tensors.entries().subspan(begin, sizes[shard]);
    formats::write_safetensors(files, folder + "/" + file, entries, data_of, metadata);
    for (const TensorEntry& entry : entries) {
      auto& member = weight_map.emplace_back();
      member.first = entry.name;
      member.second.data = file;
    }
    begin += sizes[shard];
  }
  if (sizes.size() == 1) return;
  int64_t total = 0;
  for (int64_t size : tensors.bytes()) total += size;
  Value sum, map, index;
  sum.data = Object{{"total_size", {total}}};
  map.data = std::move(weight_map);
  index.data = Object{{"metadata", std::move(sum)}, {"weight_map", std::move(map)}};
  write_text(files, folder + "/model.safetensors.index.json", formats::write_json(index, 2) + "\n");
}

void check_bias(HfFamily family, nn::Model& model) {
  const bool has_bias = family == HfFamily::kDeepseekV3 || family == HfFamily::kOriginLatent ||
                        family == HfFamily::kOriginGrouped;
  if (has_bias || model.num_moe_layers() == 0) return;
  const auto largest = model.expert_bias().abs().max().item<float>();
  AMOEBA_CHECK(largest == 0.0f, "export: the selection bias of the experts is as large as ",
               largest, ", which family ", model_type(family),
               " cannot express; train with moe.balance_coeff 0");
}

}  // namespace

void export_hugging_face(FileSystem& files, nn::Model& model, const RunConfig& config,
                         const formats::Tokenizer& tokenizer, const ExportOptions& options,
                         const std::string& folder) {
  AMOEBA_CHECK(!folder.empty() && !files.exists(folder), "export: '", folder,
               "' exists, want a new folder");
  AMOEBA_CHECK(options.max_shard_bytes > 0, "export: max_shard_bytes is ", options.max_shard_bytes,
               ", want more than 0");
  const FloatType& dtype = float_type_of(options.dtype);
  const Value json = write_hf_config(config, {options.family, model.config().vocab_size,
                                              options.dtype, tokenizer.end_of_document()});
  check_bias(options.family, model);
  Tensors tensors(hf_tensors(options.family, model.config(), weight_tensors(model)), dtype);

  files.remove_all(folder + ".partial");  // of an export that was killed
  create_directories_durably(files, parent_folder(folder));
  make_atomically(files, folder, [&](const std::string& partial) {
    files.create_directories(partial);
    write_weights(files, partial, tensors, options.max_shard_bytes);
    write_text(files, partial + "/config.json", formats::write_json(json, 2) + "\n");
    for (const AttachedFile& file : read_tokenizer_files(files, tokenizer.name())) {
      write_text(files, partial + "/" + file.name, file.text);
    }
    files.sync_directory(partial);
  });
}

}  // namespace amoeba::train
