// The public functions of the CPU: check, choose, run.
#include <vector>

#include "amoeba/error.h"
#include "amoeba/kernels.h"
#include "base/error_word.h"
#include "kernels/cpu/implementation.h"

namespace amoeba::kernels::cpu {
namespace {

const Implementation& implementation_of(const Variant& variant) {
  for (const Implementation& implementation : fused_implementations()) {
    if (implementation.variant.name == variant.name) return implementation;
  }
  if (variant.name == kReference.variant.name) return kReference;
  fail(ErrorKind::kUsage, cat("experts: no CPU variant is named ", variant.name));
}

Call checked_call(std::string_view operation, const Variant& variant,
                  const ExpertsArguments& arguments, const ExpertsOptions& options) {
  check_experts(operation, arguments, options);
  const std::string reason = variant.supports(arguments, options);
  AMOEBA_CHECK(reason.empty(), operation, ": ", variant.name, " refuses: ", reason);
  return {arguments, options, sizes_of(arguments), parameters_of(arguments, options)};
}

bool is_permutation_part(const Call& call) {
  const Sizes& sizes = call.sizes;
  const int32_t* offsets = call.arguments.offsets;
  if (offsets[0] != 0) return false;
  for (int64_t e = 0; e < sizes.num_experts; ++e) {
    if (offsets[e + 1] < offsets[e]) return false;
  }
  const int64_t num_sorted = offsets[sizes.num_experts];
  if (num_sorted > sizes.num_rows) return false;
  if (!sizes.has_slots) return true;
  for (int64_t r = 0; r < num_sorted; ++r) {
    const int64_t slot = call.arguments.row_slot[r];
    if (slot < 0 || slot >= sizes.num_rows || call.arguments.slot_row[slot] != r) return false;
  }
  for (int64_t slot = 0; slot < sizes.num_rows; ++slot) {
    const int64_t row = call.arguments.slot_row[slot];
    if (row < -1 || row >= num_sorted) return false;
    if (row >= 0 && call.arguments.row_slot[row] != slot) return false;
  }
  return true;
}

// The arguments, or those of no routed row when the routing contradicts itself: then the bit is set
// and every output is that of skipped slots.
struct SafeRouting {
  explicit SafeRouting(const Call& call) : arguments(call.arguments) {
    if (is_permutation_part(call)) return;
    *arguments.error |= kErrorCounts;
    offsets.assign(static_cast<size_t>(call.sizes.num_experts) + 1, 0);
    arguments.offsets = offsets.data();
    if (!call.sizes.has_slots) return;
    slots.assign(static_cast<size_t>(call.sizes.num_rows), -1);
    arguments.row_slot = arguments.slot_row = slots.data();
  }
  std::vector<int32_t> offsets, slots;
  ExpertsArguments arguments;
};

}  // namespace

const std::vector<Variant>& variants() {
  static const std::vector<Variant> table = [] {
    std::vector<Variant> result;
    for (const Implementation& implementation : fused_implementations()) {
      result.push_back(implementation.variant);
    }
    result.push_back(kReference.variant);
    return result;
  }();
  return table;
}

const Variant& choose_variant(const ExpertsArguments& arguments, const ExpertsOptions& options,
                              std::string_view name) {
  check_experts("experts", arguments, options);
  std::string reasons;
  for (const Variant& variant : variants()) {
    if (name != "auto" && name != variant.name) continue;
    const std::string reason = variant.supports(arguments, options);
    if (reason.empty()) return variant;
    reasons += cat(reasons.empty() ? "" : "; ", variant.name, " refuses: ", reason);
  }
  if (!reasons.empty()) fail(ErrorKind::kUsage, "experts: " + reasons);
  for (const Variant& variant : variants()) reasons += cat(", ", variant.name);
  fail(ErrorKind::kUsage, cat("experts: no CPU variant is named ", name, ", want auto", reasons));
}

WorkspaceSizes workspace(const Implementation& implementation, const ExpertsArguments& arguments,
                         const ExpertsOptions& options) {
  return implementation.workspace(
      checked_call("experts", implementation.variant, arguments, options));
}

void experts_forward(const Implementation& implementation, const ExpertsArguments& arguments,
                     const ExpertsOptions& options, const View& y, void* saved, void* scratch,
                     const Executor& executor) {
  const Call call = checked_call("experts_forward", implementation.variant, arguments, options);
  check_like_x("experts_forward", "y", y, arguments);
  const SafeRouting routing(call);
  implementation.forward({routing.arguments, options, call.sizes, call.weights}, y, saved, scratch,
                         executor);
}

void experts_backward(const Implementation& implementation, const ExpertsArguments& arguments,
                      const ExpertsOptions& options, const View& dy, const void* saved,
                      const ExpertsGradients& gradients, void* scratch, const Executor& executor) {
  const Call call = checked_call("experts_backward", implementation.variant, arguments, options);
  check_like_x("experts_backward", "dy", dy, arguments);
  check_gradients("experts_backward", gradients, arguments, options);
  const SafeRouting routing(call);
  implementation.backward({routing.arguments, options, call.sizes, call.weights}, dy, saved,
                          gradients, gradients_of(gradients, arguments, options), scratch,
                          executor);
}

WorkspaceSizes workspace(const Variant& variant, const ExpertsArguments& arguments,
                         const ExpertsOptions& options) {
  return workspace(implementation_of(variant), arguments, options);
}

void experts_forward(const Variant& variant, const ExpertsArguments& arguments,
                     const ExpertsOptions& options, const View& y, void* saved, void* scratch,
                     const Executor& executor) {
  experts_forward(implementation_of(variant), arguments, options, y, saved, scratch, executor);
}

void experts_backward(const Variant& variant, const ExpertsArguments& arguments,
                      const ExpertsOptions& options, const View& dy, const void* saved,
                      const ExpertsGradients& gradients, void* scratch, const Executor& executor) {
  experts_backward(implementation_of(variant), arguments, options, dy, saved, gradients, scratch,
                   executor);
}

}  // namespace amoeba::kernels::cpu
