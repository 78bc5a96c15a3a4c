#include "nn/sdpa.h"

#include <ATen/SDPBackend.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <optional>

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
                  double scale, const std::optional<at::Tensor>& mask, bool is_causal) {
  at::Tensor y = at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0, is_causal,
                                                  scale, /*enable_gqa=*/q.size(1) != k.size(1));
  if (y.size(3) != value_dim) y = y.narrow(3, 0, value_dim);
  return y.transpose(1, 2).reshape({q.size(0) * q.size(2), q.size(1) * value_dim});
}

// What the last `tokens` of `total` positions see: [tokens, total] bool.
at::Tensor visible(int64_t tokens, int64_t total, int64_t window, at::Device device) {
  const at::Tensor position = at::arange(total, at::TensorOptions(at::kLong).device(device));
  const at::Tensor query = position.narrow(0, total - tokens, tokens).unsqueeze(1);
  const at::Tensor past = position.le(query);
  return window == 0 ? past : past.logical_and(position.gt(query - window));
}

at::Tensor attend_rows(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       int64_t value_dim, double scale, int64_t rows, int64_t length,
                       int64_t window) {
  std::optional<at::Tensor> mask;
  if (is_cut(window, length)) mask = visible(length, length, window, q.device());
  return attend(to_heads(q, rows, length), to_heads(k, rows, length), to_heads(v, rows, length),
                value_dim, scale, mask, /*is_causal=*/!mask);
}

// Generation: S new tokens of one sequence against everything its row holds.
at::Tensor attend_cached_row(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             int64_t value_dim, double scale, KvCache& cache, int64_t row,
                             int64_t window) {
  const int64_t tokens = q.size(0), before = cache.lengths[static_cast<size_t>(row)];
  const int64_t total = before + tokens;
  AMOEBA_CHECK(total <= cache.keys.size(2), "attention: the cache holds ", cache.keys.size(2),
               " positions, want ", total);
  const at::Tensor keys = cache.keys.narrow(0, row, 1), values = cache.values.narrow(0, row, 1);
  keys.narrow(2, before, tokens).copy_(to_heads(k, 1, tokens));
  values.narrow(2, before, tokens).copy_(to_heads(v, 1, tokens).narrow(3, 0, value_dim));
  cache.lengths[static_cast<size_t>(row)] = total;
  if (before == 0) return attend_rows(q, k, v, value_dim, scale, 1, tokens, window);
  std::optional<at::Tensor> mask;  // one token without a window sees all
  if (tokens > 1 || is_cut(window, total)) {
    mask = visible(tokens, total, window, q.device());
  }
  return attend(to_heads(q, 1, tokens), keys.narrow(2, 0, total), values.narrow(2, 0, total),
                value_dim, scale, mask, /*is_causal=*/false);
}

// Each sequence on its own, so that its numbers do not depend on the others.
at::Tensor attend_cached(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         int64_t value_dim, double scale, const SequenceLayout& layout,
                         KvCache& cache, int64_t window) {
  const int64_t length = layout.seq_len, num_rows = cache.keys.size(0);
  AMOEBA_CHECK(layout.segments.empty(), "attention: got ", layout.segments.size(),
               " segments with a cache, want none");
  const auto size = layout.cache_rows.empty() ? layout.batch_size
                                              : static_cast<int64_t>(layout.cache_rows.size());
  AMOEBA_CHECK(size == layout.batch_size, "attention: got ", size, " cache rows for ",
               layout.batch_size, " sequences");
  std::vector<at::Tensor> pieces;
  for (int64_t b = 0; b < size; ++b) {
    const int64_t row = layout.cache_rows.empty() ? b : layout.cache_rows[static_cast<size_t>(b)];
    AMOEBA_CHECK(row >= 0 && row < num_rows, "attention: cache row is ", row, ", want 0 to ",
                 num_rows - 1);
    pieces.push_back(
        attend_cached_row(q.narrow(0, b * length, length), k.narrow(0, b * length, length),
                          v.narrow(0, b * length, length), value_dim, scale, cache, row, window));
  }
  return pieces.size() == 1 ? pieces[0] : at::cat(pieces);
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
                            KvCache* cache, int64_t window) {
  if (cache != nullptr) return attend_cached(q, k, v, value_dim, scale, layout, *cache, window);
  const auto* kernels =
      is_cut(window, layout.seq_len) ? nullptr : cpu_attention::kernels_for(q, k, v);
  if (kernels != nullptr) {
    return cpu_attention::attend(*kernels, q, k, v, value_dim, scale, document_lengths(layout));
  }
  if (layout.segments.empty()) {
    return attend_rows(q, k, v, value_dim, scale, layout.batch_size, layout.seq_len, window);
  }
  const std::vector<int64_t> lengths = document_lengths(layout);
  // Split, not narrowed one by one: its backward is one concatenation.
  const auto qs = q.split_with_sizes(lengths), ks = k.split_with_sizes(lengths);
  const auto vs = v.split_with_sizes(lengths);
  std::vector<at::Tensor> pieces;
  pieces.reserve(lengths.size());
  for (size_t i = 0; i < lengths.size(); ++i) {
    pieces.push_back(attend_rows(qs[i], ks[i], vs[i], value_dim, scale, 1, lengths[i], window));
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
