#include "train_plain/markup.h"

#include <algorithm>
#include <cctype>
#include <set>
#include <vector>

#include "amoeba/error.h"

namespace amoeba::test {
namespace {

std::string at(std::string_view what, std::string_view rest) {
  return cat(what, " at: ", rest.substr(0, 60));
}

std::string text_error(std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte < 0x20 && text[i] != '\n' && text[i] != '\t')
      return at("control character", text.substr(i));
    if (text[i] == '<') return at("stray <", text.substr(i));
    if (text[i] == '>') return at("stray >", text.substr(i));
    if (text[i] != '&') continue;
    const std::string_view known[] = {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;", "&le;", "&ge;"};
    const std::string_view rest = text.substr(i);
    if (std::none_of(std::begin(known), std::end(known),
                     [&](std::string_view entity) { return rest.starts_with(entity); })) {
      return at("unknown entity", rest);
    }
  }
  return "";
}

// The tag's inside without brackets and slashes: a name, then attributes.
std::string attributes_error(std::string_view tag, std::size_t name_size) {
  std::set<std::string_view> names;
  std::string_view rest = tag.substr(name_size);
  while (!rest.empty()) {
    if (rest.front() != ' ') return at("no space before an attribute", tag);
    rest.remove_prefix(1);
    const std::size_t equals = rest.find("=\"");
    if (equals == std::string_view::npos || equals == 0) return at("attribute without quotes", tag);
    if (!names.insert(rest.substr(0, equals)).second) return at("attribute twice", tag);
    const std::size_t end = rest.find('"', equals + 2);
    if (end == std::string_view::npos) return at("open attribute", tag);
    const std::string error = text_error(rest.substr(equals + 2, end - equals - 2));
    if (!error.empty()) return error;
    rest.remove_prefix(end + 1);
  }
  return "";
}

}  // namespace

std::string markup_error(std::string_view markup) {
  const std::set<std::string_view> kVoid = {"meta", "!DOCTYPE"};
  std::vector<std::string_view> open;
  while (true) {
    const std::size_t begin = markup.find('<');
    std::string error = text_error(markup.substr(0, begin));
    if (!error.empty()) return error;
    if (begin == std::string_view::npos) break;
    const std::string_view here = markup.substr(begin);
    const std::size_t end = here.find('>');
    if (end == std::string_view::npos) return at("open tag", here);
    std::string_view tag = here.substr(1, end - 1);
    markup = here.substr(end + 1);
    if (tag.starts_with('/')) {
      if (open.empty() || open.back() != tag.substr(1)) return at("unbalanced close", here);
      open.pop_back();
      continue;
    }
    const bool closes_itself = tag.ends_with('/');
    if (closes_itself) tag.remove_suffix(1);
    const auto name_end = std::find_if_not(
        tag.begin(), tag.end(), [](unsigned char c) { return std::isalnum(c) != 0 || c == '!'; });
    const std::string_view name = tag.substr(0, static_cast<std::size_t>(name_end - tag.begin()));
    if (name.empty()) return at("tag without name", here);
    if (name == "!DOCTYPE") continue;
    error = attributes_error(tag, name.size());
    if (!error.empty()) return error;
    if (closes_itself || kVoid.contains(name)) continue;
    open.push_back(name);
    if (name == "script" || name == "style") {  // raw text up to the first closing tag
      const std::string close = cat("</", name);
      const std::size_t raw_end = markup.find(close);
      if (raw_end == std::string_view::npos) return at("open raw text", here);
      markup.remove_prefix(raw_end);
    }
  }
  return open.empty() ? "" : cat("never closed: ", open.back());
}

std::string attribute_after(std::string_view markup, std::string_view mark,
                            std::string_view attribute) {
  const std::size_t place = markup.find(mark);
  if (place == std::string_view::npos) return "";
  const std::string_view tag = markup.substr(place, markup.find('>', place) - place);
  const std::string key = cat(" ", attribute, "=\"");
  const std::size_t begin = tag.find(key);
  if (begin == std::string_view::npos) return "";
  const std::size_t value = begin + key.size();
  return std::string(tag.substr(value, tag.find('"', value) - value));
}

}  // namespace amoeba::test
