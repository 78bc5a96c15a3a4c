#include <cstdio>

#include "amoeba/train.h"
#include "apps/options.h"
#include "apps/verbs.h"
#include "base/clock.h"
#include "base/text.h"
#include "train/plain/config_layers.h"

namespace amoeba::apps {

int run_train(const Arguments& arguments) {
  const Clock clock;  // of run.max_wall_minutes
  std::vector<std::string> configs;
  std::string resume;
  const Command command{
      "train",
      "Trains a model. Settings come from --config layers and then --section.key overrides; the\n"
      "last one wins. `amoeba config keys` explains every key, `amoeba config show` what results.",
      {{"--config", "preset or flavor name, TOML or JSON file; repeat for layers", &configs},
       {"--resume", "auto: continue run.folder's newest checkpoint; or a checkpoint's folder",
        nullptr, &resume}},
      /*takes_overrides=*/true,
      [] {
        return std::string(
            "Examples:\n"
            "  amoeba train --config demo --data.path text.txt --run.folder runs/first\n"
            "  amoeba train --config demo --config mine.toml --training.steps 2000 --resume "
            "auto\n");
      }};
  Parsed parsed = parse(command, arguments);
  if (parsed.help_shown) return 0;
  if (!resume.empty()) {
    parsed.rest.push_back("--checkpoint.resume");
    parsed.rest.push_back(resume);
  }
  PosixFileSystem files;
  const auto loaded = train::load_config(files, configs, formats::parse_overrides(parsed.rest));
  catch_stop_signals();
  train::Progress progress = terminal_progress();
  train::RunContext context{files,
                            progress,
                            terminal_log(progress),
                            stop_requested,
                            quote_command("train", arguments),
                            [&] { return clock.seconds(); }};
  const train::RunSummary summary = train::train(loaded->config, loaded->schema, context);

  std::printf("\n%s at step %lld after %s of training, %s tokens/s\n",
              summary.stopped ? "stopped" : "done", static_cast<long long>(summary.step),
              format_duration(summary.train_seconds).c_str(),
              format_count(static_cast<int64_t>(summary.tokens_per_second)).c_str());
  if (summary.bits_per_byte == summary.bits_per_byte) {
    std::printf("validation: %.4f bits per byte, loss %.4f\n", summary.bits_per_byte,
                summary.validation_loss);
  }
  if (!summary.sample.empty()) {
    std::printf("sample:     %s%s\n", loaded->config.sample.prompt.c_str(), summary.sample.c_str());
  }
  if (!summary.checkpoint.empty()) std::printf("checkpoint: %s\n", summary.checkpoint.c_str());
  if (!summary.report.empty()) std::printf("report:     %s\n", summary.report.c_str());
  return 0;
}

}  // namespace amoeba::apps
