#include <cstdio>

#include "amoeba/error.h"
#include "apps/options.h"
#include "apps/verbs.h"
#include "base/text.h"
#include "train/plain/config_layers.h"

namespace amoeba::apps {

int run_config(const Arguments& arguments) {
  const std::vector<std::string> actions = {"show", "check", "keys", "presets"};
  if (arguments.empty() || arguments[0] == "--help" || arguments[0] == "-h") {
    std::printf(
        "Shows, checks and explains configurations\n\n"
        "usage: amoeba config show  [--config NAME|FILE]... [--section.key VALUE]...\n"
        "                           the resolved configuration, with where each value came from\n"
        "       amoeba config check [same]   errors as `train` would give them, or \"ok\"\n"
        "       amoeba config keys           every key with its type, default and meaning\n"
        "       amoeba config presets        names for --config\n");
    AMOEBA_CHECK(!arguments.empty(), "config: the action is missing, want one of ",
                 join(actions, ", "));
    return 0;
  }
  const std::string action = arguments[0];
  const Arguments rest(arguments.begin() + 1, arguments.end());
  if (action == "presets") {
    if (parse({"config presets", "Prints the names for --config.", {}}, rest).help_shown) return 0;
    for (const train::Preset& preset : train::presets()) {
      std::printf("%-39s %s\n", preset.name.c_str(), preset.summary.c_str());
    }
    return 0;
  }
  std::vector<std::string> configs;
  const Command command{
      "config " + action,
      "Resolves configuration layers.",
      {{"--config", "preset name, TOML or JSON file; repeat for layers", &configs}},
      /*takes_overrides=*/true,
      {}};
  const Parsed parsed = parse(command, rest);
  if (parsed.help_shown) return 0;
  PosixFileSystem files;
  const auto loaded = train::load_config(files, configs, formats::parse_overrides(parsed.rest));
  if (action == "keys") {
    std::printf("%s", formats::help_text(loaded->schema).c_str());
  } else if (action == "show") {
    std::printf("%s", loaded->schema.write_toml(true).c_str());
  } else if (action == "check") {
    train::check_config(loaded->config);
    std::printf("ok\n");
  } else {
    const std::string near = nearest_name(action, actions);
    fail(ErrorKind::kUsage,
         cat("config: unknown action '", action, "', want one of ", join(actions, ", "),
             near.empty() ? "" : cat("; did you mean ", near, "?")));
  }
  return 0;
}

}  // namespace amoeba::apps
