#include "train/start_weights.h"

#include "amoeba/error.h"
#include "base/text.h"
#include "formats/hf_folder.h"
#include "train/hugging_face.h"
#include "train/plain/hf_config.h"
#include "train/plain/model_source.h"
#include "train/state.h"

namespace amoeba::train {

namespace {

struct ExpertParameters {
  std::string layer;  // "layers.3."
  at::Tensor gate;    // [E, D]
  at::Tensor w1, w3;  // [E, H, D]
  at::Tensor w2;      // [E, D, H]
};

// What upcycling needs to know of a model with experts, and where the dense model's tensors go.
class Upcycling {
 public:
  Upcycling(nn::Model& model, const RunConfig& config)
      : slices_(config.model.dense_hidden_dim / config.moe.hidden_dim),
        factor_(static_cast<double>(slices_) / config.moe.route_scale) {
    for (const NamedTensor& named : weight_tensors(model)) {
      const size_t at = named.name.find("moe.");
      if (named.name == "expert_bias") continue;
      if (at == std::string::npos) {
        dense_.push_back(named);
        continue;
      }
      const std::string layer = named.name.substr(0, at), rest = named.name.substr(at);
      if (layers_.empty() || layers_.back().layer != layer)
        layers_.push_back({layer, {}, {}, {}, {}});
      ExpertParameters& experts = layers_.back();
      if (rest == "moe.router.gate.weight") experts.gate = named.tensor;
      if (rest == "moe.experts.w1") experts.w1 = named.tensor;
      if (rest == "moe.experts.w2") experts.w2 = named.tensor;
      if (rest == "moe.experts.w3") experts.w3 = named.tensor;
    }
    for (const ExpertParameters& experts : layers_) {
      const int64_t dim = experts.w1.size(2), width = slices_ * experts.w1.size(1);
      const auto add = [&](const char* name, const at::Tensor& stacked, int64_t rows,
                           int64_t columns) {
        dense_.push_back({cat(experts.layer, "feed_forward.", name, ".weight"),
                          stacked.narrow(0, 0, slices_).view({rows, columns})});
      };
      add("w1", experts.w1, width, dim);
      add("w3", experts.w3, width, dim);
      add("w2", experts.w2, dim, width);  // spread() puts its slices into their places
    }
  }

  // Tensors of the dense model by their names; the first experts hold its networks.
  const std::vector<NamedTensor>& dense_tensors() const { return dense_; }

  // From the first copy of the network to all of them.
  void spread() {
    for (ExpertParameters& experts : layers_) {
      const int64_t dim = experts.w2.size(1), hidden = experts.w2.size(2);
      at::Tensor first = experts.w2.narrow(0, 0, slices_);
      if (slices_ > 1) {
        const at::Tensor dense = first.clone();  // [D, G H]
        first.copy_(dense.view({dim, slices_, hidden}).transpose(0, 1));
      }
      first.mul_(factor_);
      for (at::Tensor* stacked : {&experts.w1, &experts.w2, &experts.w3}) {
        const std::vector<at::Tensor> copies = stacked->split(slices_);
        for (size_t copy = 1; copy < copies.size(); ++copy)
          at::Tensor(copies[copy]).copy_(copies[0]);
      }
      for (at::Tensor rows : experts.gate.split(slices_)) {
        rows.copy_(rows.narrow(0, 0, 1).clone().expand_as(rows));
      }
    }
  }

 private:
  int64_t slices_;  // G; 1: copies
  double factor_;
  std::vector<NamedTensor> dense_;
  std::vector<ExpertParameters> layers_;
};

void load_into(FileSystem& files, const std::string& folder, const nn::ModelConfig& model,
               const std::vector<NamedTensor>& tensors, bool sparse_target, const LogSink& log) {
  if (formats::is_hf_folder(files, folder)) {
    const HfConfig config =
        read_hf_config(formats::read_hf_config_json(files, folder), folder + "/config.json");
    load_hf_weights(files, folder, config, hf_tensors(config.family, model, tensors),
                    model.num_layers);
    return;
  }
  Checkpoint checkpoint = open_checkpoint(files, folder, log);
  if (sparse_target) {  // a dense model's bias is empty
    std::erase_if(checkpoint.weights,
                  [](const formats::TensorEntry& entry) { return entry.name == "expert_bias"; });
  }
  load_entries(checkpoint.weights, tensors, checkpoint.folder);
}

}  // namespace

void load_start_weights(FileSystem& files, const RunConfig& config, nn::Model& model,
                        const LogSink& log) {
  const std::string &folder = config.model.from, &upcycle = config.model.upcycle;
  if (folder.empty()) return;
  if (upcycle == "none") {
    load_into(files, folder, model.config(), weight_tensors(model), false, log);
  } else {
    Upcycling upcycling(model, config);
    load_into(files, folder, model.config(), upcycling.dense_tensors(), true, log);
    upcycling.spread();
  }
  model.store().refresh_compute();
  log(LogLevel::kInfo,
      cat("weights: from ", folder,
          upcycle == "none" ? "" : cat(", dense networks made experts (", upcycle, ")")));
}

}  // namespace amoeba::train
