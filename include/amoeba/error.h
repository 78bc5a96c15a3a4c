// The one exception type of Amoeba and the checks that throw it.
//
// A user's mistake is reported as one line that names the operation, what was got and what was
// wanted; the kind decides the exit code of the `amoeba` binary. The library never prints or exits.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace amoeba {

// Enumerators are the exit codes of the binary. kInternal: a bug in Amoeba itself.
enum class ErrorKind { kInternal = 1, kUsage = 2, kData = 3, kNumeric = 4, kDistributed = 5 };

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// Concatenates the stream form of every part: cat("E is ", 4) == "E is 4".
template <typename... Parts>
std::string cat(const Parts&... parts) {
  std::ostringstream out;
  out.exceptions(std::ios_base::badbit);  // or a failed allocation would cut the text short
  out.precision(12);
  (out << ... << parts);
  return out.str();
}

[[noreturn]] inline void fail(ErrorKind kind, const std::string& message) {
  throw Error(kind, message);
}

}  // namespace amoeba

// User contract, always on: AMOEBA_CHECK(n > 0, "grouped_mm: n is ", n, ", want > 0").
#define AMOEBA_CHECK_KIND(kind, condition, ...)                              \
  do {                                                                       \
    if (!(condition)) [[unlikely]]                                           \
      ::amoeba::fail(::amoeba::ErrorKind::kind, ::amoeba::cat(__VA_ARGS__)); \
  } while (false)

#define AMOEBA_CHECK(condition, ...) AMOEBA_CHECK_KIND(kUsage, condition, __VA_ARGS__)

// Internal truth, always on outside inner loops: a failure is a bug in Amoeba.
#define AMOEBA_ASSERT(condition)                                                            \
  do {                                                                                      \
    if (!(condition)) [[unlikely]]                                                          \
      ::amoeba::fail(                                                                       \
          ::amoeba::ErrorKind::kInternal,                                                   \
          ::amoeba::cat(__FILE__, ":", __LINE__, ": internal check failed: ", #condition)); \
  } while (false)
