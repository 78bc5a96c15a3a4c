#include <gtest/gtest.h>

#include <algorithm>

#include "formats/token_source.h"
#include "support/errors.h"
#include "support/memory_file_system.h"
#include "support/temporary_folder.h"

namespace amoeba::formats {
namespace {

constexpr int32_t kEnd = ByteTokenizer::kEndOfDocument;

std::unique_ptr<TokenSource> open(const std::string& content, const std::string& separator) {
  test::MemoryFileSystem files;
  const auto file = files.create("/text");
  file->write(content);
  file->close();
  return open_text(files, "/text", ByteTokenizer(), separator);
}

std::vector<int32_t> read(const TokenSource& source, int64_t begin, int64_t end) {
  std::vector<int32_t> out(static_cast<size_t>(end - begin), -7);
  source.read(begin, out);
  return out;
}

// Bytes as they are, '|' for the end-of-document token.
std::string show(const std::vector<int32_t>& tokens) {
  std::string out;
  for (const int32_t token : tokens) out.push_back(token == kEnd ? '|' : static_cast<char>(token));
  return out;
}

TEST(TextSource, CutsDocuments) {
  const struct {
    std::string content, separator, tokens;
    int64_t documents;
  } cases[] = {
      {"hello", "", "hello", 1},
      {"a\n\nb", "", "a\n\nb", 1},
      {"a\n\nb", "\n\n", "a|b|", 2},
      {"one", "##", "one", 1},
      {"##one##", "##", "one", 1},  // one document: no end token
      {"##one####two##", "##", "one|two|", 2},
      {"a#####b", "##", "a|#b|", 2},  // the separator is found from the left
      {"abcab", "abc", "ab", 1},
      {"x;y;z", ";", "x|y|z|", 3},
  };
  for (const auto& c : cases) {
    const auto source = open(c.content, c.separator);
    EXPECT_EQ(source->num_documents(), c.documents) << c.content;
    ASSERT_EQ(source->num_tokens(), static_cast<int64_t>(c.tokens.size())) << c.content;
    EXPECT_EQ(show(read(*source, 0, source->num_tokens())), c.tokens) << c.content;
  }
}

TEST(TextSource, EveryRangeAgreesWithTheWhole) {
  for (const std::string separator : {"", ";"}) {
    const auto source = open("ab;c;;def;g", separator);
    const int64_t n = source->num_tokens();
    const std::vector<int32_t> whole = read(*source, 0, n);
    for (int64_t begin = 0; begin <= n; ++begin) {
      for (int64_t end = begin; end <= n; ++end) {
        const std::vector<int32_t> want(whole.begin() + begin, whole.begin() + end);
        EXPECT_EQ(read(*source, begin, end), want) << begin << ", " << end;
        EXPECT_EQ(source->num_bytes(begin, end),
                  end - begin - std::count(want.begin(), want.end(), kEnd))
            << begin << ", " << end;
      }
    }
    for (int64_t begin = 0; begin < n; ++begin) {
      for (int64_t end = begin; end <= n; ++end) {
        int64_t want = begin + 1;
        while (want < end && whole[static_cast<size_t>(want - 1)] != kEnd) ++want;
        EXPECT_EQ(source->next_document(begin, end), std::min(want, end)) << begin << ", " << end;
      }
    }
  }
}

TEST(TextSource, KeepsEveryByteOfABinaryFile) {
  std::string content;
  for (int i = 0; i < 512; ++i) content.push_back(static_cast<char>(i * 37));
  const auto source = open(content, "");
  EXPECT_EQ(read(*source, 0, 512), ByteTokenizer().encode(content));
}

TEST(TextSource, ReadsMappedFilesOnDisk) {
  const test::TemporaryFolder folder;
  PosixFileSystem files;
  const std::string path = folder.path() + "/text";
  const auto file = files.create(path);
  file->write("some text");
  file->close();
  const auto source = open_text(files, path, ByteTokenizer(), "");
  EXPECT_EQ(source->name(), path);
  EXPECT_EQ(show(read(*source, 5, 9)), "text");
}

TEST(TextSource, RefusesWhatIsNoText) {
  const test::TemporaryFolder folder;
  PosixFileSystem files;
  const auto write = [&](const std::string& name, std::string_view content) {
    const auto file = files.create(folder.path() + "/" + name);
    file->write(content);
    file->close();
  };
  write("empty", "");
  write("separators", ";;;");
  files.create_directories(folder.path() + "/folder");
  const struct {
    std::string name, message;
  } cases[] = {
      {"missing", "map 'PATH/missing': No such file or directory"},
      {"empty", "open text 'PATH/empty': the file is empty"},
      {"folder", "map 'PATH/folder': is a folder, want a file"},
      {"separators", "open text 'PATH/separators': the file holds nothing but document separators"},
  };
  for (const auto& c : cases) {
    std::string want = c.message;
    want.replace(want.find("PATH"), 4, folder.path());
    EXPECT_EQ(test::error_message(
                  ErrorKind::kData,
                  [&] { open_text(files, folder.path() + "/" + c.name, ByteTokenizer(), ";"); }),
              want);
  }
}

TEST(TextSource, RefusesRangesOutsideTheText) {
  const auto source = open("abc", "");
  EXPECT_EQ(test::error_message(ErrorKind::kUsage, [&] { read(*source, 2, 4); }),
            "read '/text': tokens [2, 4), want a range inside [0, 3)");
  EXPECT_EQ(test::error_message(ErrorKind::kUsage, [&] { read(*source, -1, 1); }),
            "read '/text': tokens [-1, 1), want a range inside [0, 3)");
  EXPECT_EQ(test::error_message(ErrorKind::kUsage, [&] { source->num_bytes(2, 1); }),
            "num_bytes '/text': tokens [2, 1), want a range inside [0, 3)");
  EXPECT_EQ(test::error_message(ErrorKind::kUsage, [&] { source->next_document(3, 4); }),
            "next_document '/text': tokens [3, 4), want a range inside [0, 3)");
}

TEST(TextSource, RefusesOtherTokenizers) {
  class Letters final : public Tokenizer {
   public:
    std::string name() const override { return "letters"; }
    std::string fingerprint() const override { return "letters"; }
    int64_t vocab_size() const override { return 27; }
    int32_t end_of_document() const override { return 26; }
    std::vector<int32_t> encode(std::string_view) const override { return {}; }
    std::string decode(const std::vector<int32_t>&) const override { return ""; }
    std::string_view token_text(int32_t) const override { return ""; }
  };
  test::MemoryFileSystem files;
  EXPECT_EQ(test::error_message(ErrorKind::kUsage, [&] { open_text(files, "/t", Letters(), ""); }),
            "open text '/t': tokenizer is 'letters', want bytes");
}

}  // namespace
}  // namespace amoeba::formats
