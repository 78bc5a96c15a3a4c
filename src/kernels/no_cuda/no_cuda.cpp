// Linked where the build has no CUDA.
#include "amoeba/error.h"
#include "amoeba/kernels.h"

namespace amoeba::kernels::cuda {
namespace {

[[noreturn]] void refuse(const char* operation) {
  fail(ErrorKind::kUsage, cat(operation, ": built without CUDA"));
}

}  // namespace

const std::vector<Variant>& variants() {
  static const std::vector<Variant> none;
  return none;
}

const Variant& choose_variant(const ExpertsArguments&, const ExpertsOptions&, std::string_view) {
  refuse("experts");
}

WorkspaceSizes workspace(const Variant&, const ExpertsArguments&, const ExpertsOptions&) {
  refuse("experts");
}

int64_t route_scratch_bytes(int64_t, int64_t) { refuse("route"); }

void route(const RouteArguments&, void*, Stream) { refuse("route"); }

void experts_forward(const Variant&, const ExpertsArguments&, const ExpertsOptions&, const View&,
                     void*, void*, Stream) {
  refuse("experts_forward");
}

void experts_backward(const Variant&, const ExpertsArguments&, const ExpertsOptions&, const View&,
                      const void*, const ExpertsGradients&, void*, Stream) {
  refuse("experts_backward");
}

}  // namespace amoeba::kernels::cuda
