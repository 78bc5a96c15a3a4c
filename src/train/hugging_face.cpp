#include "train/hugging_face.h"

#include <ATen/ops/from_blob.h>

#include <map>
#include <string_view>

#include "amoeba/error.h"
#include "base/text.h"
#include "formats/hf_folder.h"
#include "train/float_types.h"

namespace amoeba::train {

namespace {

using formats::TensorEntry;

constexpr int64_t kFp8Block = 128;
constexpr const char* kScaleSuffix = "_scale_inv";

struct Rename {
  std::string_view ours;
  std::string_view theirs;
};
constexpr Rename kTopNames[] = {{"tok_embeddings.weight", "model.embed_tokens.weight"},
                                {"norm.weight", "model.norm.weight"},
                                {"output.weight", "lm_head.weight"}};
constexpr Rename kLayerNames[] = {
    {"attention_norm.weight", "input_layernorm.weight"},
    {"ffn_norm.weight", "post_attention_layernorm.weight"},
    {"attention.wq.weight", "self_attn.q_proj.weight"},
    {"attention.wk.weight", "self_attn.k_proj.weight"},
    {"attention.wv.weight", "self_attn.v_proj.weight"},
    {"attention.wo.weight", "self_attn.o_proj.weight"},
    {"attention.k_norm.weight", "self_attn.k_norm.weight"},
    {"attention.wq_a.weight", "self_attn.q_a_proj.weight"},
    {"attention.wq_b.weight", "self_attn.q_b_proj.weight"},
    {"attention.wkv_a.weight", "self_attn.kv_a_proj_with_mqa.weight"},
    {"attention.kv_norm.weight", "self_attn.kv_a_layernorm.weight"},
    {"attention.wkv_b.weight", "self_attn.kv_b_proj.weight"},
    {"feed_forward.w1.weight", "mlp.gate_proj.weight"},
    {"feed_forward.w3.weight", "mlp.up_proj.weight"},
    {"feed_forward.w2.weight", "mlp.down_proj.weight"},
    {"moe.router.gate.weight", "mlp.gate.weight"},
    {"moe.shared_experts.w1.weight", "mlp.shared_experts.gate_proj.weight"},
    {"moe.shared_experts.w3.weight", "mlp.shared_experts.up_proj.weight"},
    {"moe.shared_experts.w2.weight", "mlp.shared_experts.down_proj.weight"},
};
constexpr Rename kExpertNames[] = {{"w1", "gate_proj"}, {"w3", "up_proj"}, {"w2", "down_proj"}};
constexpr std::string_view kExperts = "moe.experts.";

class Mapping {
 public:
  Mapping(HfFamily family, const nn::ModelConfig& config) : family_(family), config_(config) {}

  void add(const NamedTensor& tensor) {
    if (tensor.name == "expert_bias") return add_bias(tensor.tensor);
    for (const Rename& name : kTopNames) {
      if (name.ours == tensor.name) return add(std::string(name.theirs), tensor.tensor);
    }
    constexpr std::string_view kLayers = "layers.";
    AMOEBA_ASSERT(tensor.name.starts_with(kLayers));
    const size_t dot = tensor.name.find('.', kLayers.size());
    const std::string prefix = "model." + tensor.name.substr(0, dot + 1);
    const std::string_view rest = std::string_view(tensor.name).substr(dot + 1);
    if (rest.starts_with(kExperts)) {
      return add_experts(prefix, rest.substr(kExperts.size()), tensor.tensor);
    }
    add(prefix + layer_name(rest), rotated_rows(rest, tensor.tensor), tensor.tensor.sizes().vec());
  }

  std::vector<HfTensor> tensors;

 private:
  bool is_mixtral() const { return family_ == HfFamily::kMixtral; }

  void add(std::string name, const at::Tensor& ours) {
    add(std::move(name), ours, ours.sizes().vec());
  }
  void add(std::string name, const at::Tensor& ours, std::vector<int64_t> shape) {
    tensors.push_back({std::move(name), std::move(shape), ours, false});
  }

  std::string layer_name(std::string_view ours) const {
    if (is_mixtral() && ours == "moe.router.gate.weight") return "block_sparse_moe.gate.weight";
    if (ours == "attention.q_norm.weight") {
      return config_.attention.mla ? "self_attn.q_a_layernorm.weight" : "self_attn.q_norm.weight";
    }
    for (const Rename& name : kLayerNames) {
      if (name.ours == ours) return std::string(name.theirs);
    }
    AMOEBA_ASSERT(false);
    return {};
  }

  // Rows [heads hd, ...] seen in the order of halves: [heads, 2, hd / 2, ...].
  at::Tensor rotated_rows(std::string_view name, const at::Tensor& rows) const {
    if (config_.attention.mla) return rows;
    const bool rotates = name == "attention.wq.weight" || name == "attention.wk.weight" ||
                         name == "attention.q_norm.weight" || name == "attention.k_norm.weight";
    if (!rotates) return rows;
    std::vector<int64_t> shape = {-1, config_.attention.head_dim / 2, 2};
    if (rows.dim() == 2) shape.push_back(rows.size(1));
    return rows.view(shape).transpose(1, 2);
  }

  void add_experts(const std::string& prefix, std::string_view ours, const at::Tensor& stacked) {
    const std::vector<at::Tensor> experts = stacked.unbind(0);
    for (const Rename& name : kExpertNames) {
      if (name.ours != ours) continue;
      const std::string_view theirs = is_mixtral() ? name.ours : name.theirs;
      const char* block = is_mixtral() ? "block_sparse_moe" : "mlp";
      for (size_t e = 0; e < experts.size(); ++e) {
        add(cat(prefix, block, ".experts.", e, ".", theirs, ".weight"), experts[e]);
      }
    }
  }

  void add_bias(const at::Tensor& bias) {
    const char* name = nullptr;
    if (family_ == HfFamily::kDeepseekV3 || family_ == HfFamily::kOriginLatent) {
      name = ".mlp.gate.e_score_correction_bias";
    } else if (family_ == HfFamily::kOriginGrouped) {
      name = ".mlp.expert_bias";
    } else {
      return;
    }
    const std::vector<at::Tensor> rows = bias.unbind(0);
    for (size_t m = 0; m < rows.size(); ++m) {
      const auto layer = config_.num_dense_layers + static_cast<int64_t>(m);
      add(cat("model.layers.", layer, name), rows[m]);
      tensors.back().keep_fp32 = true;
    }
  }

  HfFamily family_;
  const nn::ModelConfig& config_;
};

at::Tensor view_of(const TensorEntry& entry, at::IntArrayRef shape, at::ScalarType dtype) {
  return at::from_blob(const_cast<std::byte*>(entry.data.data()), shape, at::TensorOptions(dtype));
}

// A folder's tensors, each taken once.
class Source {
 public:
  Source(FileSystem& files, const std::string& folder, bool fp8)
      : folder_(folder), fp8_(fp8), weights_(formats::open_hf_weights(files, folder)) {}

  void load(const HfTensor& tensor) {
    const TensorEntry entry = take(tensor.name);
    check_shape(entry, tensor.shape);
    const bool quantized = entry.dtype == "F8_E4M3" && fp8_ && tensor.shape.size() == 2;
    at::Tensor ours = tensor.ours;
    if (quantized) {
      ours.copy_(dequantized(entry).view(ours.sizes()));
      return;
    }
    ours.copy_(view_of(entry, ours.sizes(), plain_dtype(entry)));
  }

  void check_all_taken(int64_t num_layers, int64_t num_extra_layers) const {
    for (const auto& [name, entry] : weights_.tensors) {
      bool passed_over = name.ends_with(".rotary_emb.inv_freq");  // a table that older files keep
      for (int64_t layer = num_layers; layer < num_layers + num_extra_layers; ++layer) {
        passed_over |= name.starts_with(cat("model.layers.", layer, "."));
      }
      AMOEBA_CHECK_KIND(kData, passed_over, "'", folder_, "': tensor '", printable(name),
                        "' is not part of the model that config.json describes");
    }
  }

 private:
  TensorEntry take(const std::string& name) {
    const auto found = weights_.tensors.find(name);
    AMOEBA_CHECK_KIND(kData, found != weights_.tensors.end(), "'", folder_, "': tensor '", name,
                      "' is missing");
    TensorEntry entry = found->second;
    weights_.tensors.erase(found);
    return entry;
  }

  void check_shape(const TensorEntry& entry, const std::vector<int64_t>& want) const {
    AMOEBA_CHECK_KIND(kData, entry.shape == want, "'", folder_, "': tensor '", entry.name, "' is ",
                      shape_text(entry.shape), ", want ", shape_text(want));
  }

  at::ScalarType plain_dtype(const TensorEntry& entry) const {
    const FloatType* type = find_float_type(&FloatType::stored, entry.dtype);
    AMOEBA_CHECK_KIND(kData, type != nullptr, "'", folder_, "': tensor '", entry.name, "' is ",
                      entry.dtype, ", want F32, BF16, F16", fp8_ ? " or a matrix of F8_E4M3" : "");
    return type->type;
  }

  // [rows, columns] in blocks of 128 x 128, `<name>_scale_inv` [blocks of rows, blocks of columns].
  at::Tensor dequantized(const TensorEntry& entry) {
    const TensorEntry scale = take(entry.name + kScaleSuffix);
    const auto blocks = [](int64_t size) { return (size + kFp8Block - 1) / kFp8Block; };
    const int64_t rows = entry.shape[0], columns = entry.shape[1];
    check_shape(scale, {blocks(rows), blocks(columns)});
    AMOEBA_CHECK_KIND(kData, scale.dtype == "F32", "'", folder_, "': tensor '", scale.name, "' is ",
                      scale.dtype, ", want F32");
    at::Tensor values = view_of(entry, entry.shape, at::kFloat8_e4m3fn).to(at::kFloat);
    const std::vector<at::Tensor> scales = view_of(scale, scale.shape, at::kFloat).unbind(0);
    for (size_t block = 0; block < scales.size(); ++block) {
      const int64_t begin = static_cast<int64_t>(block) * kFp8Block;
      values.narrow(0, begin, std::min(kFp8Block, rows - begin))
          .mul_(scales[block].repeat_interleave(kFp8Block).narrow(0, 0, columns));
    }
    return values;
  }

  std::string folder_;
  bool fp8_;
  formats::HfWeights weights_;
};

}  // namespace

std::vector<HfTensor> hf_tensors(HfFamily family, const nn::ModelConfig& config,
                                 const std::vector<NamedTensor>& tensors) {
  Mapping mapping(family, config);
  for (const NamedTensor& tensor : tensors) mapping.add(tensor);
  return std::move(mapping.tensors);
}

void load_hf_weights(FileSystem& files, const std::string& folder, const HfConfig& config,
                     const std::vector<HfTensor>& tensors, int64_t num_layers) {
  Source source(files, folder, config.fp8);
  for (const HfTensor& tensor : tensors) source.load(tensor);
  source.check_all_taken(num_layers, config.num_extra_layers);
}

}  // namespace amoeba::train
