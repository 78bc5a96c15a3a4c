#include <cstdio>

#include "amoeba/error.h"
#include "apps/options.h"
#include "apps/verbs.h"
#include "train/lr_finder.h"
#include "train/plain/config_layers.h"

namespace amoeba::apps {

int run_find_lr(const Arguments& arguments) {
  std::vector<std::string> configs;
  std::string min_lr = "1e-5", max_lr = "1", num_steps = "100";
  const Command command{
      "find-lr",
      "Tries learning rates: trains the model of a configuration from its first weights for a few\n"
      "steps while the rate grows from --min-lr to --max-lr, and suggests one for optimizer.lr\n"
      "(learning-rate range test, Smith 2017). Saves no checkpoint. Takes settings as train does.",
      {{"--config", "preset name, TOML or JSON file; repeat for layers", &configs},
       {"--min-lr", "first rate (default 1e-5)", nullptr, &min_lr},
       {"--max-lr", "last rate, if the loss does not explode before it (default 1)", nullptr,
        &max_lr},
       {"--num-steps", "steps from the first to the last rate, 20 or more (default 100)", nullptr,
        &num_steps}},
      /*takes_overrides=*/true,
      [] {
        return std::string(
            "Writes lr_finder.json and lr_finder.html (the curve) into run.folder.\n"
            "Reading it: below the suggestion the loss hardly moves, far above it explodes. Take "
            "a\n"
            "rate where it falls steeply, and use a warm-up. The test sees only the first steps: "
            "a\n"
            "long run often wants a lower rate.\n\n"
            "Example:\n"
            "  amoeba find-lr --config demo --data.path text.txt --run.folder runs/rates\n");
      }};
  const Parsed parsed = parse(command, arguments);
  if (parsed.help_shown) return 0;
  const train::LrSweep sweep{to_number("--min-lr", min_lr), to_number("--max-lr", max_lr),
                             to_integer("--num-steps", num_steps)};
  PosixFileSystem files;
  const auto loaded = train::load_config(files, configs, formats::parse_overrides(parsed.rest));
  catch_stop_signals();
  train::Progress progress = terminal_progress();
  train::RunContext context{files, progress, terminal_log(progress), stop_requested,
                            quote_command("find-lr", arguments)};
  const train::LrFinderResult result =
      train::find_lr(loaded->config, loaded->schema, sweep, context);

  const train::LrReport& report = result.report;
  std::printf("%s\nended after %zu steps: %s\n%s\ncurve:  %s\nvalues: %s\n",
              train::format_lr_table(report.points).c_str(), report.points.size(),
              std::string(train::describe(report.end)).c_str(),
              train::format_lr_suggestion(report.suggestion).c_str(), result.page.c_str(),
              result.json.c_str());
  return 0;
}

}  // namespace amoeba::apps
