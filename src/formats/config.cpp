// The engine works on dotted paths: a document is walked to its leaves, a leaf becomes a checked
// Value, and only then is a field written. Command-line text is first turned into the Value its key
// wants, so that files and command line share every later check and message.
#include "formats/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>

#include "amoeba/error.h"
#include "base/text.h"

namespace amoeba::formats {
namespace {

constexpr std::string_view kCommandLine = "command line";
constexpr size_t kMaxQuoted = 80;

template <typename... Fs>
struct Overloaded : Fs... {
  using Fs::operator()...;
};
template <typename... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;  // Clang 14 does not deduce it

template <typename T>
Value make_value(T data) {
  Value value;
  value.data = std::move(data);
  return value;
}

// One line of valid UTF-8, whatever the text.
std::string escaped(std::string_view text) {
  const std::string json = write_json(make_value(std::string(text)));
  return json.substr(1, json.size() - 2);
}

// User text inside a message: on one line, long text cut.
std::string quoted(std::string_view text) {
  return cat("'", escaped(text.substr(0, kMaxQuoted)), text.size() > kMaxQuoted ? "...'" : "'");
}

std::string number_text(double number) {
  return std::isfinite(number) ? write_json(make_value(number)) : cat(number);
}

std::string describe(const Value& value) {
  if (const auto* text = value.get_if<std::string>()) return cat("string ", quoted(*text));
  if (const auto* number = value.get_if<double>())
    return cat("number '", number_text(*number), "'");
  if (value.get_if<bool>() != nullptr || value.get_if<int64_t>() != nullptr) {
    return cat(value.type_name(), " '", write_json(value), "'");
  }
  return value.type_name();
}

std::string_view section_of(std::string_view path) {
  const size_t dot = path.rfind('.');
  return dot == path.npos ? std::string_view() : path.substr(0, dot);
}

std::string_view last_part(std::string_view path) {
  const size_t dot = path.rfind('.');
  return dot == path.npos ? path : path.substr(dot + 1);
}

std::string type_of(const Field& field) {
  static constexpr const char* kNames[] = {"boolean", "integer",         "number",
                                           "string",  "list of strings", "list of numbers"};
  static_assert(std::size(kNames) == std::variant_size_v<Field>);
  return kNames[field.index()];
}

Value value_of(const Field& field) {
  return std::visit(Overloaded{[](const auto* scalar) { return make_value(*scalar); },
                               []<typename T>(const std::vector<T>* list) {
                                 Array items;
                                 for (const T& item : *list) items.push_back(make_value(item));
                                 return make_value(std::move(items));
                               }},
                    field);
}

// Sections in the order of their first key.
std::vector<std::string> sections_of(const std::vector<Key>& keys) {
  std::vector<std::string> sections;
  for (const Key& key : keys) {
    const std::string section(section_of(key.path));
    if (std::find(sections.begin(), sections.end(), section) == sections.end()) {
      sections.push_back(section);
    }
  }
  return sections;
}

std::vector<std::string> names_in(const std::vector<Key>& keys, std::string_view section) {
  std::vector<std::string> names;
  for (const Key& key : keys) {
    if (section_of(key.path) == section) names.emplace_back(last_part(key.path));
  }
  return names;
}

// What a section holds, for messages: "keys: steps, lr", or when it has none "sections: model.moe".
std::string members_of(const std::vector<Key>& keys, std::string_view section) {
  const std::vector<std::string> names = names_in(keys, section);
  if (!names.empty()) return cat("keys: ", join(names, ", "));
  std::vector<std::string> below = sections_of(keys);
  std::erase_if(below,
                [prefix = section.empty() ? "" : cat(section, ".")](const std::string& name) {
                  return name.empty() || !name.starts_with(prefix);
                });
  return cat("sections: ", join(below, ", "));
}

// "at least 1", "more than 0 and at most 1"; "" when any number is legal.
std::string range_text(const Key& key) {
  std::vector<std::string> parts;
  if (key.minimum)
    parts.push_back(cat(key.minimum_exclusive ? "more than " : "at least ", *key.minimum));
  if (key.maximum)
    parts.push_back(cat(key.maximum_exclusive ? "less than " : "at most ", *key.maximum));
  return join(parts, " and ");
}

void check_number(const Key& key, double number, const std::string& text, const std::string& name,
                  std::string_view place) {
  AMOEBA_CHECK(std::isfinite(number), place, ": '", name, "' got ", text, ", want a finite number");
  const bool above =
      !key.minimum || (key.minimum_exclusive ? number > *key.minimum : number >= *key.minimum);
  const bool below =
      !key.maximum || (key.maximum_exclusive ? number < *key.maximum : number <= *key.maximum);
  AMOEBA_CHECK(above && below, place, ": '", name, "' got ", text, ", want ", range_text(key));
}

void check_string(const Key& key, const std::string& text, const std::string& name,
                  std::string_view place) {
  // Only text that survives JSON and TOML may enter: the resolved configuration is saved with the
  // run.
  const Value copy = parse_json(write_json(make_value(text)), name);
  AMOEBA_CHECK(std::get<std::string>(copy.data) == text, place, ": '", name, "' got ", quoted(text),
               ", want UTF-8 text");
  if (key.choices.empty()) return;
  if (std::find(key.choices.begin(), key.choices.end(), text) != key.choices.end()) return;
  const std::string nearest = nearest_name(text, key.choices);
  fail(ErrorKind::kUsage,
       cat(place, ": '", name, "' got ", quoted(text), ", want one of ", join(key.choices, ", "),
           nearest.empty() ? "" : cat("; did you mean '", nearest, "'?")));
}

// Throws unless `value` can become a T of this key; `name` is the path, or one element of it.
template <typename T>
T converted(const Key& key, const Value& value, const std::string& name, std::string_view place) {
  if constexpr (std::is_same_v<T, double>) {
    if (const auto* integer = value.get_if<int64_t>()) {
      const auto number = static_cast<double>(*integer);
      check_number(key, number, std::to_string(*integer), name, place);
      return number;
    }
  }
  const T* found = value.get_if<T>();
  if (found == nullptr) {
    const Field wanted = static_cast<T*>(nullptr);
    fail(ErrorKind::kUsage,
         cat(place, ": '", name, "' got ", describe(value), ", want ", type_of(wanted)));
  }
  if constexpr (std::is_same_v<T, int64_t>) {
    check_number(key, static_cast<double>(*found), std::to_string(*found), name, place);
  } else if constexpr (std::is_same_v<T, double>) {
    check_number(key, *found, number_text(*found), name, place);
  } else if constexpr (std::is_same_v<T, std::string>) {
    check_string(key, *found, name, place);
  }
  return *found;
}

template <typename T>
void assign(const Key& key, const Value& value, std::string_view place, T& field) {
  field = converted<T>(key, value, key.path, place);
}

template <typename T>
void assign(const Key& key, const Value& value, std::string_view place, std::vector<T>& field) {
  const auto* items = value.get_if<Array>();
  AMOEBA_CHECK(items != nullptr, place, ": '", key.path, "' got ", describe(value), ", want ",
               type_of(key.field));
  std::vector<T> list;
  for (const Value& item : *items) {
    const std::string name = cat(key.path, "[", list.size(), "]");
    list.push_back(converted<T>(key, item, name, place));
  }
  field = std::move(list);
}

// ---- Command-line text --------------------------------------------------------------------------

template <typename T>
T parsed_number(const Key& key, const std::string& text, std::string_view want) {
  T number = 0;
  const char* end = text.data() + text.size();
  const std::from_chars_result result = std::from_chars(text.data(), end, number);
  AMOEBA_CHECK(result.ec != std::errc::result_out_of_range, kCommandLine, ": '", key.path, "' got ",
               quoted(text), ", which does not fit in 64 bits");
  AMOEBA_CHECK(result.ec == std::errc() && result.ptr == end, kCommandLine, ": '", key.path,
               "' got ", quoted(text), ", want ", want);
  return number;
}

Value parse_text(const Key& key, const std::string& text) {
  if (std::holds_alternative<bool*>(key.field)) {
    AMOEBA_CHECK(text == "true" || text == "false", kCommandLine, ": '", key.path, "' got ",
                 quoted(text), ", want true or false");
    return make_value(text == "true");
  }
  if (std::holds_alternative<int64_t*>(key.field)) {
    return make_value(parsed_number<int64_t>(key, text, "an integer, in digits only"));
  }
  if (std::holds_alternative<double*>(key.field)) {
    return make_value(parsed_number<double>(key, text, "a number"));
  }
  if (std::holds_alternative<std::string*>(key.field)) return make_value(text);

  Array items;
  if (text.empty()) return make_value(std::move(items));
  for (const std::string& part : split(text, ',')) {
    AMOEBA_CHECK(!part.empty(), kCommandLine, ": '", key.path, "' got ", quoted(text),
                 ", want no empty element between commas");
    if (std::holds_alternative<std::vector<double>*>(key.field)) {
      items.push_back(make_value(parsed_number<double>(key, part, "a number")));
    } else {
      items.push_back(make_value(part));
    }
  }
  return make_value(std::move(items));
}

// ---- Writing ------------------------------------------------------------------------------------

// Scalars and flat arrays are written alike in JSON and TOML but for one character that TOML wants
// escaped.
std::string toml_text(const Value& value) {
  const std::string json = write_json(value);
  std::string toml;
  for (const char c : json) {
    if (c == '\x7F') {
      toml += "\\u007F";
    } else {
      toml += c;
    }
  }
  return toml;
}

// The member of `tree` at a section's dotted path, made when absent.
Object& object_at(Value& tree, std::string_view section) {
  Value* place = &tree;
  while (true) {
    if (place->get_if<Object>() == nullptr) place->data = Object();
    Object& object = std::get<Object>(place->data);
    if (section.empty()) return object;
    const size_t dot = std::min(section.find('.'), section.size());
    const std::string_view name = section.substr(0, dot);
    section.remove_prefix(std::min(dot + 1, section.size()));
    auto member = std::find_if(object.begin(), object.end(),
                               [&](const auto& entry) { return entry.first == name; });
    if (member == object.end()) {
      object.emplace_back();
      member = std::prev(object.end());
      member->first = std::string(name);
    }
    place = &member->second;
  }
}

}  // namespace

void Schema::add(Key key) {
  AMOEBA_ASSERT(!key.path.empty() && index_of(key.path) == keys_.size() && !is_section(key.path));
  State state;
  state.initial = value_of(key.field);
  states_.push_back(std::move(state));
  keys_.push_back(std::move(key));
}

void Schema::retire(RetiredKey key) { retired_keys_.push_back(std::move(key)); }

void Schema::retire(RetiredChoice choice) { retired_choices_.push_back(std::move(choice)); }

void Schema::apply(const Value& document, std::string_view source) {
  const auto* root = document.get_if<Object>();
  AMOEBA_CHECK(root != nullptr, source, ": the top level is ", describe(document),
               ", want an object of sections");
  apply_object(*root, "", source);
}

void Schema::apply_object(const Object& object, const std::string& parent,
                          std::string_view source) {
  for (const auto& [name, value] : object) {
    const std::string path = parent.empty() ? name : cat(parent, ".", name);
    const std::string place =
        value.line > 0 ? cat(source, ":", value.line, ":", value.column) : std::string(source);
    AMOEBA_CHECK(name.find('.') == name.npos, place, ": key ", quoted(name),
                 " holds a dot, want one object for each part");
    check_retired(path, place);

    const size_t index = index_of(path);
    if (index < keys_.size()) {
      set(index, value, place);
      states_[index].origin = value.line > 0 ? cat(source, ":", value.line) : std::string(source);
    } else if (is_section(path)) {
      const auto* section = value.get_if<Object>();
      AMOEBA_CHECK(section != nullptr, place, ": '", path, "' got ", describe(value),
                   ", want a section (an object)");
      apply_object(*section, path, source);
    } else {
      check_retired_below(value, path, place);
      fail_unknown(path, value.get_if<Object>() != nullptr, place);
    }
  }
}

void Schema::apply_override(std::string_view path, std::string_view text) {
  check_retired(path, kCommandLine);
  const size_t index = index_of(path);
  AMOEBA_CHECK(!is_section(path), kCommandLine, ": ", quoted(path),
               " is a section, want one of its ", members_of(keys_, path));
  if (index == keys_.size()) fail_unknown(path, false, kCommandLine);

  const Key& key = keys_[index];
  set(index, parse_text(key, std::string(text)), kCommandLine);
  states_[index].origin = kCommandLine;
}

void Schema::check() const {
  for (const Key& key : keys_) {
    std::visit(
        [&]<typename T>(const T* field) {
          T unchanged = *field;
          assign(key, value_of(key.field), "configuration", unchanged);
        },
        key.field);
  }
}

void Schema::set(size_t index, const Value& value, std::string_view place) {
  const Key& key = keys_[index];
  for (const RetiredChoice& retired : retired_choices_) {
    const auto* text = value.get_if<std::string>();
    AMOEBA_CHECK(retired.path != key.path || text == nullptr || *text != retired.value, place,
                 ": '", key.path, "' value '", retired.value,
                 "' is no longer taken: ", retired.advice);
  }
  std::visit([&](auto* field) { assign(key, value, place, *field); }, key.field);
}

void Schema::check_retired(std::string_view path, std::string_view place) const {
  for (const RetiredKey& retired : retired_keys_) {
    const bool anywhere = retired.path.find('.') == retired.path.npos;
    AMOEBA_CHECK((anywhere ? last_part(path) : path) != retired.path, place, ": ", quoted(path),
                 " is no longer taken: ", retired.advice);
  }
}

void Schema::check_retired_below(const Value& value, const std::string& path,
                                 std::string_view place) const {
  const auto* object = value.get_if<Object>();
  if (object == nullptr) return;
  for (const auto& [name, member] : *object) {
    const std::string below = cat(path, ".", name);
    check_retired(below, place);
    check_retired_below(member, below, place);
  }
}

std::string Schema::suggestion(std::string_view path) const {
  std::vector<std::string> paths;
  std::vector<std::string> names;
  for (const Key& key : keys_) {
    paths.push_back(key.path);
    names.emplace_back(last_part(key.path));
  }
  const auto path_of_name = [&](const std::string& name) {
    return paths[static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin())];
  };
  // The right name in the wrong section, a slip in the right section, a slip anywhere.
  const std::string name(last_part(path));
  if (std::find(names.begin(), names.end(), name) != names.end()) return path_of_name(name);
  const std::string in_section = nearest_name(name, names_in(keys_, section_of(path)));
  if (!in_section.empty()) {
    const std::string_view section = section_of(path);
    return section.empty() ? in_section : cat(section, ".", in_section);
  }
  const std::string in_paths = nearest_name(path, paths);
  if (!in_paths.empty()) return in_paths;
  const std::string anywhere = nearest_name(name, names);
  return anywhere.empty() ? "" : path_of_name(anywhere);
}

void Schema::fail_unknown(std::string_view path, bool as_section, std::string_view place) const {
  for (const Key& key : keys_) {
    AMOEBA_CHECK(!path.starts_with(key.path + "."), place, ": unknown key ", quoted(path), ": '",
                 key.path, "' is of type ", type_of(key.field), " and holds no other key");
  }
  std::vector<std::string> sections = sections_of(keys_);
  std::erase(sections, "");

  const std::string_view section = as_section ? path : section_of(path);
  const bool unknown_section = !section.empty() && !is_section(section);
  const std::string nearest = unknown_section ? nearest_name(section, sections) : suggestion(path);
  std::string hint = cat(", did you mean '", nearest, "'?");
  if (nearest.empty()) {
    hint = unknown_section || section.empty()
               ? cat(", want ", unknown_section ? "" : "a key in ", "one of ", join(sections, ", "))
               : cat(", '", section, "' has the ", members_of(keys_, section));
  }
  fail(ErrorKind::kUsage, cat(place, ": unknown ", unknown_section ? "section " : "key ",
                              quoted(unknown_section ? section : path), hint));
}

size_t Schema::index_of(std::string_view path) const {
  const auto key = std::find_if(keys_.begin(), keys_.end(),
                                [&](const Key& entry) { return entry.path == path; });
  return static_cast<size_t>(key - keys_.begin());
}

size_t Schema::known_index(std::string_view path) const {
  const size_t index = index_of(path);
  if (index == keys_.size()) fail_unknown(path, false, "configuration");
  return index;
}

bool Schema::is_section(std::string_view path) const {
  return std::any_of(keys_.begin(), keys_.end(), [prefix = cat(path, ".")](const Key& key) {
    return key.path.starts_with(prefix);
  });
}

const Value& Schema::default_value(std::string_view path) const {
  return states_[known_index(path)].initial;
}

const std::string& Schema::origin(std::string_view path) const {
  return states_[known_index(path)].origin;
}

bool Schema::is_set(std::string_view path) const { return origin(path) != State().origin; }

std::string Schema::write_toml(bool annotate) const {
  std::string text;
  for (const std::string& section : sections_of(keys_)) {
    if (!text.empty()) text += "\n";
    if (!section.empty()) text += cat("[", section, "]\n");
    for (size_t index = 0; index < keys_.size(); ++index) {
      const Key& key = keys_[index];
      if (section_of(key.path) != section) continue;
      if (annotate) text += cat("# ", key.doc, " [", escaped(states_[index].origin), "]\n");
      text += cat(last_part(key.path), " = ", toml_text(value_of(key.field)), "\n");
    }
  }
  return text;
}

Value Schema::to_value() const {
  Value tree = make_value(Object());
  for (const Key& key : keys_) {
    auto& member = object_at(tree, section_of(key.path)).emplace_back();
    member.first = std::string(last_part(key.path));
    member.second = value_of(key.field);
  }
  return tree;
}

std::string help_text(const Schema& schema) {
  std::string text;
  for (const std::string& section : sections_of(schema.keys())) {
    if (!text.empty()) text += "\n";
    if (!section.empty()) text += cat("[", section, "]\n");
    for (const Key& key : schema.keys()) {
      if (section_of(key.path) != section) continue;
      std::vector<std::string> facts = {type_of(key.field)};
      facts.push_back(cat("default ", write_json(schema.default_value(key.path))));
      if (const std::string range = range_text(key); !range.empty()) facts.push_back(range);
      if (!key.choices.empty()) facts.push_back(cat("one of ", join(key.choices, " | ")));
      text += cat("  --", key.path, "  (", join(facts, "; "), ")\n      ", key.doc, "\n");
    }
  }
  return text;
}

std::vector<std::pair<std::string, std::string>> parse_overrides(
    const std::vector<std::string>& arguments) {
  std::vector<std::pair<std::string, std::string>> overrides;
  for (size_t at = 0; at < arguments.size(); ++at) {
    const std::string& argument = arguments[at];
    const size_t equals = argument.find('=');
    const bool is_key = argument.starts_with("--") && argument.size() > 2 && equals != 2;
    AMOEBA_CHECK(is_key, kCommandLine, ": got ", quoted(argument), ", want --section.key value");
    const std::string path = argument.substr(2, equals == argument.npos ? equals : equals - 2);
    if (equals != argument.npos) {
      overrides.emplace_back(path, argument.substr(equals + 1));
      continue;
    }
    const bool has_value = at + 1 < arguments.size() && !arguments[at + 1].starts_with("--");
    AMOEBA_CHECK(
        has_value, kCommandLine, ": ", quoted(argument),
        " has no value, want --section.key value (--section.key=value when it starts with --)");
    overrides.emplace_back(path, arguments[++at]);
  }
  return overrides;
}

}  // namespace amoeba::formats
