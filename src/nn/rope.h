// Rotary position embedding (Su et al., 2021) in the interleaved form: neighbouring pairs rotate.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace amoeba::nn {

// How a factor above 1 stretches the frequencies to longer sequences.
enum class RopeType {
  kYarn,    // each by its own share, and only where max_seq_len > original_seq_len
  kLinear,  // all divided by factor
  kLlama3,  // each by its own share
};

// Frequencies theta^(-2 i / head_dim), stretched where factor > 1.
struct RopeConfig {
  int64_t head_dim = 0;  // rotated width, even
  double theta = 10000.0;
  RopeType type = RopeType::kYarn;
  double factor = 1.0;
  double beta_fast = 32.0;  // rotations within original_seq_len above which a frequency is kept,
  double beta_slow = 1.0;   // and below which it is divided by factor; a ramp between
  int64_t original_seq_len = 4096;
  int64_t max_seq_len = 0;        // that the model is meant for; a table may hold fewer positions
  double attention_factor = 1.0;  // of cos and sin when stretched
  bool truncate = true;           // YaRN: the ramp starts and ends at whole pairs

  bool stretched() const {
    return factor > 1.0 && (type != RopeType::kYarn || max_seq_len > original_seq_len);
  }
};

// What YaRN multiplies the scale of latent attention by: (0.1 mscale ln(factor) + 1)^2 when
// stretched, else 1.
double yarn_scale_factor(const RopeConfig& config, double mscale);

// cos and sin of position * frequency i, when stretched times attention_factor, each
// [num_positions, head_dim / 2] fp32.
struct RopeTable {
  at::Tensor cos;
  at::Tensor sin;
};
RopeTable make_rope_table(const RopeConfig& config, int64_t num_positions, at::Device device);

// x [T, heads, width], positions [T] int64 within the table -> x with its last head_dim columns
// rotated and those before as they are, same shape and dtype.
at::Tensor rope(const at::Tensor& x, const RopeTable& table, const at::Tensor& positions);

// One head of 2 * half fp32 values for other loops of the CPU, by a row of the table. `direction` 1
// rotates, -1 rotates the other way: the backward of a rotation. y may be x.
void rotate_head(const float* x, const float* cos, const float* sin, float direction, float* y,
                 int64_t half);

// The row of the table for a token. Error(kUsage) for a position outside it.
int64_t rope_row(const RopeTable& table, const int64_t* positions, int64_t token);

}  // namespace amoeba::nn
