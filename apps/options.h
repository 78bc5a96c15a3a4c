// Command-line pieces that verbs share: CLI11 behind a narrow interface, the terminal, signals.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "apps/verbs.h"
#include "base/log.h"
#include "train/plain/progress.h"

namespace amoeba::apps {

// One option of a verb: "--prompt TEXT".
struct Option {
  std::string name;  // with dashes
  std::string doc;
  std::vector<std::string>* values = nullptr;  // exactly one of the three is set
  std::string* text = nullptr;
  bool* flag = nullptr;
};

struct Command {
  std::string name;
  std::string summary;
  std::vector<Option> options = {};
  bool takes_overrides = false;  // leaves unknown arguments for --section.key value
  std::function<std::string()> help_footer = {};  // may be empty
};

struct Parsed {
  bool help_shown = false;
  std::vector<std::string> rest;  // with takes_overrides
};

// Error(kUsage) with one line for what does not parse. Prints the help when asked for.
Parsed parse(const Command& command, const Arguments& arguments);

// Runs the action of a verb that has several, the first argument's. Without one: the list of them,
// and Error(kUsage) unless it was asked for.
int run_action(const std::string& verb, const std::string& summary, std::span<const Verb> actions,
               const Arguments& arguments);

// Numbers of options, at least 0: Error(kUsage) naming the option.
int64_t to_integer(std::string_view option, const std::string& text);
double to_number(std::string_view option, const std::string& text);

// Progress on standard error: one live line on a terminal, plain lines otherwise.
train::Progress terminal_progress();
// Information and warnings as lines through the progress, so that they do not cut the live line.
LogSink terminal_log(train::Progress& progress);

// SIGINT and SIGTERM ask for a stop; a second one ends the process at once.
void catch_stop_signals();
bool stop_requested();

std::string quote_command(const std::string& verb, const Arguments& arguments);

}  // namespace amoeba::apps
