// What a training step will take of the device's memory, before anything is allocated.
//
// The parts follow from the tensors that the model's functions keep (see memory_plan.cpp); measured
// against runs in docs/memory.md.
#pragma once

#include <ATen/core/ScalarType.h>
#include <c10/core/DeviceType.h>

#include <cstdint>
#include <string>

#include "amoeba/model.h"
#include "train/plain/run_config.h"

namespace amoeba::train {

// One micro-batch and where it is computed.
struct StepSize {
  int64_t batch_size = 0;
  int64_t seq_len = 0;
  at::ScalarType dtype = at::kFloat;
  at::DeviceType device = at::kCPU;
  int64_t loss_chunk_bytes = 0;  // LossOptions::max_chunk_bytes
};

// Bytes at the peak.
struct MemoryPlan {
  int64_t weights = 0;      // fp32 masters
  int64_t gradients = 0;    // fp32
  int64_t optimizer = 0;    // the two moments of AdamW
  int64_t shadow = 0;       // weights in the compute dtype; 0 when that is fp32
  int64_t activations = 0;  // kept from forward to backward in the configuration's mode
  int64_t loss = 0;         // a chunk of logits and what its products need
  int64_t backward = 0;     // temporaries of a layer's backward and what it computes again
  int64_t snapshot = 0;     // copy of the state that is being saved; on the CPU only

  int64_t program = 0;  // beside tensors: LibTorch, its products' scratch memory, freed blocks

  int64_t tensors() const;  // the loss is over when the backward of the layers begins
  int64_t total() const { return tensors() + program; }
};

MemoryPlan plan_memory(const nn::ModelConfig& config, const StepSize& step);

// Of a run's configuration, on a device as resolved from training.device.
MemoryPlan plan_memory(const RunConfig& config, int64_t tokenizer_vocab_size,
                       at::DeviceType device);

// "weights 1.0 GiB, gradients 1.0 GiB, ..."; parts of 0 bytes are left out.
std::string describe(const MemoryPlan& plan);

}  // namespace amoeba::train
