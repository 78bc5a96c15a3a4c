#include "base/executor.h"

namespace amoeba {

Executor serial_executor() {
  Executor executor;
  executor.parallel_for = [](void*, int64_t count, Executor::Body body, void* body_context) {
    if (count > 0) body(body_context, 0, count);
  };
  return executor;
}

}  // namespace amoeba
