#include "formats/token_files.h"

#include <gtest/gtest.h>

#include <cstring>

#include "support/errors.h"
#include "support/memory_file_system.h"
#include "support/mutation.h"

namespace amoeba::formats {
namespace {

using Tokens = std::vector<int32_t>;

// Every id is a token of one byte, 9 ends a document.
class Ids final : public Tokenizer {
 public:
  explicit Ids(int64_t vocab_size = 100000) : vocab_size_(vocab_size) {}
  std::string name() const override { return "ids"; }
  std::string fingerprint() const override { return "ids"; }
  int64_t vocab_size() const override { return vocab_size_; }
  int32_t end_of_document() const override { return 9; }
  std::vector<int32_t> encode(std::string_view) const override { return {}; }
  std::string decode(const std::vector<int32_t>&) const override { return ""; }
  std::string_view token_text(int32_t id) const override { return id == 9 ? "" : "x"; }

 private:
  int64_t vocab_size_;
};

template <typename... Numbers>
std::string pack(Numbers... numbers) {
  std::string out;
  const auto put = [&](auto number) {
    out.append(reinterpret_cast<const char*>(&number), sizeof number);
  };
  (put(numbers), ...);
  return out;
}

void put(FileSystem& files, const std::string& path, std::string_view text) {
  const auto file = files.create(path);
  file->write(text);
  file->close();
}

Tokens read_all(TokenArray array, int64_t vocab_size = 100000) {
  const Ids tokenizer(vocab_size);
  const auto source = make_token_source(std::move(array), tokenizer);
  Tokens tokens(static_cast<size_t>(source->num_tokens()));
  source->read(0, tokens);
  return tokens;
}

std::string npy(const std::string& header, const std::string& data) {
  return cat("\x93NUMPY", std::string("\x01\0", 2), pack(static_cast<uint16_t>(header.size())),
             header, data);
}

std::string llmc(int32_t magic, int32_t version, int32_t num_tokens, const std::string& data) {
  std::string header = pack(magic, version, num_tokens);
  header.resize(1024);
  return header + data;
}

// Two sequences of 2 and 3 uint16 tokens, which are two documents.
std::string index_text() {
  return cat(std::string("MMIDIDX\0\0", 9), pack(uint64_t{1}, uint8_t{8}, uint64_t{2}, uint64_t{3}),
             pack(int32_t{2}, int32_t{3}, int64_t{0}, int64_t{4}, int64_t{0}, int64_t{1}),
             pack(int64_t{2}));
}
std::string bin_text() {
  return pack(uint16_t{1}, uint16_t{2}, uint16_t{65535}, uint16_t{4}, uint16_t{5});
}

// ---------------------------------------------------------------------------------------------------

TEST(TokenFiles, ReadsEveryTypeOfNpy) {
  test::MemoryFileSystem files;
  const std::tuple<const char*, std::string> cases[] = {
      {"|u1", pack(uint8_t{7}, uint8_t{200}, uint8_t{9})},
      {"<u2", pack(uint16_t{7}, uint16_t{200}, uint16_t{9})},
      {"<i2", pack(int16_t{7}, int16_t{200}, int16_t{9})},
      {"<u4", pack(uint32_t{7}, uint32_t{200}, uint32_t{9})},
      {"<i4", pack(int32_t{7}, int32_t{200}, int32_t{9})},
      {"<i8", pack(int64_t{7}, int64_t{200}, int64_t{9})},
  };
  for (const auto& [descr, data] : cases) {
    put(files, "f",
        npy(cat("{'descr': '", descr, "', 'fortran_order': False, 'shape': (3,), }  \n"), data));
    EXPECT_EQ(read_all(read_npy_tokens(files, "f")), (Tokens{7, 200, 9})) << descr;
  }
  put(files, "f", npy("{ 'shape':(1),'fortran_order':True,'descr':'<u2'}", pack(uint16_t{3})));
  EXPECT_EQ(read_all(read_npy_tokens(files, "f")), (Tokens{3}));
}

TEST(TokenFiles, RefusesOtherNpy) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "the file of 0 bytes does not begin as a .npy does"},
      {"\x93NUMPX aaaaaaaaaa", "does not begin as a .npy does"},
      {std::string("\x93NUMPY\x04\0\0\0\0\0\0\0", 14), "version is 4, want 1 to 3"},
      {std::string("\x93NUMPY\x02\0\xFF\xFF\xFF\xFF", 12),
       "header of 4294967295 bytes in a file of 12"},
      {npy("{'descr': '>u2', 'fortran_order': False, 'shape': (1,)}", "aa"),
       "descr is '>u2', want one of |u1, <u2, <i2, <u4, <i4, <i8"},
      {npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1, 1)}", "aa"),
       "the array has 2 dimensions, want 1"},
      {npy("{'descr': '<u2', 'fortran_order': False, 'shape': ()}", "aa"),
       "the array has 0 dimensions, want 1"},
      {npy("{'descr': '<u2', 'fortran_order': False, 'shape': (2,)}", "aa"),
       "2 bytes of uint16 tokens, want 2 tokens of 2 bytes"},
      {npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1,)}", "aaa"),
       "3 bytes of uint16 tokens, want 1 tokens of 2 bytes"},
      {npy("{'descr': '<u2', 'fortran_order': False, 'shape': (0,)}", ""),
       "no tokens, want at least one"},
      {npy("{'descr': '<u2', 'fortran_order': False, 'shape': (-1,)}", "aa"), "a bad shape"},
      {npy("{'descr': '<u2', 'fortran_order': False, 'shape': (99999999999999999999,)}", "aa"),
       "a bad shape"},
      {npy("{'descr': '<u2', 'fortran_order': 0, 'shape': (1,)}", "aa"), "no True or False"},
      {npy("{'descr': '<u2', 'shape': (1,)}", "aa"), "a missing key"},
      {npy("{'descr': '<u2', 'x': 1}", "aa"), "key 'x'"},
      {npy("{'descr': '<u2", "aa"), "an open quote"},
      {npy("{'descr': '<u2', 'fortran_order': False, 'shape': (1,)} x", "aa"),
       "text behind the dict"},
      {npy("", "aa"), "no '{' at 0"},
  };
  for (const auto& [text, want] : cases) {
    test::MemoryFileSystem files;
    put(files, "f", text);
    const std::string message =
        test::error_message(ErrorKind::kData, [&] { read_npy_tokens(files, "f"); });
    EXPECT_EQ(message.find("read "), 0u) << message;
    EXPECT_NE(message.find("'f'"), message.npos) << message;
    EXPECT_NE(message.find(want), message.npos) << message << "\nwant: " << want;
  }
}

TEST(TokenFiles, ReadsBothShardsOfLlmC) {
  test::MemoryFileSystem files;
  put(files, "f", llmc(20240520, 1, 2, pack(uint16_t{50256}, uint16_t{3})));
  EXPECT_EQ(read_all(read_llmc_tokens(files, "f")), (Tokens{50256, 3}));
  put(files, "f", llmc(20240801, 7, 1, pack(uint32_t{99999})));
  EXPECT_EQ(read_all(read_llmc_tokens(files, "f")), (Tokens{99999}));
  const std::pair<std::string, const char*> cases[] = {
      {"abc", "the magic number is not there, want 20240520 or 20240801"},
      {llmc(20240520, 1, 1, "").substr(0, 1000), "1000 bytes, want a header of 1024"},
      {llmc(20240520, 7, 1, "aa"), "version is 7, want 1 with magic 20240520"},
      {llmc(20240801, 1, 1, "aaaa"), "version is 1, want 7 with magic 20240801"},
      {llmc(20240520, 1, 0, ""), "number of tokens is 0, want at least 1"},
      {llmc(20240520, 1, -5, "aa"), "number of tokens is -5, want at least 1"},
      {llmc(20240520, 1, 2, "aa"), "2 bytes of uint16 tokens, want 2 tokens of 2 bytes"},
      {llmc(20240520, 1, 1, "aaa"), "3 bytes of uint16 tokens, want 1 tokens of 2 bytes"},
  };
  for (const auto& [text, want] : cases) {
    put(files, "f", text);
    const std::string message =
        test::error_message(ErrorKind::kData, [&] { read_llmc_tokens(files, "f"); });
    EXPECT_NE(message.find(want), message.npos) << message;
    EXPECT_NE(message.find("'f'"), message.npos) << message;
  }
}

TEST(TokenFiles, ReadsBareTokens) {
  test::MemoryFileSystem files;
  put(files, "f", pack(uint16_t{1}, uint16_t{65535}));
  EXPECT_EQ(read_all(read_bare_tokens(files, "f", TokenType::kUint16)), (Tokens{1, 65535}));
  EXPECT_EQ(test::error_message(
                ErrorKind::kData,
                [&] { read_all(read_bare_tokens(files, "f", TokenType::kUint16), 65535); }),
            "read 'f': token 1 is 65535, want 0 to 65534, the vocabulary of the tokenizer 'ids'");
  put(files, "f", "abcde");
  EXPECT_EQ(test::error_message(ErrorKind::kData,
                                [&] { read_bare_tokens(files, "f", TokenType::kUint32); }),
            "read tokens 'f': 5 bytes of uint32 tokens, want a multiple of 4");
  put(files, "f", pack(int32_t{-1}));
  EXPECT_EQ(test::error_message(ErrorKind::kData,
                                [&] { read_all(read_bare_tokens(files, "f", TokenType::kInt32)); }),
            "read 'f': token 0 is -1, want 0 to 99999, the vocabulary of the tokenizer 'ids'");
}

// ---------------------------------------------------------------------------------------------------

TEST(TokenFiles, ReadsMegatronsIndex) {
  test::MemoryFileSystem files;
  put(files, "f.idx", index_text());
  put(files, "f.bin", bin_text());
  const TokenArray array = read_indexed_tokens(files, "f");
  EXPECT_EQ(array.documents, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(read_all(array), (Tokens{1, 2, 65535, 4, 5}));
}

TEST(TokenFiles, RefusesDamagedIndexes) {
  const auto with = [](size_t at, const std::string& bytes) {
    return index_text().replace(at, bytes.size(), bytes);
  };
  constexpr uint64_t kHuge = uint64_t{1} << 63;
  const std::pair<std::string, const char*> cases[] = {
      {"", "the file of 0 bytes does not begin with MMIDIDX"},
      {index_text().substr(0, 33), "does not begin with MMIDIDX and a header of 34 bytes"},
      {with(0, "X"), "does not begin with MMIDIDX"},
      {with(9, pack(uint64_t{2})), "version is 2, want 1"},
      {with(17, pack(uint8_t{7})),
       "type is 7, want 1 (uint8), 3 (int16), 4 (int32), 5 (int64) or "},
      {with(18, pack(kHuge)),
       "9223372036854775808 sequences and 3 document bounds in a file of 82"},
      {with(26, pack(kHuge)), "2 sequences and 9223372036854775808 document bounds"},
      {with(26, pack(uint64_t{2})), "want 34 + 12 * sequences + 8 * bounds"},
      {index_text() + "ab", "(indexes with sequence modes are not supported)"},
      {with(34, pack(int32_t{-1})), "sequence 0 has -1 tokens, want 0 to the 5 that are left"},
      {with(34, pack(int32_t{6})), "sequence 0 has 6 tokens, want 0 to the 5 that are left"},
      {with(38, pack(int32_t{2})), "the sequences have 4 tokens, want the 5 of the .bin"},
      {with(42, pack(int64_t{2})), "sequence 0 is at byte 2, want 0"},
      {with(50, pack(int64_t{5})), "sequence 1 is at byte 5, want 4"},
      {with(58, pack(int64_t{1})), "document bound 0 is 1, want from 0 to 2, the first 0 and "},
      {with(66, pack(int64_t{-1})), "document bound 1 is -1, want from 0 to 2"},
      {with(66, pack(int64_t{3})), "document bound 1 is 3, want from 0 to 2"},
      {with(74, pack(int64_t{1})), "document bound 2 is 1, want from 1 to 2"},
  };
  for (const auto& [index, want] : cases) {
    test::MemoryFileSystem files;
    put(files, "f.idx", index);
    put(files, "f.bin", bin_text());
    const std::string message =
        test::error_message(ErrorKind::kData, [&] { read_indexed_tokens(files, "f"); });
    EXPECT_EQ(message.find("read index 'f.idx': "), 0u) << message;
    EXPECT_NE(message.find(want), message.npos) << message << "\nwant: " << want;
  }
  test::MemoryFileSystem files;
  put(files, "f.idx", index_text());
  EXPECT_EQ(test::error_message(ErrorKind::kData, [&] { read_indexed_tokens(files, "f"); }),
            "map 'f.bin': No such file or directory");
}

TEST(TokenFiles, DamagedFilesAreErrorsNotCrashes) {
  const std::string npy_seed =
      npy("{'descr': '<u2', 'fortran_order': False, 'shape': (5,), }", bin_text());
  const std::string llmc_seed = llmc(20240520, 1, 5, bin_text());
  int num_read = 0;
  for (uint64_t i = 0; i < 20000; ++i) {
    test::MemoryFileSystem files;
    put(files, "f.idx", test::mutated(index_text(), i));
    put(files, "f.bin", i % 2 == 0 ? bin_text() : test::mutated(bin_text(), i));
    put(files, "npy", test::mutated(npy_seed, i));
    // Most of an llm.c header is padding, so only its start and the tokens are damaged.
    put(files, "llmc", test::mutated(llmc_seed.substr(0, 12), i) + llmc_seed.substr(12));
    const std::function<TokenArray()> readers[] = {[&] { return read_indexed_tokens(files, "f"); },
                                                   [&] { return read_npy_tokens(files, "npy"); },
                                                   [&] { return read_llmc_tokens(files, "llmc"); }};
    for (const auto& reader : readers) {
      try {
        const Ids tokenizer(65536);
        const auto source = make_token_source(reader(), tokenizer);
        Tokens tokens(static_cast<size_t>(source->num_tokens()));
        source->read(0, tokens);
        source->num_bytes(0, source->num_tokens());
        EXPECT_GE(source->num_documents(), 1);
        ++num_read;
      } catch (const Error& error) {
        ASSERT_EQ(error.kind(), ErrorKind::kData) << error.what();
        ASSERT_NE(std::string(error.what()).find("'"), std::string::npos) << error.what();
      }
    }
  }
  EXPECT_GT(num_read, 100);
}

TEST(TokenFiles, WriterAndReaderAgree) {
  for (const int64_t vocab_size : {65536, 65537}) {
    test::MemoryFileSystem files;
    IndexedTokenWriter writer(files, "f", vocab_size);
    EXPECT_EQ(writer.type(), vocab_size == 65536 ? TokenType::kUint16 : TokenType::kInt32);
    const Tokens large(700000, 3);  // more than the writer's buffer
    writer.add_document(Tokens{1, 2, 65535});
    writer.add_document(Tokens{});
    writer.add_document(large);
    writer.add_document(Tokens{9});
    writer.finish();
    EXPECT_EQ(writer.num_tokens(), 700004);
    EXPECT_EQ(writer.num_documents(), 4);
    files.sync_directory(".");
    files.reboot(test::Survival::kSyncedOnly);
    const TokenArray array = read_indexed_tokens(files, "f");
    EXPECT_EQ(array.documents, (std::vector<int64_t>{0, 3, 700003}));
    Tokens want = {1, 2, 65535};
    want.insert(want.end(), large.begin(), large.end());
    want.push_back(9);
    EXPECT_EQ(read_all(array), want);
  }
}

// ---------------------------------------------------------------------------------------------------

TEST(TokenArray, EveryRangeAgreesWithTheWhole) {
  const Tokens tokens = {1, 9, 2, 3, 4, 9, 9, 5, 6};
  for (const std::vector<int64_t>& documents :
       {std::vector<int64_t>{}, std::vector<int64_t>{0, 3, 6}, std::vector<int64_t>{0, 8}}) {
    const auto owner = std::make_shared<Tokens>(tokens);
    const Ids tokenizer;
    const auto source =
        make_token_source({"f", owner, reinterpret_cast<const std::byte*>(owner->data()),
                           TokenType::kInt32, static_cast<int64_t>(tokens.size()), documents},
                          tokenizer);
    const int64_t n = source->num_tokens();
    const auto begins = [&](int64_t i) {
      return tokens[static_cast<size_t>(i - 1)] == 9 ||
             std::count(documents.begin(), documents.end(), i) > 0;
    };
    int64_t num_documents = 1;
    for (int64_t i = 1; i < n; ++i) num_documents += begins(i) ? 1 : 0;
    EXPECT_EQ(source->num_documents(), num_documents);
    for (int64_t begin = 0; begin <= n; ++begin) {
      for (int64_t end = begin; end <= n; ++end) {
        int64_t next = begin + 1, bytes = 0;
        while (next < end && !begins(next)) ++next;
        for (int64_t i = begin; i < end; ++i) bytes += tokens[static_cast<size_t>(i)] != 9 ? 1 : 0;
        EXPECT_EQ(source->next_document(begin, end), std::min(next, end));
        EXPECT_EQ(source->num_bytes(begin, end), bytes);
      }
    }
    EXPECT_EQ(test::error_message(ErrorKind::kUsage, [&] { source->num_bytes(2, 10); }),
              "num_bytes 'f': tokens [2, 10), want a range inside [0, 9)");
  }
}

}  // namespace
}  // namespace amoeba::formats
