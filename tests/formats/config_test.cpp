#include "formats/config.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "amoeba/error.h"
#include "support/errors.h"
#include "support/mutation.h"

namespace amoeba::formats {
namespace {

using test::error_message;

struct Settings {
  std::string name = "base";
  bool enable = false;
  int64_t steps = 10;
  int64_t seed = 1;
  double lr = 0.5;
  double share = 0.25;
  std::string backend = "auto";
  std::vector<std::string> path;
  std::vector<double> weights;

  bool operator==(const Settings&) const = default;
};

Schema make_schema(Settings& settings) {
  Schema schema;
  schema.add({.path = "name", .field = &settings.name, .doc = "Name of the run."});
  schema.add({.path = "training.enable", .field = &settings.enable, .doc = "Whether to train."});
  schema.add({.path = "training.steps",
              .field = &settings.steps,
              .doc = "Number of steps.",
              .minimum = 1,
              .maximum = 1000});
  schema.add({.path = "data.seed", .field = &settings.seed, .doc = "Seed."});
  schema.add({.path = "training.lr",
              .field = &settings.lr,
              .doc = "Learning rate.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.add({.path = "data.share",
              .field = &settings.share,
              .doc = "Share.",
              .minimum = 0,
              .maximum = 1,
              .maximum_exclusive = true});
  schema.add({.path = "model.moe.backend",
              .field = &settings.backend,
              .doc = "Backend.",
              .choices = {"auto", "for_loop", "grouped_mm"}});
  schema.add({.path = "data.path", .field = &settings.path, .doc = "Files."});
  schema.add({.path = "data.weights",
              .field = &settings.weights,
              .doc = "Weights.",
              .minimum = 0,
              .minimum_exclusive = true});
  schema.retire(RetiredKey{"use_grouped_mm", "use model.moe.backend"});
  schema.retire(RetiredKey{"training.iterations", "use training.steps"});
  schema.retire(RetiredChoice{"model.moe.backend", "loop", "use for_loop"});
  return schema;
}

struct Case {
  std::string text;
  std::string want;
};

TEST(Config, RefusesBadTomlWithPathAndPosition) {
  const std::vector<Case> cases = {
      // Unknown names.
      {"[training]\nstesp = 5",
       "f.toml:2:9: unknown key 'training.stesp', did you mean 'training.steps'?"},
      {"[training]\nweights = [1]",
       "f.toml:2:11: unknown key 'training.weights', did you mean 'data.weights'?"},
      {"steps = 5", "f.toml:1:9: unknown key 'steps', did you mean 'training.steps'?"},
      {"nam = 'x'", "f.toml:1:7: unknown key 'nam', did you mean 'name'?"},
      {"[training]\nzzzzzzzz = 5",
       "f.toml:2:12: unknown key 'training.zzzzzzzz', 'training' has the keys: enable, steps, lr"},
      {"zzzzzzzz = 5",
       "f.toml:1:12: unknown key 'zzzzzzzz', want a key in one of training, data, model.moe"},
      {"[model]\nzzzzzzzz = 5",
       "f.toml:2:12: unknown key 'model.zzzzzzzz', 'model' has the sections: model.moe"},
      {"[trainning]\nsteps = 5",
       "f.toml:1:1: unknown section 'trainning', did you mean 'training'?"},
      {"[zzzzzzzz]\nsteps = 5",
       "f.toml:1:1: unknown section 'zzzzzzzz', want one of training, data, model.moe"},
      {"[model.mo]\nbackend = 'auto'",
       "f.toml:1:1: unknown section 'model.mo', did you mean 'model.moe'?"},
      {"\"training.steps\" = 5",
       "f.toml:1:20: key 'training.steps' holds a dot, want one object for each part"},
      {"\"a\\nb\" = 5",
       "f.toml:1:10: unknown key 'a\\nb', want a key in one of training, data, model.moe"},
      // Types.
      {"[training]\nsteps = true", "f.toml:2:9: 'training.steps' got boolean 'true', want integer"},
      {"[training]\nsteps = 1.0", "f.toml:2:9: 'training.steps' got number '1.0', want integer"},
      {"[training]\nsteps = 1e3", "f.toml:2:9: 'training.steps' got number '1000.0', want integer"},
      {"[training]\nsteps = '5'", "f.toml:2:9: 'training.steps' got string '5', want integer"},
      {"[training]\nsteps = [5]", "f.toml:2:9: 'training.steps' got array, want integer"},
      {"[training.steps]\nx = 5", "f.toml:1:1: 'training.steps' got object, want integer"},
      {"[training]\nenable = 1", "f.toml:2:10: 'training.enable' got integer '1', want boolean"},
      {"[training]\nlr = 'x'", "f.toml:2:6: 'training.lr' got string 'x', want number"},
      {"name = 1", "f.toml:1:8: 'name' got integer '1', want string"},
      {"[data]\npath = 'x'", "f.toml:2:8: 'data.path' got string 'x', want list of strings"},
      {"[data]\npath = ['x', 2]", "f.toml:2:8: 'data.path[1]' got integer '2', want string"},
      {"[data]\nweights = [1, 'x']", "f.toml:2:11: 'data.weights[1]' got string 'x', want number"},
      {"training = 5", "f.toml:1:12: 'training' got integer '5', want a section (an object)"},
      {"[[training]]\nsteps = 5", "f.toml:1:1: 'training' got array, want a section (an object)"},
      // Ranges and choices.
      {"[training]\nsteps = 0",
       "f.toml:2:9: 'training.steps' got 0, want at least 1 and at most 1000"},
      {"[training]\nsteps = 1001",
       "f.toml:2:9: 'training.steps' got 1001, want at least 1 and at most 1000"},
      {"[training]\nlr = 0", "f.toml:2:6: 'training.lr' got 0, want more than 0"},
      {"[training]\nlr = -0.5", "f.toml:2:6: 'training.lr' got -0.5, want more than 0"},
      {"[training]\nlr = nan", "f.toml:2:6: 'training.lr' got nan, want a finite number"},
      {"[training]\nlr = inf", "f.toml:2:6: 'training.lr' got inf, want a finite number"},
      {"[data]\nshare = 1.0", "f.toml:2:9: 'data.share' got 1.0, want at least 0 and less than 1"},
      {"[data]\nweights = [1, 0]", "f.toml:2:11: 'data.weights[1]' got 0, want more than 0"},
      {"[model.moe]\nbackend = 'groupd_mm'",
       "f.toml:2:11: 'model.moe.backend' got 'groupd_mm', want one of auto, for_loop, grouped_mm; "
       "did you mean 'grouped_mm'?"},
      {"[model.moe]\nbackend = 'zzzzzzzz'",
       "f.toml:2:11: 'model.moe.backend' got 'zzzzzzzz', want one of auto, for_loop, grouped_mm"},
      {"[model.moe]\nbackend = ''",
       "f.toml:2:11: 'model.moe.backend' got '', want one of auto, for_loop, grouped_mm"},
      // Retired spellings.
      {"[model.moe]\nuse_grouped_mm = true",
       "f.toml:2:18: 'model.moe.use_grouped_mm' is no longer taken: use model.moe.backend"},
      {"[zzzzzzzz.y]\nuse_grouped_mm = true",
       "f.toml:1:1: 'zzzzzzzz.y.use_grouped_mm' is no longer taken: use model.moe.backend"},
      {"[training]\niterations = 5",
       "f.toml:2:14: 'training.iterations' is no longer taken: use training.steps"},
      {"[data]\niterations = 5",
       "f.toml:2:14: unknown key 'data.iterations', 'data' has the keys: seed, share, path, "
       "weights"},
      {"[model.moe]\nbackend = 'loop'",
       "f.toml:2:11: 'model.moe.backend' value 'loop' is no longer taken: use for_loop"},
  };
  for (const Case& c : cases) {
    Settings settings;
    Schema schema = make_schema(settings);
    const Value document = parse_toml(c.text, "f.toml");
    EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { schema.apply(document, "f.toml"); }), c.want)
        << c.text;
  }
}

TEST(Config, RefusesBadJsonWithPath) {
  const std::vector<Case> cases = {
      {"[]", "f.json: the top level is array, want an object of sections"},
      {"null", "f.json: the top level is null, want an object of sections"},
      {"5", "f.json: the top level is integer '5', want an object of sections"},
      {R"({"training": {"steps": null}})", "f.json: 'training.steps' got null, want integer"},
      {R"({"training": {"steps": {"x": 1}}})", "f.json: 'training.steps' got object, want integer"},
      {R"({"training": {"stesp": 1}})",
       "f.json: unknown key 'training.stesp', did you mean 'training.steps'?"},
      {R"({"training.steps": 1})",
       "f.json: key 'training.steps' holds a dot, want one object for each part"},
      {R"({"training": [1]})", "f.json: 'training' got array, want a section (an object)"},
  };
  for (const Case& c : cases) {
    Settings settings;
    Schema schema = make_schema(settings);
    const Value document = parse_json(c.text, "f.json");
    EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { schema.apply(document, "f.json"); }), c.want)
        << c.text;
  }
}

TEST(Config, RefusesBadOverrides) {
  struct OverrideCase {
    std::string path;
    std::string text;
    std::string want;
  };
  const std::string long_text(100, 'x');
  const std::vector<OverrideCase> cases = {
      {"training.steps", "1e3",
       "command line: 'training.steps' got '1e3', want an integer, in digits only"},
      {"training.steps", "1.0",
       "command line: 'training.steps' got '1.0', want an integer, in digits only"},
      {"training.steps", "",
       "command line: 'training.steps' got '', want an integer, in digits only"},
      {"training.steps", " 5",
       "command line: 'training.steps' got ' 5', want an integer, in digits only"},
      {"training.steps", "true",
       "command line: 'training.steps' got 'true', want an integer, in digits only"},
      {"training.steps", "99999999999999999999",
       "command line: 'training.steps' got '99999999999999999999', which does not fit in 64 bits"},
      {"training.steps", "-1",
       "command line: 'training.steps' got -1, want at least 1 and at most 1000"},
      {"training.enable", "yes", "command line: 'training.enable' got 'yes', want true or false"},
      {"training.enable", "1", "command line: 'training.enable' got '1', want true or false"},
      {"training.lr", "fast", "command line: 'training.lr' got 'fast', want a number"},
      {"training.lr", "0.1x", "command line: 'training.lr' got '0.1x', want a number"},
      {"training.lr", "nan", "command line: 'training.lr' got nan, want a finite number"},
      {"training.lr", "-inf", "command line: 'training.lr' got -inf, want a finite number"},
      {"training.lr", "1e999",
       "command line: 'training.lr' got '1e999', which does not fit in 64 bits"},
      {"data.path", "a,,b",
       "command line: 'data.path' got 'a,,b', want no empty element between commas"},
      {"data.weights", "1,x", "command line: 'data.weights' got 'x', want a number"},
      {"data.weights", "1,-1", "command line: 'data.weights[1]' got -1.0, want more than 0"},
      {"model.moe.backend", "auot",
       "command line: 'model.moe.backend' got 'auot', want one of auto, for_loop, grouped_mm; did "
       "you mean 'auto'?"},
      {"model.moe.backend", "loop",
       "command line: 'model.moe.backend' value 'loop' is no longer taken: use for_loop"},
      {"model.moe.backend", long_text,
       "command line: 'model.moe.backend' got '" + long_text.substr(0, 80) +
           "...', want one of auto, for_loop, grouped_mm"},
      {"name", "a\xFFz", "command line: 'name' got 'a\xEF\xBF\xBDz', want UTF-8 text"},
      {"training", "5",
       "command line: 'training' is a section, want one of its keys: enable, steps, lr"},
      {"model", "5", "command line: 'model' is a section, want one of its sections: model.moe"},
      {"training.steps.x", "5",
       "command line: unknown key 'training.steps.x': 'training.steps' is of type integer and "
       "holds no other key"},
      {"training.step", "5",
       "command line: unknown key 'training.step', did you mean 'training.steps'?"},
      {"training.no-enable", "true",
       "command line: unknown key 'training.no-enable', did you mean 'training.enable'?"},
      {"trainning.steps", "5",
       "command line: unknown section 'trainning', did you mean 'training'?"},
      {"steps", "5", "command line: unknown key 'steps', did you mean 'training.steps'?"},
      {"moe.use_grouped_mm", "5",
       "command line: 'moe.use_grouped_mm' is no longer taken: use model.moe.backend"},
  };
  for (const OverrideCase& c : cases) {
    Settings settings;
    Schema schema = make_schema(settings);
    EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { schema.apply_override(c.path, c.text); }),
              c.want);
    EXPECT_EQ(settings, Settings()) << c.path << " " << c.text;
  }
}

TEST(Config, OverridesTakeEveryType) {
  Settings settings;
  Schema schema = make_schema(settings);
  schema.apply_override("name", "");
  schema.apply_override("training.enable", "true");
  schema.apply_override("training.steps", "1000");
  schema.apply_override("data.seed", "-9223372036854775808");
  schema.apply_override("training.lr", "3e-3");
  schema.apply_override("data.share", "0");
  schema.apply_override("data.path", "a b.txt,c=d");
  schema.apply_override("data.weights", "1,2.5");
  EXPECT_EQ(settings.name, "");
  EXPECT_TRUE(settings.enable);
  EXPECT_EQ(settings.steps, 1000);
  EXPECT_EQ(settings.seed, std::numeric_limits<int64_t>::min());
  EXPECT_EQ(settings.lr, 3e-3);
  EXPECT_EQ(settings.share, 0.0);
  EXPECT_EQ(settings.path, (std::vector<std::string>{"a b.txt", "c=d"}));
  EXPECT_EQ(settings.weights, (std::vector<double>{1, 2.5}));

  schema.apply_override("data.path", "");
  EXPECT_TRUE(settings.path.empty());
}

TEST(Config, LaterLayersWinAndOriginsFollow) {
  Settings settings;
  Schema schema = make_schema(settings);
  EXPECT_EQ(schema.origin("training.steps"), "default");
  EXPECT_FALSE(schema.is_set("training.steps"));

  schema.apply(parse_toml("[training]\nsteps = 20\nlr = 2\n[data]\nseed = 5\n", "preset.toml"),
               "preset.toml");
  schema.apply(parse_json(R"({"training": {"steps": 30, "lr": 1}})", "overlay.json"),
               "overlay.json");
  schema.apply_override("training.steps", "40");
  schema.apply_override("training.steps", "50");

  EXPECT_EQ(settings.steps, 50);
  EXPECT_EQ(settings.lr, 1.0);  // an integer for a number key
  EXPECT_EQ(settings.seed, 5);
  EXPECT_EQ(schema.origin("training.steps"), "command line");
  EXPECT_EQ(schema.origin("training.lr"), "overlay.json");
  EXPECT_EQ(schema.origin("data.seed"), "preset.toml:5");
  EXPECT_EQ(schema.origin("name"), "default");
  EXPECT_TRUE(schema.is_set("data.seed"));
  EXPECT_EQ(write_json(schema.default_value("training.steps")), "10");
  EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { schema.origin("training.stesp"); }),
            "configuration: unknown key 'training.stesp', did you mean 'training.steps'?");
}

TEST(Config, CheckFindsValuesSetInCode) {
  Settings settings;
  const Schema schema = make_schema(settings);
  const auto message = [&] { return error_message(ErrorKind::kUsage, [&] { schema.check(); }); };
  schema.check();
  settings.steps = 0;
  EXPECT_EQ(message(), "configuration: 'training.steps' got 0, want at least 1 and at most 1000");
  settings = Settings();
  settings.lr = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(message(), "configuration: 'training.lr' got nan, want a finite number");
  settings = Settings();
  settings.weights = {1, -2};
  EXPECT_EQ(message(), "configuration: 'data.weights[1]' got -2.0, want more than 0");
  settings = Settings();
  settings.backend = "fused";
  EXPECT_EQ(message(),
            "configuration: 'model.moe.backend' got 'fused', want one of auto, for_loop, "
            "grouped_mm");
}

TEST(Config, WritesACompleteFile) {
  Settings settings;
  Schema schema = make_schema(settings);
  schema.apply_override("training.steps", "7");
  schema.apply_override("data.path", "a,b");
  EXPECT_EQ(schema.write_toml(false),
            "name = \"base\"\n"
            "\n"
            "[training]\n"
            "enable = false\n"
            "steps = 7\n"
            "lr = 0.5\n"
            "\n"
            "[data]\n"
            "seed = 1\n"
            "share = 0.25\n"
            "path = [\"a\",\"b\"]\n"
            "weights = []\n"
            "\n"
            "[model.moe]\n"
            "backend = \"auto\"\n");
  const std::string annotated = schema.write_toml(true);
  EXPECT_EQ(annotated.find("# Name of the run. [default]\nname = \"base\"\n"), 0u) << annotated;
  EXPECT_NE(annotated.find("# Number of steps. [command line]\nsteps = 7\n"), annotated.npos)
      << annotated;
  EXPECT_EQ(write_json(schema.to_value()),
            R"({"name":"base","training":{"enable":false,"steps":7,"lr":0.5},)"
            R"("data":{"seed":1,"share":0.25,"path":["a","b"],"weights":[]},)"
            R"("model":{"moe":{"backend":"auto"}}})");
}

TEST(Config, WhatItWritesParsesBackToTheSameValues) {
  Settings settings;
  settings.name = "quote \" slash \\ line \n bell \a delete \x7F e \xC3\xA9";
  settings.enable = true;
  settings.seed = std::numeric_limits<int64_t>::max();
  settings.lr = 1e300;
  settings.share = 1.0 / 3;
  settings.path = {"", "a,b", "'"};
  settings.weights = {1, 1e-5, 123456789012345680.0};
  const Schema schema = make_schema(settings);

  for (const bool annotate : {false, true}) {
    Settings copy;
    make_schema(copy).apply(parse_toml(schema.write_toml(annotate), "f.toml"), "f.toml");
    EXPECT_EQ(copy, settings);
  }
  Settings copy;
  make_schema(copy).apply(parse_json(write_json(schema.to_value()), "f.json"), "f.json");
  EXPECT_EQ(copy, settings);
}

TEST(Config, OddSourceNamesStayInTheirComment) {
  Settings settings;
  Schema schema = make_schema(settings);
  const std::string source = "a\nname = 5.json";
  schema.apply(parse_json(R"({"training": {"steps": 3}})", source), source);
  Settings copy;
  make_schema(copy).apply(parse_toml(schema.write_toml(true), "f.toml"), "f.toml");
  EXPECT_EQ(copy, settings);
}

TEST(Config, HelpShowsEveryKey) {
  Settings settings;
  const Schema schema = make_schema(settings);
  settings.steps = 99;  // help shows the default, not the current value
  const std::string help = help_text(schema);
  for (const Key& key : schema.keys()) {
    EXPECT_NE(help.find("--" + key.path + "  ("), help.npos) << key.path;
    EXPECT_NE(help.find(key.doc), help.npos) << key.path;
  }
  EXPECT_EQ(
      help.find("  --name  (string; default \"base\")\n      Name of the run.\n\n[training]\n"), 0u)
      << help;
  EXPECT_NE(help.find("  --training.steps  (integer; default 10; at least 1 and at most 1000)\n"
                      "      Number of steps.\n"),
            help.npos)
      << help;
  EXPECT_NE(help.find("(string; default \"auto\"; one of auto | for_loop | grouped_mm)"), help.npos)
      << help;
}

TEST(Config, SplitsOverrides) {
  using Overrides = std::vector<std::pair<std::string, std::string>>;
  EXPECT_EQ(parse_overrides({}), Overrides());
  EXPECT_EQ(
      parse_overrides({"--a.b", "c", "--d=e=f", "--g=", "--h", "-1", "--i", "", "--j=--k"}),
      (Overrides{{"a.b", "c"}, {"d", "e=f"}, {"g", ""}, {"h", "-1"}, {"i", ""}, {"j", "--k"}}));

  const std::string no_value =
      " has no value, want --section.key value (--section.key=value when it starts with --)";
  struct ArgumentCase {
    std::vector<std::string> arguments;
    std::string want;
  };
  const std::vector<ArgumentCase> cases = {
      {{"a.b", "c"}, "command line: got 'a.b', want --section.key value"},
      {{"-a", "c"}, "command line: got '-a', want --section.key value"},
      {{""}, "command line: got '', want --section.key value"},
      {{"--"}, "command line: got '--', want --section.key value"},
      {{"--=c"}, "command line: got '--=c', want --section.key value"},
      {{"--a", "b", "c"}, "command line: got 'c', want --section.key value"},
      {{"--a.b"}, "command line: '--a.b'" + no_value},
      {{"--a.b", "--c.d", "e"}, "command line: '--a.b'" + no_value},
  };
  for (const ArgumentCase& c : cases) {
    EXPECT_EQ(error_message(ErrorKind::kUsage, [&] { parse_overrides(c.arguments); }), c.want);
  }
}

// Damaged documents and overrides are taken or refused with a one-line error; what is taken is in
// range and can be written and read back.
TEST(Config, SurvivesDamage) {
  const std::string toml =
      "name = 'x'\n[training]\nenable = true\nsteps = 5\nlr = 0.1\n[data]\nseed = 3\n"
      "path = ['a', 'b']\nweights = [1, 2.5]\n[model.moe]\nbackend = 'auto'\n";
  const std::string json =
      R"({"name": "x", "training": {"enable": true, "steps": 5, "lr": 0.1},)"
      R"( "data": {"path": ["a"], "weights": [1, 2.5]}, "model": {"moe": {"backend": "auto"}}})";
  const std::vector<std::pair<std::string, std::string>> overrides = {
      {"training.steps", "5"}, {"training.lr", "1.5e-2"}, {"training.enable", "true"},
      {"data.weights", "1,2"}, {"data.path", "a,b"},      {"model.moe.backend", "auto"}};
  int num_taken = 0;
  int num_refused = 0;
  for (uint64_t index = 0; index < 6000; ++index) {
    Settings settings;
    Schema schema = make_schema(settings);
    try {
      if (index % 3 == 0) {
        schema.apply(parse_toml(test::mutated(toml, index), "f"), "f");
      } else if (index % 3 == 1) {
        schema.apply(parse_json(test::mutated(json, index), "f"), "f");
      } else {
        const auto& [path, text] = overrides[index / 3 % overrides.size()];
        const bool damage_path = index % 4 == 0;
        schema.apply_override(damage_path ? test::mutated(path, index) : path,
                              damage_path ? text : test::mutated(text, index));
      }
      ++num_taken;
      schema.check();
      Settings copy;
      make_schema(copy).apply(parse_toml(schema.write_toml(true), "again"), "again");
      EXPECT_EQ(copy, settings) << index;
    } catch (const Error& error) {
      EXPECT_NE(error.kind(), ErrorKind::kInternal) << index << " " << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << index;
      ++num_refused;
    }
  }
  EXPECT_GT(num_taken, 100);
  EXPECT_GT(num_refused, 200);
}

}  // namespace
}  // namespace amoeba::formats
