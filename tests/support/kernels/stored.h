// A case's inputs and outputs as the contract takes them: stored layouts, strides, pointers.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "base/executor.h"
#include "kernels/cpu/implementation.h"
#include "support/kernels/cases.h"
#include "support/kernels/host_tensor.h"
#include "support/kernels/oracle.h"

namespace amoeba::test {

// Counts, offsets, row_slot and slot_row of a case by a naive search; as route() must give them.
struct Routing {
  std::vector<int32_t> counts, offsets, row_slot, slot_row;
};
Routing naive_routing(const KernelCase& kernel_case, const KernelValues& values);

class StoredExperts {
 public:
  StoredExperts(const KernelCase& kernel_case, kernels::DType dtype, const KernelValues& values,
                const KernelValues& previous);

  // To run on a device: copy the bytes of every tensor there, set its `placed`, run, copy back.
  std::vector<HostTensor*> tensors();

  // Views of the tensors where they are placed now.
  kernels::ExpertsArguments arguments();
  kernels::ExpertsGradients gradients();
  kernels::View y() { return y_.view(); }
  kernels::View dy() { return dy_.view(); }
  kernels::View expert_ids() { return ids_.view(); }
  int64_t error() const { return static_cast<int64_t>(error_.get(0)); }

  KernelResults results() const;
  // "" or what was written outside of the outputs: guards, padding, inputs.
  std::string damage();
  // Takes no offence at inputs that the test itself has changed since.
  void accept_inputs() { inputs_before_.clear(); }

 private:
  const KernelCase& case_;
  HostTensor ids_, x_, scores_, offsets_, row_slot_, slot_row_, gate_up_[2], gate_up_bias_[2],
      down_, down_bias_, dy_;
  HostTensor y_, dx_, dscores_, dgate_up_[2], dgate_up_bias_[2], ddown_, ddown_bias_, error_;
  std::vector<std::vector<char>> inputs_before_;
};

// What tests run on the CPU: the variants of the library, and what no library lists, AMX-BF16 on
// emulated tiles.
std::vector<const kernels::cpu::Implementation*> unlisted_implementations();
std::vector<kernels::Variant> tested_variants();

// Forward and backward of one of them with NaN-filled outputs and workspaces; reports broken
// guards and changed inputs as test failures.
KernelResults run_cpu(std::string_view name, const KernelCase& kernel_case, kernels::DType dtype,
                      const KernelValues& values, const KernelValues& previous,
                      const Executor& executor = serial_executor());

// Plain errors of the CPU reference: the largest over some draws of values.
PlainErrors reference_errors(const KernelCase& kernel_case, kernels::DType dtype,
                             uint64_t num_draws);

// Threads that take the chunks of a region in shuffled order.
class ShuffledThreads {
 public:
  ShuffledThreads(int num_threads, uint64_t order) : num_threads_(num_threads), order_(order) {}
  Executor executor();

 private:
  void run(int64_t count, Executor::Body body, void* body_context);

  int num_threads_;
  uint64_t order_, num_regions_ = 0;
};

}  // namespace amoeba::test
