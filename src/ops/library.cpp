// Defines the operators, once a process: libraries of other devices only add implementations.
#include <torch/csrc/stable/library.h>

#include "ops/schemas.h"

STABLE_TORCH_LIBRARY(amoeba, library) {
  library.def(amoeba::ops::kRoute);
  library.def(amoeba::ops::kExpertsForward);
  library.def(amoeba::ops::kExpertsBackward);
  library.def(amoeba::ops::kExpertsBackwardAccumulate);
  library.def(amoeba::ops::kExpertsVariants);
  library.def(amoeba::ops::kRmsNormForward);
  library.def(amoeba::ops::kRmsNormBackward);
  library.def(amoeba::ops::kRope);
  library.def(amoeba::ops::kSwiGluForward);
  library.def(amoeba::ops::kSwiGluBackward);
  library.def(amoeba::ops::kCrossEntropy);
  library.def(amoeba::ops::kAdamW);
}
