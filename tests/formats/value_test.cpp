#include "formats/value.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "amoeba/error.h"
#include "base/text.h"
#include "support/errors.h"
#include "support/mutation.h"

namespace amoeba::formats {
namespace {

using test::error_message;

std::string nested(int depth) {
  return std::string(static_cast<size_t>(depth), '[') +
         std::string(static_cast<size_t>(depth), ']');
}

TEST(Json, ParsesToTheTreeItWasWrittenFrom) {
  const std::vector<std::string> documents = {
      "null",
      "true",
      "-9223372036854775808",
      "9223372036854775807",
      "0.1",
      "-0.0",
      "1e+300",
      "5e-324",
      "1.0",
      R"("")",
      R"("quote \" slash \\ tab \t bell \u0007 line \n")",
      "\"\xC3\xA9 \xF0\x9F\x98\x80\"",
      "[]",
      "{}",
      R"([1,1.5,"x",null,[true,[]]])",
      R"({"z":1,"a":{"y":{},"b":[{"k":2}]},"":3})",
      nested(64),
  };
  for (const std::string& document : documents) {
    EXPECT_EQ(write_json(parse_json(document, "f.json")), document);
  }
}

TEST(Json, TellsIntegersFromNumbers) {
  EXPECT_EQ(parse_json("1", "f").type_name(), "integer");
  EXPECT_EQ(parse_json("1.0", "f").type_name(), "number");
  EXPECT_EQ(parse_json("1e0", "f").type_name(), "number");
  EXPECT_EQ(parse_json("\xEF\xBB\xBF 2 ", "f").type_name(), "integer");  // byte order mark
}

TEST(Json, ReportsLineAndColumn) {
  struct Case {
    std::string text;
    std::string want;
  };
  const std::string value = "syntax error while parsing value - ";
  const std::vector<Case> cases = {
      {"", "f:1:1: " + value + "unexpected end of input; expected '[', '{', or a literal"},
      {"[1,2", "f:1:5: syntax error while parsing array - unexpected end of input; expected ']'"},
      {"{\n  \"a\": 1,\n  \"b\": tru\n}", "f:3:11: " + value + "invalid literal"},
      {"1 2", "f:1:3: " + value + "unexpected number literal; expected end of input"},
      {"{\"a\":1,\n \"b\":2,\n \"a\":3}", "f:3:4: duplicate key 'a'"},
      {"{\"\\n\":1,\"\\n\":2}", "f:1:12: duplicate key ' '"},
      {"\"\xC3\xA9\", x", "f:1:4: " + value + "unexpected ','; expected end of input"},
      {"\"a\xFFz\"", "f:1:3: " + value + "invalid string: ill-formed UTF-8 byte"},
      {"99999999999999999999",
       "f:1:20: integer 99999999999999999999 is outside the range of 64 bits"},
      {"[\n9223372036854775808]",
       "f:2:20: integer 9223372036854775808 is outside the range of 64 bits"},
      {"-9223372036854775809",
       "f:1:20: integer -9223372036854775809 is outside the range of 64 bits"},
      {"1e999", "f:1:5: number overflow parsing '1e999'"},
      {nested(65), "f:1:65: nested deeper than 64"},
      {std::string(100000, '['), "f:1:65: nested deeper than 64"},
      {"NaN", "f:1:1: " + value + "invalid literal"},
      {"[1] // x", "f:1:5: " + value + "invalid literal"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(error_message(ErrorKind::kData, [&] { parse_json(c.text, "f"); }), c.want) << c.text;
  }
}

TEST(Json, WritesWhatJsonCannotHold) {
  Value value;
  value.data = Array(4);
  auto& items = std::get<Array>(value.data);
  items[0].data = std::numeric_limits<double>::quiet_NaN();
  items[1].data = -std::numeric_limits<double>::infinity();
  items[2].data = std::string("a\xFFz");
  items[3].data = 3.0;
  EXPECT_EQ(write_json(value), "[null,null,\"a\xEF\xBF\xBDz\",3.0]");
}

TEST(Json, Indents) {
  const Value value = parse_json(R"({"a":[1,2],"b":{},"c":[]})", "f");
  EXPECT_EQ(write_json(value, 2),
            "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {},\n  \"c\": []\n}");
}

TEST(Json, DoublesRoundTrip) {
  const std::vector<double> numbers = {
      0.1, 1.0 / 3, 1e22, 1e23, 5e-324, 1.7976931348623157e308, -2.5, 3e-3, 123456789012345680.0};
  for (const double number : numbers) {
    Value value;
    value.data = number;
    const Value copy = parse_json(write_json(value), "f");
    ASSERT_NE(copy.get_if<double>(), nullptr) << number;
    EXPECT_EQ(*copy.get_if<double>(), number);
  }
}

TEST(Toml, ParsesInDocumentOrder) {
  const Value value = parse_toml(
      "z = 1\n"
      "a = 'x'\n"
      "[t.b]\n"
      "k = [1, 2.0, true]\n"
      "[t]\n"
      "c = 0x1F\n"
      "d.e = 1e3\n",
      "f.toml");
  EXPECT_EQ(write_json(value),
            R"({"z":1,"a":"x","t":{"b":{"k":[1,2.0,true]},"c":31,"d":{"e":1000.0}}})");
}

TEST(Toml, KeepsPositions) {
  const Value value = parse_toml("[training]\nsteps = 5\n  lr = [1,\n 2]\n", "f.toml");
  const Value& training = value.at("training", "f");
  EXPECT_EQ(training.at("steps", "f").line, 2);
  EXPECT_EQ(training.at("steps", "f").column, 9);
  EXPECT_EQ(training.array_at("lr", "f")[1].line, 4);
  EXPECT_EQ(parse_json("{}", "f.json").line, 0);
}

TEST(Toml, ReportsLineAndColumn) {
  struct Case {
    std::string text;
    std::string want;
  };
  const std::string pair = "Error while parsing key-value pair: ";
  std::string dots = "a";
  for (int i = 0; i < 1001; ++i) dots += ".a";
  std::string deep = "a";
  for (int i = 0; i < 64; ++i) deep += ".a";
  const std::vector<Case> cases = {
      {"a = 1\na = 2\n", "f:2:5: " + pair + "cannot redefine existing integer 'a'"},
      {"[a]\n[a]\n", "f:2:1: Error while parsing table header: cannot redefine existing table 'a'"},
      {"a = [1, 2", "f:1:10: Error while parsing array: encountered end-of-file"},
      {"a = \"\xFF\"", "f:1:5: Encountered invalid utf-8 sequence"},
      {"a = 1 b = 2", "f:1:7: " + pair + "expected a comment or whitespace, saw 'b'"},
      {"a = \xC3\xA9", "f:1:5: Error while parsing value: could not determine value type"},
      {"a = 1979-05-27", "f:1:5: dates and times are not taken; write a string"},
      {"a = " + nested(64), "f:1:68: nested deeper than 64"},
      {deep + " = 1", "f:1:127: nested deeper than 64"},
      {dots + " = 1", "f:1:2002: more than 1000 dots in one line"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(error_message(ErrorKind::kData, [&] { parse_toml(c.text, "f"); }), c.want) << c.text;
  }
  EXPECT_EQ(parse_toml("a = " + nested(63), "f").type_name(), "object");
}

TEST(Value, RequiredMembers) {
  const Value value = parse_json(R"({"i":1,"n":1.5,"s":"x","b":true,"a":[1]})", "f");
  EXPECT_EQ(value.integer_at("i", "manifest"), 1);
  EXPECT_EQ(value.number_at("i", "manifest"), 1.0);
  EXPECT_EQ(value.number_at("n", "manifest"), 1.5);
  EXPECT_EQ(value.string_at("s", "manifest"), "x");
  EXPECT_TRUE(value.bool_at("b", "manifest"));
  EXPECT_EQ(value.array_at("a", "manifest").size(), 1u);
  EXPECT_EQ(value.find("x"), nullptr);
  EXPECT_EQ(value.at("a", "manifest").find("x"), nullptr);

  const auto message = [](auto call) { return error_message(ErrorKind::kData, call); };
  EXPECT_EQ(message([&] { value.at("x", "manifest"); }), "manifest: 'x' is missing");
  EXPECT_EQ(message([&] { value.integer_at("n", "manifest"); }),
            "manifest: 'n' is number, want integer");
  EXPECT_EQ(message([&] { value.number_at("s", "manifest"); }),
            "manifest: 's' is string, want number");
  EXPECT_EQ(message([&] { value.string_at("i", "manifest"); }),
            "manifest: 'i' is integer, want string");
  EXPECT_EQ(message([&] { value.bool_at("i", "manifest"); }),
            "manifest: 'i' is integer, want boolean");
  EXPECT_EQ(message([&] { value.array_at("b", "manifest"); }),
            "manifest: 'b' is boolean, want array");
  EXPECT_EQ(message([&] { value.at("a", "manifest").at("k", "manifest"); }),
            "manifest: got array, want an object with 'k'");
}

// Every damaged document parses or fails with a one-line Error(kData); what parses is stable when
// written and read again.
TEST(Json, SurvivesDamage) {
  const std::string seed =
      R"({"steps": 120, "lr": -3.5e-3, "name": "a\"\u00e9\n", "list": [true, null, {"k": [1]}]})";
  int num_parsed = 0;
  for (uint64_t index = 0; index < 5000; ++index) {
    const std::string text = test::mutated(seed, index);
    try {
      const std::string once = write_json(parse_json(text, "f"));
      EXPECT_EQ(write_json(parse_json(once, "again")), once) << text;
      ++num_parsed;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData);
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << text;
    }
  }
  EXPECT_GT(num_parsed, 100);
}

TEST(Toml, SurvivesDamage) {
  const std::string seed =
      "# run\n[training]\nsteps = 1_000 # x\nlr.max = -3.5e-3\n[data]\npath = [\"a\\u00e9\", 'b']\n"
      "text = \"\"\"\nx\\\n y\"\"\"\n[[list]]\nk = {a = true, \"b c\" = inf}\n";
  int num_parsed = 0;
  for (uint64_t index = 0; index < 5000; ++index) {
    const std::string text = test::mutated(seed, index);
    try {
      const std::string once = write_json(parse_toml(text, "f"));
      EXPECT_EQ(write_json(parse_json(once, "again")), once) << text;
      ++num_parsed;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData);
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << text;
    }
  }
  EXPECT_GT(num_parsed, 100);
}

TEST(ParseJsonMember, DropsTheRest) {
  const Value value = parse_json_member(
      R"({"a": [1, {"text": 2}], "text": ["x", {"y": 1}], "b": {"c": 1, "c": 2}, "a": 3})", "f",
      "text");
  EXPECT_EQ(write_json(value), R"({"text":["x",{"y":1}]})");
  EXPECT_EQ(write_json(parse_json_member(R"({"a": "text"})", "f", "text")), "{}");
  EXPECT_EQ(write_json(parse_json_member(R"([{"text": 1}])", "f", "text")), "[]");
  EXPECT_EQ(write_json(parse_json_member("7", "f", "text")), "7");
  for (const char* text : {R"({"text": 1, "text": 2})", R"({"a": [1, {]})", R"({"a": 1} x)"}) {
    EXPECT_THROW(parse_json_member(text, "f", "text"), Error) << text;
  }
}

}  // namespace
}  // namespace amoeba::formats
