#include <cstdio>

#include "amoeba/error.h"
#include "apps/options.h"
#include "apps/verbs.h"
#include "base/clock.h"
#include "train/generate.h"
#include "train/load_model.h"

namespace amoeba::apps {

int run_generate(const Arguments& arguments) {
  std::string checkpoint, prompt, num_tokens = "200", temperature = "0.8", seed = "1";
  std::string device = "auto", threads = "0", backend;
  const Command command{
      "generate",
      "Writes text with a trained model. The prompt and the text go to standard output.",
      {{"--checkpoint", "run folder (its newest checkpoint) or one checkpoint's folder", nullptr,
        &checkpoint},
       {"--prompt", "text to continue", nullptr, &prompt},
       {"--num-tokens", "tokens to write (default 200)", nullptr, &num_tokens},
       {"--temperature", "0 takes the likeliest token, 1 samples as trained (default 0.8)", nullptr,
        &temperature},
       {"--seed", "equal seeds write equal text (default 1)", nullptr, &seed},
       {"--device", "auto, cpu or cuda (default auto)", nullptr, &device},
       {"--num-threads", "CPU threads; 0: all cores (default 0)", nullptr, &threads},
       {"--compute-backend", "expert backend; default: the run's", nullptr, &backend}}};
  if (parse(command, arguments).help_shown) return 0;
  AMOEBA_CHECK(!checkpoint.empty(), "generate: --checkpoint is missing, want a run's folder");
  AMOEBA_CHECK(!prompt.empty(), "generate: --prompt is missing or empty, want some text");

  train::GenerateOptions options;
  options.num_tokens = to_integer("--num-tokens", num_tokens);
  options.temperature = to_number("--temperature", temperature);
  options.seed = static_cast<uint64_t>(to_integer("--seed", seed));
  options.stop = stop_requested;
  options.on_text = [](std::string_view piece) {
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  train::Progress progress = terminal_progress();
  PosixFileSystem files;
  train::LoadedModel loaded =
      train::load_model(files, checkpoint, {device, to_integer("--num-threads", threads), backend},
                        terminal_log(progress));
  options.context = loaded.config.training.seq_len;
  catch_stop_signals();
  std::fwrite(prompt.data(), 1, prompt.size(), stdout);
  const Clock clock;
  const train::Generated generated =
      train::generate(*loaded.model, *loaded.tokenizer, prompt, options);
  const double seconds = clock.seconds();
  std::printf("\n");
  std::fflush(stdout);
  progress.line(cat("generated ", generated.num_tokens, " tokens, ",
                    static_cast<int64_t>(static_cast<double>(generated.num_tokens) / seconds),
                    " a second, step ", loaded.step));
  return 0;
}

}  // namespace amoeba::apps
