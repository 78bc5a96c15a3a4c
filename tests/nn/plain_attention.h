// Attention written from its definition, piece by piece, on whole [T, T] score matrices.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "nn/attention_config.h"
#include "nn/rope.h"
#include "nn/sdpa.h"

namespace amoeba::test {

// Batches of the attention tests.
inline constexpr int64_t kRows = 2, kLength = 9;
inline const std::vector<nn::Segment> kDocuments = {{0, 0, 4}, {0, 4, 5}, {1, 0, 9}};
inline const std::vector<nn::Segment> kShortDocuments = {
    {0, 0, 1}, {0, 1, 8}, {1, 0, 8}, {1, 8, 1}};

// kRows sequences of kLength tokens; positions restart where a document starts.
inline nn::SequenceLayout layout_of(const std::vector<nn::Segment>& segments) {
  at::Tensor positions = at::arange(kLength, at::kLong).repeat({kRows});
  for (const nn::Segment& segment : segments) {
    positions.narrow(0, segment.row * kLength + segment.begin, segment.length)
        .copy_(at::arange(segment.length, at::kLong));
  }
  return {kRows, kLength, positions, segments};
}

// [T, T] true where a token must not look: another row or document, later, or `window` tokens back.
inline at::Tensor invisible(const nn::SequenceLayout& layout, int64_t window) {
  std::vector<nn::Segment> all = layout.segments;
  for (int64_t row = 0; layout.segments.empty() && row < layout.batch_size; ++row) {
    all.push_back({row, 0, layout.seq_len});
  }
  const int64_t tokens = layout.batch_size * layout.seq_len;
  at::Tensor mask = at::ones({tokens, tokens}, at::kBool);
  for (const nn::Segment& segment : all) {
    const int64_t begin = segment.row * layout.seq_len + segment.begin;
    mask.narrow(0, begin, segment.length)
        .narrow(1, begin, segment.length)
        .copy_(at::ones({segment.length, segment.length}, at::kBool).triu(1));
    for (int64_t i = window; window > 0 && i < segment.length; ++i) {
      mask[begin + i].narrow(0, begin, i - window + 1).fill_(true);
    }
  }
  return mask;
}

inline bool plain_is_yarn(const nn::RopeConfig& config) {
  return config.type == nn::RopeType::kYarn && config.factor > 1 &&
         config.max_seq_len > config.original_seq_len;
}

// One frequency by the branches of Llama 3.1's apply_scaling, over wave lengths.
inline double plain_llama3(const nn::RopeConfig& config, double frequency) {
  const double length = static_cast<double>(config.original_seq_len);
  const double wave = 2 * M_PI / frequency;
  if (wave < length / config.beta_fast) return frequency;
  if (wave > length / config.beta_slow) return frequency / config.factor;
  const double smooth = (length / wave - config.beta_slow) / (config.beta_fast - config.beta_slow);
  return (1 - smooth) * frequency / config.factor + smooth * frequency;
}

// Radians a position of each pair, of YaRN by the scalar formulas of DeepSeek-V2's inference code.
inline std::vector<double> plain_frequencies(const nn::RopeConfig& config) {
  const auto dim = static_cast<double>(config.head_dim);
  const auto pair_at = [&](double rotations) {
    const double length = static_cast<double>(config.original_seq_len);
    return dim * std::log(length / (rotations * 2 * M_PI)) / (2 * std::log(config.theta));
  };
  const auto whole = [&](double pair, double (*rounded)(double)) {
    return config.truncate ? rounded(pair) : pair;
  };
  const double low = std::max(0.0, whole(pair_at(config.beta_fast), std::floor));
  double high = std::min(dim - 1, whole(pair_at(config.beta_slow), std::ceil));
  if (low == high) high += 0.001;
  std::vector<double> out;
  for (int64_t pair = 0; pair < config.head_dim / 2; ++pair) {
    const double index = static_cast<double>(pair);
    const double frequency = 1.0 / std::pow(config.theta, 2 * index / dim);
    const double smooth = 1.0 - std::clamp((index - low) / (high - low), 0.0, 1.0);
    if (config.type == nn::RopeType::kLinear) {
      out.push_back(frequency / config.factor);
    } else if (config.type == nn::RopeType::kLlama3) {
      out.push_back(plain_llama3(config, frequency));
    } else {
      out.push_back(plain_is_yarn(config)
                        ? frequency / config.factor * (1 - smooth) + frequency * smooth
                        : frequency);
    }
  }
  return out;
}

// What every cosine and sine is multiplied by.
inline double plain_attention_factor(const nn::RopeConfig& config) {
  return plain_is_yarn(config) ? config.attention_factor : 1.0;
}

// y [T, heads, width]: interleaved pairs of the last columns turn, those before stay.
inline at::Tensor plain_rotate(const at::Tensor& y, const nn::RopeConfig& config,
                               const at::Tensor& positions) {
  const at::ScalarType dtype = y.scalar_type();
  const int64_t fixed = y.size(2) - config.head_dim;
  std::vector<at::Tensor> columns;
  for (int64_t i = 0; i < fixed; ++i) columns.push_back(y.select(2, i));
  const std::vector<double> frequencies = plain_frequencies(config);
  const double factor = plain_attention_factor(config);
  for (size_t pair = 0; pair < frequencies.size(); ++pair) {
    const at::Tensor angle = positions.to(at::kDouble) * frequencies[pair];
    const at::Tensor cos = (factor * angle.cos()).to(dtype).unsqueeze(1);
    const at::Tensor sin = (factor * angle.sin()).to(dtype).unsqueeze(1);
    const at::Tensor a = y.select(2, fixed + 2 * static_cast<int64_t>(pair));
    const at::Tensor b = y.select(2, fixed + 2 * static_cast<int64_t>(pair) + 1);
    columns.push_back(a * cos - b * sin);
    columns.push_back(a * sin + b * cos);
  }
  return at::stack(columns, 2);
}

inline at::Tensor plain_norm(const at::Tensor& x, const at::Tensor& weight) {
  return x * (x.square().mean(-1, true) + 1e-5).rsqrt() * weight;
}

// x [T, I], weight [heads*width, I] -> [T, heads, width]
inline at::Tensor plain_heads(const at::Tensor& x, const at::Tensor& weight, int64_t heads) {
  return at::mm(x, weight.t()).view({x.size(0), heads, -1});
}

// q [T, heads, hd], k [T, kv heads, hd], v [T, kv heads, v] -> [T, heads*v]
inline at::Tensor plain_product(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                double scale, const nn::SequenceLayout& layout,
                                int64_t window = 0) {
  const at::Tensor hidden = invisible(layout, window);
  const int64_t group = q.size(1) / k.size(1);
  std::vector<at::Tensor> heads;
  for (int64_t head = 0; head < q.size(1); ++head) {
    const at::Tensor scores = at::mm(q.select(1, head), k.select(1, head / group).t()) * scale;
    heads.push_back(at::mm(
        at::softmax(scores.masked_fill(hidden, -std::numeric_limits<double>::infinity()), -1),
        v.select(1, head / group)));
  }
  return at::cat(heads, 1);
}

inline void collect_names(torch::autograd::Node* node, std::set<std::string>& names) {
  if (node == nullptr || !names.insert(node->name()).second) return;
  for (const torch::autograd::Edge& edge : node->next_edges()) {
    collect_names(edge.function.get(), names);
  }
}

// Which attention ran, by the name of the backward that it left behind.
inline bool ran(const char* part, const at::Tensor& y) {
  std::set<std::string> names;
  collect_names(y.grad_fn().get(), names);
  for (const std::string& name : names) {
    if (name.find(part) != std::string::npos) return true;
  }
  return false;
}
inline bool ran_flash(const at::Tensor& y) { return ran("FlashAttention", y); }
inline bool ran_own_kernels(const at::Tensor& y) { return ran("CausalAttention", y); }

// Both attentions of x [T, D]. Weights are read from `in` at `next` on, in the order of
// declaration.
inline at::Tensor plain_grouped(const at::Tensor& x, const std::vector<at::Tensor>& in, size_t next,
                                const nn::AttentionConfig& config,
                                const nn::SequenceLayout& layout) {
  at::Tensor q = plain_heads(x, in[next], config.num_heads);
  at::Tensor k = plain_heads(x, in[next + 1], config.num_kv_heads);
  const at::Tensor v = plain_heads(x, in[next + 2], config.num_kv_heads);
  if (config.qk_norm && config.qk_norm_whole) {
    q = plain_norm(q.flatten(1), in[next + 4]).view_as(q);
    k = plain_norm(k.flatten(1), in[next + 5]).view_as(k);
  } else if (config.qk_norm) {
    q = plain_norm(q, in[next + 4]);
    k = plain_norm(k, in[next + 5]);
  }
  const at::Tensor y = plain_product(plain_rotate(q, config.rope, layout.positions),
                                     plain_rotate(k, config.rope, layout.positions), v,
                                     1 / std::sqrt(static_cast<double>(config.head_dim)), layout,
                                     config.sliding_window);
  return at::mm(y, in[next + 3].t());
}

inline at::Tensor plain_latent(const at::Tensor& x, const std::vector<at::Tensor>& in, size_t next,
                               const nn::AttentionConfig& config,
                               const nn::SequenceLayout& layout) {
  const nn::MlaConfig& mla = *config.mla;
  const int64_t heads = config.num_heads, nope = mla.qk_nope_head_dim, rope = mla.qk_rope_head_dim;
  at::Tensor q;
  if (mla.q_lora_rank == 0) {
    q = plain_heads(x, in[next++], heads);
  } else {
    q = plain_heads(plain_norm(at::mm(x, in[next].t()), in[next + 1]), in[next + 2], heads);
    next += 3;
  }
  const at::Tensor down = at::mm(x, in[next++].t());  // [T, latent + rope]
  const at::Tensor latent = plain_norm(down.narrow(1, 0, mla.kv_lora_rank), in[next++]);
  const at::Tensor up = plain_heads(latent, in[next++], heads);  // [T, heads, nope + v]
  const at::Tensor shared = plain_rotate(down.narrow(1, mla.kv_lora_rank, rope).unsqueeze(1),
                                         config.rope, layout.positions);
  const at::Tensor k = at::cat({up.narrow(2, 0, nope), shared.expand({-1, heads, rope})}, 2);
  const double stretch = plain_is_yarn(config.rope)
                             ? 0.1 * config.yarn_mscale * std::log(config.rope.factor) + 1
                             : 1.0;
  const at::Tensor y = plain_product(
      plain_rotate(q, config.rope, layout.positions), k, up.narrow(2, nope, mla.v_head_dim),
      stretch * stretch / std::sqrt(static_cast<double>(nope + rope)), layout);
  return at::mm(y, in[next].t());
}

}  // namespace amoeba::test
