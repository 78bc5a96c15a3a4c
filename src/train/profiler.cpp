#include "train/profiler.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <cstdlib>
#include <memory>
#include <set>

#include "amoeba/error.h"
#include "train/plain/checkpoint.h"

namespace amoeba::train {

namespace {

namespace profiler = torch::autograd::profiler;

}  // namespace

StepTrace::StepTrace(at::Device device) {
  std::set<profiler::ActivityType> activities{profiler::ActivityType::CPU};
  if (device.is_cuda()) activities.insert(profiler::ActivityType::CUDA);
  // It would print its start and stop into the middle of ours.
  setenv("KINETO_LOG_LEVEL", "99", /*overwrite=*/0);
  const profiler::ProfilerConfig config(profiler::ProfilerState::KINETO);
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
}

StepTrace::~StepTrace() {
  if (recording_) profiler::disableProfiler();
}

void StepTrace::finish(FileSystem& files, const std::string& path) {
  recording_ = false;
  const std::unique_ptr<profiler::ProfilerResult> result = profiler::disableProfiler();
  const std::string partial = path + ".partial";
  result->save(partial);
  // It reports no error: a disk that filled up leaves a file without its end, or none.
  const std::string text = files.exists(partial) ? files.read(partial) : "";
  const size_t last = text.find_last_not_of(" \n");
  AMOEBA_CHECK_KIND(kData, last != std::string::npos && text[last] == '}', "trace: '", partial,
                    "' was not written whole; is the disk full?");
  files.rename(partial, path);
}

bool is_traced(const ProfilingSection& profiling, int64_t step) {
  return step >= profiling.start_step && step - profiling.start_step < profiling.num_steps;
}

std::string trace_path(const std::string& run_folder, int64_t step) {
  return cat(run_folder, "/traces/", step_name(step), ".json");
}

}  // namespace amoeba::train
