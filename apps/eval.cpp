#include <cmath>
#include <cstdio>

#include "amoeba/error.h"
#include "apps/options.h"
#include "apps/verbs.h"
#include "base/clock.h"
#include "train/device.h"
#include "train/evaluate.h"
#include "train/load_model.h"

namespace amoeba::apps {

int run_eval(const Arguments& arguments) {
  std::string checkpoint, text, windows = "0", device = "auto", threads = "0", backend;
  const Command command{
      "eval",
      "Loss and bits per byte of a trained model on text. Prints one line of JSON.",
      {{"--checkpoint", "run folder (its newest checkpoint) or one checkpoint's folder", nullptr,
        &checkpoint},
       {"--text", "evaluate all of this file; default: the held-out part of the training text",
        nullptr, &text},
       {"--max-windows", "windows to evaluate; 0: all (default 0)", nullptr, &windows},
       {"--device", "auto, cpu or cuda (default auto)", nullptr, &device},
       {"--num-threads", "CPU threads; 0: all cores (default 0)", nullptr, &threads},
       {"--compute-backend", "expert backend; default: the run's", nullptr, &backend}}};
  if (parse(command, arguments).help_shown) return 0;
  AMOEBA_CHECK(!checkpoint.empty(), "eval: --checkpoint is missing, want a run's folder");
  train::EvaluateOptions options;
  options.max_windows = to_integer("--max-windows", windows);

  train::Progress progress = terminal_progress();
  PosixFileSystem files;
  train::LoadedModel loaded =
      train::load_model(files, checkpoint, {device, to_integer("--num-threads", threads), backend},
                        terminal_log(progress));
  train::RunConfig config = loaded.config;
  if (!text.empty()) {
    config.data.path = {text};
    config.data.weights.clear();
    config.data.validation_fraction = 1.0;
  }
  const train::ValidationData data = train::open_validation_data(files, config, *loaded.tokenizer);
  AMOEBA_CHECK_KIND(kData, data.set.num_windows() > 0, "eval: the run holds out no text ",
                    "(data.validation_fraction is ", config.data.validation_fraction,
                    "), want --text FILE");
  catch_stop_signals();
  const Clock clock;
  options.batch_size = config.training.local_batch_size;
  options.loss_chunk_bytes =
      train::loss_chunk_bytes(config.training.loss_chunk_mib, loaded.model->device().type());
  options.stop = stop_requested;
  options.progress = [&](int64_t done, int64_t total) {
    progress.live(train::format_work("evaluating", done, total, "windows"), clock.seconds());
  };
  const train::Evaluation result = train::evaluate(*loaded.model, data.set, options);
  progress.clear();
  if (result.windows == 0) {
    progress.line("eval: stopped before the first window was done");
    return 0;
  }
  AMOEBA_CHECK_KIND(kNumeric, std::isfinite(result.loss), "eval: loss is ", result.loss, " over ",
                    result.windows, " windows, want a finite number");
  std::printf(
      "{\"step\": %lld, \"loss\": %.6f, \"bits_per_byte\": %.6f, \"windows\": %lld, "
      "\"seconds\": %.1f}\n",
      static_cast<long long>(loaded.step), result.loss, result.bits_per_byte,
      static_cast<long long>(result.windows), clock.seconds());
  return 0;
}

}  // namespace amoeba::apps
