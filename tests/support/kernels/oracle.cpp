#include "support/kernels/oracle.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "amoeba/error.h"
#include "support/kernels/host_tensor.h"

namespace amoeba::test {
namespace {

using kernels::Activation;
using kernels::DType;

size_t index(int64_t value) { return static_cast<size_t>(value); }

int significant_bits(double value) {
  if (value == 0) return 0;
  uint64_t mantissa;
  std::memcpy(&mantissa, &value, sizeof mantissa);
  mantissa = (mantissa & ((uint64_t{1} << 52) - 1)) | (uint64_t{1} << 52);
  int bits = 53;
  for (; mantissa % 2 == 0; mantissa /= 2) --bits;
  return bits;
}

class Oracle {
 public:
  Oracle(const KernelCase& kernel_case, const KernelValues& values, const KernelValues& previous)
      : c_(kernel_case), v_(values) {
    const bool adds = c_.accumulates();
    const auto start = [&](const std::vector<double>& from) {
      return adds ? from : std::vector<double>(from.size(), 0.0);
    };
    r_.y.assign(v_.x.size(), 0.0);
    r_.dx.assign(v_.x.size(), 0.0);
    r_.dscores.assign(v_.scores.size(), 0.0);
    r_.dgate = start(previous.gate);
    r_.dup = start(previous.up);
    r_.ddown = start(previous.down);
    r_.dgate_bias = start(previous.gate_bias);
    r_.dup_bias = start(previous.up_bias);
    r_.ddown_bias = start(previous.down_bias);
  }

  OracleResults run() {
    const int64_t num_choices = c_.has_slots ? c_.num_choices : 1;
    for (int64_t slot = 0; slot < static_cast<int64_t>(v_.ids.size()); ++slot) {
      const int64_t id = v_.ids[index(slot)];
      if (id >= 0 && id < c_.num_experts()) add_slot(slot, slot / num_choices, id);
    }
    return {r_, bits_, clampable_};
  }

 private:
  double seen(double value) {
    bits_ = std::max(bits_, significant_bits(value));
    return value;
  }

  // One slot adds to y, dx, its dscore and the gradients of its expert.
  void add_slot(int64_t slot, int64_t t, int64_t e) {
    const int64_t D = c_.model_dim, H = c_.hidden_dim;
    const double score = v_.scores.empty() ? 1 : v_.scores[index(slot)];
    const double before = c_.options.score_before ? score : 1;
    const double after = c_.options.score_before ? 1 : score;
    std::vector<double> in(index(D)), out(index(D)), dout(index(D)), din(index(D));
    std::vector<double> a(index(H)), dg(index(H)), du(index(H));
    for (int64_t d = 0; d < D; ++d) {
      in[index(d)] = seen(before * v_.x[index(t * D + d)]);
      dout[index(d)] = seen(after * v_.dy[index(t * D + d)]);
    }
    for (int64_t h = 0; h < H; ++h) {
      double g = c_.has_biases ? v_.gate_bias[index(e * H + h)] : 0;
      double u = c_.has_biases ? v_.up_bias[index(e * H + h)] : 0;
      double da = 0;
      for (int64_t d = 0; d < D; ++d) {
        g += in[index(d)] * v_.gate[index((e * H + h) * D + d)];
        u += in[index(d)] * v_.up[index((e * H + h) * D + d)];
        da += dout[index(d)] * v_.down[index((e * D + d) * H + h)];
      }
      seen(g), seen(u), seen(da);
      clampable_.push_back(g);
      clampable_.push_back(std::fabs(u));
      double a_g, a_u;  // derivatives of a
      if (c_.options.activation == Activation::kSwiglu) {
        const double s = sigmoid(g);
        a[index(h)] = g * s * u;
        a_g = u * s * (1 + g * (1 - s));
        a_u = g * s;
      } else {
        const double limit = c_.options.limit, alpha = c_.options.alpha;
        const double gc = std::min(g, limit), uc = std::max(-limit, std::min(u, limit));
        const double s = 1 / (1 + std::exp(-alpha * gc));
        a[index(h)] = gc * s * (uc + 1);
        a_g = g <= limit ? (uc + 1) * s * (1 + alpha * gc * (1 - s)) : 0;
        a_u = u >= -limit && u <= limit ? gc * s : 0;
      }
      seen(a[index(h)]), seen(after * a[index(h)]);
      dg[index(h)] = seen(da * a_g);
      du[index(h)] = seen(da * a_u);
    }
    for (int64_t d = 0; d < D; ++d) {
      double row = c_.has_biases ? v_.down_bias[index(e * D + d)] : 0, back = 0;
      for (int64_t h = 0; h < H; ++h) {
        row += a[index(h)] * v_.down[index((e * D + d) * H + h)];
        back += dg[index(h)] * v_.gate[index((e * H + h) * D + d)] +
                du[index(h)] * v_.up[index((e * H + h) * D + d)];
      }
      out[index(d)] = seen(row);
      din[index(d)] = seen(back);
      r_.y[index(t * D + d)] += after * row;
      r_.dx[index(t * D + d)] += before * back;
    }
    add_gradients(slot, t, e, in, out, dout, din, a, dg, du);
  }

  void add_gradients(int64_t slot, int64_t t, int64_t e, const std::vector<double>& in,
                     const std::vector<double>& out, const std::vector<double>& dout,
                     const std::vector<double>& din, const std::vector<double>& a,
                     const std::vector<double>& dg, const std::vector<double>& du) {
    const int64_t D = c_.model_dim, H = c_.hidden_dim;
    for (int64_t d = 0; d < D; ++d) {
      if (!r_.dscores.empty()) {
        r_.dscores[index(slot)] += c_.options.score_before
                                       ? din[index(d)] * v_.x[index(t * D + d)]
                                       : v_.dy[index(t * D + d)] * out[index(d)];
      }
      for (int64_t h = 0; h < H; ++h) {
        r_.dgate[index((e * H + h) * D + d)] += dg[index(h)] * in[index(d)];
        r_.dup[index((e * H + h) * D + d)] += du[index(h)] * in[index(d)];
        r_.ddown[index((e * D + d) * H + h)] += dout[index(d)] * a[index(h)];
      }
      if (c_.has_biases) r_.ddown_bias[index(e * D + d)] += dout[index(d)];
    }
    for (int64_t h = 0; c_.has_biases && h < H; ++h) {
      r_.dgate_bias[index(e * H + h)] += dg[index(h)];
      r_.dup_bias[index(e * H + h)] += du[index(h)];
    }
  }

  // 1 in fp32 from 32 on, whose multiples appear in exact cases only.
  static double sigmoid(double g) {
    return g >= 32 && std::fmod(g, 32) == 0 ? 1 : 1 / (1 + std::exp(-g));
  }

  const KernelCase& c_;
  const KernelValues& v_;
  KernelResults r_;
  int bits_ = 0;
  std::vector<double> clampable_;
};

double largest(const double* values, int64_t count) {
  double result = 0;
  for (int64_t i = 0; i < count; ++i) result = std::max(result, std::fabs(values[i]));
  return result;
}

double largest_difference(const double* a, const double* b, int64_t count) {
  double result = 0;
  for (int64_t i = 0; i < count; ++i) result = std::max(result, std::fabs(a[i] - b[i]));
  return result;
}

bool all_finite(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); });
}

// Calls compare(tensor, actual, exact) for every tensor until one gives a message.
template <typename Compare>
std::string for_each_tensor(const KernelResults& actual, const KernelResults& exact,
                            const Compare& compare) {
  for (size_t i = 0; i < KernelResults::kCount; ++i) {
    const std::vector<double>&got = *actual.list()[i], &want = *exact.list()[i];
    std::string message;
    if (got.size() != want.size()) {
      message = cat("got ", got.size(), " elements, want ", want.size());
    } else if (!all_finite(got) || !all_finite(want)) {
      message = all_finite(want) ? "got NaN or infinity" : "the reference is not finite";
    } else {
      message = compare(i, got, want);
    }
    if (!message.empty()) return cat(KernelResults::kNames[i], ": ", message);
  }
  return "";
}

}  // namespace

std::array<const std::vector<double>*, KernelResults::kCount> KernelResults::list() const {
  return {&y, &dx, &dscores, &dgate, &dup, &ddown, &dgate_bias, &dup_bias, &ddown_bias};
}

OracleResults oracle_experts(const KernelCase& kernel_case, const KernelValues& values,
                             const KernelValues& previous) {
  return Oracle(kernel_case, values, previous).run();
}

KernelCase with_clear_limit(const KernelCase& kernel_case, const KernelValues& values) {
  KernelCase clear = kernel_case;
  if (clear.options.activation == Activation::kSwiglu) return clear;
  const KernelCase overwriting = [&] {
    KernelCase c = kernel_case;
    c.gradients = Gradients::kOverwrite;
    return c;
  }();
  std::vector<double> sizes = oracle_experts(overwriting, values, values).clampable;
  std::sort(sizes.rbegin(), sizes.rend());
  double widest = 0;
  for (size_t i = 0; i + 1 < std::min<size_t>(sizes.size(), 40) && sizes[i + 1] > 0; ++i) {
    if (sizes[i] - sizes[i + 1] <= widest) continue;
    widest = sizes[i] - sizes[i + 1];
    clear.options.limit = (sizes[i] + sizes[i + 1]) / 2;
  }
  return clear;
}

ExactProblem make_exact_problem(const KernelCase& kernel_case, const KernelValues& previous) {
  for (double density = 1; density > 0.05; density *= 0.8) {
    const KernelValues values = make_exact_values(kernel_case, density);
    const OracleResults exact = oracle_experts(kernel_case, values, previous);
    if (exact.intermediate_bits <= 8) return {values, exact.results};
  }
  fail(ErrorKind::kInternal, "no exact values for " + kernel_case.text());
}

std::array<DType, KernelResults::kCount> dtypes_of(const KernelCase& c, DType dtype) {
  const DType gradient = c.gradient_dtype(dtype);
  return {dtype,    dtype,   c.score_dtype(dtype), gradient, gradient, gradient, gradient,
          gradient, gradient};
}

std::array<int64_t, KernelResults::kCount> widths_of(const KernelCase& c) {
  const int64_t d = c.model_dim, h = c.hidden_dim;
  return {d, d, c.num_choices, d, d, h, h, h, d};
}

PlainErrors plain_errors(const KernelCase& kernel_case, const KernelResults& plain,
                         const KernelResults& exact) {
  PlainErrors errors{};
  const std::string message =
      for_each_tensor(plain, exact, [&](size_t tensor, const auto& simple, const auto& want) {
        const auto count = static_cast<int64_t>(want.size());
        errors[tensor] = largest_difference(simple.data(), want.data(), count);
        return std::string();
      });
  if (!message.empty()) fail(ErrorKind::kInternal, cat("plain ", message, " of ", kernel_case));
  return errors;
}

std::string compare_rows(const KernelCase& kernel_case, DType dtype, const KernelResults& actual,
                         const PlainErrors& plain, const KernelResults& exact) {
  return for_each_tensor(actual, exact, [&](size_t tensor, const auto& got, const auto& want) {
    const int64_t width = widths_of(kernel_case)[tensor];
    const DType output_dtype = dtypes_of(kernel_case, dtype)[tensor];
    const auto num_rows = static_cast<int64_t>(got.size()) / width;
    for (int64_t r = 0; r < num_rows; ++r) {
      const double size = largest(&want[index(r * width)], width);
      const double bound = size == 0 ? 0 : 2 * plain[tensor] + 2 * ulp_of(output_dtype, size);
      const double error =
          largest_difference(&got[index(r * width)], &want[index(r * width)], width);
      if (error > bound) {
        return cat("row ", r, " of ", num_rows, ": error ", error, ", bound ", bound,
                   " (plain error ", plain[tensor], ", largest value ", size, ")");
      }
    }
    return std::string();
  });
}

std::string compare_exact(const KernelCase& kernel_case, DType dtype, const KernelResults& actual,
                          const KernelResults& exact) {
  return for_each_tensor(actual, exact, [&](size_t tensor, const auto& got, const auto& want) {
    const DType output_dtype = dtypes_of(kernel_case, dtype)[tensor];
    for (size_t i = 0; i < got.size(); ++i) {
      const double rounded = round_to(output_dtype, want[i]);
      if (got[i] != rounded) return cat("element ", i, ": got ", got[i], ", want ", rounded);
    }
    return std::string();
  });
}

std::string compare_fp64(const KernelResults& actual, const KernelResults& exact) {
  return for_each_tensor(actual, exact, [&](size_t, const auto& got, const auto& want) {
    const auto count = static_cast<int64_t>(got.size());
    const double error = largest_difference(got.data(), want.data(), count);
    const double bound = 1e-12 * largest(want.data(), count);
    return error <= bound ? std::string() : cat("error ", error, ", bound ", bound);
  });
}

}  // namespace amoeba::test
