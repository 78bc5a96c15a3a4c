#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "formats/prepare_tokens.h"
#include "formats/token_source.h"
#include "support/errors.h"
#include "support/faults.h"
#include "support/memory_file_system.h"
#include "support/temporary_folder.h"

namespace amoeba::formats {
namespace {

using Tokens = std::vector<int32_t>;

// Pairs of letters: "ab" is one token, with a space before each word as SentencePiece has it, 1
// begins and 2 ends a document. Text of n letters gives 1 + (n + 1) / 2 tokens.
class Pairs final : public Tokenizer {
 public:
  std::string name() const override { return "pairs"; }
  std::string fingerprint() const override { return fingerprint_; }
  int64_t vocab_size() const override { return 70000; }
  int32_t end_of_document() const override { return 2; }
  Tokens prefix() const override { return {1}; }
  Tokens encode(std::string_view text) const override {
    Tokens ids = {3};
    for (size_t i = 0; i < text.size(); i += 2) {
      ids.push_back(256 * text[i] + (i + 1 < text.size() ? text[i + 1] : 0));
    }
    return ids;
  }
  std::string decode(const Tokens&) const override { return ""; }
  std::string_view token_text(int32_t id) const override {
    return id == 3 ? " " : id < 3 ? "" : id % 256 == 0 ? "x" : "xy";
  }
  int64_t added_bytes(int32_t id) const override { return id == 3 ? 1 : 0; }
  std::string fingerprint_ = "v1";
};

constexpr int32_t pair(char a, char b) { return 256 * a + b; }

void put(FileSystem& files, const std::string& path, std::string_view text) {
  const auto file = files.create(path);
  file->write(text);
  file->close();
}

Tokens read_all(const TokenSource& source) {
  Tokens tokens(static_cast<size_t>(source.num_tokens()));
  source.read(0, tokens);
  return tokens;
}

TEST(OpenTokens, EncodesTextInMemory) {
  test::MemoryFileSystem files;
  const Pairs tokenizer;
  put(files, "/t.txt", "abc;;de;");
  const Tokens want = {1, 3, pair('a', 'b'), pair('c', 0), 2, 1, 3, pair('d', 'e'), 2};
  for (const int64_t num_threads : {1, 3}) {
    const auto source = open_tokens(files, "/t.txt", tokenizer, ";", num_threads);
    EXPECT_EQ(read_all(*source), want);
    EXPECT_EQ(source->num_documents(), 2);
    EXPECT_EQ(source->num_bytes(0, 9), 5);  // no byte for the spaces that encode() puts there
    EXPECT_EQ(source->num_bytes(3, 4), 1);
    EXPECT_EQ(source->num_bytes(5, 7), 0);
  }
  put(files, "/t.jsonl",
      "{\"text\": \"abc\"}\n\n {\"id\": 1, \"text\": \"\"}\r\n{\"text\":\"de\"}");
  EXPECT_EQ(read_all(*open_tokens(files, "/t.jsonl", tokenizer, ";")), want);
  EXPECT_EQ(read_all(*open_tokens(files, "/t.jsonl", ByteTokenizer(), "")),
            (Tokens{'a', 'b', 'c', 256, 'd', 'e', 256}));
}

TEST(OpenTokens, NamesTheLineOfABadJsonl) {
  const std::pair<const char*, const char*> cases[] = {
      {"{\"text\": \"a\"}\n{\"text\": 1}", "/t.jsonl line 2"},
      {"\n\n{\"txt\": \"a\"}", "/t.jsonl line 3"},
      {"{\"text\": \"a\"", "/t.jsonl line 1"},
      {"\n \n", "open text '/t.jsonl': the file holds nothing but empty lines"},
      {"{\"text\": \"\"}", "open text '/t.jsonl': the file holds no text"},
      {"", "open text '/t.jsonl': the file is empty"},
  };
  for (const auto& [text, want] : cases) {
    test::MemoryFileSystem files;
    put(files, "/t.jsonl", text);
    const std::string message =
        test::error_message(ErrorKind::kData, [&] { open_tokens(files, "/t.jsonl", Pairs(), ""); });
    EXPECT_EQ(message.find(want), 0u) << message;
  }
}

TEST(OpenTokens, KnowsFilesByContentAndName) {
  test::MemoryFileSystem files;
  const Pairs tokenizer;
  const std::string two("\x05\0\x06\0", 4);
  put(files, "/a.u16", two);
  put(files, "/a.bin", two);
  EXPECT_EQ(read_all(*open_tokens(files, "/a.u16", tokenizer, "")), (Tokens{5, 6}));
  EXPECT_EQ(read_all(*open_tokens(files, "/a.bin", tokenizer, "")), (Tokens{5, 6}));
  put(files, "/a.u32", std::string("\x05\0\x01\0", 4));
  EXPECT_EQ(read_all(*open_tokens(files, "/a.u32", tokenizer, "")), (Tokens{65541}));
  put(files, "/any",
      "\x93NUMPY" + std::string("\x01\0\x37\0", 4) +
          "{'descr': '<u2', 'fortran_order': False, 'shape': (2,)}" + two);
  EXPECT_EQ(read_all(*open_tokens(files, "/any", tokenizer, "")), (Tokens{5, 6}));
  put(files, "/b.npy", two);  // not numpy's, whatever its name says
  EXPECT_EQ(
      test::error_message(ErrorKind::kData, [&] { open_tokens(files, "/b.npy", tokenizer, ""); })
          .find("read .npy '/b.npy': the file of 4 bytes does not begin as a .npy does"),
      0u);
  EXPECT_EQ(
      test::error_message(ErrorKind::kData, [&] { open_tokens(files, "/none", tokenizer, ""); }),
      "map '/none': No such file or directory");
  files.create_directories("/folder");
  EXPECT_EQ(
      test::error_message(ErrorKind::kData, [&] { open_tokens(files, "/folder", tokenizer, ""); }),
      "open data '/folder': is a folder without dataset.json, want one made by amoeba data "
      "prepare");
}

// ---------------------------------------------------------------------------------------------------

PrepareOptions prepare_options(std::vector<std::string> inputs, const std::string& output) {
  PrepareOptions options;
  options.inputs = std::move(inputs);
  options.output = output;
  options.document_separator = ";";
  return options;
}

TEST(PrepareTokens, OpensAsTheTextDoes) {
  test::MemoryFileSystem files;
  Pairs tokenizer;
  put(files, "/t.txt", "abc;;de;");
  put(files, "/u.jsonl", "{\"text\": \"fgh\"}\n{\"text\": \"\"}\n");
  PrepareOptions options = prepare_options({"/t.txt", "/u.jsonl"}, "/out");
  std::vector<int64_t> progress;
  options.progress = [&](int64_t done, int64_t total) { progress = {done, total}; };
  const PreparedTokens result = prepare_tokens(files, tokenizer, options);
  EXPECT_EQ(result.num_documents, 3);
  EXPECT_EQ(result.num_tokens, 14);
  EXPECT_EQ(result.num_bytes, 8);
  EXPECT_EQ(progress.at(0), progress.at(1));
  EXPECT_EQ(files.list("/out"),
            (std::vector<std::string>{"dataset.json", "tokens.bin", "tokens.idx"}));
  EXPECT_EQ(files.list("/").size(), 3u);  // nothing else is left
  files.reboot(test::Survival::kSyncedOnly);

  const auto source = open_tokens(files, "/out", tokenizer, "");
  EXPECT_EQ(read_all(*source), (Tokens{1, 3, pair('a', 'b'), pair('c', 0), 2, 1, 3, pair('d', 'e'),
                                       2, 1, 3, pair('f', 'g'), pair('h', 0), 2}));
  EXPECT_EQ(source->num_documents(), 3);
  EXPECT_EQ(source->num_bytes(0, 14), 8);
  for (const char* name : {"/out/tokens", "/out/tokens.bin", "/out/tokens.idx"}) {
    EXPECT_EQ(read_all(*open_tokens(files, name, tokenizer, "")), read_all(*source)) << name;
  }
  tokenizer.fingerprint_ = "v2";
  EXPECT_EQ(
      test::error_message(ErrorKind::kData, [&] { open_tokens(files, "/out", tokenizer, ""); }),
      "open data '/out': it was made with the tokenizer 'pairs' (v1), data.tokenizer is 'pairs' "
      "(v2)");
}

TEST(PrepareTokens, ThreadsDoNotChangeTheFiles) {
  test::MemoryFileSystem files;
  std::string text;
  for (int i = 0; i < 500; ++i) text += cat("document ", i * i, i % 7 == 0 ? ";;" : ";");
  put(files, "/t.txt", text);
  for (const int64_t num_threads : {1, 2, 5}) {
    PrepareOptions options = prepare_options({"/t.txt"}, cat("/out", num_threads));
    options.num_threads = num_threads;
    prepare_tokens(files, Pairs(), options);
  }
  for (const char* name : {"/tokens.bin", "/tokens.idx", "/dataset.json"}) {
    EXPECT_EQ(files.read(cat("/out1", name)), files.read(cat("/out2", name)));
    EXPECT_EQ(files.read(cat("/out1", name)), files.read(cat("/out5", name)));
  }
}

TEST(PrepareTokens, OfManyWritersOneWins) {
  const test::TemporaryFolder folder;
  PosixFileSystem files;
  std::vector<std::thread> writers;
  std::atomic<int> num_won = 0;
  for (int i = 0; i < 8; ++i) {
    const std::string input = cat(folder.path(), "/t", i);
    put(files, input, std::string(static_cast<size_t>(1000 * (i + 1)), 'a'));
    writers.emplace_back([&, input] {
      try {
        PosixFileSystem own;
        prepare_tokens(own, Pairs(), prepare_options({input}, folder.path() + "/out"));
        ++num_won;
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(num_won, 1);
  EXPECT_EQ(files.list(folder.path()).size(), 9u);  // the inputs and one folder, no partial ones
  EXPECT_EQ(open_tokens(files, folder.path() + "/out", Pairs(), "")->num_tokens() % 500, 3);
}

TEST(PrepareTokens, AFailureAtAnyOperationLeavesAllOrNothing) {
  int64_t num_operations = 1;
  for (int64_t index = 0; index < num_operations; ++index) {
    for (const bool power : {false, true}) {
      test::MemoryFileSystem files;
      put(files, "/t.txt", "abc;de");
      test::FaultyFileSystem faulty(files);
      if (power) {
        faulty.lose_power_at(index);
      } else {
        faulty.fail_at(index, "broken");
      }
      const auto prepare = [&] {
        prepare_tokens(faulty, Pairs(), prepare_options({"/t.txt"}, "/out"));
      };
      if (power) {
        EXPECT_THROW(prepare(), test::PowerLoss);
        files.reboot(test::Survival::kTorn, static_cast<uint64_t>(index));
      } else {
        EXPECT_NE(test::error_message(ErrorKind::kData, prepare).find("broken"), std::string::npos);
        EXPECT_EQ(files.list("/").size(), files.exists("/out") ? 2u : 1u) << index;
      }
      if (files.exists("/out")) {
        EXPECT_EQ(read_all(*open_tokens(files, "/out", Pairs(), "")).size(), 9u) << index;
      }
    }
    test::MemoryFileSystem files;
    put(files, "/t.txt", "abc;de");
    test::FaultyFileSystem counting(files);
    prepare_tokens(counting, Pairs(), prepare_options({"/t.txt"}, "/out"));
    num_operations = counting.num_operations();
  }
  EXPECT_GT(num_operations, 15);
}

TEST(PrepareTokens, RefusesWhatCannotBe) {
  test::MemoryFileSystem files;
  put(files, "/t.txt", "abc");
  put(files, "/empty.jsonl", "{\"text\": \"\"}");
  const auto error = [&](ErrorKind kind, PrepareOptions options) {
    return test::error_message(kind, [&] { prepare_tokens(files, Pairs(), options); });
  };
  EXPECT_EQ(error(ErrorKind::kData, prepare_options({"/t.txt"}, "/t.txt")),
            "prepare '/t.txt': it exists already, want a new folder");
  EXPECT_EQ(error(ErrorKind::kData, prepare_options({"/none"}, "/out")),
            "map '/none': No such file or directory");
  EXPECT_EQ(error(ErrorKind::kData, prepare_options({"/empty.jsonl"}, "/out")),
            "prepare '/out': the inputs hold no text");
  EXPECT_EQ(error(ErrorKind::kUsage, prepare_options({}, "/out")),
            "prepare: inputs or output are missing, want both");
  PrepareOptions stopped = prepare_options({"/t.txt"}, "/out");
  stopped.stop = [] { return true; };
  EXPECT_EQ(error(ErrorKind::kUsage, stopped), "prepare '/out': stopped");
  EXPECT_EQ(files.list("/").size(), 2u);
}

}  // namespace
}  // namespace amoeba::formats
