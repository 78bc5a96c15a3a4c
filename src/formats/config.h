// The configuration engine: a typed schema over plain struct fields, filled from layers, last wins.
//
// It knows no key itself; `train/plain/run_config.h` registers Amoeba's. Every error is one line
// with the dotted path, got and want, the nearest known name, and for TOML the file position.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "formats/value.h"

namespace amoeba::formats {

// Where a key's value lives. Lists take an array, or on the command line a comma-separated text
// (so an element with a comma needs a file).
using Field = std::variant<bool*, int64_t*, double*, std::string*, std::vector<std::string>*,
                           std::vector<double>*>;

struct Key {
  std::string path;  // "training.steps"
  Field field;
  std::string doc;                     // one sentence, with the unit
  std::optional<double> minimum = {};  // numbers: smallest legal value
  std::optional<double> maximum = {};
  bool minimum_exclusive = false;
  bool maximum_exclusive = false;
  std::vector<std::string> choices = {};  // strings: the legal values; empty: any
};

// A spelling that is no longer taken, and the sentence that names its successor.
struct RetiredKey {
  std::string path;  // "model.use_grouped_mm"; a path without a dot matches the last part anywhere
  std::string advice;  // "use moe.compute_backend"
};
struct RetiredChoice {
  std::string path;   // key whose value it was
  std::string value;  // "bmm"
  std::string advice;
};

class Schema {
 public:
  void add(Key key);
  void retire(RetiredKey key);
  void retire(RetiredChoice choice);

  // Sets fields from a parsed document. `source` names it in errors and in origin(). All functions
  // that take a path or a value throw Error(kUsage).
  void apply(const Value& document, std::string_view source);
  // One command-line override: path without the leading dashes, value as typed.
  void apply_override(std::string_view path, std::string_view text);

  // Ranges and choices of the current values, however they were set.
  void check() const;

  const std::vector<Key>& keys() const { return keys_; }
  const Value& default_value(std::string_view path) const;  // the field's when it was added
  // "default", "FILE:line", "FILE" or "command line".
  const std::string& origin(std::string_view path) const;
  bool is_set(std::string_view path) const;  // by any layer

  // The current values, complete and in schema order: as TOML (with a comment of doc and origin
  // above each key when `annotate`) and as a tree for JSON.
  std::string write_toml(bool annotate) const;
  Value to_value() const;

 private:
  struct State {
    Value initial;
    std::string origin = "default";
  };

  size_t index_of(std::string_view path) const;  // keys_.size() when there is none
  size_t known_index(std::string_view path) const;
  bool is_section(std::string_view path) const;
  void apply_object(const Object& object, const std::string& parent, std::string_view source);
  void check_retired(std::string_view path, std::string_view place) const;
  void check_retired_below(const Value& value, const std::string& path,
                           std::string_view place) const;
  void set(size_t index, const Value& value, std::string_view place);
  std::string suggestion(std::string_view path) const;
  [[noreturn]] void fail_unknown(std::string_view path, bool as_section,
                                 std::string_view place) const;

  std::vector<Key> keys_;
  std::vector<State> states_;
  std::vector<RetiredKey> retired_keys_;
  std::vector<RetiredChoice> retired_choices_;
};

// Every key with type, default, range or choices and doc, grouped by section: for --help.
std::string help_text(const Schema& schema);

// Splits `--a.b c`, `--a.b=c` arguments into (path, value). Anything else is Error(kUsage); a value
// that itself starts with `--` needs the second form.
std::vector<std::pair<std::string, std::string>> parse_overrides(
    const std::vector<std::string>& arguments);

}  // namespace amoeba::formats
