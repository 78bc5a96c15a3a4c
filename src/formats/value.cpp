// TOML by toml++, JSON by nlohmann's event parser (its document type would keep the last of two
// equal keys silently). Both libraries' headers stay in this file.
#include "formats/value.h"

#define TOML_HEADER_ONLY 1
#define TOML_EXCEPTIONS 1
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "amoeba/error.h"

namespace amoeba::formats {
namespace {

constexpr int kMaxDepth = 64;
constexpr int kMaxDotsInLine = 1000;

struct Position {
  int64_t line = 1;
  int64_t column = 1;  // in code points, as editors and toml++ count
};

Position position_of(std::string_view text, size_t offset) {
  Position position;
  for (const char c : text.substr(0, offset)) {
    if (c == '\n') {
      ++position.line;
      position.column = 1;
    } else if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) {
      ++position.column;
    }
  }
  return position;
}

// Parser messages and keys can hold the document's own control characters; an error is one line.
std::string one_line(std::string_view text) {
  std::string line(text);
  std::replace_if(
      line.begin(), line.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; }, ' ');
  return line;
}

[[noreturn]] void fail_at(std::string_view name, Position position, std::string_view reason) {
  fail(ErrorKind::kData,
       cat(name, ":", position.line, ":", position.column, ": ", one_line(reason)));
}

// ---- JSON ---------------------------------------------------------------------------------------

// Iterator over the text that leaves its position where the event handler can read it: nlohmann's
// events carry none.
struct TrackedIterator {
  using difference_type = std::ptrdiff_t;
  using value_type = char;
  using pointer = const char*;
  using reference = const char&;
  using iterator_category = std::input_iterator_tag;

  const char* current = nullptr;
  const char** position = nullptr;

  reference operator*() const { return *current; }
  TrackedIterator& operator++() {
    *position = ++current;
    return *this;
  }
  bool operator==(const TrackedIterator& other) const { return current == other.current; }
  bool operator!=(const TrackedIterator& other) const { return current != other.current; }
};

// "[json.exception...] parse error at line 1, column 2: REASON; last read: 'RAW'": keeps REASON
// only, the raw text may be anything.
std::string json_reason(std::string_view message) {
  const std::string_view column = ", column ";
  if (const size_t at = message.find(column); at != message.npos) {
    message.remove_prefix(std::min(message.size(), message.find(": ", at) + 2));
  } else if (const size_t bracket = message.find("] "); bracket != message.npos) {
    message.remove_prefix(bracket + 2);
  }
  return std::string(message.substr(0, message.find("; last read: ")));
}

class JsonBuilder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  JsonBuilder(std::string_view text, std::string_view name, const char* const& position)
      : text_(text), name_(name), position_(position) {}

  Value take() { return std::move(root_); }

  bool null() override { return add(std::monostate()); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(int64_t{value}); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<uint64_t>(INT64_MAX)) fail_range(std::to_string(value));
    return add(static_cast<int64_t>(value));
  }
  bool number_float(number_float_t value, const string_t& digits) override {
    if (digits.find_first_of(".eE") == digits.npos) fail_range(digits);
    return add(double{value});
  }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return false; }  // no such thing in JSON text

  bool start_object(std::size_t) override { return open(Object()); }
  bool start_array(std::size_t) override { return open(Array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    if (!open_.back().keys.insert(name).second) fail_here(cat("duplicate key '", name, "'"));
    key_ = std::move(name);
    return true;
  }

  bool parse_error(std::size_t offset, const std::string&,
                   const nlohmann::detail::exception& error) override {
    // `offset` counts the offending character; one past the end stands for the end of the text.
    const size_t at = std::min(text_.size(), offset == 0 ? 0 : offset - 1);
    fail_at(name_, position_of(text_, at), json_reason(error.what()));
  }

 private:
  struct Container {
    Value* value;  // in the tree; its parent does not grow before it is closed
    std::unordered_set<std::string> keys;
  };

  [[noreturn]] void fail_here(const std::string& reason) const {
    const auto consumed = static_cast<size_t>(position_ - text_.data());
    fail_at(name_, position_of(text_, consumed == 0 ? 0 : consumed - 1), reason);
  }
  [[noreturn]] void fail_range(const std::string& digits) const {
    fail_here(cat("integer ", digits.substr(0, 40), " is outside the range of 64 bits"));
  }

  template <typename T>
  bool open(T empty) {
    if (open_.size() == kMaxDepth) fail_here(cat("nested deeper than ", kMaxDepth));
    Value& value = next_slot();
    value.data = std::move(empty);
    open_.push_back({&value, {}});
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }
  template <typename T>
  bool add(T value) {
    next_slot().data = std::move(value);
    return true;
  }

  Value& next_slot() {
    if (open_.empty()) return root_;
    auto& parent = open_.back().value->data;
    if (auto* object = std::get_if<Object>(&parent)) {
      auto& member = object->emplace_back();
      member.first = std::move(key_);
      return member.second;
    }
    return std::get<Array>(parent).emplace_back();
  }

  std::string_view text_;
  std::string_view name_;
  const char* const& position_;  // of the next character the parser will read
  std::vector<Container> open_;
  std::string key_;  // read, its value not yet
  Value root_;
};

void write_string(const std::string& text, std::string& out) {
  const nlohmann::json quoted = text;
  out += quoted.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void write_number(double number, std::string& out) {
  if (!std::isfinite(number)) {
    out += "null";
    return;
  }
  char digits[32];
  const std::to_chars_result end = std::to_chars(digits, digits + sizeof digits, number);
  const std::string_view shortest(digits, static_cast<size_t>(end.ptr - digits));
  out += shortest;
  // A number stays a number when read back, also when it has no fraction.
  if (shortest.find_first_of(".e") == shortest.npos) out += ".0";
}

class JsonWriter {
 public:
  explicit JsonWriter(int indent) : indent_(indent) {}

  std::string take() { return std::move(out_); }

  void write(const Value& value, int depth) {
    if (const auto* array = value.get_if<Array>()) {
      begin('[');
      for (const Value& item : *array) {
        separate(&item == array->data(), depth + 1);
        write(item, depth + 1);
      }
      end(']', array->empty(), depth);
    } else if (const auto* object = value.get_if<Object>()) {
      begin('{');
      for (const auto& member : *object) {
        separate(&member == object->data(), depth + 1);
        write_string(member.first, out_);
        out_ += indent_ < 0 ? ":" : ": ";
        write(member.second, depth + 1);
      }
      end('}', object->empty(), depth);
    } else if (const auto* flag = value.get_if<bool>()) {
      out_ += *flag ? "true" : "false";
    } else if (const auto* integer = value.get_if<int64_t>()) {
      out_ += std::to_string(*integer);
    } else if (const auto* number = value.get_if<double>()) {
      write_number(*number, out_);
    } else if (const auto* text = value.get_if<std::string>()) {
      write_string(*text, out_);
    } else {
      out_ += "null";
    }
  }

 private:
  void begin(char bracket) { out_ += bracket; }
  void separate(bool first, int depth) {
    if (!first) out_ += ',';
    new_line(depth);
  }
  void end(char bracket, bool empty, int depth) {
    if (!empty) new_line(depth);
    out_ += bracket;
  }
  void new_line(int depth) {
    if (indent_ < 0) return;
    out_ += '\n';
    out_.append(static_cast<size_t>(indent_) * static_cast<size_t>(depth), ' ');
  }

  int indent_;
  std::string out_;
};

// ---- TOML ---------------------------------------------------------------------------------------

Position position_of(const toml::source_region& source) {
  return {int64_t{source.begin.line}, int64_t{source.begin.column}};
}

// toml++ takes dotted keys of any depth and walks its tree recursively: bounds the stack it can
// use.
void check_dots(std::string_view text, std::string_view name) {
  int num_dots = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '\n') num_dots = 0;
    if (text[at] == '.' && ++num_dots > kMaxDotsInLine) {
      fail_at(name, position_of(text, at), cat("more than ", kMaxDotsInLine, " dots in one line"));
    }
  }
}

Value from_toml(const toml::node& node, std::string_view name, int depth) {
  const Position position = position_of(node.source());
  Value value;
  value.line = static_cast<int>(position.line);
  value.column = static_cast<int>(position.column);

  if (node.is_table() || node.is_array()) {
    if (depth == kMaxDepth) fail_at(name, position, cat("nested deeper than ", kMaxDepth));
  }
  if (const toml::table* table = node.as_table()) {
    // The library sorts by name; document order is the order of the keys' positions.
    std::vector<std::pair<const toml::key*, const toml::node*>> members;
    for (auto&& [key, child] : *table) members.emplace_back(&key, &child);
    std::stable_sort(members.begin(), members.end(), [](const auto& a, const auto& b) {
      const toml::source_position left = a.first->source().begin;
      const toml::source_position right = b.first->source().begin;
      return left < right;
    });
    Object object;
    for (const auto& [key, child] : members) {
      object.emplace_back(std::string(key->str()), from_toml(*child, name, depth + 1));
    }
    value.data = std::move(object);
  } else if (const toml::array* items = node.as_array()) {
    Array array;
    for (const toml::node& child : *items) array.push_back(from_toml(child, name, depth + 1));
    value.data = std::move(array);
  } else if (const auto* text = node.as_string()) {
    value.data = text->get();
  } else if (const auto* integer = node.as_integer()) {
    value.data = integer->get();
  } else if (const auto* number = node.as_floating_point()) {
    value.data = number->get();
  } else if (const auto* flag = node.as_boolean()) {
    value.data = flag->get();
  } else {
    fail_at(name, position, "dates and times are not taken; write a string");
  }
  return value;
}

// ---- Required members ---------------------------------------------------------------------------

template <typename T>
const T& typed_at(const Value& value, std::string_view key, std::string_view what,
                  std::string_view want) {
  const Value& member = value.at(key, what);
  const T* found = member.get_if<T>();
  AMOEBA_CHECK_KIND(kData, found != nullptr, what, ": '", key, "' is ", member.type_name(),
                    ", want ", want);
  return *found;
}

}  // namespace

const Value* Value::find(std::string_view key) const {
  const auto* object = get_if<Object>();
  if (object == nullptr) return nullptr;
  const auto member = std::find_if(object->begin(), object->end(),
                                   [&](const auto& entry) { return entry.first == key; });
  return member == object->end() ? nullptr : &member->second;
}

std::string Value::type_name() const {
  static constexpr const char* kNames[] = {"null",   "boolean", "integer", "number",
                                           "string", "array",   "object"};
  static_assert(std::size(kNames) == std::variant_size_v<decltype(data)>);
  return kNames[data.index()];
}

const Value& Value::at(std::string_view key, std::string_view what) const {
  AMOEBA_CHECK_KIND(kData, get_if<Object>() != nullptr, what, ": got ", type_name(),
                    ", want an object with '", key, "'");
  const Value* member = find(key);
  AMOEBA_CHECK_KIND(kData, member != nullptr, what, ": '", key, "' is missing");
  return *member;
}

int64_t Value::integer_at(std::string_view key, std::string_view what) const {
  return typed_at<int64_t>(*this, key, what, "integer");
}

double Value::number_at(std::string_view key, std::string_view what) const {
  if (const auto* integer = at(key, what).get_if<int64_t>()) return static_cast<double>(*integer);
  return typed_at<double>(*this, key, what, "number");
}

const std::string& Value::string_at(std::string_view key, std::string_view what) const {
  return typed_at<std::string>(*this, key, what, "string");
}

bool Value::bool_at(std::string_view key, std::string_view what) const {
  return typed_at<bool>(*this, key, what, "boolean");
}

const Array& Value::array_at(std::string_view key, std::string_view what) const {
  return typed_at<Array>(*this, key, what, "array");
}

Value parse_json(std::string_view text, std::string_view name) {
  const char* position = text.data();
  JsonBuilder builder(text, name, position);
  const TrackedIterator begin{text.data(), &position};
  const TrackedIterator end{text.data() + text.size(), &position};
  nlohmann::json::sax_parse(begin, end, &builder);
  return builder.take();
}

Value parse_toml(std::string_view text, std::string_view name) {
  check_dots(text, name);
  try {
    return from_toml(toml::parse(text, name), name, 0);
  } catch (const toml::parse_error& error) {
    fail_at(name, position_of(error.source()), error.description());
  }
}

std::string write_json(const Value& value, int indent) {
  JsonWriter writer(indent);
  writer.write(value, 0);
  return writer.take();
}

}  // namespace amoeba::formats
