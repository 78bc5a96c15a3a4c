#include "support/kernels/stored.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "amoeba/error.h"
#include "base/rng.h"
#include "support/kernels/emulated_tiles.h"
#include "support/kernels/trapped_tiles.h"

namespace amoeba::test {
namespace {

using kernels::DType;
using kernels::GateUpLayout;

// Position of logical element (e, h, d) of gate (which = 0) or up (1) in the stored parameter(s).
struct GateUpPosition {
  size_t part;
  int64_t e, row, column;
};
GateUpPosition gate_up_position(const KernelCase& c, int which, int64_t e, int64_t h, int64_t d) {
  int64_t row = h;
  if (c.options.layout == GateUpLayout::kConcatenated) row = which * c.hidden_dim + h;
  if (c.options.layout == GateUpLayout::kInterleaved) row = 2 * h + which;
  const size_t part = c.options.layout == GateUpLayout::kSeparate ? static_cast<size_t>(which) : 0;
  return c.options.transposed ? GateUpPosition{part, e, d, row} : GateUpPosition{part, e, row, d};
}

// The stored parameters (or their gradients) as one value of logical elements.
struct Parameters {
  HostTensor (&gate_up)[2], &down, (&gate_up_bias)[2], &down_bias;
};

// Calls visit(tensor, i, j, k, logical index of field) for every element of the given parameters.
template <typename Visit>
void for_each_parameter(const KernelCase& c, const Parameters& p, const Visit& visit) {
  using Field = std::vector<double> KernelValues::*;
  const Field weights[] = {&KernelValues::gate, &KernelValues::up};
  const Field biases[] = {&KernelValues::gate_bias, &KernelValues::up_bias};
  const int64_t H = c.hidden_dim, D = c.model_dim;
  for (int64_t e = 0; e < c.num_experts(); ++e) {
    for (int64_t h = 0; h < H; ++h) {
      for (int which = 0; which < 2; ++which) {
        for (int64_t d = 0; d < D; ++d) {
          const GateUpPosition at = gate_up_position(c, which, e, h, d);
          visit(p.gate_up[at.part], at.e, at.row, at.column, weights[which], (e * H + h) * D + d);
        }
        if (!c.has_biases) continue;
        KernelCase straight = c;
        straight.options.transposed = false;
        const GateUpPosition at = gate_up_position(straight, which, e, h, 0);
        visit(p.gate_up_bias[at.part], at.e, at.row, int64_t{0}, biases[which], e * H + h);
      }
    }
    for (int64_t d = 0; d < D; ++d) {
      for (int64_t h = 0; h < H; ++h) {
        const bool transposed = c.options.transposed;
        visit(p.down, e, transposed ? h : d, transposed ? d : h, &KernelValues::down,
              (e * D + d) * H + h);
      }
      if (c.has_biases) {
        visit(p.down_bias, e, d, int64_t{0}, &KernelValues::down_bias, e * D + d);
      }
    }
  }
}

void make_parameters(const KernelCase& c, DType dtype, const Parameters& p,
                     const KernelValues* values) {
  const int64_t E = c.num_experts(), H = c.hidden_dim, D = c.model_dim;
  const int64_t padding = c.is_padded ? 8 : 0;
  const bool is_separate = c.options.layout == GateUpLayout::kSeparate;
  const int64_t width = is_separate ? H : 2 * H;
  const bool transposed = c.options.transposed;
  for (int part = 0; part < (is_separate ? 2 : 1); ++part) {
    p.gate_up[part] =
        HostTensor(dtype, {E, transposed ? D : width, transposed ? width : D}, 3, padding);
    if (c.has_biases) p.gate_up_bias[part] = HostTensor(dtype, {E, width, 1}, 2, padding);
  }
  p.down = HostTensor(dtype, {E, transposed ? H : D, transposed ? D : H}, 3, padding);
  if (c.has_biases) p.down_bias = HostTensor(dtype, {E, D, 1}, 2, padding);
  if (values == nullptr) return;
  for_each_parameter(
      c, p, [&](HostTensor& tensor, int64_t i, int64_t j, int64_t k, auto field, int64_t at) {
        tensor.set((values->*field)[static_cast<size_t>(at)], i, j, k);
      });
}

HostTensor make_matrix(DType dtype, int64_t rows, int64_t columns, bool is_padded,
                       const std::vector<double>* values) {
  HostTensor tensor(dtype, {rows, columns, 1}, 2, is_padded ? 8 : 0);
  for (int64_t i = 0; values != nullptr && i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      tensor.set((*values)[static_cast<size_t>(i * columns + j)], i, j);
    }
  }
  return tensor;
}

HostTensor make_list(const std::vector<int32_t>& values) {
  HostTensor tensor(DType::kI32, {static_cast<int64_t>(values.size()), 1, 1}, 1);
  for (size_t i = 0; i < values.size(); ++i) tensor.set(values[i], static_cast<int64_t>(i));
  return tensor;
}

std::vector<double> matrix_values(const HostTensor& tensor, int64_t rows, int64_t columns) {
  std::vector<double> values;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) values.push_back(tensor.get(i, j));
  }
  return values;
}

}  // namespace

Routing naive_routing(const KernelCase& c, const KernelValues& values) {
  Routing routing;
  const auto num_slots = c.has_slots ? values.ids.size() : 0;
  routing.row_slot.assign(num_slots, -1);
  routing.slot_row.assign(num_slots, -1);
  routing.offsets.push_back(0);
  for (int64_t e = 0; e < c.num_experts(); ++e) {
    int32_t row = routing.offsets.back();
    for (size_t slot = 0; slot < values.ids.size(); ++slot) {
      if (values.ids[slot] != e) continue;
      if (c.has_slots) {
        routing.row_slot[static_cast<size_t>(row)] = static_cast<int32_t>(slot);
        routing.slot_row[slot] = row;
      }
      ++row;
    }
    routing.counts.push_back(row - routing.offsets.back());
    routing.offsets.push_back(row);
  }
  return routing;
}

StoredExperts::StoredExperts(const KernelCase& c, DType dtype, const KernelValues& values,
                             const KernelValues& previous)
    : case_(c) {
  const int64_t T = c.num_tokens(), K = c.num_choices, D = c.model_dim;
  const Routing routing = naive_routing(c, values);
  const std::vector<double> ids(values.ids.begin(), values.ids.end());
  if (c.has_slots) {
    ids_ = make_matrix(c.has_wide_ids ? DType::kI64 : DType::kI32, T, K, c.is_padded, &ids);
    row_slot_ = make_list(routing.row_slot);
    slot_row_ = make_list(routing.slot_row);
  }
  offsets_ = make_list(routing.offsets);
  error_ = make_list({0});
  x_ = make_matrix(dtype, T, D, c.is_padded, &values.x);
  dy_ = make_matrix(dtype, T, D, c.is_padded, &values.dy);
  y_ = make_matrix(dtype, T, D, c.is_padded, nullptr);
  dx_ = make_matrix(dtype, T, D, c.is_padded, nullptr);
  if (c.has_slots && c.has_scores) {
    scores_ = make_matrix(c.score_dtype(dtype), T, K, c.is_padded, &values.scores);
    dscores_ = make_matrix(c.score_dtype(dtype), T, K, c.is_padded, nullptr);
  }
  make_parameters(c, dtype, {gate_up_, down_, gate_up_bias_, down_bias_}, &values);
  make_parameters(c, c.gradient_dtype(dtype), {dgate_up_, ddown_, dgate_up_bias_, ddown_bias_},
                  c.accumulates() ? &previous : nullptr);
  for (HostTensor* input :
       {&ids_, &x_, &scores_, &offsets_, &row_slot_, &slot_row_, &gate_up_[0], &gate_up_[1],
        &gate_up_bias_[0], &gate_up_bias_[1], &down_, &down_bias_, &dy_}) {
    inputs_before_.push_back(input->bytes);
  }
}

std::vector<HostTensor*> StoredExperts::tensors() {
  std::vector<HostTensor*> all = {&ids_,
                                  &x_,
                                  &scores_,
                                  &offsets_,
                                  &row_slot_,
                                  &slot_row_,
                                  &gate_up_[0],
                                  &gate_up_[1],
                                  &gate_up_bias_[0],
                                  &gate_up_bias_[1],
                                  &down_,
                                  &down_bias_,
                                  &dy_,
                                  &y_,
                                  &dx_,
                                  &dscores_,
                                  &dgate_up_[0],
                                  &dgate_up_[1],
                                  &dgate_up_bias_[0],
                                  &dgate_up_bias_[1],
                                  &ddown_,
                                  &ddown_bias_,
                                  &error_};
  std::erase_if(all, [](const HostTensor* tensor) { return !tensor->is_given(); });
  return all;
}

kernels::ExpertsArguments StoredExperts::arguments() {
  kernels::ExpertsArguments arguments;
  arguments.x = x_.view();
  arguments.scores = scores_.view();
  arguments.offsets = offsets_.data<int32_t>();
  arguments.row_slot = row_slot_.data<int32_t>();
  arguments.slot_row = slot_row_.data<int32_t>();
  for (int part = 0; part < 2; ++part) {
    arguments.gate_up[part] = gate_up_[part].view();
    arguments.gate_up_bias[part] = gate_up_bias_[part].view();
  }
  arguments.down = down_.view();
  arguments.down_bias = down_bias_.view();
  arguments.num_rows = case_.num_rows();
  arguments.num_experts = case_.num_experts();
  arguments.hidden_dim = case_.hidden_dim;
  arguments.error = error_.data<int32_t>();
  return arguments;
}

kernels::ExpertsGradients StoredExperts::gradients() {
  kernels::ExpertsGradients gradients;
  gradients.dx = dx_.view();
  gradients.dscores = dscores_.view();
  for (int part = 0; part < 2; ++part) {
    gradients.dgate_up[part] = dgate_up_[part].view();
    gradients.dgate_up_bias[part] = dgate_up_bias_[part].view();
  }
  gradients.ddown = ddown_.view();
  gradients.ddown_bias = ddown_bias_.view();
  gradients.accumulate = case_.accumulates();
  return gradients;
}

KernelResults StoredExperts::results() const {
  const int64_t T = case_.num_tokens(), E = case_.num_experts(), D = case_.model_dim,
                H = case_.hidden_dim;
  KernelResults results;
  results.y = matrix_values(y_, T, D);
  results.dx = matrix_values(dx_, T, D);
  if (dscores_.is_given()) results.dscores = matrix_values(dscores_, T, case_.num_choices);
  KernelValues gradients;
  for (auto field : {&KernelValues::gate, &KernelValues::up, &KernelValues::down}) {
    (gradients.*field).assign(static_cast<size_t>(E * H * D), 0.0);
  }
  if (case_.has_biases) {
    gradients.gate_bias.assign(static_cast<size_t>(E * H), 0.0);
    gradients.up_bias.assign(static_cast<size_t>(E * H), 0.0);
    gradients.down_bias.assign(static_cast<size_t>(E * D), 0.0);
  }
  auto& self = const_cast<StoredExperts&>(*this);  // for_each_parameter serves writers too
  for_each_parameter(
      case_, {self.dgate_up_, self.ddown_, self.dgate_up_bias_, self.ddown_bias_},
      [&](const HostTensor& tensor, int64_t i, int64_t j, int64_t k, auto field, int64_t at) {
        (gradients.*field)[static_cast<size_t>(at)] = tensor.get(i, j, k);
      });
  results.dgate = gradients.gate;
  results.dup = gradients.up;
  results.ddown = gradients.down;
  results.dgate_bias = gradients.gate_bias;
  results.dup_bias = gradients.up_bias;
  results.ddown_bias = gradients.down_bias;
  return results;
}

std::string StoredExperts::damage() {
  for (HostTensor* tensor : tensors()) {
    if (const std::string where = tensor->broken_guard(); !where.empty()) return where;
  }
  if (inputs_before_.empty()) return "";
  size_t i = 0;
  for (const HostTensor* input :
       {&ids_, &x_, &scores_, &offsets_, &row_slot_, &slot_row_, &gate_up_[0], &gate_up_[1],
        &gate_up_bias_[0], &gate_up_bias_[1], &down_, &down_bias_, &dy_}) {
    if (input->bytes != inputs_before_[i]) return cat("input ", i, " has changed");
    ++i;
  }
  return "";
}

std::vector<const kernels::cpu::Implementation*> unlisted_implementations() {
  std::vector<const kernels::cpu::Implementation*> implementations = {&emulated_amx()};
  if (trapped_amx() != nullptr) implementations.push_back(trapped_amx());
  return implementations;
}

std::vector<kernels::Variant> tested_variants() {
  std::vector<kernels::Variant> variants = kernels::cpu::variants();
  for (const auto* implementation : unlisted_implementations()) {
    variants.push_back(implementation->variant);
  }
  return variants;
}

KernelResults run_cpu(std::string_view name, const KernelCase& c, DType dtype,
                      const KernelValues& values, const KernelValues& previous,
                      const Executor& executor) {
  namespace cpu = kernels::cpu;
  StoredExperts stored(c, dtype, values, previous);
  const kernels::ExpertsArguments arguments = stored.arguments();
  const auto run = [&](const auto& implementation) {
    const kernels::WorkspaceSizes sizes = cpu::workspace(implementation, arguments, c.options);
    GuardedMemory saved(sizes.saved_bytes), forward_scratch(sizes.forward_scratch_bytes),
        backward_scratch(sizes.backward_scratch_bytes);
    cpu::experts_forward(implementation, arguments, c.options, stored.y(), saved.data(),
                         forward_scratch.data(), executor);
    cpu::experts_backward(implementation, arguments, c.options, stored.dy(), saved.data(),
                          stored.gradients(), backward_scratch.data(), executor);
    EXPECT_TRUE(saved.is_intact() && forward_scratch.is_intact() && backward_scratch.is_intact())
        << name << " " << c;
  };
  const auto unlisted = unlisted_implementations();
  const auto found = std::find_if(unlisted.begin(), unlisted.end(),
                                  [&](const cpu::Implementation* implementation) {
                                    return implementation->variant.name == name;
                                  });
  if (found != unlisted.end()) {
    run(**found);
  } else {
    run(cpu::choose_variant(arguments, c.options, name));
  }
  EXPECT_EQ(stored.damage(), "") << name << " " << c;
  EXPECT_EQ(stored.error(), 0) << name << " " << c;
  return stored.results();
}

PlainErrors reference_errors(const KernelCase& kernel_case, DType dtype, uint64_t num_draws) {
  PlainErrors largest{};
  for (uint64_t draw = 0; draw < num_draws; ++draw) {
    const KernelValues values = make_values(kernel_case, dtype, draw);
    const KernelCase c = with_clear_limit(kernel_case, values);
    const KernelValues previous = make_previous(c, c.gradient_dtype(dtype));
    const PlainErrors errors = plain_errors(c, run_cpu("reference", c, dtype, values, previous),
                                            oracle_experts(c, values, previous).results);
    for (size_t i = 0; i < errors.size(); ++i) largest[i] = std::max(largest[i], errors[i]);
  }
  return largest;
}

Executor ShuffledThreads::executor() {
  Executor executor;
  executor.context = this;
  executor.num_threads = num_threads_;
  executor.parallel_for = [](void* context, int64_t count, Executor::Body body,
                             void* body_context) {
    static_cast<ShuffledThreads*>(context)->run(count, body, body_context);
  };
  return executor;
}

void ShuffledThreads::run(int64_t count, Executor::Body body, void* body_context) {
  if (count == 0) return;
  const int64_t num_chunks = std::min<int64_t>(count, 3 * num_threads_);
  const Permutation order(num_chunks, order_, ++num_regions_);
  std::atomic<int64_t> next = 0;
  const auto work = [&] {
    for (int64_t i = next++; i < num_chunks; i = next++) {
      const int64_t chunk = order(i);
      body(body_context, chunk * count / num_chunks, (chunk + 1) * count / num_chunks);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < num_threads_; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace amoeba::test
