#include "train/profiler.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <cstdlib>
#include <memory>
#include <set>
#include <span>
#include <string_view>

#include "amoeba/error.h"
#include "train/plain/checkpoint.h"

namespace amoeba::train {

namespace {

namespace profiler = torch::autograd::profiler;

bool ends_whole(const MappedFile& trace) {
  const std::span<const std::byte> bytes = trace.data();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const size_t last = text.find_last_not_of(" \n");
  return last != text.npos && text[last] == '}';
}

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
  AMOEBA_CHECK_KIND(kData, files.exists(partial) && ends_whole(*files.map(partial)), "trace: '",
                    partial, "' was not written whole; is the disk full?");
  files.rename(partial, path);
}

bool is_traced(const ProfilingSection& profiling, int64_t step) {
  return step >= profiling.start_step && step - profiling.start_step < profiling.num_steps;
}

std::string trace_path(const std::string& run_folder, int64_t step) {
  return cat(run_folder, "/traces/", step_name(step), ".json");
}

}  // namespace amoeba::train
