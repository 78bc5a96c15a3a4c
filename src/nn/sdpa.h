// Scaled dot-product attention over the documents of a batch, shared by every kind of attention.
//
// Legend: B sequences, S tokens each, T = B*S, hd width of a query or key head.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace amoeba::nn {

// One document's stretch inside a row of the batch.
struct Segment {
  int64_t row = 0;
  int64_t begin = 0;
  int64_t length = 0;
};

// How the T = B*S tokens of a batch hang together; tokens of row b are b*S .. b*S+S-1.
struct SequenceLayout {
  int64_t batch_size = 0;                // B
  int64_t seq_len = 0;                   // S
  at::Tensor positions;                  // [T] int64, restarting at each document
  std::vector<Segment> segments;         // in order, covering every row; empty: one document a row
  std::vector<int64_t> cache_rows = {};  // [B] with a cache: its rows, each once; empty: 0 .. B-1
};

// Lengths of the documents, in order. Error(kUsage) unless they follow one another without a gap.
std::vector<int64_t> document_lengths(const SequenceLayout& layout);

// Keys and values of the tokens so far of several sequences, one a row, for generation.
struct KvCache {
  at::Tensor keys;               // [rows, kv heads, max positions, hd]
  at::Tensor values;             // [rows, kv heads, max positions, value_dim]
  std::vector<int64_t> lengths;  // [rows] positions in use; a smaller number forgets the last ones
};

// Whether the last of `length` tokens sees fewer than all; a window of 0 is none.
inline bool is_cut(int64_t window, int64_t length) { return window > 0 && window < length; }

// softmax(scale q k^T) v, causal within each document: q [T, heads, hd], k [T, kv heads, hd],
// v [T, kv heads, width] -> [T, heads * value_dim], kv heads dividing heads. Columns of v past
// value_dim are padding: zeros, left out of the result; see value_width. With a cache: appends the
// S tokens of each sequence to its row, and attends to all that the row holds up to each token.
// `window`: tokens that a token sees at most, itself included; 0: no limit. A document longer than
// the window costs a mask of its length squared.
at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            int64_t value_dim, double scale, const SequenceLayout& layout,
                            KvCache* cache, int64_t window = 0);

// The width at which values of value_dim <= hd columns had best reach causal_attention: their own
// where LibTorch has a good kernel for it, hd where only padding selects the flash kernel. On the
// CPU the alternative is an S x S matrix; see docs/models.md. q [T, heads, hd], keys like it.
int64_t value_width(const at::Tensor& q, int64_t value_dim);

}  // namespace amoeba::nn
