#include "train/generate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/from_blob.h>

#include <cmath>
#include <vector>

#include "amoeba/error.h"
#include "base/rng.h"

namespace amoeba::train {

namespace {

constexpr uint64_t kSampleStream = 0x73616d706c65;  // "sample"

// Runs `tokens` behind what the caches hold; logits [V] of the last one, on the CPU in fp64.
at::Tensor next_logits(nn::Model& model, const std::vector<int32_t>& tokens,
                       std::vector<nn::KvCache>& caches) {
  const auto count = static_cast<int64_t>(tokens.size());
  nn::ModelInput input;
  input.tokens =
      at::from_blob(const_cast<int32_t*>(tokens.data()), {count}, at::TensorOptions(at::kInt))
          .to(at::kLong)
          .to(model.device());
  input.layout.batch_size = 1;
  input.layout.seq_len = count;
  input.layout.positions =
      at::arange(caches[0].length, caches[0].length + count, input.tokens.options());
  const at::Tensor hidden = model.forward(input, &caches).hidden;
  return model.logits(hidden.narrow(0, count - 1, 1)).squeeze(0).to(at::kCPU).to(at::kDouble);
}

// Inverse transform over the first `vocab_size` logits; the rest are padding of the vocabulary.
int32_t sample(const at::Tensor& logits, int64_t vocab_size, double temperature, double uniform) {
  const double* values = logits.const_data_ptr<double>();
  int64_t best = 0;
  for (int64_t v = 1; v < vocab_size; ++v) {
    if (values[v] > values[best]) best = v;
  }
  if (temperature == 0.0) return static_cast<int32_t>(best);
  double total = 0.0;
  std::vector<double> cumulative(static_cast<size_t>(vocab_size));
  for (int64_t v = 0; v < vocab_size; ++v) {
    total += std::exp((values[v] - values[best]) / temperature);
    cumulative[static_cast<size_t>(v)] = total;
  }
  for (int64_t v = 0; v < vocab_size; ++v) {
    if (uniform * total < cumulative[static_cast<size_t>(v)]) return static_cast<int32_t>(v);
  }
  return static_cast<int32_t>(best);
}

}  // namespace

Generated generate(nn::Model& model, const formats::Tokenizer& tokenizer, std::string_view prompt,
                   const GenerateOptions& options) {
  AMOEBA_CHECK(options.context >= 2, "generate: context is ", options.context, ", want at least 2");
  AMOEBA_CHECK(options.temperature >= 0 && std::isfinite(options.temperature),
               "generate: temperature is ", options.temperature, ", want a number >= 0");
  std::vector<int32_t> pending = tokenizer.encode_prompt(prompt);
  AMOEBA_CHECK(!pending.empty(), "generate: the prompt is empty, want at least one character");
  const auto context = static_cast<size_t>(options.context);
  const at::NoGradGuard no_grad;
  std::vector<nn::KvCache> caches = model.make_caches(options.context);
  std::vector<int32_t> seen;  // what the caches hold
  if (pending.size() > context) {
    pending.erase(pending.begin(), pending.end() - static_cast<std::ptrdiff_t>(context));
  }
  Generated out;
  while (out.num_tokens < options.num_tokens && !(options.stop && options.stop())) {
    if (seen.size() + pending.size() > context) {
      seen.insert(seen.end(), pending.begin(), pending.end());
      pending.assign(seen.end() - static_cast<std::ptrdiff_t>(context / 2), seen.end());
      seen.clear();
      for (nn::KvCache& cache : caches) cache.length = 0;
    }
    const at::Tensor logits = next_logits(model, pending, caches);
    seen.insert(seen.end(), pending.begin(), pending.end());
    const double uniform =
        random_uniform(options.seed, kSampleStream, static_cast<uint64_t>(out.num_tokens));
    const int32_t token = sample(logits, tokenizer.vocab_size(), options.temperature, uniform);
    ++out.num_tokens;
    if (token == tokenizer.end_of_document()) break;
    pending = {token};
    const std::string_view piece = tokenizer.token_text(token);
    if (options.on_text) options.on_text(piece);
    out.text += piece;
  }
  return out;
}

}  // namespace amoeba::train
