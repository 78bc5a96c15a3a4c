#include "support/kernels/cases.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <ostream>

#include "amoeba/error.h"
#include "base/rng.h"
#include "support/kernels/host_tensor.h"

namespace amoeba::test {
namespace {

using kernels::Activation;
using kernels::DType;
using kernels::GateUpLayout;
using kernels::Save;

struct Shape {
  const char* name;
  int64_t num_choices, model_dim, hidden_dim;
  std::vector<int64_t> counts;
  int64_t num_skipped = 0, num_bad = 0;
};

const Shape kShapes[] = {
    {"tile_edges", 2, 40, 24, {0, 1, 15, 16, 17, 0}, 1},
    {"block_edges", 3, 33, 18, {63, 64, 65}, 0},
    {"three_vectors", 2, 19, 35, {47, 48, 49, 1}, 3},
    {"dot_rows", 2, 70, 52, {1, 2, 3, 4, 5, 6, 7, 8, 9}, 1},
    {"odd_dims", 2, 7, 11, {14, 0, 13, 1, 12}, 0},
    {"one_feature", 2, 1, 1, {22, 0, 33}, 1},
    {"one_expert", 1, 48, 32, {37}, 0},
    {"every_expert", 4, 24, 40, {9, 9, 9, 9}, 0},
    {"one_hot_expert", 2, 36, 20, {0, 0, 151, 0, 0}, 3},
    {"zipf", 3, 34, 22, {80, 40, 26, 20, 16, 13, 11, 10}, 6},
    {"all_skipped", 2, 16, 8, {0, 0, 0}, 10},
    {"half_skipped", 2, 32, 48, {7, 12, 5}, 24},
    {"bad_ids", 3, 20, 28, {6, 11, 0, 9}, 4, 6},
    {"no_tokens", 2, 16, 24, {0, 0}, 0},
    {"no_experts", 2, 12, 20, {}, 6},
    {"one_row_each", 1, 130, 66, {1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 0},
    {"one_row", 3, 24, 50, {0, 1, 0}, 2},
    {"wide", 2, 272, 144, {5, 21, 2}, 0},
    {"many_experts", 2, 21, 13, {1, 0, 0, 2, 1, 0, 3, 0, 1, 1, 0, 0, 4, 0, 1, 0, 2}, 2},
};

uint64_t stream_of(const KernelCase& c, uint64_t field) {
  uint64_t stream = field;
  for (const char letter : c.name) stream = stream * 31 + static_cast<unsigned char>(letter);
  return stream;
}

class Random {
 public:
  explicit Random(uint64_t stream) : stream_(stream) {}
  double uniform() { return random_uniform(7, stream_, counter_++); }
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }
  bool chance(double probability) { return uniform() < probability; }
  int64_t below(int64_t size) {
    return static_cast<int64_t>(uniform() * static_cast<double>(size));
  }

 private:
  uint64_t stream_, counter_ = 0;
};

std::vector<int64_t> make_ids(const KernelCase& c) {
  Random random(stream_of(c, 1));
  std::vector<int64_t> ids;
  for (int64_t e = 0; e < c.num_experts(); ++e) {
    ids.insert(ids.end(), static_cast<size_t>(c.counts[static_cast<size_t>(e)]), e);
  }
  if (!c.has_slots) return ids;
  const int64_t bad[] = {-2, c.num_experts() + 1, 1 << 30};
  for (int64_t i = 0; i < c.num_bad; ++i) ids.push_back(bad[i % 3]);
  for (int64_t i = 0; static_cast<int64_t>(ids.size()) < c.num_rows(); ++i) {
    ids.push_back(i % 2 == 0 ? -1 : c.num_experts());
  }
  for (size_t i = ids.size(); i > 1; --i) {
    std::swap(ids[i - 1], ids[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
  }
  return ids;
}

// Fills every field of the values by its own stream: fill(random, count, field).
template <typename Fill>
KernelValues fill_values(const KernelCase& c, uint64_t draw, bool only_weights, const Fill& fill) {
  const int64_t t = c.num_tokens(), k = c.num_choices, d = c.model_dim, h = c.hidden_dim,
                e = c.num_experts();
  KernelValues values;
  values.ids = make_ids(c);
  const auto make = [&](std::vector<double> KernelValues::*field, uint64_t stream, int64_t count) {
    Random random(stream_of(c, stream + 16 * draw));
    values.*field = fill(random, static_cast<size_t>(count), field);
  };
  if (!only_weights) {
    make(&KernelValues::x, 2, t * d);
    make(&KernelValues::dy, 3, t * d);
    if (c.has_slots && c.has_scores) make(&KernelValues::scores, 4, t * k);
  }
  make(&KernelValues::gate, 5, e * h * d);
  make(&KernelValues::up, 6, e * h * d);
  make(&KernelValues::down, 7, e * d * h);
  if (c.has_biases) {
    make(&KernelValues::gate_bias, 8, e * h);
    make(&KernelValues::up_bias, 9, e * h);
    make(&KernelValues::down_bias, 10, e * d);
  }
  return values;
}

std::vector<KernelCase> make_cases() {
  std::vector<KernelCase> cases;
  size_t index = 0;
  for (const Shape& shape : kShapes) {
    for (const GateUpLayout layout :
         {GateUpLayout::kSeparate, GateUpLayout::kConcatenated, GateUpLayout::kInterleaved}) {
      for (const bool transposed : {false, true}) {
        for (int round = 0; round < 4; ++round, ++index) {
          KernelCase c;
          c.name = cat(shape.name, "_", index);
          c.num_choices = shape.num_choices;
          c.model_dim = shape.model_dim;
          c.hidden_dim = shape.hidden_dim;
          c.counts = shape.counts;
          c.num_skipped = shape.num_skipped;
          c.options.layout = layout;
          c.options.transposed = transposed;
          c.has_slots = index % 5 != 3;
          c.num_bad = c.has_slots ? shape.num_bad : 0;
          // Each option by its own hash of the index: every pair of options appears.
          const auto bit = [&](uint64_t option) { return random_bits(11, option, index) % 2 == 0; };
          c.has_scores = random_bits(11, 0, index) % 4 != 0;
          c.has_biases = bit(1);
          c.is_padded = bit(2);
          c.has_wide_ids = bit(3);
          c.has_typed_scores = bit(4);
          c.options.score_before = c.has_slots && c.has_scores && bit(5);
          c.options.activation = bit(6) ? Activation::kSwiglu : Activation::kSwigluClamped;
          c.options.save = bit(7) ? Save::kPreActivations : Save::kNothing;
          c.gradients = static_cast<Gradients>(random_bits(11, 8, index) % 3);
          cases.push_back(c);
        }
      }
    }
  }
  return cases;
}

}  // namespace

int64_t KernelCase::num_sorted() const {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

int64_t KernelCase::num_tokens() const {
  const int64_t num_slots = num_sorted() + num_skipped + num_bad;
  return has_slots ? (num_slots + num_choices - 1) / num_choices : num_slots;
}

DType KernelCase::score_dtype(DType dtype) const {
  if (dtype == DType::kF64) return DType::kF64;
  return has_typed_scores && dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

DType KernelCase::gradient_dtype(DType dtype) const {
  const bool is_fp32 =
      gradients == Gradients::kAccumulateFp32 || gradients == Gradients::kOverwriteFp32;
  return is_fp32 && dtype != DType::kF64 ? DType::kF32 : dtype;
}

std::string KernelCase::text() const {
  std::string list;
  for (const int64_t count : counts) list += cat(list.empty() ? "" : " ", count);
  return cat(name, ": T ", num_tokens(), ", K ", num_choices, ", D ", model_dim, ", H ", hidden_dim,
             ", counts [", list, "], skipped ", num_skipped, ", bad ", num_bad, ", layout ",
             static_cast<int>(options.layout), ", transposed ", options.transposed, ", activation ",
             static_cast<int>(options.activation), ", score_before ", options.score_before,
             ", save ", static_cast<int>(options.save), ", slots ", has_slots, ", scores ",
             has_scores, ", biases ", has_biases, ", padded ", is_padded, ", gradients ",
             static_cast<int>(gradients));
}

std::ostream& operator<<(std::ostream& out, const KernelCase& kernel_case) {
  return out << kernel_case.text();
}

const std::vector<KernelCase>& kernel_cases() {
  static const std::vector<KernelCase> cases = make_cases();
  return cases;
}

const std::vector<KernelCase>& exact_cases() {
  static const std::vector<KernelCase> cases = [] {
    std::vector<KernelCase> exact;
    for (const KernelCase& c : kernel_cases()) {
      if (c.options.activation == Activation::kSwiglu) exact.push_back(c);
    }
    return exact;
  }();
  return cases;
}

KernelValues make_values(const KernelCase& c, DType dtype, uint64_t draw) {
  return fill_values(c, draw, false, [&](Random& random, size_t count, auto field) {
    const bool is_scores = field == &KernelValues::scores;
    // Pre-activations and outputs of about 1 in every shape: no row dwarfs the others.
    double scale = 1;
    if (field == &KernelValues::gate || field == &KernelValues::up) {
      scale = 1 / std::sqrt(static_cast<double>(c.model_dim));
    } else if (field == &KernelValues::down) {
      scale = 1 / std::sqrt(static_cast<double>(c.hidden_dim));
    } else if (field != &KernelValues::x && field != &KernelValues::dy) {
      scale = 0.3;
    }
    std::vector<double> values(count);
    for (double& value : values) {
      value = is_scores ? round_to(c.score_dtype(dtype), 0.1 + random.uniform())
                        : round_to(dtype, scale * random.normal());
    }
    return values;
  });
}

KernelValues make_exact_values(const KernelCase& c, double density) {
  const double model = static_cast<double>(c.model_dim) / density;
  const double hidden = static_cast<double>(c.hidden_dim) / density;
  return fill_values(c, 0, false, [&](Random& random, size_t count, auto field) {
    std::vector<double> values(count);
    for (size_t i = 0; i < count; ++i) {
      const bool is_first = i % static_cast<size_t>(c.model_dim) == 0;  // column 0 feeds the gate
      double& value = values[i];
      if (field == &KernelValues::x) {
        value = random.chance(is_first ? 0.5 : std::min(0.5, 3 / model)) ? 1 : 0;
      } else if (field == &KernelValues::dy) {
        value = random.chance(std::min(0.5, 3 / model)) ? (random.chance(0.5) ? 1 : -1) : 0;
      } else if (field == &KernelValues::scores) {
        const double powers[] = {1, 2, c.options.score_before ? 1 : 0.5};
        value = powers[random.below(3)];
      } else if (field == &KernelValues::gate) {
        value = is_first && random.chance(std::min(0.5, 3 / hidden)) ? 32 : 0;
      } else if (field == &KernelValues::up) {
        value = random.chance(std::min(0.3, 5 / hidden)) ? 1 : 0;
      } else if (field == &KernelValues::down) {
        value = random.chance(std::min(0.5, 3 / hidden)) ? 1 : 0;
      } else if (field == &KernelValues::gate_bias) {
        value = random.chance(std::min(0.2, 1 / hidden)) ? 32 : 0;
      } else {
        value = random.chance(0.1) ? 1 : 0;
      }
    }
    return values;
  });
}

KernelValues make_previous(const KernelCase& c, DType dtype) {
  return fill_values(c, 0, true, [&](Random& random, size_t count, auto) {
    std::vector<double> values(count);
    for (double& value : values) {
      value = round_to(dtype, static_cast<double>(random.below(9)) - 4);
    }
    return values;
  });
}

}  // namespace amoeba::test
