// A parsed TOML or JSON document as one plain tree, so that the parsers' headers stay in value.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace amoeba::formats {

struct Value;
using Array = std::vector<Value>;
using Object = std::vector<std::pair<std::string, Value>>;  // in document order, keys unique

struct Value {
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> data;
  int line = 0;  // TOML: 1-based position of the value; 0 when unknown (JSON)
  int column = 0;

  template <typename T>
  const T* get_if() const {
    return std::get_if<T>(std::addressof(data));  // Clang looks up `&` among incomplete types
  }
  const Value* find(std::string_view key) const;  // nullptr when not an object or absent
  std::string type_name() const;                  // "null", "boolean", "integer", "number", ...

  // Required members of an object; throw Error(kData) naming `what`, the key, got and want.
  const Value& at(std::string_view key, std::string_view what) const;
  int64_t integer_at(std::string_view key, std::string_view what) const;
  double number_at(std::string_view key, std::string_view what) const;
  const std::string& string_at(std::string_view key, std::string_view what) const;
  bool bool_at(std::string_view key, std::string_view what) const;
  const Array& array_at(std::string_view key, std::string_view what) const;
};

// Clang 14 wants the members of Value instantiated before those of a pair that holds one.
inline Value null_value() { return Value(); }

// A value takes 48 bytes where "0," takes two: how many there may be bounds the memory.
inline constexpr int64_t kMaxJsonValues = 65536;

// All refuse duplicate keys, nesting deeper than 64, invalid UTF-8 and trailing text with
// Error(kData): "NAME:line:column: reason". JSON integers outside int64 or more than `max_values`
// values, TOML dates, TOML of more than 256 KiB and TOML lines of more than 1000 dots (dotted keys
// nest) are refused.
Value parse_json(std::string_view text, std::string_view name, int64_t max_values = kMaxJsonValues);
Value parse_toml(std::string_view text, std::string_view name);

// Of an object that member alone; what else there is, of any size, is checked as JSON and dropped,
// without a look for duplicate keys.
Value parse_json_member(std::string_view text, std::string_view name, std::string_view key);

// Compact JSON on one line (indent < 0) or indented. Doubles round-trip; NaN and infinities are
// written as null. Strings are escaped as UTF-8 JSON.
std::string write_json(const Value& value, int indent = -1);

}  // namespace amoeba::formats
