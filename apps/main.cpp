// amoeba: trains Mixture-of-Experts language models. Exit codes: 0 ok, 1 a bug in amoeba, 2 usage,
// 3 data, 4 numeric, 5 distributed.
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "amoeba/error.h"
#include "amoeba/version.h"
#include "apps/verbs.h"
#include "base/text.h"

namespace {

using namespace amoeba;

constexpr apps::Verb kVerbs[] = {
    {"train", "train a model; resume a run", apps::run_train},
    {"find-lr", "try learning rates and suggest one", apps::run_find_lr},
    {"generate", "write text with a trained model", apps::run_generate},
    {"eval", "judge a trained model: loss on text, multiple choice", apps::run_eval},
    {"export", "write a trained model as a Hugging Face folder", apps::run_export},
    {"checkpoint", "list and verify checkpoints", apps::run_checkpoint},
    {"config", "show, check and explain configurations", apps::run_config},
    {"tokenizer", "train a tokenizer on text, encode, decode", apps::run_tokenizer},
    {"data", "encode text once for many runs; show a data set", apps::run_data},
    {"doctor", "what this machine has and what amoeba makes of it", apps::run_doctor},
};

void print_help() {
  std::printf(
      "amoeba %s - trains Mixture-of-Experts language models\n\nusage: amoeba VERB [options]\n\n",
      kVersion);
  for (const apps::Verb& verb : kVerbs) std::printf("  %-10s %s\n", verb.name, verb.summary);
  std::printf(
      "\nA first run:  amoeba train --config demo --data.path TEXT_FILE\n"
      "Help:         amoeba VERB --help\n"
      "Exit codes:   0 ok, 1 a bug in amoeba, 2 usage, 3 data, 4 numeric, 5 distributed\n");
}

int run(const std::vector<std::string>& arguments) {
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h") {
    print_help();
    AMOEBA_CHECK(!arguments.empty(), "the verb is missing, want one as above");
    return 0;
  }
  if (arguments[0] == "--version") {
    std::printf("amoeba %s\n", kVersion);
    return 0;
  }
  std::vector<std::string> names;
  for (const apps::Verb& verb : kVerbs) {
    if (arguments[0] == verb.name) return verb.run({arguments.begin() + 1, arguments.end()});
    names.push_back(verb.name);
  }
  const std::string near = nearest_name(arguments[0], names);
  fail(ErrorKind::kUsage, cat("unknown verb '", arguments[0], "', want one of ", join(names, ", "),
                              near.empty() ? "" : cat("; did you mean ", near, "?")));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const int code = run({argv + 1, argv + argc});
    AMOEBA_CHECK_KIND(kData, std::fflush(stdout) == 0 && std::ferror(stdout) == 0,
                      "standard output: not everything could be written");
    return code;
  } catch (const Error& error) {
    std::fprintf(stderr, "amoeba: %s\n", error.what());
    return static_cast<int>(error.kind());
  } catch (const std::exception& error) {
    // The first line: LibTorch appends a stack trace.
    const std::string what = error.what();
    const std::string text = what.substr(0, what.find('\n'));
    if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr ||
        text.find("allocate memory") != std::string::npos ||
        text.find("out of memory") != std::string::npos) {
      std::fprintf(stderr,
                   "amoeba: out of memory (%s); try a smaller training.local_batch_size, "
                   "training.loss_chunk_mib or model\n",
                   text.c_str());
      return static_cast<int>(ErrorKind::kUsage);
    }
    std::fprintf(stderr, "amoeba: internal error: %s\n", text.c_str());
    return static_cast<int>(ErrorKind::kInternal);
  }
}
