#include "nn/sdpa.h"

#include <ATen/SDPBackend.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include "amoeba/error.h"
#include "nn/cpu_attention/attention.h"

namespace amoeba::nn {

namespace {

// [rows*length, heads, hd] -> [rows, heads, length, hd] without a copy.
at::Tensor to_heads(const at::Tensor& x, int64_t rows, int64_t length) {
  return x.unflatten(0, {rows, length}).transpose(1, 2);
}

// All [rows, heads, length, width] -> [rows*length, heads*value_dim]
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t value_dim,
                  double scale, bool is_causal) {
  at::Tensor y = at::scaled_dot_product_attention(q, k, v, /*attn_mask=*/{}, /*dropout_p=*/0.0,
                                                  is_causal, scale,
                                                  /*enable_gqa=*/q.size(1) != k.size(1));
  if (y.size(3) != value_dim) y = y.narrow(3, 0, value_dim);
  return y.transpose(1, 2).reshape({q.size(0) * q.size(2), q.size(1) * value_dim});
}

at::Tensor attend_rows(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       int64_t value_dim, double scale, int64_t rows, int64_t length) {
  return attend(to_heads(q, rows, length), to_heads(k, rows, length), to_heads(v, rows, length),
                value_dim, scale, /*is_causal=*/true);
}

// Generation: T new tokens of one sequence against everything cached.
at::Tensor attend_cached(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         int64_t value_dim, double scale, KvCache& cache) {
  const int64_t tokens = q.size(0);
  AMOEBA_CHECK(cache.length == 0 || tokens == 1, "attention: got ", tokens,
               " tokens on a cache of ", cache.length,
               ", want the whole prompt first and then one token a call");
  AMOEBA_CHECK(cache.length + tokens <= cache.keys.size(2), "attention: the cache holds ",
               cache.keys.size(2), " positions, want ", cache.length + tokens);
  cache.keys.narrow(2, cache.length, tokens).copy_(to_heads(k, 1, tokens));
  cache.values.narrow(2, cache.length, tokens)
      .copy_(to_heads(v, 1, tokens).narrow(3, 0, value_dim));
  cache.length += tokens;
  if (tokens == cache.length) return attend_rows(q, k, v, value_dim, scale, 1, tokens);
  return attend(to_heads(q, 1, tokens), cache.keys.narrow(2, 0, cache.length),
                cache.values.narrow(2, 0, cache.length), value_dim, scale, /*is_causal=*/false);
}

}  // namespace

std::vector<int64_t> document_lengths(const SequenceLayout& layout) {
  if (layout.segments.empty()) {
    return std::vector<int64_t>(static_cast<size_t>(layout.batch_size), layout.seq_len);
  }
  std::vector<int64_t> lengths;
  lengths.reserve(layout.segments.size());
  int64_t next = 0;
  for (const Segment& segment : layout.segments) {
    const int64_t begin = segment.row * layout.seq_len + segment.begin;
    AMOEBA_CHECK(begin == next && segment.begin + segment.length <= layout.seq_len,
                 "attention: segment ", lengths.size(), " covers tokens ", begin, " to ",
                 begin + segment.length, ", want it to start at ", next, " and to end in its row");
    next = begin + segment.length;
    lengths.push_back(segment.length);
  }
  return lengths;
}

at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            int64_t value_dim, double scale, const SequenceLayout& layout,
                            KvCache* cache) {
  if (cache != nullptr) return attend_cached(q, k, v, value_dim, scale, *cache);
  if (const auto* kernels = cpu_attention::kernels_for(q, k, v)) {
    return cpu_attention::attend(*kernels, q, k, v, value_dim, scale, document_lengths(layout));
  }
  if (layout.segments.empty()) {
    return attend_rows(q, k, v, value_dim, scale, layout.batch_size, layout.seq_len);
  }
  const std::vector<int64_t> lengths = document_lengths(layout);
  // Split, not narrowed one by one: its backward is one concatenation.
  const auto qs = q.split_with_sizes(lengths), ks = k.split_with_sizes(lengths);
  const auto vs = v.split_with_sizes(lengths);
  std::vector<at::Tensor> pieces;
  pieces.reserve(lengths.size());
  for (size_t i = 0; i < lengths.size(); ++i) {
    pieces.push_back(attend_rows(qs[i], ks[i], vs[i], value_dim, scale, 1, lengths[i]));
  }
  return at::cat(pieces, 0);
}

int64_t value_width(const at::Tensor& q, int64_t value_dim) {
  if (cpu_attention::kernels_for(q, q, q) != nullptr) return value_dim;
  const at::Tensor heads = to_heads(q, 1, q.size(0));
  const auto kernel_at = [&](int64_t width) {
    return static_cast<at::SDPBackend>(at::_fused_sdp_choice(
        heads, heads, heads.narrow(3, 0, width), {}, /*dropout_p=*/0.0, /*is_causal=*/true));
  };
  const at::SDPBackend own = kernel_at(value_dim);
  if (own == at::SDPBackend::flash_attention || own == at::SDPBackend::cudnn_attention) {
    return value_dim;
  }
  return kernel_at(q.size(2)) == at::SDPBackend::flash_attention ? q.size(2) : value_dim;
}

}  // namespace amoeba::nn
