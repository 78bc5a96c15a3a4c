// The layers around the experts on CUDA: read, check, allocate, run, write.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "amoeba/error.h"
#include "kernels/layers.h"
#include "ops/checks.h"
#include "ops/cuda_stream.h"
#include "ops/stack.h"

namespace amoeba::ops {
namespace {

namespace cuda = kernels::cuda;
using kernels::DType;
using Guard = torch::stable::accelerator::DeviceGuard;

const std::vector<DType> kTypes = {DType::kF32, DType::kF16, DType::kBF16};

void check(const char* operation, const char* name, const Tensor& tensor, const Want& want,
           const Tensor& like) {
  check_tensor(operation, name, tensor, want, like);
  check_contiguous(operation, name, tensor);
}

template <typename T = void>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// x [T, D], weight [D]
cuda::RmsNorm read_norm(const char* operation, const Tensor& x, const Tensor& weight) {
  check(operation, "x", x, {kTypes, {kAny, kAny}}, x);
  check(operation, "weight", weight, {{DType::kF32}, {x.size(1)}}, x);
  return {dtype_of(operation, "x", x), data(x), data<float>(weight), x.size(0), x.size(1)};
}

void rms_norm_forward(StableIValue* stack, uint64_t, uint64_t) {
  StackReader reader(stack);
  const auto x = reader.read<Tensor>(), weight = reader.read<Tensor>();
  const auto eps = reader.read<double>();
  const cuda::RmsNorm norm = read_norm("rms_norm_forward", x, weight);
  const Guard guard(x.get_device_index());
  const Tensor y = new_tensor(x, shape_of(x), norm.dtype);
  const Tensor rstd = new_tensor(x, {norm.num_rows}, DType::kF32);
  cuda::rms_norm(norm, eps, data(y), data<float>(rstd), current_stream());
  write_results(stack, y, rstd);
}

void rms_norm_backward(StableIValue* stack, uint64_t, uint64_t) {
  constexpr const char* kName = "rms_norm_backward";
  StackReader reader(stack);
  const auto dy = reader.read<Tensor>(), x = reader.read<Tensor>(), weight = reader.read<Tensor>(),
             rstd = reader.read<Tensor>();
  const auto passed = reader.read<std::optional<Tensor>>();
  const auto dweight = reader.read<Tensor>();
  const cuda::RmsNorm norm = read_norm(kName, x, weight);
  const Want like_x = {{norm.dtype}, shape_of(x)};
  check(kName, "dy", dy, like_x, x);
  check(kName, "rstd", rstd, {{DType::kF32}, {norm.num_rows}}, x);
  if (passed) check(kName, "passed", *passed, like_x, x);
  check(kName, "dweight", dweight, {{DType::kF32}, {norm.size}}, x);
  const Guard guard(x.get_device_index());
  const Tensor dx = new_tensor(x, shape_of(x), norm.dtype);
  const Tensor scratch =
      new_tensor(x, {cuda::rms_norm_scratch(norm.num_rows), norm.size}, DType::kF32);
  cuda::rms_norm_backward(norm,
                          {data<float>(rstd), data(dy), passed ? data(*passed) : nullptr, data(dx),
                           data<float>(dweight), data<float>(scratch)},
                          current_stream());
  write_results(stack, dx);
}

// x [T, heads, width]
void rope(StableIValue* stack, uint64_t, uint64_t) {
  constexpr const char* kName = "rope";
  StackReader reader(stack);
  const auto x = reader.read<Tensor>(), cos = reader.read<Tensor>(), sin = reader.read<Tensor>(),
             positions = reader.read<Tensor>();
  const auto direction = reader.read<double>();
  check(kName, "x", x, {kTypes, {kAny, kAny, kAny}}, x);
  check(kName, "cos", cos, {{DType::kF32}, {kAny, kAny}}, x);
  check(kName, "sin", sin, {{DType::kF32}, shape_of(cos)}, x);
  check(kName, "positions", positions, {{DType::kI64}, {x.size(0)}}, x);
  const int64_t width = x.size(2), turned = 2 * cos.size(1);
  AMOEBA_CHECK(width % 8 == 0 && turned % 8 == 0 && turned <= width, "rope: heads are ", width,
               " wide and ", turned, " of it turned, want multiples of 8");
  const Guard guard(x.get_device_index());
  const DType dtype = dtype_of(kName, "x", x);
  const Tensor y = new_tensor(x, shape_of(x), dtype);
  cuda::rope({dtype, data(x), x.size(0), x.size(1), width, data<const float>(cos),
              data<const float>(sin), cos.size(0), cos.size(1), data<const int64_t>(positions)},
             static_cast<float>(direction), data(y), current_stream());
  write_results(stack, y);
}

// gate_up [T, 2H]
cuda::SwiGlu read_swiglu(const char* operation, const Tensor& gate_up) {
  check(operation, "gate_up", gate_up, {kTypes, {kAny, kAny}}, gate_up);
  AMOEBA_CHECK(gate_up.size(1) % 2 == 0, operation, ": gate_up has ", gate_up.size(1),
               " columns, want an even number");
  return {dtype_of(operation, "gate_up", gate_up), data(gate_up), gate_up.size(0),
          gate_up.size(1) / 2};
}

void swiglu_forward(StableIValue* stack, uint64_t, uint64_t) {
  StackReader reader(stack);
  const auto gate_up = reader.read<Tensor>();
  const cuda::SwiGlu activation = read_swiglu("swiglu_forward", gate_up);
  const Guard guard(gate_up.get_device_index());
  const Tensor y = new_tensor(gate_up, {activation.num_rows, activation.hidden}, activation.dtype);
  cuda::swiglu(activation, data(y), current_stream());
  write_results(stack, y);
}

void swiglu_backward(StableIValue* stack, uint64_t, uint64_t) {
  StackReader reader(stack);
  const auto dy = reader.read<Tensor>(), gate_up = reader.read<Tensor>();
  const cuda::SwiGlu activation = read_swiglu("swiglu_backward", gate_up);
  check("swiglu_backward", "dy", dy, {{activation.dtype}, {activation.num_rows, activation.hidden}},
        gate_up);
  const Guard guard(gate_up.get_device_index());
  const Tensor dgate_up = new_tensor(gate_up, shape_of(gate_up), activation.dtype);
  cuda::swiglu_backward(activation, data(dy), data(dgate_up), current_stream());
  write_results(stack, dgate_up);
}

void cross_entropy(StableIValue* stack, uint64_t, uint64_t) {
  constexpr const char* kName = "cross_entropy";
  StackReader reader(stack);
  const auto logits = reader.read<Tensor>(), targets = reader.read<Tensor>();
  const auto dlogits = reader.read<std::optional<Tensor>>();
  check(kName, "logits", logits, {{DType::kF32}, {kAny, kAny}}, logits);
  check(kName, "targets", targets, {{DType::kI64}, {logits.size(0)}}, logits);
  if (dlogits) check(kName, "dlogits", *dlogits, {kTypes, shape_of(logits)}, logits);
  const Guard guard(logits.get_device_index());
  const Tensor losses = new_tensor(logits, {logits.size(0)}, DType::kF32);
  cuda::cross_entropy({data<const float>(logits), data<const int64_t>(targets), logits.size(0),
                       logits.size(1), data<float>(losses), dlogits ? data(*dlogits) : nullptr,
                       dlogits ? dtype_of(kName, "dlogits", *dlogits) : DType::kF32},
                      current_stream());
  write_results(stack, losses);
}

void adamw(StableIValue* stack, uint64_t, uint64_t) {
  constexpr const char* kName = "adamw";
  StackReader reader(stack);
  const auto master = reader.read<Tensor>(), grad = reader.read<Tensor>(),
             exp_avg = reader.read<Tensor>(), exp_avg_sq = reader.read<Tensor>();
  const auto shadow = reader.read<std::optional<Tensor>>();
  const auto lr = reader.read<Tensor>(), num_steps = reader.read<Tensor>();
  const auto grad_scale = reader.read<std::optional<Tensor>>();
  const auto found_inf = reader.read<Tensor>();
  cuda::AdamW arguments;
  for (double* number :
       {&arguments.beta1, &arguments.beta2, &arguments.weight_decay, &arguments.eps}) {
    *number = reader.read<double>();
  }
  check(kName, "master", master, {{DType::kF32}, {kAny}}, master);
  const Want like_master = {{DType::kF32}, shape_of(master)}, scalar = {{DType::kF32}, {}};
  check(kName, "grad", grad, like_master, master);
  check(kName, "exp_avg", exp_avg, like_master, master);
  check(kName, "exp_avg_sq", exp_avg_sq, like_master, master);
  if (shadow) check(kName, "shadow", *shadow, {kTypes, shape_of(master)}, master);
  check(kName, "lr", lr, {{DType::kF64}, {}}, master);
  check(kName, "num_steps", num_steps, scalar, master);
  if (grad_scale) check(kName, "grad_scale", *grad_scale, scalar, master);
  check(kName, "found_inf", found_inf, scalar, master);
  arguments.size = master.size(0);
  arguments.master = data<float>(master);
  arguments.grad = data<const float>(grad);
  arguments.exp_avg = data<float>(exp_avg);
  arguments.exp_avg_sq = data<float>(exp_avg_sq);
  if (shadow) {
    arguments.shadow = data(*shadow);
    arguments.dtype = dtype_of(kName, "shadow", *shadow);
  }
  arguments.lr = data<const double>(lr);
  arguments.num_steps = data<const float>(num_steps);
  if (grad_scale) arguments.grad_scale = data<const float>(*grad_scale);
  arguments.found_inf = data<const float>(found_inf);
  for (const void* array :
       {data<const void>(master), data<const void>(grad), data<const void>(exp_avg),
        data<const void>(exp_avg_sq), static_cast<const void*>(arguments.shadow)}) {
    AMOEBA_CHECK(reinterpret_cast<uintptr_t>(array) % 16 == 0,
                 "adamw: an array is not aligned, want 16 bytes");
  }
  const Guard guard(master.get_device_index());
  cuda::adamw(arguments, current_stream());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amoeba, CUDA, library) {
  library.impl("rms_norm_forward", rms_norm_forward);
  library.impl("rms_norm_backward", rms_norm_backward);
  library.impl("rope", rope);
  library.impl("swiglu_forward", swiglu_forward);
  library.impl("swiglu_backward", swiglu_backward);
  library.impl("cross_entropy", cross_entropy);
  library.impl("adamw", adamw);
}

}  // namespace amoeba::ops
