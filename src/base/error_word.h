// Bits of the error word, one int32 a device: operations OR a bit in and go on without writing out
// of range; the host reads the word together with the loss.
#pragma once

#include <cstdint>

namespace amoeba {

enum ErrorBit : int32_t {
  kErrorBadId = 1 << 0,      // expert id outside [-1, E]
  kErrorCounts = 1 << 1,     // negative count or sum(counts) > R
  kErrorNanLogit = 1 << 2,   // router logits held NaN
  kErrorNonFinite = 1 << 3,  // loss or gradient norm not finite
};

}  // namespace amoeba
