#include "kernels/cpu/fused/fused.h"

#include <unistd.h>

#include <algorithm>
#include <vector>

#include "amoeba/error.h"

namespace amoeba::kernels::cpu {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// -- How rows are split ---------------------------------------------------------------------------

struct Plan {
  std::vector<Block> blocks;
  std::vector<int64_t> first_block;              // [E+1]
  std::vector<int64_t> hidden, model, gradient;  // beginnings of slices
};

// Slices of about equal work. A strip costs its lanes plus what reading its weights takes; an
// expert without rows costs nothing unless `all_experts`.
std::vector<int64_t> cut(const Plan& plan, int64_t num_experts, int64_t num_strips,
                         bool all_experts, int num_threads) {
  constexpr int64_t kWeightsCost = 16;  // in lanes
  std::vector<int64_t> cost(static_cast<size_t>(num_experts));
  int64_t total = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    int64_t lanes = 0;
    const auto first = static_cast<size_t>(plan.first_block[static_cast<size_t>(e)]);
    const auto last = static_cast<size_t>(plan.first_block[static_cast<size_t>(e) + 1]);
    for (size_t b = first; b < last; ++b) lanes += plan.blocks[b].num_lanes;
    const bool counts = lanes > 0 || all_experts;
    cost[static_cast<size_t>(e)] = counts ? lanes + kWeightsCost : 0;
    total += cost[static_cast<size_t>(e)] * num_strips;
  }
  const int64_t wanted = num_threads <= 1 ? 1 : 8 * int64_t{num_threads};
  std::vector<int64_t> begin = {0};
  int64_t done = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    for (int64_t s = 0; s < num_strips; ++s) {
      const auto num_cut = static_cast<int64_t>(begin.size());
      if (done * wanted >= total * num_cut && done > 0 && begin.back() < e * num_strips + s) {
        begin.push_back(e * num_strips + s);
      }
      done += cost[static_cast<size_t>(e)];
    }
  }
  if (begin.back() < num_experts * num_strips) begin.push_back(num_experts * num_strips);
  return begin;
}

Plan make_plan(const FusedKernels& kernels, const Call& call, int num_threads) {
  const int64_t lanes = kernels.lanes, num_experts = call.sizes.num_experts;
  Plan plan;
  int64_t lane = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    plan.first_block.push_back(static_cast<int64_t>(plan.blocks.size()));
    int64_t row = call.arguments.offsets[e];
    const int64_t end = call.arguments.offsets[e + 1];
    int64_t num_vectors = divide_up(end - row, lanes);
    for (int64_t left = divide_up(num_vectors, kernels.max_vectors); left > 0; --left) {
      const int64_t vectors = divide_up(num_vectors, left);  // as even as they come
      num_vectors -= vectors;
      const int64_t num_rows = std::min(vectors * lanes, end - row);
      plan.blocks.push_back({e, row, num_rows, lane, vectors * lanes});
      row += num_rows;
      lane += vectors * lanes;
    }
  }
  plan.first_block.push_back(static_cast<int64_t>(plan.blocks.size()));
  const int64_t hidden_strips = divide_up(call.sizes.hidden_dim, kernels.strip);
  plan.hidden = cut(plan, num_experts, hidden_strips, false, num_threads);
  plan.model =
      cut(plan, num_experts, divide_up(call.sizes.model_dim, kernels.strip), false, num_threads);
  plan.gradient = cut(plan, num_experts, hidden_strips, true, num_threads);
  return plan;
}

// Lanes of all blocks together are at most this, whatever the routing.
int64_t max_lanes(const FusedKernels& kernels, const Sizes& sizes) {
  return sizes.num_rows + std::min(sizes.num_rows, sizes.num_experts) * (kernels.lanes - 1);
}

// -- Where intermediate results lie ---------------------------------------------------------------

// Hands out parts of the scratch, or only counts their bytes when there is none.
class Parts {
 public:
  explicit Parts(void* scratch) : scratch_(static_cast<char*>(scratch)) {}
  char* take(int64_t bytes) {
    char* part = scratch_ == nullptr ? nullptr : scratch_ + size_;
    size_ += round_up(bytes, 256);
    return part;
  }
  int64_t size() const { return size_; }

 private:
  char* scratch_;
  int64_t size_ = 0;
};

class Layout {
 public:
  Layout(const FusedKernels& kernels, const Call& call)
      : sizes_(call.sizes),
        options_(call.options),
        kernels_(kernels),
        lanes_(max_lanes(kernels, call.sizes)),
        value_bytes_(bytes_of(call.arguments.x.dtype)) {}

  int64_t saved_bytes() const {
    const bool saves = options_.save == Save::kPreActivations;
    return saves ? 2 * lanes_ * sizes_.hidden_dim * value_bytes_ : 0;
  }

  void take_forward(Parts& parts, Pass& p) const {
    p.x_panels = parts.take(panel_bytes(sizes_.model_dim));
    p.hidden_panels = parts.take(panel_bytes(sizes_.hidden_dim));
    take_rows(parts, p);
  }

  void take_backward(Parts& parts, Pass& p) const {
    if (saved_bytes() == 0) p.x_panels = parts.take(panel_bytes(sizes_.model_dim));
    p.dy_panels = parts.take(panel_bytes(sizes_.model_dim));
    p.dgate_panels = parts.take(token_slack() + panel_bytes(sizes_.hidden_dim));
    p.dup_panels = parts.take(token_slack() + panel_bytes(sizes_.hidden_dim));
    const int64_t tokens =
        token_slack() + lanes_ * sizes_.hidden_dim * 4 / kernels_.values_per_unit;
    const bool has_pairs = kernels_.values_per_unit == 2;
    p.dgate_tokens = has_pairs ? parts.take(tokens) : p.dgate_panels;
    p.dup_tokens = has_pairs ? parts.take(tokens) : p.dup_panels;
    p.hidden_tokens = parts.take(tokens);
    p.row_stride = round_up(sizes_.model_dim, kernels_.lanes) + kernels_.lanes;
    const int64_t row_bytes = lanes_ / kernels_.values_per_unit * p.row_stride * 4;
    p.x_rows = parts.take(row_bytes);
    p.dy_rows = parts.take(row_bytes);
    p.lane_scores = reinterpret_cast<float*>(parts.take(lanes_ * 4));
    const int64_t num_parts = divide_up(sizes_.hidden_dim, kernels_.strip) + 1;
    p.score_parts = reinterpret_cast<float*>(parts.take(num_parts * sizes_.num_rows * 4));
    take_rows(parts, p);
  }

 private:
  int64_t panel_bytes(int64_t size) const {
    return lanes_ * divide_up(size, kernels_.values_per_unit) * 4;
  }
  // The last strip of H reads kernels_.strip rows, whether they are there or not.
  int64_t token_slack() const { return kernels_.strip * kernels_.lanes * kernels_.max_vectors * 4; }
  void take_rows(Parts& parts, Pass& p) const {
    p.rows_stride = sizes_.model_dim;
    p.rows = parts.take(sizes_.has_slots ? sizes_.num_rows * sizes_.model_dim * value_bytes_ : 0);
  }

  const Sizes& sizes_;
  const ExpertsOptions& options_;
  const FusedKernels& kernels_;
  int64_t lanes_, value_bytes_;
};

// -- Passes ---------------------------------------------------------------------------------------

// Half of a core's second cache: the other half is for weights and what is written.
int64_t group_bytes() {
  static const int64_t cache = sysconf(_SC_LEVEL2_CACHE_SIZE);  // asks cpuid again and again
  return cache > 0 ? cache / 2 : 512 << 10;
}

Slices slices_of(const std::vector<int64_t>& begin, int64_t num_strips) {
  return {begin.data(), static_cast<int64_t>(begin.size()) - 1, num_strips};
}

Pass make_pass(const FusedKernels& kernels, const Call& call, const Plan& plan) {
  Pass p{};
  p.sizes = call.sizes;
  p.weights = call.weights;
  p.activation = call.options.activation;
  p.alpha = static_cast<float>(call.options.alpha);
  p.limit = static_cast<float>(call.options.limit);
  p.score_before = call.options.score_before;
  const auto has_dots = [&](const Matrix& weights, int64_t num_k) {
    return weights.stride[2] == 1 && num_k >= kernels.lanes * kernels.values_per_unit;
  };
  p.gate_up_dots = has_dots(call.weights.gate, call.sizes.model_dim) &&
                   has_dots(call.weights.up, call.sizes.model_dim);
  p.down_dots = has_dots(call.weights.down, call.sizes.hidden_dim);
  p.x = call.arguments.x;
  p.scores = call.arguments.scores;
  p.offsets = call.arguments.offsets;
  p.row_slot = call.arguments.row_slot;
  p.slot_row = call.arguments.slot_row;
  p.blocks = plan.blocks.data();
  p.first_block = plan.first_block.data();
  const int64_t hidden_strips = divide_up(call.sizes.hidden_dim, kernels.strip);
  p.hidden_slices = slices_of(plan.hidden, hidden_strips);
  p.model_slices = slices_of(plan.model, divide_up(call.sizes.model_dim, kernels.strip));
  p.gradient_slices = slices_of(plan.gradient, hidden_strips);
  p.group_bytes = group_bytes();
  return p;
}

void run(const Executor& executor, int64_t count, Executor::Body body, Pass& p) {
  if (count > 0) executor.parallel_for(executor.context, count, body, &p);
}

void check_contiguous(std::string_view operation, std::string_view name, const View& view) {
  AMOEBA_CHECK(view.stride[1] == 1 || view.size[1] <= 1, operation, ": the elements of a row of ",
               name, " are ", view.stride[1], " apart, want 1: only the reference takes others");
}

// Where the region before combine() puts its rows: in the rows entry the output itself.
void direct_rows(Pass& p, const View& output) {
  p.output = output;
  if (p.sizes.has_slots || output.data == nullptr) return;
  p.rows = static_cast<char*>(output.data);
  p.rows_stride = output.stride[0];
}

// Gradients of inputs, if `wanted`, and of weights in one region: neither reads the other.
struct GradientRegion {
  const FusedKernels& kernels;
  Pass& p;
  int64_t num_input_slices;

  static void body(void* context, int64_t begin, int64_t end) {
    const auto& [kernels, p, num_inputs] = *static_cast<GradientRegion*>(context);
    if (begin < num_inputs) kernels.dinput(&p, begin, std::min(end, num_inputs));
    if (end > num_inputs) {
      kernels.dweights(&p, std::max(begin, num_inputs) - num_inputs, end - num_inputs);
    }
  }
};

}  // namespace

std::string fused_refusal(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  const DType dtype = arguments.x.dtype;
  if (dtype != DType::kF32 && dtype != DType::kBF16) {
    return cat("dtype ", name_of(dtype), ", want fp32 or bf16");
  }
  if (options.save == Save::kPreActivationsFp8) {
    return "pre-activations in fp8 are kept on a GPU only";
  }
  if (arguments.x.stride[1] != 1 && arguments.x.size[1] > 1) {
    return cat("the elements of a row of x are ", arguments.x.stride[1], " apart, want 1");
  }
  return "";
}

WorkspaceSizes fused_workspace(const FusedKernels& kernels, const Call& call) {
  const Layout layout(kernels, call);
  Pass p{};
  Parts forward(nullptr), backward(nullptr);
  layout.take_forward(forward, p);
  layout.take_backward(backward, p);
  return {layout.saved_bytes(), forward.size(), backward.size()};
}

void fused_forward(const FusedKernels& kernels, const Call& call, const View& y, void* saved,
                   void* scratch, const Executor& executor) {
  check_contiguous("experts_forward", "y", y);
  const Plan plan = make_plan(kernels, call, executor.num_threads);
  const Layout layout(kernels, call);
  Pass p = make_pass(kernels, call, plan);
  Parts parts(scratch);
  layout.take_forward(parts, p);
  p.saved_gate = layout.saved_bytes() > 0 ? static_cast<char*>(saved) : nullptr;
  direct_rows(p, y);

  run(executor, static_cast<int64_t>(plan.blocks.size()), kernels.pack_forward, p);
  run(executor, p.hidden_slices.num_slices, kernels.gate_up, p);
  run(executor, p.model_slices.num_slices, kernels.down, p);
  run(executor, p.sizes.num_tokens, kernels.combine, p);
}

void fused_backward(const FusedKernels& kernels, const Call& call, const View& dy,
                    const void* saved, const ExpertsGradients& gradients,
                    const Matrices& weight_gradients, void* scratch, const Executor& executor) {
  check_contiguous("experts_backward", "dy", dy);
  if (gradients.dx.data != nullptr) check_contiguous("experts_backward", "dx", gradients.dx);
  const Plan plan = make_plan(kernels, call, executor.num_threads);
  const Layout layout(kernels, call);
  Pass p = make_pass(kernels, call, plan);
  Parts parts(scratch);
  layout.take_backward(parts, p);
  p.gradients = weight_gradients;
  p.dy = dy;
  p.dscores = gradients.dscores;
  p.accumulate = gradients.accumulate;
  // Gradients that the caches hold are better left there.
  constexpr int64_t kCached = 8 << 20;
  p.streams =
      !p.accumulate && p.sizes.num_experts * p.sizes.hidden_dim * p.sizes.model_dim * 12 > kCached;
  p.saved_gate = layout.saved_bytes() > 0 ? static_cast<char*>(const_cast<void*>(saved)) : nullptr;
  const bool wants_dscores = gradients.dscores.data != nullptr;
  if (!wants_dscores || p.score_before) p.score_parts = nullptr;
  direct_rows(p, gradients.dx);
  const bool wants_rows = gradients.dx.data != nullptr || (wants_dscores && p.score_before);

  run(executor, static_cast<int64_t>(plan.blocks.size()), kernels.pack_backward, p);
  run(executor, p.hidden_slices.num_slices, kernels.dhidden, p);
  GradientRegion region{kernels, p, wants_rows ? p.model_slices.num_slices : 0};
  const int64_t count = region.num_input_slices + p.gradient_slices.num_slices;
  if (count > 0) executor.parallel_for(executor.context, count, GradientRegion::body, &region);
  run(executor, p.sizes.num_tokens, kernels.combine_backward, p);
}

}  // namespace amoeba::kernels::cpu
