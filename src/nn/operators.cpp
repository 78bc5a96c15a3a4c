#include "nn/operators.h"

#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "amoeba/error.h"

namespace amoeba::nn {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Signature>();
}

OptionalTensor if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

void add_errors(const at::Tensor& error_word, const at::Tensor& error) {
  if (error_word.defined()) error_word.bitwise_or_(error);
}

// Calls an operator that takes the shared inputs after `first` and before `last`: in the schemas'
// order, three separately stored weights without biases, plain SwiGLU.
template <typename Result, typename... First, typename... Last>
Result call_with_inputs(const char* name, const char* overload, const OperatorInputs& inputs,
                        std::string_view save, std::tuple<First...> first,
                        std::tuple<Last...> last) {
  using Signature =
      Result(First..., const at::Tensor&, const OptionalTensor&, const at::Tensor&,
             const OptionalTensor&, const OptionalTensor&, at::TensorList, at::TensorList,
             const at::Tensor&, const OptionalTensor&, std::string_view, bool, std::string_view,
             double, double, bool, std::string_view, Last...);
  constexpr double kNoAlpha = 0, kNoLimit = 0;  // of the clamped activation
  const at::Tensor gate_up[] = {inputs.weights.w1, inputs.weights.w3};
  const auto operation = find<Signature>(name, overload);
  const auto call = [&](auto&... before) {
    return std::apply(
        [&](auto&... after) {
          return operation.call(before..., inputs.x, if_defined(inputs.scores),
                                inputs.routes.offsets, if_defined(inputs.routes.row_slot),
                                if_defined(inputs.routes.slot_row), gate_up, {}, inputs.weights.w2,
                                std::nullopt, "separate", /*transposed=*/false, "swiglu", kNoAlpha,
                                kNoLimit, inputs.score_before, save, after...);
        },
        last);
  };
  return std::apply(call, first);
}

constexpr std::string_view kKeeps = "pre_activations", kKeepsNothing = "nothing";

}  // namespace

OperatorRoutes route_tokens(const at::Tensor& expert_ids, int64_t num_experts,
                            const at::Tensor& error_word) {
  using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  const auto [counts, offsets, row_slot, slot_row, error] =
      find<Results(const at::Tensor&, int64_t)>("amoeba::route").call(expert_ids, num_experts);
  add_errors(error_word, error);
  return {offsets, row_slot, slot_row};
}

OperatorForward experts_forward(const OperatorInputs& inputs, bool keeps_saved,
                                const at::Tensor& error_word) {
  const auto [y, saved, error] = call_with_inputs<std::tuple<at::Tensor, at::Tensor, at::Tensor>>(
      "amoeba::experts_forward", "", inputs, keeps_saved ? kKeeps : kKeepsNothing, std::tuple<>(),
      std::tuple<>());
  add_errors(error_word, error);
  return {y, saved};
}

OperatorGradients experts_backward(const at::Tensor& dy, const at::Tensor& saved,
                                   const OperatorInputs& inputs, const OperatorWanted& wanted) {
  using Tensors = std::vector<at::Tensor>;
  const c10::List<bool> mask({wanted.x, wanted.scores, wanted.gate_up, false, wanted.down, false});
  const auto [dx, dscores, dgate_up, dgate_up_bias, ddown, ddown_bias] = call_with_inputs<
      std::tuple<at::Tensor, at::Tensor, Tensors, Tensors, at::Tensor, at::Tensor>>(
      "amoeba::experts_backward", "", inputs, kKeeps,
      std::tuple<const at::Tensor&, const at::Tensor&>(dy, saved),
      std::tuple<c10::List<bool>>(mask));
  OperatorGradients gradients;
  if (wanted.x) gradients.x = dx;
  if (wanted.scores) gradients.scores = dscores;
  if (wanted.gate_up) gradients.weights.w1 = dgate_up[0];
  if (wanted.gate_up) gradients.weights.w3 = dgate_up[1];
  if (wanted.down) gradients.weights.w2 = ddown;
  return gradients;
}

OperatorGradients experts_backward_accumulate(const at::Tensor& dy, const at::Tensor& saved,
                                              const OperatorInputs& inputs, ExpertWeights sums) {
  const at::Tensor gate_up[] = {sums.w1, sums.w3};
  const auto [dx, dscores] = call_with_inputs<std::tuple<at::Tensor, at::Tensor>>(
      "amoeba::experts_backward", "accumulate", inputs, kKeeps,
      std::tuple<const at::Tensor&, const at::Tensor&>(dy, saved),
      std::tuple<at::TensorList, at::TensorList, at::Tensor&, const OptionalTensor&>(
          gate_up, {}, sums.w2, std::nullopt));
  return {dx, dscores, {}};
}

std::vector<OperatorVariant> experts_variants(const OperatorInputs& inputs) {
  std::vector<OperatorVariant> variants;
  for (const std::string& line : call_with_inputs<std::vector<std::string>>(
           "amoeba::experts_variants", "", inputs, kKeeps, std::tuple<>(), std::tuple<>())) {
    const size_t first = line.find('\t'), second = line.find('\t', first + 1);
    variants.push_back({line.substr(0, first), line.substr(first + 1, second - first - 1),
                        line.substr(second + 1)});
  }
  return variants;
}

bool has_card_layers(const at::Tensor& x) {
  const at::ScalarType type = x.scalar_type();
  return x.is_cuda() && (type == at::kBFloat16 || type == at::kHalf || type == at::kFloat) &&
         load_cuda_operators().empty();
}

OperatorNorm card_rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  using Signature =
      std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, double);
  const auto [y, rstd] = find<Signature>("amoeba::rms_norm_forward").call(x, weight, eps);
  return {y, rstd};
}

at::Tensor card_rms_norm_backward(const at::Tensor& dy, const at::Tensor& x,
                                  const at::Tensor& weight, const at::Tensor& rstd,
                                  const at::Tensor& passed, at::Tensor& dweight) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                               const at::Tensor&, const OptionalTensor&, at::Tensor&);
  return find<Signature>("amoeba::rms_norm_backward")
      .call(dy, x, weight, rstd, if_defined(passed), dweight);
}

bool has_card_rope(const at::Tensor& x, int64_t turned) {
  constexpr int64_t kAccess = 16, kPiece = 8;  // bytes, values
  const auto address = reinterpret_cast<uintptr_t>(x.const_data_ptr());
  return x.size(2) % kPiece == 0 && turned % kPiece == 0 && address % kAccess == 0 &&
         has_card_layers(x);
}

at::Tensor card_rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                     const at::Tensor& positions, double direction) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                               const at::Tensor&, double);
  return find<Signature>("amoeba::rope").call(x, cos, sin, positions, direction);
}

at::Tensor card_swiglu(const at::Tensor& gate_up) {
  return find<at::Tensor(const at::Tensor&)>("amoeba::swiglu_forward").call(gate_up);
}

at::Tensor card_swiglu_backward(const at::Tensor& dy, const at::Tensor& gate_up) {
  return find<at::Tensor(const at::Tensor&, const at::Tensor&)>("amoeba::swiglu_backward")
      .call(dy, gate_up);
}

at::Tensor card_cross_entropy(const at::Tensor& logits, const at::Tensor& targets,
                              const at::Tensor& dlogits) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&);
  return find<Signature>("amoeba::cross_entropy").call(logits, targets, if_defined(dlogits));
}

void card_adamw(const OperatorAdamW& step) {
  using Signature = void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const OptionalTensor&, const at::Tensor&, const at::Tensor&,
                         const OptionalTensor&, const at::Tensor&, double, double, double, double);
  find<Signature>("amoeba::adamw")
      .call(step.master, step.grad, step.exp_avg, step.exp_avg_sq, if_defined(step.shadow), step.lr,
            step.num_steps, if_defined(step.grad_scale), step.found_inf, step.beta1, step.beta2,
            step.weight_decay, step.eps);
}

std::string load_cuda_operators() {
  // Never closed: what it registered stays in the dispatcher.
  static const bool is_loaded = dlopen("libamoeba_ops_cuda.so", RTLD_NOW | RTLD_LOCAL) != nullptr;
  static const std::string reason =
      is_loaded ? "" : cat("the CUDA operators cannot be loaded: ", dlerror());
  return reason;
}

}  // namespace amoeba::nn
