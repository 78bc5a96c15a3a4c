#include "formats/tokenizer.h"

#include <gtest/gtest.h>

#include "support/errors.h"
#include "support/memory_file_system.h"

namespace amoeba::formats {
namespace {

TEST(ByteTokenizer, EveryByteIsItsOwnId) {
  const ByteTokenizer tokenizer;
  std::string text;
  for (int byte = 0; byte < 256; ++byte) text.push_back(static_cast<char>(byte));
  const std::vector<int32_t> ids = tokenizer.encode(text);
  ASSERT_EQ(ids.size(), 256u);
  for (int32_t id = 0; id < 256; ++id) EXPECT_EQ(ids[static_cast<size_t>(id)], id);
  EXPECT_EQ(tokenizer.decode(ids), text);
  EXPECT_EQ(tokenizer.vocab_size(), 257);
  EXPECT_EQ(tokenizer.end_of_document(), 256);
  EXPECT_TRUE(tokenizer.encode("").empty());
}

TEST(ByteTokenizer, DecodesIdsWithoutTextToNothing) {
  const ByteTokenizer tokenizer;
  EXPECT_EQ(tokenizer.decode({'a', 256, 'b', 257, 263}), "ab");
  EXPECT_EQ(test::error_message(ErrorKind::kUsage,
                                [&] {
                                  tokenizer.decode({'a', -1});
                                }),
            "decode: token id is -1, want at least 0");
}

TEST(ByteTokenizer, TextOfOneToken) {
  const ByteTokenizer tokenizer;
  EXPECT_EQ(tokenizer.token_text('a'), "a");
  EXPECT_EQ(tokenizer.token_text(255), "\xFF");
  EXPECT_EQ(tokenizer.token_text(256), "");
  EXPECT_EQ(tokenizer.token_text(-1), "");
  EXPECT_TRUE(tokenizer.prefix().empty());
  EXPECT_EQ(tokenizer.encode_prompt("ab"), tokenizer.encode("ab"));
}

TEST(MakeTokenizer, KnowsBytesAndFiles) {
  test::MemoryFileSystem files;
  EXPECT_EQ(make_tokenizer(files, "bytes")->name(), "bytes");
  EXPECT_EQ(test::error_message(ErrorKind::kUsage, [&] { make_tokenizer(files, "bpe"); }),
            "tokenizer 'bpe' is unknown, want bytes or the path of a tokenizer.json");
  files.create_directories("/folder");
  EXPECT_EQ(test::error_message(ErrorKind::kData, [&] { make_tokenizer(files, "/folder"); }),
            "read '/folder/tokenizer.json': No such file or directory");
}

}  // namespace
}  // namespace amoeba::formats
