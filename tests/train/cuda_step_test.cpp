// A step on the card: how often the host waits for it, that its bits repeat, and the CPU's numbers.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "amoeba/error.h"
#include "amoeba/experts.h"
#include "train/device.h"
#include "train/state.h"
#include "train/train_step.h"

namespace amoeba::test {
namespace {

using train::MicroBatch;
using train::StepBatch;
using train::StepResult;

constexpr int64_t kVocab = 40, kLayers = 3, kLength = 24, kRows = 2, kMicroBatches = 2;
constexpr int64_t kMoeLayers = kLayers - 1;

// While alive, counts the calls that make the host wait for the card, by LibTorch's own report.
class CountedWaits : public c10::WarningHandler {
 public:
  CountedWaits() : before_(c10::WarningUtils::get_warning_handler()) {
    c10::WarningUtils::set_warning_handler(this);
    set_mode(1);
  }
  ~CountedWaits() override {
    set_mode(0);
    c10::WarningUtils::set_warning_handler(before_);
  }
  int64_t count() const { return count_; }

 private:
  void process(const c10::Warning& warning) override {
    count_ += warning.msg().find("synchronizing CUDA operation") != std::string::npos ? 1 : 0;
  }

  // c10::cuda::warning_state(), whose header needs CUDA's: 0 silent, 1 a warning a wait.
  static void set_mode(int mode) {
    void* state = dlsym(RTLD_DEFAULT, "_ZZN3c104cuda13warning_stateEvE14warning_state_");
    ASSERT_NE(state, nullptr) << "this LibTorch has no report of waits";
    *static_cast<int*>(state) = mode;
  }

  c10::WarningHandler* before_;
  int64_t count_ = 0;
};

nn::ModelConfig model_config(const std::string& backend, bool is_latent) {
  nn::ModelConfig config;
  config.vocab_size = kVocab;
  config.num_layers = kLayers;
  config.num_dense_layers = kLayers - kMoeLayers;
  config.dense_hidden_dim = 56;
  config.max_seq_len = kLength;
  config.tie_embeddings = true;
  config.init_std = 0.2;
  config.attention.dim = 64;
  config.attention.num_heads = 4;
  if (is_latent) {
    config.attention.mla = nn::MlaConfig{0, 32, 16, 8, 16};
    config.attention.rope.head_dim = 8;
  } else {
    config.attention.num_kv_heads = 2;
    config.attention.head_dim = config.attention.rope.head_dim = 16;
    config.attention.qk_norm = true;
  }
  config.moe.router.dim = 64;
  config.moe.router.num_experts = 5;
  config.moe.router.top_k = 2;
  config.moe.hidden_dim = 24;
  config.moe.num_shared_experts = 1;
  config.compute_backend = backend;
  return config;
}

train::RunConfig run_config(double max_norm = 1.0) {
  train::RunConfig config;
  config.training.max_norm = max_norm;
  config.moe.aux_loss_coeff = 0.5;  // much, so that it shows
  config.moe.z_loss_coeff = 0.25;
  config.moe.balance_coeff = 0.25;
  return config;
}

// The last row has padding, and with `documents` the first one is two of them.
StepBatch some_step(bool documents) {
  StepBatch step;
  std::mt19937_64 text(3);
  for (int64_t i = 0; i < kMicroBatches; ++i) {
    MicroBatch batch;
    batch.batch_size = kRows;
    batch.seq_len = kLength;
    for (int64_t t = 0; t < kRows * kLength; ++t) {
      const bool inside = t < kRows * kLength - 3;
      const int64_t position = t % kLength;
      batch.tokens.push_back(static_cast<int32_t>(text() % kVocab));
      batch.targets.push_back(inside ? static_cast<int32_t>(text() % kVocab)
                                     : train::kIgnoredTarget);
      batch.positions.push_back(
          static_cast<int32_t>(documents && t < kLength ? position % 16 : position));
      batch.token_mask.push_back(inside ? 1 : 0);
      batch.num_tokens += inside ? 1 : 0;
    }
    if (documents) batch.segments = {{0, 0, 16}, {0, 16, kLength - 16}, {1, 0, kLength}};
    batch.valid_tokens = batch.num_tokens;
    step.valid_tokens += batch.valid_tokens;
    step.num_tokens += batch.num_tokens;
    step.micro_batches.push_back(batch);
  }
  return step;
}

// Without padding and documents; each `seed` has its own text.
StepBatch whole_step(uint64_t seed) {
  StepBatch step = some_step(false);
  std::mt19937_64 text(seed);
  step.valid_tokens = 0;
  for (MicroBatch& batch : step.micro_batches) {
    batch.token_mask.clear();
    for (int32_t& token : batch.tokens) token = static_cast<int32_t>(text() % kVocab);
    for (int32_t& target : batch.targets) target = static_cast<int32_t>(text() % kVocab);
    batch.valid_tokens = batch.num_tokens = kRows * kLength;
    step.valid_tokens += batch.valid_tokens;
  }
  step.num_tokens = step.valid_tokens;
  return step;
}

struct Trainer {
  Trainer(const nn::ModelConfig& config, at::Device device, at::ScalarType dtype)
      : model(config, device, dtype, 5),
        optimizer((model.store().allocate_training_state(), model.store()),
                  train::OptimizerSection()) {}

  StepResult step(const StepBatch& batch, const train::RunConfig& config = run_config()) {
    return train::train_step(model, optimizer, batch, config, 1e-2);
  }

  nn::Model model;
  train::AdamW optimizer;
};

void expect_same_weights(Trainer& a, Trainer& b, const std::string& what) {
  const auto weights = train::weight_tensors(a.model), others = train::weight_tensors(b.model);
  for (size_t i = 0; i < weights.size(); ++i) {
    EXPECT_TRUE(at::equal(weights[i].tensor, others[i].tensor)) << weights[i].name << ", " << what;
  }
}

class CudaStep : public testing::Test {
 protected:
  void SetUp() override {
    if (!at::globalContext().hasCUDA()) GTEST_SKIP() << "no GPU is visible to LibTorch";
    device = train::resolve_device("cuda");
  }
  void TearDown() override {
    at::globalContext().setDeterministicAlgorithms(false, /*warn_only=*/false);
  }
  at::Device device = at::kCPU;
};

struct Case {
  std::string name;
  bool is_latent;
  nn::ActivationCheckpoint checkpoint;
  bool documents;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> list = {
      {"grouped queries", false, nn::ActivationCheckpoint::kNone, false},
      {"latent attention", true, nn::ActivationCheckpoint::kNone, false},
      {"documents", true, nn::ActivationCheckpoint::kSelective, true},
      {"recomputed", false, nn::ActivationCheckpoint::kFull, false},
  };
  return list;
}

// The experts' reads that the backends for_loop and batched_mm_padded state, and the result.
TEST_F(CudaStep, ReadsTheResultAndNothingElse) {
  for (const nn::ExpertBackend& backend : nn::expert_backends()) {
    for (const Case& one : cases()) {
      nn::ModelConfig config = model_config(std::string(backend.name), one.is_latent);
      config.activation_checkpoint = one.checkpoint;
      Trainer trainer(config, device, at::kBFloat16);
      const StepBatch batch = some_step(one.documents);
      trainer.step(batch);  // first uses allocate
      trainer.model.expert_stats() = {};
      const CountedWaits waits;
      const StepResult result = trainer.step(batch);
      EXPECT_FALSE(result.rejected);
      const bool again = one.checkpoint != nn::ActivationCheckpoint::kNone;
      const int64_t reads = trainer.model.expert_stats().host_syncs * (again ? 2 : 1);
      const bool may_read = backend.name == "for_loop" || backend.name == "batched_mm_padded";
      EXPECT_EQ(reads > 0, may_read);
      EXPECT_EQ(waits.count(), 1 + reads) << backend.name << ", " << one.name;
    }
  }
}

TEST_F(CudaStep, RepeatsToTheBit) {
  for (const nn::ExpertBackend& backend : nn::expert_backends()) {
    for (const Case& one : cases()) {
      nn::ModelConfig config = model_config(std::string(backend.name), one.is_latent);
      config.activation_checkpoint = one.checkpoint;
      Trainer first(config, device, at::kBFloat16), second(config, device, at::kBFloat16);
      const StepBatch batch = some_step(one.documents);
      for (int step = 0; step < 3; ++step) {
        const StepResult want = first.step(batch), got = second.step(batch);
        EXPECT_EQ(got.loss, want.loss) << backend.name << ", " << one.name;
        EXPECT_EQ(got.grad_norm, want.grad_norm) << backend.name << ", " << one.name;
      }
      expect_same_weights(first, second, cat(backend.name, ", ", one.name));
    }
  }
}

// Rates, limits and batches change from step to step; step 4 is rejected, step 6 has another shape.
TEST_F(CudaStep, AReplayedStepHasTheSameBits) {
  for (const nn::ExpertBackend& backend : nn::expert_backends()) {
    for (const Case& one : cases()) {
      nn::ModelConfig config = model_config(std::string(backend.name), one.is_latent);
      config.activation_checkpoint = one.checkpoint;
      Trainer plain(config, device, at::kBFloat16), replayed(config, device, at::kBFloat16);
      int num_warnings = 0;
      train::StepGraph graph([&](LogLevel, std::string_view) { ++num_warnings; });
      int64_t num_launches = 0;
      for (int step = 0; step < 9; ++step) {
        StepBatch batch = whole_step(step);
        if (step == 6) {  // another divisor of the loss
          --batch.micro_batches[0].valid_tokens;
          --batch.valid_tokens;
        }
        const double lr = 1e-2 / (step + 1);
        const train::StepLimits limits = {step == 4 ? 1e-3 : 1e3, 1e6};
        const auto run = [&](Trainer& trainer, train::StepGraph* with) {
          return train::train_step(trainer.model, trainer.optimizer, batch, run_config(), lr,
                                   limits, with);
        };
        const std::string what = cat(backend.name, ", ", one.name, ", step ", step);
        const StepResult want = run(plain, nullptr), got = run(replayed, &graph);
        EXPECT_EQ(want.rejected, step == 4) << what;
        EXPECT_EQ(got.rejected, want.rejected) << what;
        EXPECT_EQ(got.loss, want.loss) << what;
        EXPECT_EQ(got.aux_loss, want.aux_loss) << what;
        EXPECT_EQ(got.grad_norm, want.grad_norm) << what;
        EXPECT_TRUE(at::equal(got.counts, want.counts)) << what;
        num_launches += graph.is_recorded();
      }
      EXPECT_EQ(replayed.model.expert_stats().rows, plain.model.expert_stats().rows);
      EXPECT_EQ(replayed.model.expert_stats().calls, plain.model.expert_stats().calls);
      // Steps 1 to 5 and 8; the others read on the host or count dropped rows on the card.
      const bool is_replayed = backend.name == "fused" || backend.name == "grouped_mm";
      EXPECT_EQ(num_launches, is_replayed ? 6 : 0) << backend.name;
      EXPECT_EQ(num_warnings, 0);
      expect_same_weights(plain, replayed, cat(backend.name, ", ", one.name));
    }
  }
}

// Of the largest gradient of a tensor: fp32 sums in two orders differ by far less, a wrong row by
// far more.
constexpr double kTolerance = 1e-4;

TEST_F(CudaStep, HasTheGradientsOfTheCpu) {
  for (const nn::ExpertBackend& backend : nn::expert_backends()) {
    for (const Case& one : cases()) {
      nn::ModelConfig config = model_config(std::string(backend.name), one.is_latent);
      config.activation_checkpoint = one.checkpoint;
      config.moe.experts.capacity_factor = 1e9;
      const nn::ExpertProblem problem = {nn::DeviceKind::kCuda, 90, at::kFloat, 64, 24, 5, false};
      if (!backend.supports(problem).empty()) continue;
      Trainer on_cpu(config, at::kCPU, at::kFloat), on_card(config, device, at::kFloat);
      const StepBatch batch = some_step(one.documents);
      const train::RunConfig unclipped = run_config(0);  // on the CPU clipped gradients are kept
      const StepResult want = on_cpu.step(batch, unclipped), got = on_card.step(batch, unclipped);
      const std::string what = std::string(backend.name) + ", " + one.name;
      EXPECT_NEAR(got.loss, want.loss, 1e-5 * want.loss) << what;
      EXPECT_NEAR(got.aux_loss, want.aux_loss, 1e-5 * want.aux_loss) << what;
      EXPECT_NEAR(got.z_loss, want.z_loss, 1e-5 * want.z_loss) << what;
      EXPECT_NEAR(got.grad_norm, want.grad_norm, kTolerance * want.grad_norm) << what;
      EXPECT_TRUE(at::equal(got.counts, want.counts)) << what;
      const auto& parameters = on_cpu.model.store().parameters();
      const auto& others = on_card.model.store().parameters();
      for (size_t i = 0; i < parameters.size(); ++i) {
        const at::Tensor& exact = parameters[i]->grad;
        const double size = exact.abs().max().item<double>();
        ASSERT_GT(size, 0.0) << parameters[i]->name;
        const double error = (others[i]->grad.cpu() - exact).abs().max().item<double>();
        EXPECT_LE(error, kTolerance * size) << parameters[i]->name << ", " << what;
      }
    }
  }
}

}  // namespace
}  // namespace amoeba::test
