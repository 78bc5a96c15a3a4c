#include "nn/feed_forward.h"

#include <ATen/record_function.h>

#include "nn/linear.h"
#include "nn/swiglu.h"

namespace amoeba::nn {

FeedForward::FeedForward(int64_t dim, int64_t hidden_dim, const std::string& prefix,
                         const LayerInit& init, ParameterStore& store)
    : w13_(store.join({store.declare(prefix + ".w1.weight", {hidden_dim, dim},
                                     truncated_normal_init(init.input_std), true),
                       store.declare(prefix + ".w3.weight", {hidden_dim, dim},
                                     truncated_normal_init(init.output_std), true)})),
      w2_(store.declare(prefix + ".w2.weight", {dim, hidden_dim},
                        truncated_normal_init(init.output_std), true)) {}

at::Tensor FeedForward::forward(const at::Tensor& x) const {
  RECORD_USER_SCOPE("feed forward");
  return linear(swiglu(linear(x, *w13_)), *w2_);
}

}  // namespace amoeba::nn
