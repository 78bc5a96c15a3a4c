// The experts on a GPU: checks, choice of the variant, and the order of the launches.
//
// Legend: T tokens, D model width, H expert hidden width, E experts, K choices, R = T*K rows;
// z [R, 2H] what is kept of gate and up (device/epilogues.cuh), a [R, H] the activation.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <limits>

#include "amoeba/error.h"
#include "amoeba/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/operands.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/sm90/tensor_map.h"
#include "kernels/cuda/workspace.h"

namespace amoeba::kernels::cuda {

using device::bf16;
using device::fp16;

namespace {

// 10 * major + minor of the current device; 0 without one.
int compute_capability() {
  int index = 0;
  int major = 0;
  int minor = 0;
  if (cudaGetDevice(&index) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  return 10 * major + minor;
}

int num_multiprocessors() {
  int index = 0;
  int count = 0;
  check_cuda(cudaGetDevice(&index), "experts: device");
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, index),
             "experts: multiprocessors");
  return count;
}

// ---- variants

std::string refuse_problem(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  const Sizes sizes = sizes_of(arguments);
  const DType dtype = arguments.x.dtype;
  if (dtype != DType::kBF16 && dtype != DType::kF16) {
    return cat("x has dtype ", name_of(dtype), ", want bf16 or fp16");
  }
  if (sizes.model_dim % 8 != 0 || sizes.hidden_dim % 8 != 0) {
    return cat("dims are ", sizes.model_dim, " and ", sizes.hidden_dim, ", want multiples of 8");
  }
  if (std::max({sizes.num_rows, sizes.model_dim, 2 * sizes.hidden_dim}) > device::kMaxIndex) {
    return cat("num_rows, D or 2H is above ", device::kMaxIndex);
  }
  const Matrices weights = parameters_of(arguments, options);
  for (const std::string& reason :
       {refuse_rows("x", arguments.x), refuse_gate_up("gate_up", weights.gate, weights.up),
        refuse_matrix("down", weights.down),
        refuse_bias("gate_up_bias", weights.gate_bias, weights.up_bias)}) {
    if (!reason.empty()) return reason;
  }
  return "";
}

std::string refuse_sm80(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  const int capability = compute_capability();
  if (capability == 0) return "there is no CUDA device";
  if (capability / 10 != 8 && capability != 90) {
    return cat("the device has compute capability ", capability, ", want 8.x or 9.0");
  }
  return refuse_problem(arguments, options);
}

std::string refuse_sm90(const ExpertsArguments& arguments, const ExpertsOptions& options) {
  const int capability = compute_capability();
  if (capability == 0) return "there is no CUDA device";
  if (capability != 90) return cat("the device has compute capability ", capability, ", want 9.0");
  const std::string reason = refuse_problem(arguments, options);
  if (!reason.empty()) return reason;
  const Matrices weights = parameters_of(arguments, options);
  const bool up_first = is_up_first(weights.gate, weights.up);
  const Stored gate_up = up_first ? stored_gate_up(weights.up, weights.gate)
                                  : stored_gate_up(weights.gate, weights.up);
  for (const device::Matrix& matrix : {gate_up.matrix, stored_down(weights.down).matrix}) {
    if (!has_tensor_map(matrix)) {
      return "a stride of the weights is negative, zero or 2^40 bytes or more";
    }
  }
  if (arguments.row_slot == nullptr && arguments.x.size[0] > 1 && arguments.x.stride[0] <= 0) {
    return cat("x has a row stride of ", arguments.x.stride[0], ", want a positive one");
  }
  return "";
}

struct Implementation {
  Variant variant;
  const Products<bf16>& (*products_bf16)();
  const Products<fp16>& (*products_fp16)();
};

const Implementation kImplementations[] = {
    // best first
    {{"sm90", "pairs of blocks fed by the copy engine, wgmma, bf16 and fp16", refuse_sm90},
     sm90_products<bf16>,
     sm90_products<fp16>},
    {{"sm80", "cp.async and mma.m16n8k16, bf16 and fp16", refuse_sm80},
     sm80_products<bf16>,
     sm80_products<fp16>},
};

const Implementation& implementation_of(const Variant& variant) {
  for (const Implementation& implementation : kImplementations) {
    if (implementation.variant.name == variant.name) return implementation;
  }
  fail(ErrorKind::kUsage, cat("experts: no CUDA variant is named ", variant.name));
}

template <typename T>
const Products<T>& products_of(const Variant& variant) {
  const Implementation& implementation = implementation_of(variant);
  if constexpr (std::is_same_v<T, bf16>) {
    return implementation.products_bf16();
  } else {
    return implementation.products_fp16();
  }
}

void check_call(std::string_view operation, const Variant& variant,
                const ExpertsArguments& arguments, const ExpertsOptions& options) {
  check_experts(operation, arguments, options);
  const std::string reason = implementation_of(variant).variant.supports(arguments, options);
  AMOEBA_CHECK(reason.empty(), operation, ": ", variant.name, " refuses: ", reason);
}

void check_rows(std::string_view operation, const char* name, const View& view) {
  if (view.data == nullptr) return;
  const std::string reason = refuse_rows(name, view);
  AMOEBA_CHECK(reason.empty(), operation, ": ", reason);
}

// ---- one call

Scores scores_of(const View& view) {
  Scores scores;
  if (view.data == nullptr) return scores;
  const int64_t bytes = bytes_of(view.dtype);
  scores.data = static_cast<char*>(view.data);
  scores.stride[0] = view.stride[0] * bytes;
  scores.stride[1] = view.stride[1] * bytes;
  scores.dtype = static_cast<int32_t>(view.dtype);
  return scores;
}

// Rows of the kernels' own, contiguous.
template <typename T>
device::Matrix own_rows(const void* data, int64_t columns) {
  device::Matrix matrix;
  matrix.base = static_cast<char*>(const_cast<void*>(data));
  matrix.row_stride = columns * static_cast<int64_t>(sizeof(T));
  return matrix;
}

// What forward and backward share: the problem as the products see it.
template <typename T>
class Call {
 public:
  Call(const Variant& variant, const ExpertsArguments& arguments, const ExpertsOptions& options,
       const Grouping& grouping, Stream stream)
      : arguments_(arguments),
        options_(options),
        sizes_(sizes_of(arguments)),
        weights_(parameters_of(arguments, options)),
        up_first_(is_up_first(weights_.gate, weights_.up)),
        gate_up_(up_first_ ? stored_gate_up(weights_.up, weights_.gate)
                           : stored_gate_up(weights_.gate, weights_.up)),
        down_(stored_down(weights_.down)),
        grouping_(grouping),
        products_(products_of<T>(variant)),
        num_multiprocessors_(num_multiprocessors()),
        stream_(static_cast<cudaStream_t>(stream)) {}

  void forward(const ForwardScratch& scratch, const device::StoredProduct& saved, const View& y) {
    prepare_grouping();
    if (has_rows()) {
      up(saved, static_cast<T*>(scratch.activated), scratch.rows);
      down(scratch, y);
    }
    if (sizes_.has_slots) {
      combine_rows(scratch.rows, options_.score_before ? View{} : arguments_.scores, y);
    } else {
      zero_tail_rows(y);
    }
  }

  void backward(const BackwardScratch& scratch, const device::StoredProduct& saved, const View& dy,
                const ExpertsGradients& gradients) {
    prepare_grouping();
    const Matrices out = gradients_of(gradients, arguments_, options_);
    const device::StoredProduct& z = options_.save == Save::kNothing ? scratch.z : saved;
    if (has_rows() && options_.save == Save::kNothing) up(z, nullptr, scratch.rows);
    const device::Matrix gathered_dy = gathered(dy, scratch.rows);
    if (has_rows()) hidden_gradient(scratch, z, gathered_dy, gradients);
    down_gradient(scratch, gathered_dy, dy, out, gradients.accumulate);
    gate_up_gradient(scratch, out, gradients.accumulate);
    if (gradients.dx.data != nullptr) input_gradient(scratch, gradients.dx);
    if (gradients.dscores.data != nullptr) scores_gradient(scratch, dy, gradients.dscores);
  }

 private:
  // See Products::halves.
  bool in_halves() const {
    return products_.halves && gate_up_.matrix.pairing == device::Pairing::kColumnBlocks;
  }
  bool has_rows() const { return sizes_.num_rows > 0 && sizes_.num_experts > 0; }
  bool is_weighted() const { return arguments_.scores.data != nullptr; }
  const float* weight_before() const {
    return options_.score_before ? grouping_.row_weight : nullptr;
  }
  const float* weight_after() const {
    return options_.score_before ? nullptr : grouping_.row_weight;
  }

  ProductLaunch launch(bool mn_major_b) const {
    return {mn_major_b, grouping_.max_tiles, num_multiprocessors_, stream_};
  }

  device::GroupedProduct product(const device::Matrix& a, const device::Matrix& b) const {
    device::GroupedProduct p;
    p.a = a;
    p.b = b;
    p.m = sizes_.num_rows;
    p.num_experts = sizes_.num_experts;
    p.offsets = grouping_.offsets;
    p.tiles = grouping_.tiles;
    p.num_tiles = grouping_.num_tiles;
    return p;
  }

  device::GateUpRule<T> gate_up_rule() const {
    const bool clamped = options_.activation == Activation::kSwigluClamped;
    device::GateUpRule<T> rule;
    rule.activation.clamped = clamped;
    rule.activation.alpha = clamped ? static_cast<float>(options_.alpha) : 1.0f;
    rule.activation.limit =
        clamped ? static_cast<float>(options_.limit) : std::numeric_limits<float>::infinity();
    rule.activation.shift = clamped ? 1.0f : 0.0f;
    rule.bias[0] = static_cast<const T*>(weights_.gate_bias.data);
    rule.bias[1] = static_cast<const T*>(weights_.up_bias.data);
    rule.bias_expert_stride = weights_.gate_bias.stride[0];
    rule.bias_stride = weights_.gate_bias.stride[1];
    rule.row_weight = weight_before();
    rule.hidden = sizes_.hidden_dim;
    rule.pairs = gate_up_.pairs;
    rule.up_first = up_first_;
    rule.halves = in_halves();
    return rule;
  }

  // dz [R, 2H], or what has its place.
  device::Matrix dz_rows(const void* dz) const {
    device::Matrix matrix = own_rows<T>(dz, 2 * sizes_.hidden_dim);
    if (in_halves()) {
      matrix.pairing = device::Pairing::kColumnBlocks;
      matrix.up_offset = sizes_.hidden_dim * static_cast<int64_t>(sizeof(T));
    }
    return matrix;
  }

  // Rows of tokens: with an index where they are stored.
  device::Matrix indexed(const View& rows) const {
    device::Matrix matrix = stored_rows(rows);
    matrix.row_index = grouping_.row_token;
    return matrix;
  }

  // As the products read them: `buffer` [R, D] takes them where the products want no index.
  device::Matrix gathered(const View& rows, void* buffer) const {
    const device::Matrix matrix = indexed(rows);
    if (matrix.row_index == nullptr || products_.gathers) return matrix;
    SpreadArguments p;
    p.rows = matrix.base;
    p.row_stride = matrix.row_stride;
    p.out = static_cast<char*>(buffer);
    p.row_bytes = sizes_.model_dim * static_cast<int64_t>(sizeof(T));
    p.num_tokens = sizes_.num_tokens;
    p.num_choices = sizes_.num_choices;
    p.slot_row = arguments_.slot_row;
    p.num_sorted = grouping_.offsets + sizes_.num_experts;
    spread(p, stream_);
    return own_rows<T>(buffer, sizes_.model_dim);
  }

  void prepare_grouping() {
    PrepareArguments p;
    p.offsets = arguments_.offsets;
    p.row_slot = arguments_.row_slot;
    p.scores = scores_of(arguments_.scores);
    p.num_rows = sizes_.num_rows;
    p.num_slots_per_token = sizes_.num_choices;
    p.num_experts = sizes_.num_experts;
    p.error = arguments_.error;
    prepare(p, grouping_, stream_);
  }

  // z [R, 2H] and a [R, H], each where wanted.
  void up(const device::StoredProduct& z, T* activated, void* rows) {
    device::GroupedProduct p = product(gathered(arguments_.x, rows), gate_up_.matrix);
    p.n = 2 * sizes_.hidden_dim;
    p.k = sizes_.model_dim;
    products_.up(p, {gate_up_rule(), z, activated}, launch(gate_up_.transposed));
  }

  // Rows of y, weighted and summed later in the tokens entry.
  void down(const ForwardScratch& scratch, const View& y) {
    device::GroupedProduct p =
        product(own_rows<T>(scratch.activated, sizes_.hidden_dim), down_.matrix);
    p.n = sizes_.model_dim;
    p.k = sizes_.hidden_dim;
    const device::Matrix out =
        sizes_.has_slots ? own_rows<T>(scratch.rows, sizes_.model_dim) : stored_rows(y);
    const Matrix& bias = weights_.down_bias;
    products_.rows(p,
                   {out.base, out.row_stride, static_cast<const T*>(bias.data), bias.stride[0],
                    bias.stride[1]},
                   launch(down_.transposed));
  }

  void combine_rows(const void* rows, const View& scores, const View& out) {
    CombineArguments<T> p;
    p.rows = static_cast<const T*>(rows);
    p.slot_row = arguments_.slot_row;
    p.scores = scores_of(scores);
    p.out = static_cast<T*>(out.data);
    p.out_stride = out.stride[0];
    p.num_tokens = sizes_.num_tokens;
    p.num_choices = sizes_.num_choices;
    p.num_sorted = grouping_.offsets + sizes_.num_experts;
    p.dim = sizes_.model_dim;
    combine(p, stream_);
  }

  void zero_tail_rows(const View& out) {
    zero_tail(grouping_, sizes_.num_experts, sizes_.num_rows, static_cast<T*>(out.data),
              out.stride[0], sizes_.model_dim, stream_);
  }

  // dz, the weighted activation and the parts of dscores, from da = dy Wd.
  void hidden_gradient(const BackwardScratch& scratch, const device::StoredProduct& z,
                       const device::Matrix& gathered_dy, const ExpertsGradients& gradients) {
    device::GroupedProduct p = product(gathered_dy, down_.matrix);
    p.n = sizes_.hidden_dim;
    p.k = sizes_.model_dim;
    typename Products<T>::HiddenGradient epilogue = {};
    epilogue.rule = gate_up_rule();
    epilogue.z = z;
    epilogue.row_weight_after = weight_after();
    epilogue.dz = static_cast<T*>(scratch.dz);
    if (gradients.ddown.data != nullptr) epilogue.activated = static_cast<T*>(scratch.activated);
    if (gradients.dscores.data != nullptr) epilogue.score_parts = scratch.score_parts;
    epilogue.num_parts = num_score_parts(sizes_);
    products_.hidden_gradient(p, epilogue, launch(!down_.transposed));
    const bool wants_bias =
        gradients.dgate_up_bias[0].data != nullptr || gradients.dgate_up_bias[1].data != nullptr;
    if (scratch.dpre == nullptr || !wants_bias) return;
    // Bias gradients alone are not weighted before the experts: rare enough for a second pass.
    epilogue.dz = static_cast<T*>(scratch.dpre);
    epilogue.weigh_dz = false;
    epilogue.activated = nullptr;
    epilogue.score_parts = nullptr;
    products_.hidden_gradient(p, epilogue, launch(!down_.transposed));
  }

  void weight_gradient(const device::Matrix& rows_a, int64_t m, const device::Matrix& rows_b,
                       int64_t n, uint32_t* drawn,
                       const typename Products<T>::WeightGradient& epilogue) {
    device::GroupedProduct p = product(rows_a, rows_b);
    p.drawn = drawn;
    p.m = m;
    p.n = n;
    p.k = sizes_.num_rows;
    if (sizes_.num_experts > 0) products_.weight_gradient(p, epilogue, launch(true));
  }

  // ddown = sum of weighted dy a^T over the rows of an expert; its bias the sum of weighted dy.
  void down_gradient(const BackwardScratch& scratch, const device::Matrix& gathered_dy,
                     const View& dy, const Matrices& out, bool accumulate) {
    if (out.down.data != nullptr) {
      const Stored stored = stored_down(out.down);
      const device::Matrix activated = own_rows<T>(scratch.activated, sizes_.hidden_dim);
      const typename Products<T>::WeightGradient epilogue = {
          stored.matrix, out.down.dtype == DType::kF32, accumulate};
      stored.transposed ? weight_gradient(activated, sizes_.hidden_dim, gathered_dy,
                                          sizes_.model_dim, grouping_.drawn, epilogue)
                        : weight_gradient(gathered_dy, sizes_.model_dim, activated,
                                          sizes_.hidden_dim, grouping_.drawn, epilogue);
    }
    if (out.down_bias.data != nullptr) {
      ColumnSums sums;
      sums.rows = indexed(dy);
      sums.row_weight = weight_after();
      sums.num_columns = sizes_.model_dim;
      sums.out = stored_bias(out.down_bias, {});
      sums.accumulate = accumulate;
      sum_columns<T>(sums, grouping_, sizes_.num_experts, stream_);
    }
  }

  void gate_up_gradient(const BackwardScratch& scratch, const Matrices& out, bool accumulate) {
    const device::Matrix dz = dz_rows(scratch.dz);
    const Matrix& first = up_first_ ? out.up : out.gate;
    const Matrix& second = up_first_ ? out.gate : out.up;
    if (first.data != nullptr || second.data != nullptr) {
      const Stored stored = stored_gate_up(first, second);
      const DType dtype = first.data != nullptr ? first.dtype : second.dtype;
      const int64_t halved_rows = in_halves() && !stored.transposed ? 2 * sizes_.hidden_dim : 0;
      const typename Products<T>::WeightGradient epilogue = {
          stored.matrix,         dtype == DType::kF32,   accumulate,
          first.data == nullptr, second.data == nullptr, static_cast<int32_t>(halved_rows)};
      const device::Matrix x = gathered(arguments_.x, scratch.rows);
      stored.transposed ? weight_gradient(x, sizes_.model_dim, dz, 2 * sizes_.hidden_dim,
                                          grouping_.drawn + 1, epilogue)
                        : weight_gradient(dz, 2 * sizes_.hidden_dim, x, sizes_.model_dim,
                                          grouping_.drawn + 1, epilogue);
    }
    const Matrix& first_bias = up_first_ ? out.up_bias : out.gate_bias;
    const Matrix& second_bias = up_first_ ? out.gate_bias : out.up_bias;
    if (first_bias.data != nullptr || second_bias.data != nullptr) {
      const bool has_first = first_bias.data != nullptr;
      ColumnSums sums;
      sums.rows = scratch.dpre == nullptr ? dz : dz_rows(scratch.dpre);
      sums.num_columns = 2 * sizes_.hidden_dim;
      sums.out = has_first ? stored_bias(first_bias, second_bias) : stored_bias(second_bias, {});
      sums.blocks = !gate_up_.pairs;
      sums.pairs = gate_up_.pairs;
      sums.skip_gate = !has_first;
      sums.skip_up = second_bias.data == nullptr;
      sums.accumulate = accumulate;
      sum_columns<T>(sums, grouping_, sizes_.num_experts, stream_);
    }
  }

  // dx = the sum of dz Wgu over a token's rows; weights before the experts are in dz already.
  void input_gradient(const BackwardScratch& scratch, const View& dx) {
    if (has_rows()) {
      device::GroupedProduct p = product(dz_rows(scratch.dz), gate_up_.matrix);
      p.n = sizes_.model_dim;
      p.k = 2 * sizes_.hidden_dim;
      const device::Matrix out =
          sizes_.has_slots ? own_rows<T>(scratch.rows, sizes_.model_dim) : stored_rows(dx);
      products_.rows(p, {out.base, out.row_stride}, launch(!gate_up_.transposed));
    }
    if (sizes_.has_slots) {
      combine_rows(scratch.rows, {}, dx);
    } else {
      zero_tail_rows(dx);
    }
  }

  void scores_gradient(const BackwardScratch& scratch, const View& dy, const View& dscores) {
    ScoreGradient p;
    p.parts = scratch.score_parts;
    p.num_parts = num_score_parts(sizes_);
    p.slot_row = arguments_.slot_row;
    p.num_tokens = sizes_.num_tokens;
    p.num_choices = sizes_.num_choices;
    p.out = scores_of(dscores);
    p.dy = stored_rows(dy);
    if (!options_.score_before) p.bias = stored_bias(weights_.down_bias, {});
    p.dim = sizes_.model_dim;
    score_gradient<T>(p, grouping_, sizes_.num_experts, stream_);
  }

  const ExpertsArguments& arguments_;
  const ExpertsOptions& options_;
  Sizes sizes_;
  Matrices weights_;
  bool up_first_;
  Stored gate_up_;
  Stored down_;
  Grouping grouping_;
  const Products<T>& products_;
  int num_multiprocessors_;
  cudaStream_t stream_;
};

// Calls f with a null pointer of the element type of x.
template <typename F>
void with_element(DType dtype, const F& f) {
  if (dtype == DType::kBF16) {
    f(static_cast<bf16*>(nullptr));
  } else {
    f(static_cast<fp16*>(nullptr));
  }
}

void check_gradient_views(const ExpertsGradients& gradients, const ExpertsArguments& arguments,
                          const ExpertsOptions& options) {
  constexpr std::string_view kOperation = "experts_backward";
  check_gradients(kOperation, gradients, arguments, options);
  check_rows(kOperation, "dx", gradients.dx);
  const Matrices out = gradients_of(gradients, arguments, options);
  for (const std::string& reason :
       {out.gate.data == nullptr && out.up.data == nullptr
            ? ""
            : refuse_gate_up("dgate_up", out.gate, out.up),
        out.down.data == nullptr ? "" : refuse_matrix("ddown", out.down),
        refuse_bias("dgate_up_bias", out.gate_bias, out.up_bias)}) {
    AMOEBA_CHECK(reason.empty(), kOperation, ": ", reason);
  }
  const Matrices weights = parameters_of(arguments, options);
  AMOEBA_CHECK(out.gate.data == nullptr || stored_gate_up(out.gate, out.up).pairs ==
                                               stored_gate_up(weights.gate, weights.up).pairs,
               kOperation,
               ": dgate_up is interleaved inside rows and gate_up is not, or vice versa");
}

}  // namespace

const std::vector<Variant>& variants() {
  static const std::vector<Variant> table = [] {
    std::vector<Variant> result;
    for (const Implementation& implementation : kImplementations) {
      result.push_back(implementation.variant);
    }
    return result;
  }();
  return table;
}

const Variant& choose_variant(const ExpertsArguments& arguments, const ExpertsOptions& options,
                              std::string_view name) {
  check_experts("experts", arguments, options);
  std::string reasons;
  for (const Variant& variant : variants()) {
    if (name != "auto" && name != variant.name) continue;
    const std::string reason = variant.supports(arguments, options);
    if (reason.empty()) return variant;
    reasons += cat(reasons.empty() ? "" : "; ", variant.name, " refuses: ", reason);
  }
  if (!reasons.empty()) fail(ErrorKind::kUsage, "experts: " + reasons);
  for (const Variant& variant : variants()) reasons += cat(", ", variant.name);
  fail(ErrorKind::kUsage, cat("experts: no CUDA variant is named ", name, ", want auto", reasons));
}

WorkspaceSizes workspace(const Variant& variant, const ExpertsArguments& arguments,
                         const ExpertsOptions& options) {
  check_call("experts", variant, arguments, options);
  Carver saved(nullptr);
  Carver forward(nullptr);
  Carver backward(nullptr);
  take_saved(saved, sizes_of(arguments), options.save);
  take_forward(forward, arguments);
  take_backward(backward, arguments, options);
  return {saved.used(), forward.used(), backward.used()};
}

void experts_forward(const Variant& variant, const ExpertsArguments& arguments,
                     const ExpertsOptions& options, const View& y, void* saved, void* scratch,
                     Stream stream) {
  constexpr std::string_view kOperation = "experts_forward";
  check_call(kOperation, variant, arguments, options);
  check_like_x(kOperation, "y", y, arguments);
  check_rows(kOperation, "y", y);
  Carver scratch_carver(scratch);
  Carver saved_carver(saved);
  const ForwardScratch parts = take_forward(scratch_carver, arguments);
  const device::StoredProduct z = take_saved(saved_carver, sizes_of(arguments), options.save);
  with_element(arguments.x.dtype, [&]<typename T>(T*) {
    Call<T>(variant, arguments, options, parts.grouping, stream).forward(parts, z, y);
  });
}

void experts_backward(const Variant& variant, const ExpertsArguments& arguments,
                      const ExpertsOptions& options, const View& dy, const void* saved,
                      const ExpertsGradients& gradients, void* scratch, Stream stream) {
  constexpr std::string_view kOperation = "experts_backward";
  check_call(kOperation, variant, arguments, options);
  check_like_x(kOperation, "dy", dy, arguments);
  check_rows(kOperation, "dy", dy);
  check_gradient_views(gradients, arguments, options);
  Carver scratch_carver(scratch);
  Carver saved_carver(const_cast<void*>(saved));
  const BackwardScratch parts = take_backward(scratch_carver, arguments, options);
  const device::StoredProduct z = take_saved(saved_carver, sizes_of(arguments), options.save);
  with_element(arguments.x.dtype, [&]<typename T>(T*) {
    Call<T>(variant, arguments, options, parts.grouping, stream).backward(parts, z, dy, gradients);
  });
}

}  // namespace amoeba::kernels::cuda
