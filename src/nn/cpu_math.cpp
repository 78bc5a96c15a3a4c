#include "nn/cpu_math.h"

namespace amoeba::nn {

AMOEBA_CPU_CLONES
float dot(const float* a, const float* b, int64_t size) {
  float lanes[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += a[d + j] * b[d + j];
  }
  float sum = 0.0f;
  for (; d < size; ++d) sum += a[d] * b[d];
  for (float lane : lanes) sum += lane;
  return sum;
}

}  // namespace amoeba::nn
