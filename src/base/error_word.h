// Bits of the error word: one int32 on the device that operations OR into when they meet bad data
// they cannot refuse without a host read. They write nothing out of range and go on; the host reads
// the word later.
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
