#include "train/plain/text_stream.h"

#include <algorithm>
#include <utility>

#include "amoeba/error.h"
#include "train/plain/plain_text.h"

namespace amoeba::train {

namespace {

// Bytes at the end of `text` that begin `stop` without completing it.
size_t begun_part(std::string_view text, std::string_view stop) {
  for (size_t size = std::min(text.size(), stop.size() - 1); size > 0; --size) {
    if (text.ends_with(stop.substr(0, size))) return size;
  }
  return 0;
}

// Whether more bytes could make a character of `text`, which none begins yet.
bool may_become_character(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() >= length) return false;
  return std::all_of(text.begin() + 1, text.end(),
                     [](char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; });
}

}  // namespace

TextStream::TextStream(std::vector<std::string> stop_strings)
    : stop_strings_(std::move(stop_strings)) {
  for (const std::string& stop : stop_strings_) {
    AMOEBA_CHECK(!stop.empty(), "stop: the string is empty, want at least one character");
  }
}

std::string TextStream::push(std::string_view bytes) {
  if (stopped()) return "";
  for (const char byte : bytes) {
    if (stopped()) break;
    held_ += byte;
    for (const std::string& stop : stop_strings_) {
      if (held_.ends_with(stop) && stop.size() > stop_string_.size()) stop_string_ = stop;
    }
  }
  if (stopped()) {
    held_.resize(held_.size() - stop_string_.size());
    return finish();
  }
  size_t begun = 0;
  for (const std::string& stop : stop_strings_) begun = std::max(begun, begun_part(held_, stop));
  return take_characters(held_.size() - begun, /*is_last=*/false);
}

std::string TextStream::finish() { return take_characters(held_.size(), /*is_last=*/true); }

std::string TextStream::take_characters(size_t end, bool is_last) {
  std::string_view rest = std::string_view(held_).substr(0, end);
  while (!rest.empty()) {
    const size_t length = utf8_sequence_length(rest);
    if (length == 0 && !is_last && may_become_character(rest)) break;
    rest.remove_prefix(std::max<size_t>(length, 1));
  }
  const size_t taken = end - rest.size();
  std::string text = replace_invalid_utf8(std::string_view(held_).substr(0, taken));
  held_.erase(0, taken);
  return text;
}

}  // namespace amoeba::train
