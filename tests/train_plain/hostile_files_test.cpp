// Files made to hurt: each is refused as bad data, with the reason in one line.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <functional>

#include "amoeba/error.h"
#include "base/hash.h"
#include "formats/safetensors.h"
#include "formats/text_documents.h"
#include "formats/token_files.h"
#include "formats/tokenizer_json.h"
#include "support/errors.h"
#include "support/memory_file_system.h"
#include "support/temporary_folder.h"
#include "train/plain/checkpoint.h"

namespace amoeba::test {
namespace {

using Reader = std::function<void(FileSystem&, const std::string&)>;

struct HostileFile {
  std::string name;
  std::string content;
  std::string message;  // a part of it
};

template <typename... Numbers>
std::string pack(Numbers... numbers) {
  std::string out;
  (out.append(reinterpret_cast<const char*>(&numbers), sizeof numbers), ...);
  return out;
}

std::string nested(int depth) {
  return std::string(static_cast<size_t>(depth), '[') +
         std::string(static_cast<size_t>(depth), ']');
}

std::string repeated(std::string_view part, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += part;
  return text;
}

void put(FileSystem& files, const std::string& path, std::string_view text) {
  const auto file = files.create(path);
  file->write(text);
  file->close();
}

void expect_refusals(const std::vector<HostileFile>& cases, const std::string& path,
                     const Reader& read) {
  for (const HostileFile& row : cases) {
    MemoryFileSystem files;
    put(files, path, row.content);
    if (path.ends_with(".idx")) {
      put(files, "/f.bin", pack(uint16_t{1}, uint16_t{2}, uint16_t{3}, uint16_t{9}));
    }
    const std::string message = error_message(ErrorKind::kData, [&] { read(files, path); });
    EXPECT_NE(message.find(row.message), std::string::npos) << row.name << ": " << message;
    EXPECT_NE(message.find("f"), std::string::npos) << "the file is not named: " << message;
    EXPECT_LT(message.size(), 500u) << row.name;
  }
}

std::string safetensors(const std::string& header, size_t num_data) {
  return pack(uint64_t{header.size()}) + header + std::string(num_data, 'x');
}

std::string one_tensor(const std::string& dtype, const std::string& shape,
                       const std::string& offsets) {
  return R"({"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

std::string two_tensors(const std::string& second_name, const std::string& second_offsets) {
  return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},")" + second_name +
         R"(":{"dtype":"U8","shape":[4],"data_offsets":)" + second_offsets + "}}";
}

std::string many_members(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += cat(i == 0 ? "\"" : ",\"", i, "\":\"\"");
  return text;
}

TEST(HostileFiles, Safetensors) {
  const std::string good = one_tensor("F32", "[2]", "[0,8]");
  const std::vector<HostileFile> cases = {
      {"empty", "", "file has 0 bytes, want at least 8"},
      {"no length", "1234567", "file has 7 bytes, want at least 8"},
      {"length past the end", pack(uint64_t{100}) + "{}", "header length 100 passes the end"},
      {"length that wraps", pack(UINT64_MAX) + "{}", "the format allows 100000000"},
      {"huge header", pack(uint64_t{100'000'001}) + "{}", "the format allows 100000000"},
      {"byte order mark", safetensors("\xEF\xBB\xBF{}", 0), "header does not begin with '{'"},
      {"an array", safetensors("[]", 0), "header does not begin with '{'"},
      {"a zero byte", safetensors(std::string("{}\0", 3), 0), "not valid JSON at its byte 3"},
      {"invalid UTF-8", safetensors("{\"\xff\":{}}", 0), "header is not valid JSON at its byte"},
      {"cut short", safetensors(good.substr(0, good.size() - 1), 8), "header is not valid JSON"},
      {"text behind", safetensors(good + "x", 8), "header is not valid JSON"},
      {"duplicate name", safetensors(two_tensors("a", "[4,8]"), 8), "tensor 'a' appears twice"},
      {"overlap", safetensors(two_tensors("b", "[2,6]"), 6), "overlap the tensor before, which"},
      {"hole", safetensors(two_tensors("b", "[6,10]"), 10), "leave a hole after 4"},
      {"trailing bytes", safetensors(good, 12), "4 bytes after the last tensor, want none"},
      {"data missing", safetensors(good, 4), "pass the end of the data, 4 bytes"},
      {"backwards", safetensors(one_tensor("U8", "[4]", "[4,0]"), 4), "run backwards"},
      {"negative shape", safetensors(one_tensor("F32", "[-1]", "[0,4]"), 4),
       "shape holds a negative number, -1"},
      {"shape whose product wraps",
       safetensors(one_tensor("F32", "[4294967296,4294967296]", "[0,0]"), 0),
       "has more bytes than 64 bits can count"},
      {"shape beyond 64 bits", safetensors(one_tensor("F32", "[18446744073709551615]", "[0,4]"), 4),
       "shape holds 18446744073709551615, too large"},
      {"shape with a fraction", safetensors(one_tensor("F32", "[1e2]", "[0,4]"), 4),
       "shape holds 1e2, want an integer"},
      {"nested shape", safetensors(one_tensor("F32", nested(5000), "[0,4]"), 4),
       "shape holds an array, want integers"},
      {"65 dimensions",
       safetensors(one_tensor("F32", cat("[", repeated("1,", 64), "1]"), "[0,4]"), 4),
       "shape has more than 64 dimensions"},
      {"metadata without end", safetensors(cat("{\"__metadata__\":{", many_members(4097), "}}"), 0),
       "__metadata__: more than 4096 keys"},
      {"metadata twice", safetensors(R"({"__metadata__":{},"__metadata__":{}})", 0),
       "'__metadata__' appears twice"},
      {"size and shape disagree", safetensors(one_tensor("F32", "[3]", "[0,8]"), 8),
       "hold 8 bytes, want 12 for F32 [3]"},
      {"unknown type", safetensors(one_tensor("F4", "[1]", "[0,4]"), 4),
       "dtype 'F4' is not supported"},
      {"one offset", safetensors(one_tensor("F32", "[1]", "[4]"), 4),
       "data_offsets has 1 numbers, want 2"},
      {"missing key", safetensors(R"({"a":{"dtype":"U8","shape":[0]}})", 0),
       "key 'data_offsets' is missing"},
      {"unknown key", safetensors(R"({"a":{"dtype":"U8","code":"x"}})", 0), "unknown key 'code'"},
      {"metadata that is no text", safetensors(R"({"__metadata__":{"k":1}})", 0),
       "key 'k' is a number, want a string"},
  };
  expect_refusals(cases, "f", formats::read_safetensors);
}

TEST(HostileFiles, Json) {
  const std::vector<HostileFile> cases = {
      {"empty", "", "unexpected end of input"},
      {"invalid UTF-8", "{\"a\":\"\xff\"}", "ill-formed UTF-8 byte"},
      {"lone surrogate", R"({"a":"\ud800"})", "surrogate"},
      {"duplicate key", R"({"a":1,"a":2})", "duplicate key 'a'"},
      {"too deep", nested(65), "nested deeper than 64"},
      {"far too deep", nested(1'000'000), "nested deeper than 64"},
      {"values without end", cat("[", repeated("0,", 65536), "0]"), "more than 65536 values"},
      {"digits without end", cat("[", repeated("1", 4097), "]"),
       "a number of more than 4096 digits"},
      {"integer that wraps", R"({"a":18446744073709551616})", "is outside the range of 64 bits"},
      {"NaN", R"({"a":NaN})", "invalid literal"},
      {"text behind", "{} {}", "expected end of input"},
  };
  expect_refusals(cases, "f", [](FileSystem& files, const std::string& path) {
    formats::parse_json(files.read(path), path);
  });
}

TEST(HostileFiles, Toml) {
  std::string dots = "a";
  for (int i = 0; i < 1001; ++i) dots += ".a";
  const std::vector<HostileFile> cases = {
      {"duplicate key", "a = 1\na = 2\n", "cannot redefine existing integer 'a'"},
      {"invalid UTF-8", "a = \"\xff\"", "invalid utf-8"},
      {"too deep", "a = " + nested(64), "nested deeper than 64"},
      {"too large", repeated("# comment\n", 30'000), "has 300000 bytes, want at most 262144"},
      {"dotted key without end", dots + " = 1", "more than 1000 dots in one line"},
      {"a date", "a = 1979-05-27", "dates and times are not taken"},
      {"cut short", "a = [1, 2", "encountered end-of-file"},
  };
  expect_refusals(cases, "f", [](FileSystem& files, const std::string& path) {
    formats::parse_toml(files.read(path), path);
  });
}

// Beside a .bin of four uint16 tokens.
TEST(HostileFiles, TokenIndex) {
  const std::string magic("MMIDIDX\0\0", 9);
  const auto index = [&](uint64_t version, uint8_t type, uint64_t num_sequences,
                         uint64_t num_bounds, const std::string& body) {
    return magic + pack(version, type, num_sequences, num_bounds) + body;
  };
  const std::vector<HostileFile> cases = {
      {"empty", "", "does not begin with MMIDIDX"},
      {"version", index(2, 8, 0, 0, ""), "version is 2, want 1"},
      {"type", index(1, 99, 0, 0, ""), "type is 99"},
      {"counts that wrap", index(1, 8, UINT64_C(1) << 62, UINT64_C(1) << 62, ""),
       "want 34 + 12 * sequences"},
      {"negative length", index(1, 8, 1, 1, pack(int32_t{-1}, int64_t{0}, int64_t{0})),
       "has -1 tokens, want 0 to the 4"},
      {"length past the end", index(1, 8, 1, 1, pack(int32_t{5}, int64_t{0}, int64_t{0})),
       "has 5 tokens, want 0 to the 4"},
      {"pointer elsewhere", index(1, 8, 1, 1, pack(int32_t{4}, int64_t{-8}, int64_t{0})),
       "is at byte -8, want 0"},
      {"tokens left over", index(1, 8, 1, 1, pack(int32_t{3}, int64_t{0}, int64_t{0})),
       "the sequences have 3 tokens, want the 4"},
  };
  expect_refusals(cases, "/f.idx", [](FileSystem& files, const std::string&) {
    formats::read_indexed_tokens(files, "/f");
  });
}

TEST(HostileFiles, Npy) {
  const auto npy = [](const std::string& header, size_t num_data) {
    return std::string("\x93NUMPY\1\0", 8) + pack(static_cast<uint16_t>(header.size())) + header +
           std::string(num_data, '\0');
  };
  const std::string start = "{'descr': '<u2', 'fortran_order': False, 'shape': ";
  const std::vector<HostileFile> cases = {
      {"header past the end", std::string("\x93NUMPY\1\0\xff\xff{}", 12),
       "header of 65535 bytes in a file of 12"},
      {"negative shape", npy(start + "(-4,)}", 8), "has a bad shape"},
      {"shape that wraps", npy(start + "(99999999999999999999,)}", 8), "has a bad shape"},
      {"shape past the end", npy(start + "(5,)}", 8), "want 5 tokens of 2 bytes"},
      {"two dimensions", npy(start + "(2, 2)}", 8), "has 2 dimensions, want 1"},
      {"header too large", npy(std::string(10'001, ' '), 0), "header of 10001 bytes, want at most"},
      {"pickled objects", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", 8),
       "descr is '|O'"},
      {"code", npy("__import__('os')", 8), "want a dict of descr"},
  };
  expect_refusals(cases, "/f", formats::read_npy_tokens);
}

TEST(HostileFiles, LlmcAndText) {
  const auto shard = [](int32_t version, int32_t count) {
    return pack(int32_t{20240520}, version, count) + std::string(1012, '\0') + "12345678";
  };
  expect_refusals(
      {{"header cut short", pack(int32_t{20240520}, int32_t{1}), "want a header of 1024"},
       {"version", shard(9, 4), "version is 9, want 1"},
       {"negative count", shard(1, -1), "number of tokens is -1, want at least 1"},
       {"count past the end", shard(1, 5), "want 5 tokens of 2 bytes"}},
      "/f", formats::read_llmc_tokens);
  expect_refusals({{"a line that is no object", "[1]\n", "want an object with 'text'"},
                   {"a text that is none", "{\"text\":\"a\"}\n{\"text\":7}\n",
                    "line 2: 'text' is integer, want string"},
                   {"nothing but empty lines", "\n \r\n", "holds nothing but empty lines"}},
                  "/f.jsonl", [](FileSystem& files, const std::string& path) {
                    const formats::TextDocuments documents(files, path, "");
                    for (int64_t i = 0; i < documents.size(); ++i) documents.text(i);
                  });
}

TEST(HostileFiles, Tokenizer) {
  const auto tokenizer = [](const std::string& vocabulary, const std::string& merges) {
    return R"({"added_tokens":[{"id":0,"content":"</s>","special":true}],"normalizer":null,)"
           R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":false},)"
           R"("decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":)" +
           vocabulary + R"(,"merges":)" + merges + "}}";
  };
  const std::vector<HostileFile> cases = {
      {"id too large", tokenizer(R"({"a":1,"b":2000000000})", "[]"), "id is 2000000000, want 0 to"},
      {"ids far apart", tokenizer(R"({"a":1,"b":16000000})", "[]"), "has id 16000000 among"},
      {"negative id", tokenizer(R"({"a":-1})", "[]"), "id is -1, want 0 to"},
      {"one id twice", tokenizer(R"({"a":1,"b":1})", "[]"), "both have id 1"},
      {"merge of nothing", tokenizer(R"({"a":1})", R"(["a z"])"),
       "want two tokens of the vocabulary"},
      {"merge without a space", tokenizer(R"({"a":1})", R"(["az"])"),
       "want two tokens and one space"},
  };
  expect_refusals(cases, "/f.json", formats::load_tokenizer_json);

  const auto with_decoders = [](const std::string& decoders) {
    return cat(R"({"decoder":{"type":"Sequence","decoders":[)", decoders, R"({"type":"Fuse"}]}})");
  };
  const auto with_steps = [](const std::string& what, const std::string& list,
                             const std::string& steps) {
    return cat("{\"", what, R"(":{"type":"Sequence",")", list, "\":[", steps,
               R"({"type":"NFC"}]},"decoder":{"type":"Fuse"}})");
  };
  const auto replace = [](const std::string& pattern, const std::string& content) {
    return cat(R"({"type":"Replace","pattern":)", pattern, R"(,"content":")", content, "\"},");
  };
  const std::string doubled = replace(R"({"String":"a"})", "aa");
  expect_refusals(
      {{"decoders that double", with_decoders(repeated(doubled, 5)), "more than 16 times as long"},
       {"normalizers that double", with_steps("normalizer", "normalizers", repeated(doubled, 5)),
        "more than 16 times as long"},
       {"a pattern that lengthens",
        with_steps("normalizer", "normalizers", replace(R"({"Regex":"a"})", std::string(16, 'b'))),
        "more than 16 times as long"},
       {"a prefix without end",
        with_steps("normalizer", "normalizers",
                   cat(R"({"type":"Prepend","prepend":")", std::string(65, 'a'), "\"},")),
        "prepend has 65 bytes, want at most 64"},
       {"decoders without end", with_decoders(repeated(R"({"type":"Fuse"},)", 64)),
        "decoder: more than 64 steps"},
       {"normalizers without end",
        with_steps("normalizer", "normalizers", repeated(R"({"type":"NFC"},)", 64)),
        "normalizer: more than 64 steps"},
       {"pre-tokenizers without end",
        with_steps("pre_tokenizer", "pretokenizers",
                   repeated(R"({"type":"Metaspace","replacement":"_"},)", 64)),
        "pre_tokenizer: more than 64 steps"}},
      "/f.json", formats::load_tokenizer_json);
}

TEST(HostileFiles, Manifest) {
  const auto sealed = [](const std::string& body) {
    return cat(body, ",\n  \"manifest_hash\": \"", xxh3_128_hex(std::as_bytes(std::span(body))),
               "\"\n}\n");
  };
  const std::string start = R"({"format":"amoeba.checkpoint","schema":1,"step":)";
  const std::vector<HostileFile> cases = {
      {"another file", "{}", "'format' is missing"},
      {"flipped hash",
       "{\"format\":\"x\",\n  \"manifest_hash\": \"" + std::string(32, '0') + "\"\n}\n",
       "the file is damaged"},
      {"negative step", sealed(start + R"(-1,"state":{},"config":{},"tensors":[])"),
       "step is -1, want >= 0"},
      {"a path that leaves",
       sealed(start + R"(1,"state":{},"config":{},"tensors":[{"name":"a","group":"weights",)"
                      R"("file":"weights-/../../etc/passwd","dtype":"U8","shape":[1],"bytes":1,)"
                      R"("hash":"0"}])"),
       "want a weights file in the same folder"},
  };
  for (const HostileFile& row : cases) {
    MemoryFileSystem files;
    files.create_directories("/c");
    put(files, "/c/manifest.json", row.content);
    const std::string message =
        error_message(ErrorKind::kData, [&] { train::load_checkpoint(files, "/c"); });
    EXPECT_NE(message.find(row.message), std::string::npos) << row.name << ": " << message;
    EXPECT_NE(message.find("/c/manifest.json"), std::string::npos) << message;
  }
}

// What is no file at all.
TEST(HostileFiles, OfTheSystem) {
  const TemporaryFolder folder;
  PosixFileSystem files;
  const auto path = [&](const std::string& name) { return folder.path() + "/" + name; };
  std::filesystem::create_symlink(path("loop"), path("loop"));
  std::filesystem::create_symlink(path("nowhere"), path("dangling"));
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  const std::vector<HostileFile> cases = {
      {path("loop"), "", "Too many levels of symbolic links"},
      {path("dangling"), "", "No such file or directory"},
      {path("pipe"), "", "is not a regular file"},
      {folder.path(), "", "is a folder, want a file"},
      {"/dev/zero", "", "is not a regular file"},
  };
  for (const HostileFile& row : cases) {
    for (const Reader& read :
         {Reader([](FileSystem&fs, const std::string&p) { fs.read(p); }),
          Reader([](FileSystem&fs, const std::string&p) { formats::read_safetensors(fs, p); }),
          Reader([](FileSystem&fs, const std::string&p) { formats::read_npy_tokens(fs, p); }),
          Reader(
              [](FileSystem&fs, const std::string&p) { formats::load_tokenizer_json(fs, p); })}) {
      const std::string message = error_message(ErrorKind::kData, [&] { read(files, row.name); });
      EXPECT_NE(message.find(row.message), std::string::npos) << row.name << ": " << message;
    }
  }
}

}  // namespace
}  // namespace amoeba::test
