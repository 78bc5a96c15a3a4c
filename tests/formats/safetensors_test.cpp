#include "formats/safetensors.h"

#include <gtest/gtest.h>

#include <random>

#include "support/errors.h"
#include "support/faults.h"
#include "support/memory_file_system.h"
#include "support/temporary_folder.h"

namespace amoeba::formats {
namespace {

using Metadata = std::vector<std::pair<std::string, std::string>>;
using Shape = std::vector<int64_t>;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

std::string text_of(std::span<const std::byte> data) {
  return {reinterpret_cast<const char*>(data.data()), data.size()};
}

std::string file_with_length(uint64_t length, const std::string& rest) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += static_cast<char>(length >> (8 * i));
  return text + rest;
}

// A file of the given header and `num_data` bytes 0, 1, 2, ...
std::string file_of(const std::string& header, size_t num_data) {
  std::string text = file_with_length(header.size(), header);
  for (size_t i = 0; i < num_data; ++i) text += static_cast<char>(i);
  return text;
}

void put(test::MemoryFileSystem& files, const std::string& path, const std::string& text) {
  const auto file = files.create(path);
  file->write(text);
  file->close();
}

std::string read_error(const std::string& text) {
  test::MemoryFileSystem files;
  put(files, "f", text);
  return test::error_message(ErrorKind::kData, [&] { read_safetensors(files, "f"); });
}

struct Sample {
  std::vector<TensorEntry> tensors = {
      {"layers.0.w", "F32", {2, 3}, bytes_of("abcdefghijklmnopqrstuvwx")},
      {"scalar", "BF16", {}, bytes_of("yz")},
      {"empty", "I64", {4, 0}, {}},
      {"name \"quoted\" \n \xc3\xa9", "U8", {5}, bytes_of("12345")},
      {"also empty", "F64", {0}, {}},
  };
  Metadata metadata = {{"format", "pt"}, {"note", "line\nbreak"}};
};

void expect_equal(const SafetensorsFile& file, const Sample& sample) {
  EXPECT_EQ(file.metadata, sample.metadata);
  ASSERT_EQ(file.tensors.size(), sample.tensors.size());
  for (size_t i = 0; i < file.tensors.size(); ++i) {
    // Empty tensors come before the one that starts at the same place; here that is tensor 2.
    const TensorEntry& got = file.tensors[i];
    const TensorEntry& want = sample.tensors[i];
    EXPECT_EQ(got.name, want.name);
    EXPECT_EQ(got.dtype, want.dtype);
    EXPECT_EQ(got.shape, want.shape);
    EXPECT_EQ(text_of(got.data), text_of(want.data));
  }
}

TEST(SafetensorsTest, RoundTrip) {
  test::MemoryFileSystem files;
  const Sample sample;
  write_safetensors(files, "f", sample.tensors, sample.metadata);
  const SafetensorsFile file = read_safetensors(files, "f");
  expect_equal(file, sample);
  const std::ptrdiff_t start = file.tensors[0].data.data() - file.mapping->data().data();
  EXPECT_EQ(start % 8, 0);
  files.reboot(test::Survival::kTorn);
  write_safetensors(files, "g", sample.tensors, sample.metadata);
  files.sync_directory(".");
  files.reboot(test::Survival::kSyncedOnly);  // the file was synced
  expect_equal(read_safetensors(files, "g"), sample);
}

TEST(SafetensorsTest, RoundTripOnDisk) {
  const test::TemporaryFolder folder;
  PosixFileSystem files;
  const Sample sample;
  write_safetensors(files, folder.path() + "/f", sample.tensors, sample.metadata);
  expect_equal(read_safetensors(files, folder.path() + "/f"), sample);
}

TEST(SafetensorsTest, FileWithoutTensors) {
  test::MemoryFileSystem files;
  write_safetensors(files, "f", {}, {});
  EXPECT_EQ(files.read("f"), file_with_length(8, "{}      "));
  EXPECT_TRUE(read_safetensors(files, "f").tensors.empty());
}

TEST(SafetensorsTest, ReadsAnyHeaderOrderAndUnalignedData) {
  test::MemoryFileSystem files;
  put(files, "f",
      file_of(R"({"b":{"data_offsets":[3,7],"shape":[1],"dtype":"F32"},)"
              R"("a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"__metadata__":{}, )"
              R"("z":{"dtype":"F32","shape":[0,9],"data_offsets":[3,3]}} )",
              7));
  const SafetensorsFile file = read_safetensors(files, "f");
  ASSERT_EQ(file.tensors.size(), 3u);
  EXPECT_EQ(file.tensors[0].name, "a");
  EXPECT_EQ(file.tensors[1].name, "z");
  EXPECT_EQ(file.tensors[1].shape, (Shape{0, 9}));
  EXPECT_EQ(file.tensors[2].name, "b");
  EXPECT_EQ(text_of(file.tensors[2].data), "\x03\x04\x05\x06");
}

TEST(SafetensorsTest, DtypeSizes) {
  const std::pair<const char*, int64_t> cases[] = {
      {"BOOL", 1},    {"U8", 1},      {"I8", 1},          {"F8_E4M3", 1},
      {"F8_E5M2", 1}, {"F8_E8M0", 1}, {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1},
      {"I16", 2},     {"U16", 2},     {"F16", 2},         {"BF16", 2},
      {"I32", 4},     {"U32", 4},     {"F32", 4},         {"I64", 8},
      {"U64", 8},     {"F64", 8},     {"C64", 8},         {"F4", 0},
      {"f32", 0},     {"", 0},
  };
  for (const auto& [name, bytes] : cases) EXPECT_EQ(dtype_size(name), bytes) << name;
}

// ---------------------------------------------------------------------------------------------------

struct HostileHeader {
  const char* header;
  size_t num_data;
  const char* want;
};

class HostileHeaderTest : public ::testing::TestWithParam<HostileHeader> {};

TEST_P(HostileHeaderTest, IsRefusedByItsRule) {
  const std::string message = read_error(file_of(GetParam().header, GetParam().num_data));
  EXPECT_EQ(message.find("read safetensors 'f': "), 0u) << message;
  EXPECT_NE(message.find(GetParam().want), std::string::npos) << message;
}

#define TENSOR(dtype, shape, offsets) \
  "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define A_IS(dtype, shape, offsets) "{\"a\":" TENSOR(dtype, shape, offsets) "}"

INSTANTIATE_TEST_SUITE_P(
    Json, HostileHeaderTest,
    ::testing::Values(
        HostileHeader{"", 4, "header does not begin with '{'"},
        HostileHeader{" {}", 0, "header does not begin with '{'"},
        HostileHeader{"\xef\xbb\xbf{}", 0, "header does not begin with '{'"},
        HostileHeader{"[]", 0, "header does not begin with '{'"},
        HostileHeader{"null", 0, "header does not begin with '{'"},
        HostileHeader{"{", 0, "header is not valid JSON at its byte 2"},
        HostileHeader{"{}}", 0, "header is not valid JSON at its byte 3"},
        HostileHeader{"{} {}", 0, "header is not valid JSON at its byte 4"},
        HostileHeader{"{}x", 0, "header is not valid JSON at its byte 3"},
        HostileHeader{"{/**/}", 0, "header is not valid JSON at its byte 2"},
        HostileHeader{"{'a':1}", 0, "header is not valid JSON at its byte 2"},
        HostileHeader{"{\"a\"}", 0, "header is not valid JSON at its byte 5"},
        HostileHeader{"{\"\xff\":{}}", 0, "header is not valid JSON at its byte 3"},
        HostileHeader{"{\"\xc0\x80\":{}}", 0, "header is not valid JSON at its byte 3"},
        HostileHeader{"{\"\\ud800\":{}}", 0, "header is not valid JSON at its byte 9"},
        HostileHeader{"{\"a\nb\":{}}", 0, "header is not valid JSON at its byte 4"},
        HostileHeader{"{\"a\":" TENSOR("U8", "[1]", "[0,1]") ",}", 1, "not valid JSON"}));

INSTANTIATE_TEST_SUITE_P(
    Structure, HostileHeaderTest,
    ::testing::Values(
        HostileHeader{R"({"a":1})", 0, "tensor 'a': is a number, want an object"},
        HostileHeader{R"({"a":-1})", 0, "tensor 'a': is a number, want an object"},
        HostileHeader{R"({"a":1.5})", 0, "tensor 'a': is a number, want an object"},
        HostileHeader{R"({"a":null})", 0, "tensor 'a': is null, want an object"},
        HostileHeader{R"({"a":true})", 0, "tensor 'a': is a boolean, want an object"},
        HostileHeader{R"({"a":"x"})", 0, "tensor 'a': is a string, want an object"},
        HostileHeader{R"({"a":[]})", 0, "tensor 'a': is an array, want an object"},
        HostileHeader{R"({"a":{}})", 0, "tensor 'a': key 'dtype' is missing"},
        HostileHeader{R"({"a":{"dtype":"U8"}})", 0, "tensor 'a': key 'shape' is missing"},
        HostileHeader{R"({"a":{"dtype":"U8","shape":[]}})", 1,
                      "tensor 'a': key 'data_offsets' is missing"},
        HostileHeader{R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"x":1}})", 1,
                      "tensor 'a': unknown key 'x'"},
        HostileHeader{R"({"a":{"dtype":"U8","dtype":"U8"}})", 1,
                      "tensor 'a': key 'dtype' appears twice"},
        HostileHeader{R"({"a":{"shape":[1],"shape":[1]}})", 1,
                      "tensor 'a': key 'shape' appears twice"},
        HostileHeader{
            "{\"a\":" TENSOR("U8", "[1]", "[0,1]") ",\"a\":" TENSOR("U8", "[1]", "[0,1]") "}", 1,
            "tensor 'a' appears twice"},
        HostileHeader{
            "{\"a\":" TENSOR("U8", "[1]", "[0,1]") ",\"\\u0061\":" TENSOR("U8", "[1]", "[1,2]") "}",
            2, "tensor 'a' appears twice"},
        HostileHeader{R"({"__metadata__":{},"__metadata__":{}})", 0,
                      "tensor '__metadata__' appears twice"},
        HostileHeader{R"({"__metadata__":[]})", 0, "'__metadata__': is an array, want an object"},
        HostileHeader{R"({"__metadata__":{"k":1}})", 0,
                      "__metadata__: key 'k' is a number, want a string"},
        HostileHeader{R"({"__metadata__":{"k":null}})", 0, "key 'k' is null, want a string"},
        HostileHeader{R"({"__metadata__":{"k":{}}})", 0, "key 'k' is an object, want a string"},
        HostileHeader{R"({"__metadata__":{"k":"1","k":"2"}})", 0,
                      "__metadata__: key 'k' appears twice"},
        HostileHeader{R"({"a":{"dtype":5}})", 0, "tensor 'a': dtype is a number, want a string"},
        HostileHeader{R"({"a":{"dtype":["U8"]}})", 0,
                      "tensor 'a': dtype is an array, want a string"},
        HostileHeader{R"({"a":{"shape":"1"}})", 0, "tensor 'a': shape is a string, want an array"},
        HostileHeader{R"({"a":{"shape":1}})", 0, "tensor 'a': shape is a number, want an array"},
        HostileHeader{R"({"a":{"shape":{}}})", 0, "tensor 'a': shape is an object, want an array"},
        HostileHeader{R"({"a":{"shape":[[1]]}})", 0,
                      "tensor 'a': shape holds an array, want integers"},
        HostileHeader{R"({"a":{"shape":["1"]}})", 0,
                      "tensor 'a': shape holds a string, want integers"},
        HostileHeader{R"({"a":{"data_offsets":[0,{}]}})", 0,
                      "tensor 'a': data_offsets holds an object, want integers"},
        HostileHeader{"{\"a\\u0000\\n\":1}", 0, "tensor 'a\\x00\\x0a': is a number"}));

INSTANTIATE_TEST_SUITE_P(
    Values, HostileHeaderTest,
    ::testing::Values(
        HostileHeader{A_IS("F4", "[2]", "[0,1]"), 1, "tensor 'a': dtype 'F4' is not supported"},
        HostileHeader{A_IS("float32", "[1]", "[0,4]"), 4, "dtype 'float32' is not supported"},
        HostileHeader{A_IS("U8", "[-1]", "[0,1]"), 1, "shape holds a negative number, -1"},
        HostileHeader{A_IS("U8", "[-0]", "[0,0]"), 0, "shape holds a negative number, 0"},
        HostileHeader{A_IS("U8", "[1.0]", "[0,1]"), 1,
                      "shape holds 1.0, want an integer of 64 bits"},
        HostileHeader{A_IS("U8", "[1e0]", "[0,1]"), 1,
                      "shape holds 1e0, want an integer of 64 bits"},
        HostileHeader{A_IS("U8", "[18446744073709551616]", "[0,1]"), 1,
                      "shape holds 18446744073709551616, want an integer of 64 bits"},
        HostileHeader{A_IS("U8", "[9223372036854775808]", "[0,1]"), 1,
                      "shape holds 9223372036854775808, too large"},
        HostileHeader{A_IS("U8", "[1]", "[-1,1]"), 1, "data_offsets holds a negative number, -1"},
        HostileHeader{A_IS("U8", "[1]", "[0,1.5]"), 1, "data_offsets holds 1.5, want an integer"},
        HostileHeader{A_IS("U8", "[1]", "[]"), 1, "data_offsets has 0 numbers, want 2"},
        HostileHeader{A_IS("U8", "[1]", "[0]"), 1, "data_offsets has 1 numbers, want 2"},
        HostileHeader{A_IS("U8", "[1]", "[0,1,1]"), 1, "data_offsets has 3 numbers, want 2"},
        HostileHeader{A_IS("F32", "[4611686018427387904]", "[0,4]"), 4,
                      "F32 [4611686018427387904] has more bytes than 64 bits can count"},
        HostileHeader{A_IS("U8", "[4294967296,4294967296]", "[0,0]"), 0,
                      "more bytes than 64 bits can count"},
        HostileHeader{A_IS("U8", "[4294967296,4294967296,0]", "[0,0]"), 0,
                      "more bytes than 64 bits can count"},
        HostileHeader{A_IS("F32", "[2]", "[0,4]"), 4,
                      "tensor 'a': data_offsets [0, 4] hold 4 bytes, want 8 for F32 [2]"},
        HostileHeader{A_IS("F32", "[]", "[0,0]"), 0, "hold 0 bytes, want 4 for F32 []"},
        HostileHeader{A_IS("F32", "[0]", "[0,4]"), 4, "hold 4 bytes, want 0 for F32 [0]"},
        HostileHeader{A_IS("U8", "[1]", "[1,0]"), 1,
                      "tensor 'a': data_offsets [1, 0] run backwards"},
        HostileHeader{A_IS("U8", "[2]", "[0,2]"), 1,
                      "data_offsets [0, 2] pass the end of the data, 1 bytes"},
        HostileHeader{A_IS("U8", "[1]", "[0,18446744073709551615]"), 1, "pass the end of the data"},
        HostileHeader{A_IS("U8", "[1]", "[1,2]"), 2, "data_offsets [1, 2] leave a hole after 0"},
        HostileHeader{A_IS("U8", "[1]", "[0,1]"), 3, "2 bytes after the last tensor, want none"},
        HostileHeader{"{}", 1, "1 bytes after the last tensor, want none"},
        HostileHeader{
            "{\"a\":" TENSOR("U8", "[2]", "[0,2]") ",\"b\":" TENSOR("U8", "[2]", "[1,3]") "}", 3,
            "tensor 'b': data_offsets [1, 3] overlap the tensor before, which ends at 2"},
        HostileHeader{
            "{\"a\":" TENSOR("U8", "[2]", "[0,2]") ",\"b\":" TENSOR("U8", "[2]", "[0,2]") "}", 2,
            "overlap the tensor before"},
        HostileHeader{
            "{\"a\":" TENSOR("U8", "[2]", "[0,2]") ",\"b\":" TENSOR("U8", "[0]", "[1,1]") "}", 2,
            "tensor 'b': data_offsets [1, 1] overlap"},
        HostileHeader{
            "{\"a\":" TENSOR("U8", "[1]", "[0,1]") ",\"b\":" TENSOR("U8", "[1]", "[2,3]") "}", 3,
            "tensor 'b': data_offsets [2, 3] leave a hole after 1"}));

TEST(SafetensorsTest, HostileLengths) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "file has 0 bytes, want at least 8"},
      {std::string(7, '\0'), "file has 7 bytes, want at least 8"},
      {file_with_length(3, "{}"), "header length 3 passes the end of the file, 10 bytes"},
      {file_with_length(100'000'000, "{}"), "header length 100000000 passes the end of the file"},
      {file_with_length(100'000'001, "{}"), "header length 100000001, the format allows 100000000"},
      {file_with_length(~uint64_t{0}, "{}"), "header length 18446744073709551615, the format"},
      {file_of(std::string("{}\0garbage", 10), 0), "header is not valid JSON at its byte 3"},
      {file_of(std::string("{\"a\0\":1}", 8), 0), "header is not valid JSON at its byte 4"},
  };
  for (const auto& [text, want] : cases) {
    const std::string message = read_error(text);
    EXPECT_NE(message.find(want), std::string::npos) << message;
  }
}

TEST(SafetensorsTest, DeepNestingIsRefusedAtTheSecondLevel) {
  const std::string deep(1'000'000, '[');
  EXPECT_NE(read_error(file_of("{\"a\":" + deep, 0)).find("tensor 'a': is an array"),
            std::string::npos);
  EXPECT_NE(read_error(file_of("{\"a\":{\"shape\":" + deep, 0)).find("shape holds an array"),
            std::string::npos);
}

TEST(SafetensorsTest, MissingFileIsNamed) {
  test::MemoryFileSystem files;
  EXPECT_EQ(test::error_message(ErrorKind::kData, [&] { read_safetensors(files, "no"); }),
            "map 'no': No such file or directory");
}

// Every single-byte change and every truncation of a valid file is refused or gives a structure
// that satisfies the rules; the address sanitizer watches the spans.
TEST(SafetensorsTest, MutatedFilesAreRefusedOrConsistent) {
  test::MemoryFileSystem files;
  const Sample sample;
  write_safetensors(files, "f", sample.tensors, sample.metadata);
  const std::string valid = files.read("f");
  std::mt19937_64 random(1);
  int64_t num_refused = 0;
  int64_t num_read = 0;
  const auto visit = [&](const std::string& text) {
    files.corrupt("f", text);
    try {
      const SafetensorsFile file = read_safetensors(files, "f");
      size_t data_bytes = 0;
      for (const TensorEntry& tensor : file.tensors) {
        int64_t bytes = dtype_size(tensor.dtype);
        for (int64_t size : tensor.shape) bytes *= size;
        ASSERT_EQ(static_cast<size_t>(bytes), tensor.data.size());
        ASSERT_EQ(text_of(tensor.data).size(), tensor.data.size());  // reads every byte
        data_bytes += tensor.data.size();
      }
      ASSERT_LE(data_bytes, text.size() - 8);
      ++num_read;
    } catch (const Error& error) {
      ASSERT_EQ(std::string(error.what()).find("read safetensors 'f': "), 0u) << error.what();
      ++num_refused;
    }
  };
  for (size_t size = 0; size < valid.size(); ++size) visit(valid.substr(0, size));
  EXPECT_EQ(num_read, 0);  // no truncation is read
  for (size_t i = 0; i < valid.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string text = valid;
      text[i] = static_cast<char>(text[i] ^ (1 << bit));
      visit(text);
    }
  }
  for (int round = 0; round < 4000; ++round) {
    std::string text = valid;
    for (uint64_t edits = random() % 4 + 1; edits > 0; --edits) {
      const size_t at = random() % text.size();
      const size_t from = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, random() % 16 + 1);
          break;
        default:
          text.insert(at, text.substr(from, random() % 16));
      }
      if (text.empty()) text.push_back('x');
    }
    visit(text);
  }
  EXPECT_GT(num_refused, 4000);
  EXPECT_GT(num_read, 100);  // flips of the data and of names
}

// ---------------------------------------------------------------------------------------------------

TEST(SafetensorsTest, WriterRefusesWhatTheReaderWould) {
  struct Case {
    std::vector<TensorEntry> tensors;
    Metadata metadata;
    const char* want;
  };
  const auto data = bytes_of("1234");
  const Case cases[] = {
      {{{"a", "F32", {1}, data}, {"a", "F32", {1}, data}},
       {},
       "tensor 'a': the name is reserved or appears twice"},
      {{{"__metadata__", "F32", {1}, data}}, {}, "the name is reserved or appears twice"},
      {{{"a", "F5", {1}, data}}, {}, "tensor 'a': dtype 'F5' is not supported"},
      {{{"a", "F32", {2}, data}}, {}, "tensor 'a': data has 4 bytes, F32 [2] does not"},
      {{{"a", "U8", {-2, -2}, data}}, {}, "data has 4 bytes, U8 [-2, -2] does not"},
      {{{"a", "F32", {int64_t{1} << 62}, {}}},
       {},
       "data has 0 bytes, F32 [4611686018427387904] does not"},
      {{{"\xff", "F32", {1}, data}}, {}, "is not valid UTF-8"},
      {{}, {{"k", "1"}, {"k", "2"}}, "metadata key 'k' appears twice"},
      {{}, {{"k", "\xff"}}, "is not valid UTF-8"},
      {{},
       {{"k", std::string(100'000'000, 'x')}},
       "header has 100000032 bytes, the format allows 100000000"},
  };
  for (const Case& c : cases) {
    test::MemoryFileSystem files;
    const std::string message = test::error_message(
        ErrorKind::kUsage, [&] { write_safetensors(files, "f", c.tensors, c.metadata); });
    EXPECT_EQ(message.find("write safetensors 'f': "), 0u) << message;
    EXPECT_NE(message.find(c.want), std::string::npos) << message;
    EXPECT_FALSE(files.exists("f"));
  }
}

TEST(SafetensorsTest, EveryFailingOperationOfTheWriterIsReported) {
  const Sample sample;
  test::MemoryFileSystem files;
  test::FaultyFileSystem counting(files);
  write_safetensors(counting, "f", sample.tensors, sample.metadata);
  ASSERT_EQ(counting.num_operations(), 1 + 1 + 5 + 1 + 1);
  for (int64_t i = 0; i < counting.num_operations(); ++i) {
    test::FaultyFileSystem faulty(files);
    faulty.fail_at(i, "Input/output error");
    const std::string message = test::error_message(
        ErrorKind::kData, [&] { write_safetensors(faulty, "f", sample.tensors, sample.metadata); });
    EXPECT_NE(message.find("'f': Input/output error"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace amoeba::formats
