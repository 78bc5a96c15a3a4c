#include "formats/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>

#include "amoeba/error.h"
#include "base/text.h"

namespace amoeba::formats {

namespace {

constexpr uint32_t kHeapLimitKib = 256 << 10;

// Unicode's White_Space: PCRE2's \s has U+180E besides.
constexpr std::string_view kSpaces =
    "\\t-\\r\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}"
    "\\x{3000}";

// Oniguruma (Ruby syntax) to PCRE2. What both read alike is copied; the rest is translated or
// refused.
class Translator {
 public:
  Translator(std::string_view pattern, const std::string& what) : pattern_(pattern), what_(what) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        class_character(c);
      } else if (c == '[') {
        in_class_ = true;
        copy(starts_with("[^") ? 2 : 1);
        if (starts_with("]")) refuse("]");
      } else if (starts_with("(?")) {
        group();
      } else if (c == '}' && at_ + 1 < pattern_.size() && pattern_[at_ + 1] == '+') {
        refuse("}+");  // repeats there, is possessive here
      } else if (c == '}' && at_ + 1 < pattern_.size() && pattern_[at_ + 1] == '?') {
        refuse("}?");  // {n}? means something else there
      } else {
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  bool starts_with(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  void copy(size_t size) {
    out_ += pattern_.substr(at_, size);
    at_ += size;
  }
  void replace(size_t size, std::string_view text) {
    out_ += text;
    at_ += size;
  }
  [[noreturn]] void refuse(std::string_view syntax) const {
    fail(ErrorKind::kData, cat(what_, ": pattern '", printable(pattern_), "' uses '",
                               printable(syntax), "', which is not supported"));
  }

  void escape() {
    const char c = at_ + 1 < pattern_.size() ? pattern_[at_ + 1] : '\0';
    if (c == 's') {
      replace(2, in_class_ ? std::string(kSpaces) : cat("[", kSpaces, "]"));
    } else if (c == 'S' && !in_class_) {
      replace(2, cat("[^", kSpaces, "]"));
    } else if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) {
      constexpr std::string_view kSame = "pPdDnrtfaexAzZ";
      if (kSame.find(c) == kSame.npos) refuse(pattern_.substr(at_, 2));
      copy(2);
      // The braces of \p{L} are no repeat.
      if (at_ < pattern_.size() && pattern_[at_] == '{' && (c == 'p' || c == 'P' || c == 'x')) {
        copy(std::min(pattern_.find('}', at_), pattern_.size() - 1) + 1 - at_);
      }
    } else {
      copy(2);
    }
  }

  void class_character(char c) {
    if (c == '[' || starts_with("&&")) refuse(pattern_.substr(at_, 2));
    in_class_ = c != ']';
    copy(1);
  }

  void group() {
    for (const std::string_view start :
         {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?x:", "(?ix:", "(?i)"}) {
      if (starts_with(start)) return copy(start.size());
    }
    refuse(pattern_.substr(at_, 4));
  }

  std::string_view pattern_;
  const std::string& what_;
  size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

std::string message_of(int code) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

struct MatchState {
  MatchState()
      : data(pcre2_match_data_create(1, nullptr)), context(pcre2_match_context_create(nullptr)) {
    AMOEBA_CHECK_KIND(kInternal, data != nullptr && context != nullptr, "regex: out of memory");
    // Whitespace by the megabyte needs many steps; memory is what has to be bounded.
    pcre2_set_match_limit(context, UINT32_MAX);
    pcre2_set_heap_limit(context, kHeapLimitKib);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
  ~MatchState() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
  }
  pcre2_match_data* data;
  pcre2_match_context* context;
};

}  // namespace

struct Regex::Code {
  ~Code() { pcre2_code_free(code); }
  std::string pattern;
  pcre2_code* code = nullptr;
};

Regex::Regex(std::string_view pattern, const std::string& what) : code_(std::make_unique<Code>()) {
  const std::string translated = Translator(pattern, what).run();
  code_->pattern = pattern;
  int error = 0;
  PCRE2_SIZE offset = 0;
  // In Ruby's syntax ^ and $ match at every line.
  code_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, nullptr);
  AMOEBA_CHECK_KIND(kData, code_->code != nullptr, what, ": pattern '", printable(pattern),
                    "' does not compile: ", message_of(error));
  pcre2_jit_compile(code_->code, PCRE2_JIT_COMPLETE);  // without it pcre2_match interprets
}

Regex::~Regex() = default;
Regex::Regex(Regex&& other) noexcept = default;

std::optional<Regex::Match> Regex::find(std::string_view text, size_t start) const {
  thread_local const MatchState state;
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  int result = pcre2_match(code_->code, subject, text.size(), start, PCRE2_NO_UTF_CHECK, state.data,
                           state.context);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) {
    result = pcre2_match(code_->code, subject, text.size(), start,
                         PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, state.data, state.context);
  }
  if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
  AMOEBA_CHECK_KIND(kData, result >= 0, "regex: pattern '", printable(code_->pattern), "' on ",
                    text.size(), " bytes of text: ", message_of(result));
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(state.data);
  return Match{bounds[0], bounds[1]};
}

}  // namespace amoeba::formats
