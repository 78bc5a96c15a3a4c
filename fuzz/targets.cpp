#include "fuzz/target.h"

namespace amoeba::fuzz {

const std::vector<Target>& targets() {
  static const std::vector<Target> list = {kConfigToml, kConfigJson, kSafetensors, kManifest,
                                           kTokenizer,  kTokenIndex, kTokenNpy,    kTokenLlmc,
                                           kJsonLines,  kMetrics,    kHfConfig,    kHfWeights};
  return list;
}

}  // namespace amoeba::fuzz
