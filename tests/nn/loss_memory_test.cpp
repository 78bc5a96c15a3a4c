// Peak memory of the output projection and cross entropy at a large vocabulary.
#include <ATen/Context.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <fstream>
#include <iostream>
#include <string>

#include "nn/loss.h"

namespace amoeba::test {
namespace {

constexpr int64_t kDim = 256;
constexpr int64_t kMiB = int64_t{1} << 20;

int64_t status_bytes(const std::string& key) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(key, 0) == 0) return std::stoll(line.substr(key.size() + 1)) * 1024;
  }
  return 0;
}

// Resets the kernel's high-water mark of resident memory to what is resident now.
bool reset_peak() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5";
  file.flush();
  return file.good();
}

// Resident bytes at the peak of one loss over T tokens, above what was resident before it.
int64_t peak_above(const nn::Parameter& lm_head, int64_t tokens, int64_t chunk_bytes) {
  const at::Tensor hidden = at::randn({tokens, kDim});
  const at::Tensor targets = at::randint(lm_head.shape[0], {tokens}, at::kLong);
  malloc_trim(0);  // or memory that was freed before would hide what this takes
  reset_peak();
  const int64_t before = status_bytes("VmRSS:");
  nn::lm_head_cross_entropy(hidden, lm_head, targets,
                            {1.0 / static_cast<double>(tokens), chunk_bytes});
  return status_bytes("VmHWM:") - before;
}

// Peaks at T and 2T above weights and gradients: bounded by `bound`, and twice the tokens add their
// d hidden and nothing of size T x V.
void expect_bounded(int64_t vocab, int64_t tokens, int64_t chunk_bytes, int64_t bound) {
  if (!reset_peak()) GTEST_SKIP() << "this kernel cannot reset the peak of resident memory";
  nn::ParameterStore store;
  const nn::Parameter* lm_head =
      store.declare("output.weight", {vocab, kDim}, nn::ones_init(), true);
  store.allocate(at::kCPU, at::kFloat, 1);
  store.allocate_training_state();
  store.zero_grad();
  peak_above(*lm_head, 64, chunk_bytes);  // libraries' own buffers, once
  const int64_t once = peak_above(*lm_head, tokens, chunk_bytes);
  const int64_t twice = peak_above(*lm_head, 2 * tokens, chunk_bytes);
  std::cout << "peak above weights and gradients, V " << vocab << ", D " << kDim << ": "
            << once / kMiB << " MiB at T " << tokens << ", " << twice / kMiB << " MiB at T "
            << 2 * tokens << "\n";
  EXPECT_LE(once, bound);
  EXPECT_LE(twice, once + tokens * kDim * 4 + 16 * kMiB);
}

// The logits of all tokens would take 256 MiB.
TEST(LossMemory, IsBoundedByTheChunk) { expect_bounded(16384, 4096, 8 * kMiB, 75 * kMiB); }

// The real shape takes a minute: test_nn --gtest_filter='LossMemory*'
// --gtest_also_run_disabled_tests
TEST(LossMemory, DISABLED_LargeVocabulary) { expect_bounded(256128, 8192, 64 * kMiB, 300 * kMiB); }

}  // namespace
}  // namespace amoeba::test
