#include "formats/bpe.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "support/errors.h"

namespace amoeba::formats {
namespace {

std::vector<int32_t> encode(const Bpe& bpe, std::string_view word) {
  Bpe::Scratch scratch;
  std::vector<int32_t> ids;
  bpe.encode(word, scratch, ids);
  return ids;
}

// "a b ab" -> tokens 0, 1, 2 ...; merges as pairs of texts.
BpeModel model_of(const std::vector<std::string>& tokens,
                  const std::vector<std::pair<std::string, std::string>>& merges) {
  BpeModel model;
  std::map<std::string, int32_t> ids;
  for (const std::string& token : tokens) {
    ids[token] = static_cast<int32_t>(model.vocabulary.size());
    model.vocabulary.emplace_back(token, ids[token]);
  }
  for (const auto& [left, right] : merges) model.merges.emplace_back(ids.at(left), ids.at(right));
  return model;
}

// The definition: again and again, the leftmost pair of the lowest rank.
std::vector<int32_t> naive(const BpeModel& model, std::string_view word) {
  std::map<std::string, int32_t> ids(model.vocabulary.begin(), model.vocabulary.end());
  std::map<int32_t, std::string> texts;
  for (const auto& [text, id] : model.vocabulary) texts[id] = text;
  std::vector<int32_t> tokens;
  for (const char c : word) {
    if (ids.count(std::string(1, c)) > 0) tokens.push_back(ids[std::string(1, c)]);
  }
  while (true) {
    size_t best = tokens.size(), best_rank = model.merges.size();
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (model.merges[rank] == std::pair(tokens[i], tokens[i + 1])) {
          best = i;
          best_rank = rank;
        }
      }
    }
    if (best == tokens.size()) return tokens;
    tokens[best] = ids.at(texts[tokens[best]] + texts[tokens[best + 1]]);
    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(Bpe, AgreesWithTheDefinitionOnRandomModels) {
  std::mt19937 random(7);
  size_t num_merged = 0;
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<std::string> tokens = {"a", "b", "c", "d"};
    std::vector<std::pair<std::string, std::string>> merges;
    const size_t num_merges = random() % 40;
    for (size_t i = 0; i < num_merges; ++i) {
      const std::string left = tokens[random() % tokens.size()];
      const std::string right = tokens[random() % tokens.size()];
      if (std::count(merges.begin(), merges.end(), std::pair(left, right)) > 0) continue;
      merges.emplace_back(left, right);
      if (std::count(tokens.begin(), tokens.end(), left + right) == 0) {
        tokens.push_back(left + right);
      }
    }
    if (trial % 2 == 0) std::shuffle(merges.begin(), merges.end(), random);
    BpeModel model = model_of(tokens, merges);
    model.byte_symbols = trial % 3 != 0;
    const Bpe bpe(model, "test");
    for (int i = 0; i < 30; ++i) {
      std::string word;
      for (size_t size = random() % 40; word.size() < size;) {
        word += static_cast<char>('a' + random() % (trial % 5 == 0 ? 5 : 4));  // e is no token
      }
      const std::vector<int32_t> want = naive(model, word);
      ASSERT_EQ(encode(bpe, word), want) << trial << " " << word;
      if (want.size() < word.size()) ++num_merged;
    }
  }
  EXPECT_GT(num_merged, 2000u);
}

TEST(Bpe, UnknownCharacters) {
  using Ids = std::vector<int32_t>;
  BpeModel model = model_of({"<unk>", "a", "\u00E9", "<0xE4>", "<0xB8>", "<0x80>"}, {});
  EXPECT_EQ(encode(Bpe(model, "f"), "axx\u00E9\u4E00"), (Ids{1, 2}));
  model.unknown = 0;
  EXPECT_EQ(encode(Bpe(model, "f"), "axx\u00E9\u4E00"), (Ids{1, 0, 0, 2, 0}));
  model.fuse_unknown = true;
  EXPECT_EQ(encode(Bpe(model, "f"), "xaxx\u00E9\u4E00y"), (Ids{0, 1, 0, 2, 0}));
  model.byte_fallback = true;
  EXPECT_EQ(encode(Bpe(model, "f"), "a\u4E00\u4E01"), (Ids{1, 3, 4, 5, 0}));  // no <0x81>
  EXPECT_TRUE(encode(Bpe(model, "f"), "").empty());
}

TEST(Bpe, IgnoringMergesAWordThatIsATokenStaysWhole) {
  BpeModel model = model_of({"a", "b", "c", "ab", "abc"}, {{"a", "b"}});
  EXPECT_EQ(encode(Bpe(model, "f"), "abc"), (std::vector<int32_t>{3, 2}));
  model.ignore_merges = true;
  EXPECT_EQ(encode(Bpe(model, "f"), "abc"), (std::vector<int32_t>{4}));
}

TEST(Bpe, RefusesModelsThatContradictThemselves) {
  BpeModel model = model_of({"a", "b"}, {{"a", "b"}});
  EXPECT_EQ(test::error_message(ErrorKind::kData, [&] { Bpe(model, "f"); }),
            "f: merge 0 gives 'ab', want a token of the vocabulary");
  model.merges = {{0, 9}};
  EXPECT_EQ(test::error_message(ErrorKind::kData, [&] { Bpe(model, "f"); }),
            "f: merge 0 is of ids 0 and 9, want ids of the vocabulary");
  model.vocabulary[0].second = -1;
  EXPECT_EQ(test::error_message(ErrorKind::kData, [&] { Bpe(model, "f"); }),
            "f: token 'a' has id -1, want at least 0");
}

}  // namespace
}  // namespace amoeba::formats
