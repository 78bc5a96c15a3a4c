// Traces of chosen steps, made by LibTorch's profiler, for chrome://tracing or ui.perfetto.dev.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "base/file_system.h"
#include "train/plain/run_config.h"

namespace amoeba::train {

// Records what the calling thread (and autograd's, on its behalf) does while it lives. At most one
// at a time. An object that is not finished is thrown away.
class StepTrace {
 public:
  explicit StepTrace(at::Device device);
  ~StepTrace();
  StepTrace(const StepTrace&) = delete;

  // Ends the recording and writes it to `path`, whose folder exists. LibTorch writes the file, to a
  // disk and past `files`; `files` checks that it is whole and moves it into place. Error(kData).
  void finish(FileSystem& files, const std::string& path);

 private:
  bool recording_ = true;
};

// Whether `step` (from 1) is one of those to trace.
bool is_traced(const ProfilingSection& profiling, int64_t step);

// RUN/traces/step-00000012.json
std::string trace_path(const std::string& run_folder, int64_t step);

}  // namespace amoeba::train
