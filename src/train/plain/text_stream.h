// Text out of tokens as they come: whole characters only, nothing of a stop string.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace amoeba::train {

// A token may end inside a character, and a stop string may begin in one token and end in another,
// so bytes are held back until it is known what they are. Each byte that belongs to no character
// becomes U+FFFD, as in replace_invalid_utf8. The text does not depend on where tokens end.
class TextStream {
 public:
  // Error(kUsage) for an empty stop string.
  explicit TextStream(std::vector<std::string> stop_strings);

  // Takes the bytes of the next token; returns what is safe to show by now, valid UTF-8. At the
  // first byte that completes a stop string it and all behind it are dropped.
  std::string push(std::string_view bytes);
  // What was held back: no more bytes come.
  std::string finish();

  bool stopped() const { return !stop_string_.empty(); }
  const std::string& stop_string() const { return stop_string_; }  // the one that came, or empty

 private:
  std::string take_characters(size_t end, bool is_last);

  std::vector<std::string> stop_strings_;
  std::string held_;
  std::string stop_string_;
};

}  // namespace amoeba::train
