#include "apps/options.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstdio>

#include "amoeba/error.h"
#include "base/text.h"

namespace amoeba::apps {

namespace {

volatile std::sig_atomic_t stop_signals = 0;

void on_stop_signal(int signal) {
  if (stop_signals > 0) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
  stop_signals = stop_signals + 1;
}

// The option that was meant, or "".
std::string nearest_option(const Command& command, const std::string& argument) {
  std::vector<std::string> names;
  for (const Option& option : command.options) names.push_back(option.name);
  return nearest_name(argument.substr(0, argument.find('=')), names);
}

[[noreturn]] void fail_unexpected(const Command& command, const std::string& argument) {
  const std::string near = nearest_option(command, argument);
  fail(ErrorKind::kUsage, cat(command.name, ": unexpected '", printable(argument), "'",
                              near.empty() ? "" : cat(", did you mean '", near, "'?"), " (amoeba ",
                              command.name, " --help)"));
}

}  // namespace

Parsed parse(const Command& command, const Arguments& arguments) {
  CLI::App app(command.summary, "amoeba " + command.name);
  app.set_help_flag("-h,--help", "show this help");
  for (const Option& option : command.options) {
    if (option.values != nullptr) {
      app.add_option(option.name, *option.values, option.doc)->expected(1)->take_all();
    } else if (option.text != nullptr) {
      app.add_option(option.name, *option.text, option.doc)->take_last();
    } else {
      app.add_flag(option.name, *option.flag, option.doc);
    }
  }
  app.allow_extras();
  Parsed parsed;
  // CLI11 takes a vector in reverse order.
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    std::printf("%s", app.help().c_str());
    if (command.help_footer) std::printf("\n%s", command.help_footer().c_str());
    parsed.help_shown = true;
    return parsed;
  } catch (const CLI::ParseError& error) {
    std::string text = error.what();
    std::replace(text.begin(), text.end(), '\n', ' ');
    fail(ErrorKind::kUsage, cat(command.name, ": ", text, " (amoeba ", command.name, " --help)"));
  }
  parsed.rest = app.remaining();
  if (!parsed.rest.empty() && !command.takes_overrides) fail_unexpected(command, parsed.rest[0]);
  for (const std::string& argument : parsed.rest) {
    // Keys of a configuration have a dot; what has none may be an option that is misspelt.
    const bool is_key = argument.substr(0, argument.find('=')).find('.') != argument.npos;
    if (argument.starts_with("--") && !is_key && !nearest_option(command, argument).empty()) {
      fail_unexpected(command, argument);
    }
  }
  return parsed;
}

int run_action(const std::string& verb, const std::string& summary, std::span<const Verb> actions,
               const Arguments& arguments) {
  std::vector<std::string> names;
  for (const Verb& action : actions) names.emplace_back(action.name);
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h") {
    std::printf("%s\n\nusage: amoeba %s ACTION [options]\n\n", summary.c_str(), verb.c_str());
    for (const Verb& action : actions) std::printf("  %-10s %s\n", action.name, action.summary);
    AMOEBA_CHECK(!arguments.empty(), verb, ": the action is missing, want one of ",
                 join(names, ", "));
    return 0;
  }
  for (const Verb& action : actions) {
    if (arguments[0] == action.name) return action.run({arguments.begin() + 1, arguments.end()});
  }
  const std::string near = nearest_name(arguments[0], names);
  fail(ErrorKind::kUsage,
       cat(verb, ": unknown action '", printable(arguments[0]), "', want one of ",
           join(names, ", "), near.empty() ? "" : cat("; did you mean ", near, "?")));
}

int64_t to_integer(std::string_view option, const std::string& text) {
  int64_t value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  AMOEBA_CHECK(status == std::errc() && end == text.data() + text.size() && value >= 0, option,
               ": got '", text, "', want a whole number >= 0");
  return value;
}

double to_number(std::string_view option, const std::string& text) {
  double value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  AMOEBA_CHECK(status == std::errc() && end == text.data() + text.size() && std::isfinite(value) &&
                   value >= 0,
               option, ": got '", text, "', want a number >= 0");
  return value;
}

train::Progress terminal_progress() {
  train::ProgressOptions options;
  options.terminal = isatty(STDERR_FILENO) == 1;
  winsize size{};
  if (options.terminal && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    options.columns = size.ws_col;
  }
  return train::Progress(
      [](std::string_view text) {
        std::fwrite(text.data(), 1, text.size(), stderr);
        std::fflush(stderr);
      },
      options);
}

LogSink terminal_log(train::Progress& progress) {
  return [&progress](LogLevel level, std::string_view text) {
    progress.line(level == LogLevel::kWarning ? cat("warning: ", text) : std::string(text));
  };
}

void catch_stop_signals() {
  std::signal(SIGINT, on_stop_signal);
  std::signal(SIGTERM, on_stop_signal);
}

bool stop_requested() { return stop_signals > 0; }

std::string quote_command(const std::string& verb, const Arguments& arguments) {
  std::string command = "amoeba " + verb;
  for (const std::string& argument : arguments) {
    const bool plain =
        !argument.empty() && argument.find_first_not_of(
                                 "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                 "_-./=:,+@%") == std::string::npos;
    std::string quoted = argument;
    for (size_t at = 0; (at = quoted.find('\'', at)) != std::string::npos; at += 4) {
      quoted.replace(at, 1, "'\\''");
    }
    command += plain ? " " + argument : " '" + quoted + "'";
  }
  return command;
}

}  // namespace amoeba::apps
