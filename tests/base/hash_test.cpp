#include "base/hash.h"

#include <gtest/gtest.h>

#include <string>

namespace amoeba {
namespace {

struct Case {
  const char* text;
  const char* hash;  // printed by `xxhsum -H2`
};

class HashTest : public ::testing::TestWithParam<Case> {};

TEST_P(HashTest, EqualsXxhsum) {
  const std::string text = GetParam().text;
  EXPECT_EQ(xxh3_128_hex(std::as_bytes(std::span(text))), GetParam().hash);
}

INSTANTIATE_TEST_SUITE_P(Texts, HashTest,
                         ::testing::Values(Case{"", "99aa06d3014798d86001c324468d497f"},
                                           Case{"a", "a96faf705af16834e6c632b61e964e1f"},
                                           Case{"amoeba", "3bd074bad92040d6c68a45efb4d8e135"}));

}  // namespace
}  // namespace amoeba
