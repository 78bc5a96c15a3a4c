// Files of tokens. What was read is written as the .bin/.idx pair, and read again.
#include <cstring>

#include "amoeba/error.h"
#include "formats/token_files.h"
#include "fuzz/target.h"

namespace amoeba::fuzz {

namespace {

using formats::TokenArray;

constexpr int64_t kVocabSize = 1 << 20;  // more than 16 bits: written as int32

// Every id is a token.
class Ids final : public formats::Tokenizer {
 public:
  std::string name() const override { return "ids"; }
  std::string fingerprint() const override { return "ids"; }
  int64_t vocab_size() const override { return kVocabSize; }
  int32_t end_of_document() const override { return 9; }
  std::vector<int32_t> encode(std::string_view) const override { return {}; }
  std::string decode(const std::vector<int32_t>&) const override { return ""; }
  std::string_view token_text(int32_t) const override { return "x"; }
};

struct Read {
  std::vector<int32_t> tokens;
  std::vector<int64_t> documents;  // first tokens; one document where the file names none
  bool operator==(const Read&) const = default;
};

Read read_all(TokenArray array) {
  Read read;
  read.documents = array.documents;
  if (read.documents.empty()) read.documents = {0};
  const Ids tokenizer;  // outlives the source
  const auto source = formats::make_token_source(std::move(array), tokenizer);
  read.tokens.resize(static_cast<size_t>(source->num_tokens()));
  source->read(0, read.tokens);
  source->num_bytes(0, source->num_tokens());
  source->num_documents();
  return read;
}

void write_all(FileSystem& files, const std::string& prefix, const Read& read) {
  formats::IndexedTokenWriter writer(files, prefix, kVocabSize);
  const std::span<const int32_t> tokens(read.tokens);
  for (size_t i = 0; i < read.documents.size(); ++i) {
    const auto begin = static_cast<size_t>(read.documents[i]);
    const auto end =
        i + 1 < read.documents.size() ? static_cast<size_t>(read.documents[i + 1]) : tokens.size();
    writer.add_document(tokens.subspan(begin, end - begin));
  }
  writer.finish();
}

// .npy and llm.c at /f, an index of eight uint16 tokens.
InputFiles files_of(std::string_view data) {
  constexpr std::string_view kTokens("\1\0\2\0\3\0\4\0\5\0\6\0\7\0\1\0", 16);
  return InputFiles({{"/f", data}, {"/f.idx", data}, {"/f.bin", kTokens}});
}

template <TokenArray (*open)(FileSystem&, const std::string&)>
void read(std::string_view data) {
  InputFiles input = files_of(data);
  open(input, "/f");
}

template <TokenArray (*open)(FileSystem&, const std::string&)>
bool run(std::string_view data) {
  InputFiles input = files_of(data);
  Read tokens;
  try {
    tokens = read_all(open(input, "/f"));
  } catch (const Error&) {
    return false;
  }
  test::MemoryFileSystem files;
  write_all(files, "/again", tokens);
  expect_same(read_all(formats::read_indexed_tokens(files, "/again")) == tokens, "the tokens");
  return true;
}

template <typename... Numbers>
std::string pack(Numbers... numbers) {
  std::string out;
  (out.append(reinterpret_cast<const char*>(&numbers), sizeof numbers), ...);
  return out;
}

// Three sequences of eight uint16 tokens in two documents; one sequence of four int32.
std::vector<std::string> index_seeds() {
  const std::string magic("MMIDIDX\0\0", 9);
  return {magic + pack(uint64_t{1}, uint8_t{8}, uint64_t{3}, uint64_t{3}) +
              pack(int32_t{2}, int32_t{3}, int32_t{3}) + pack(int64_t{0}, int64_t{4}, int64_t{10}) +
              pack(int64_t{0}, int64_t{2}, int64_t{3}),
          magic + pack(uint64_t{1}, uint8_t{4}, uint64_t{1}, uint64_t{2}) + pack(int32_t{4}) +
              pack(int64_t{0}) + pack(int64_t{0}, int64_t{1})};
}

std::vector<std::string> npy_seeds() {
  const auto file = [](std::string header, const std::string& data) {
    header.resize((header.size() + 10 + 63) / 64 * 64 - 10, ' ');
    return std::string("\x93NUMPY\1\0", 8) + pack(static_cast<uint16_t>(header.size())) + header +
           data;
  };
  return {file("{'descr': '<u2', 'fortran_order': False, 'shape': (4,), }",
               pack(uint16_t{1}, uint16_t{2}, uint16_t{3}, uint16_t{9})),
          file("{'descr': '<i8', 'fortran_order': False, 'shape': (1,)}", pack(int64_t{77}))};
}

std::vector<std::string> llmc_seeds() {
  std::string file;
  for (int32_t i = 0; i < 256; ++i) {
    file += pack(i == 0 ? 20240520 : i == 1 ? 1 : i == 2 ? 4 : 0);
  }
  return {file + pack(uint16_t{1}, uint16_t{2}, uint16_t{3}, uint16_t{9})};
}

}  // namespace

extern const Target kTokenIndex{"token_index", run<formats::read_indexed_tokens>,
                                read<formats::read_indexed_tokens>, index_seeds};
extern const Target kTokenNpy{"token_npy", run<formats::read_npy_tokens>,
                              read<formats::read_npy_tokens>, npy_seeds};
extern const Target kTokenLlmc{"token_llmc", run<formats::read_llmc_tokens>,
                               read<formats::read_llmc_tokens>, llmc_seeds};

}  // namespace amoeba::fuzz
