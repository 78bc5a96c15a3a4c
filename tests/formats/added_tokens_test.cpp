#include "formats/added_tokens.h"

#include <gtest/gtest.h>

#include "amoeba/error.h"

namespace amoeba::formats {
namespace {

// Pieces of `text`: "[id:text]" for a token, the text itself between them, '|' after each.
std::string show(const std::vector<AddedToken>& tokens, std::string_view text,
                 bool special_as_text = false) {
  std::string out;
  for (const AddedTokens::Piece& piece : AddedTokens(tokens).cut(text, special_as_text)) {
    const std::string_view part = text.substr(piece.begin, piece.end - piece.begin);
    out += piece.id < 0 ? cat(part, "|") : cat("[", piece.id, ":", part, "]|");
  }
  return out;
}

AddedToken token(std::string text, int32_t id) {
  AddedToken added;
  added.text = std::move(text);
  added.id = id;
  return added;
}

TEST(AddedTokens, TakesTheLongestFromTheLeft) {
  const std::vector<AddedToken> tokens = {token("<a", 1), token("<a>", 2), token("a><", 3),
                                          token("", 4)};
  EXPECT_EQ(show(tokens, ""), "");
  EXPECT_EQ(show(tokens, "text"), "text|");
  EXPECT_EQ(show(tokens, "<a>"), "[2:<a>]|");
  EXPECT_EQ(show(tokens, "x<a><a"), "x|[2:<a>]|[1:<a]|");
  EXPECT_EQ(show(tokens, "<<a><"), "<|[2:<a>]|<|");
  EXPECT_EQ(show(tokens, "a><a>"), "[3:a><]|a>|");
  EXPECT_EQ(show({}, "<a>"), "<a>|");
}

TEST(AddedTokens, SpecialOnesAreTextWhenAsked) {
  std::vector<AddedToken> tokens = {token("<s>", 1), token("s>x", 2)};
  tokens[0].special = true;
  EXPECT_EQ(show(tokens, "<s>x"), "[1:<s>]|x|");
  EXPECT_EQ(show(tokens, "<s>x", true), "<s>x|");  // found, so nothing inside it is
  EXPECT_EQ(show(tokens, "s>x", true), "[2:s>x]|");
}

TEST(AddedTokens, StripsAndSingleWords) {
  std::vector<AddedToken> tokens = {token("L", 1), token("R", 2), token("W", 3)};
  tokens[0].lstrip = true;
  tokens[1].rstrip = true;
  tokens[2].single_word = true;
  EXPECT_EQ(show(tokens, "a \t\u3000L b"), "a|[1: \t\u3000L]| b|");
  EXPECT_EQ(show(tokens, "a R \n b"), "a |[2:R \n ]|b|");
  EXPECT_EQ(show(tokens, "R  L"), "[2:R  ]|[1:L]|");  // the spaces are taken already
  EXPECT_EQ(show(tokens, "W WW aW W1 W\u00E9 \u0301W W_ (W)"),
            "[3:W]| WW aW W1 W\u00E9 \u0301W W_ (|[3:W]|)|");
}

}  // namespace
}  // namespace amoeba::formats
