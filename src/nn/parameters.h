// The flat parameter store: every trained tensor is a view into one buffer per optimizer group.
//
// A group holds fp32 masters, fp32 gradients and the two AdamW moments as four flat tensors of
// equal length, so that the optimizer, the gradient norm and zeroing are one call each. With a
// compute dtype other than fp32 a group also holds a shadow of the masters in that dtype, refreshed
// by refresh_compute(). Gradients are added to the flat buffer in place and stay views of it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace amoeba::nn {

// Initial distribution of a parameter. kTruncatedNormal cuts at +-cutoff (absolute).
struct Init {
  enum class Kind { kOnes, kNormal, kTruncatedNormal };
  Kind kind = Kind::kOnes;
  double std = 0.0;
  double cutoff = 2.0;
};
// Standard deviations of a layer's linear maps, as the origin draws them: input_std for q, k, v and
// the gates (w1); output_std, smaller the deeper the layer, for wo, w2, w3 and the router.
struct LayerInit {
  double input_std = 0.0;
  double output_std = 0.0;
};
Init ones_init();
Init normal_init(double std);
Init truncated_normal_init(double std, double cutoff = 2.0);

struct Parameter {
  std::string name;
  std::vector<int64_t> shape;
  Init init;
  bool decay = true;       // in the weight-decay group
  bool keep_fp32 = false;  // compute in fp32 whatever the compute dtype (norms, router)
  int64_t offset = 0;      // first element within its group
  at::Tensor master;       // fp32 leaf; requires grad once there is training state
  at::Tensor compute;      // what forward reads: the shadow, or the master's own storage
  at::Tensor grad;         // fp32 view of the flat gradient

  int64_t numel() const;
  // Whether a gradient is to be kept: grad mode is on and there is training state.
  bool wants_gradient() const;
  // `compute` as an autograd input: the gradient that reaches it is added to `grad` and stops
  // there.
  at::Tensor use() const;
};

struct ParameterGroup {
  bool decay = true;
  at::Tensor master;      // [N] fp32
  at::Tensor grad;        // [N] fp32
  at::Tensor exp_avg;     // [N] fp32
  at::Tensor exp_avg_sq;  // [N] fp32
  at::Tensor shadow;      // [N] compute dtype; undefined when that is fp32
};

// Declare every parameter, then allocate() once. Handles stay valid for the store's lifetime.
class ParameterStore {
 public:
  Parameter* declare(std::string name, std::vector<int64_t> shape, Init init, bool decay,
                     bool keep_fp32 = false);

  // A handle over parameters declared one after the other with equal trailing dimensions: their
  // rows stacked along the first, so that one product serves all. It is not a parameter of its own.
  const Parameter* join(const std::vector<Parameter*>& parts);

  // Makes the buffers on `device` (meta is legal: shapes only) and fills masters from (seed, name),
  // drawn on the CPU, so the numbers depend neither on the device nor on the order of declaration.
  void allocate(at::Device device, at::ScalarType compute_dtype, uint64_t seed);

  // Optimizer state exists only for training: two more fp32 buffers a group, zeroed, and gradients.
  void allocate_training_state();

  void zero_grad();
  void refresh_compute();

  const std::vector<std::unique_ptr<Parameter>>& parameters() const { return parameters_; }
  std::vector<ParameterGroup>& groups() { return groups_; }
  const std::vector<ParameterGroup>& groups() const { return groups_; }
  int64_t numel() const;
  // A parameter's slice of one of its group's flat buffers, in the parameter's shape.
  at::Tensor exp_avg(const Parameter& parameter) const;
  at::Tensor exp_avg_sq(const Parameter& parameter) const;

 private:
  struct Joined {
    std::unique_ptr<Parameter> parameter;
    std::vector<Parameter*> parts;
  };
  const ParameterGroup& group_of(const Parameter& parameter) const;
  void for_each_handle(const std::function<void(Parameter&)>& visit);
  std::vector<Joined> joined_;
  std::vector<std::unique_ptr<Parameter>> parameters_;
  std::vector<ParameterGroup> groups_;
};

}  // namespace amoeba::nn
