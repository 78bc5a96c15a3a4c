// Checks that a call fails the way a user would see it.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "amoeba/error.h"

namespace amoeba::test {

// The message of the Error of `kind` that `call` throws; anything else fails the test and gives "".
template <typename Call>
std::string error_message(ErrorKind kind, Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(kind)) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error was thrown";
  return "";
}

}  // namespace amoeba::test
