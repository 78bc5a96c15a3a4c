#include "nn/parallel.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/stable/c/shim.h>

#include <exception>
#include <mutex>

#include "amoeba/error.h"

namespace amoeba::nn {
namespace {

struct Region {
  const std::function<void(int64_t, int64_t)>& body;
  std::mutex mutex;
  std::exception_ptr error;
};

void run_range(int64_t begin, int64_t end, void* context) {
  Region& region = *static_cast<Region*>(context);
  try {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;  // thread-local: set on every thread
    region.body(begin, end);
  } catch (...) {
    const std::lock_guard lock(region.mutex);
    if (!region.error) region.error = std::current_exception();
  }
}

}  // namespace

void parallel_for(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  Region region{body, {}, {}};
  AMOEBA_ASSERT(torch_parallel_for(0, count, 1, run_range, &region) == 0);
  if (region.error) std::rethrow_exception(region.error);
}

}  // namespace amoeba::nn
