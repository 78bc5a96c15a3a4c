// Patterns of Hugging Face tokenizers, which are written for the Oniguruma library, run by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace amoeba::formats {

class Regex {
 public:
  // Error(kData) that begins with `what` for a pattern that does not compile, or that uses syntax
  // which means something else in Oniguruma (\h, \w, nested classes, flags other than i and x...).
  // Letters and symbols are those of PCRE2's Unicode version.
  Regex(std::string_view pattern, const std::string& what);
  ~Regex();
  Regex(Regex&& other) noexcept;

  struct Match {
    size_t begin = 0;
    size_t end = 0;
  };
  // The first match that begins at or after `start`; text before `start` is seen by lookbehinds.
  // `text` is valid UTF-8. Safe to call from several threads.
  std::optional<Match> find(std::string_view text, size_t start) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace amoeba::formats
