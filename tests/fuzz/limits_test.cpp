// What reading a hostile megabyte may cost, for each kind of file.
#include <gtest/gtest.h>
#include <time.h>

#include <array>
#include <iostream>

#include "amoeba/error.h"
#include "fuzz/target.h"
#include "support/allocations.h"

namespace amoeba::fuzz {
namespace {

constexpr size_t kSize = 1'000'000;

// `part` again and again, up to `size` bytes, its number in place of every '#'.
std::string repeated(std::string_view part, size_t size) {
  std::string text, next;
  for (int64_t number = 3;; ++number) {
    next.clear();
    for (const char c : part) next += c == '#' ? std::to_string(number) : std::string(1, c);
    if (text.size() + next.size() > size) return text;
    text += next;
  }
}

std::string filled(std::string_view start, std::string_view part, std::string_view end,
                   size_t size = kSize) {
  return cat(start, repeated(part, size - start.size() - end.size()), end);
}

// A JSON value of every hostile kind between `start` and `end`.
std::vector<std::string> json_between(const std::string& start, const std::string& end) {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') +
           std::string(static_cast<size_t>(depth), ']') + ",";
  };
  return {filled(start + "[", "0,", "0]" + end),
          filled(start + "[", "\"\",", "0]" + end),
          filled(start + "[", "[],", "0]" + end),
          filled(start + "[", "{\"\":0},", "0]" + end),
          filled(start + "[", nested(50), "0]" + end),
          filled(start + "{", "\"#\":0,", "\"\":0}" + end),
          filled(start + "{", "\"#\":\"\",", "\"\":0}" + end),
          filled(start, "[", end),
          filled(start + "\"", "a", "\"" + end),
          filled(start + "\"", "\\n", "\"" + end),
          filled(start + "\"", "\\u00e9", "\"" + end),
          filled(start + "{\"", "a", "\":0}" + end),
          filled(start, "1", end)};
}

std::string packed(uint64_t number, size_t num_bytes) {
  std::string text;
  for (size_t i = 0; i < num_bytes; ++i) text += static_cast<char>(number >> (8 * i));
  return text;
}

std::vector<std::string> toml_files() {
  std::string dots = "a";
  for (int i = 0; i < 900; ++i) dots += ".a";
  std::vector<std::string> files = {std::string(kSize, '#')};
  for (const auto& [start, part, end] :
       std::vector<std::array<std::string, 3>>{{"a = [", "0,", "0]"},
                                               {"a = [", "[],", "0]"},
                                               {"a = [", "\"\",", "0]"},
                                               {"", "#=0\n", ""},
                                               {"", "[#]\n", ""},
                                               {"", "[[a]]\n", ""},
                                               {"", "a.#=0\n", ""},
                                               {"", dots + "#=0\n", ""},
                                               {"a = '", "a", "'"},
                                               {"a = \"", "\\n", "\""},
                                               {"", "a", "=0"},
                                               {"a = ", "[", ""},
                                               {"a = ", "1", ""},
                                               {"[model]\n", "#=0\n", ""}}) {
    files.push_back(filled(start, part, end, 1 << 18));
  }
  return files;
}

std::vector<std::string> safetensors_files() {
  const auto scalar = [](const std::string& extra) {
    return "\"#\":{\"dtype\":\"U8\",\"shape\":[0" + extra + "],\"data_offsets\":[0,0]},";
  };
  const std::string last = R"("z":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})";
  std::vector<std::string> files;
  for (const std::string& header :
       {filled("{", scalar(""), last), filled("{", scalar(",1,1,1,1,1,1,1"), last),
        filled(R"({"a":{"shape":[)", "1,", R"(1],"dtype":"U8","data_offsets":[0,1]}})"),
        filled(R"({"__metadata__":{)", R"("#":"",)", R"("":""}})"),
        filled(R"({"__metadata__":{"a":")", "{", R"("}})"),
        filled("{\"", "a", R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"),
        filled("{\"", "\\n", R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"),
        filled("{", " ", "}"), filled("", "{", "}")}) {
    files.push_back(safetensors_text(header, 0));
  }
  files.push_back(safetensors_text(R"({"a":{"dtype":"U8","shape":[999900],"data_offsets":)"
                                   "[0,999900]}}",
                                   999'900));
  return files;
}

std::string tokenizer(const std::string& added, const std::string& normalizers,
                      const std::string& steps, const std::string& decoders,
                      const std::string& vocabulary, const std::string& merges) {
  return R"({"added_tokens":[)" + added + R"({"id":0,"content":"</s>","special":true}],)" +
         R"("normalizer":{"type":"Sequence","normalizers":[)" + normalizers +
         R"({"type":"NFC"}]},"pre_tokenizer":{"type":"Sequence","pretokenizers":[)" + steps +
         R"({"type":"Digits","individual_digits":true}]},)" +
         R"("decoder":{"type":"Sequence","decoders":[)" + decoders + R"({"type":"Fuse"}]},)" +
         R"("model":{"type":"BPE","vocab":{)" + vocabulary + R"("a":1,"aa":2},"merges":[)" +
         merges + R"(["a","a"]]}})";
}

std::vector<std::string> tokenizer_files() {
  const std::string grow = R"({"type":"Replace","pattern":{"String":"a"},"content":"aa"},)";
  const std::string mark = R"({"type":"Metaspace","replacement":"_"},)";
  const std::string nfc = R"({"type":"NFC"},)";
  const std::string added = R"({"id":#,"content":"<#>","special":true,"normalized":true},)";
  const std::string word = R"("w#":#,)";
  std::string long_word = "\"";
  for (int i = 0; i < 300'000; ++i) long_word += "\xE2\x96\x81";
  long_word += "\":3,";
  return {
      tokenizer("", "", "", "", repeated(word, 990'000), ""),
      tokenizer("", "", "", "", repeated(word, 300'000), repeated(R"(["a","a"],)", 600'000)),
      tokenizer(repeated(added, 990'000), "", "", "", "", ""),
      tokenizer(repeated(added, 500'000), repeated(nfc, 490'000), "", "", "", ""),
      tokenizer(repeated(added, 500'000), repeated(grow, 10'000), "", "", "", ""),
      tokenizer("", "", repeated(mark, 990'000), "", "", ""),
      tokenizer("", "", "", repeated(grow, 3'000), repeated(word, 900'000), ""),
      tokenizer("", "", "",
                repeated(R"({"type":"Replace","pattern":{"String":"z"},"content":""},)", 490'000),
                repeated(word, 500'000), ""),
      tokenizer("", "", "", R"({"type":"Replace","pattern":{"String":"▁"},"content":" "},)",
                long_word, ""),
      tokenizer("", "", "",
                R"({"type":"Replace","pattern":{"String":"a"},"content":"bbbbbbbbbbbbbbbb"},)",
                cat("\"", std::string(900'000, 'a'), "\":3,"), ""),
      tokenizer("", R"({"type":"Prepend","prepend":")" + std::string(400'000, 'x') + "\"},", "", "",
                "", "")
          .insert(17, repeated(added, 400'000)),
      tokenizer("", "",
                R"({"type":"Split","behavior":"Isolated","invert":false,"pattern":{"Regex":")" +
                    std::string(900'000, '(') + R"("}},)",
                "", "", ""),
      tokenizer("", "",
                R"({"type":"Split","behavior":"Isolated","invert":false,"pattern":{"Regex":")" +
                    std::string(900'000, 'a') + R"("}},)",
                "", "", ""),
  };
}

std::vector<std::string> index_files() {
  const std::string magic("MMIDIDX\0\0", 9);
  const uint64_t count = 80'000;
  const std::string head = magic + packed(1, 8) + packed(8, 1);
  std::string sequences = head + packed(count, 8) + packed(2, 8);
  sequences += packed(8, 4) + std::string(4 * (count - 1), '\0') + packed(0, 8);
  for (uint64_t i = 1; i < count; ++i) sequences += packed(16, 8);
  std::string bounds = head + packed(1, 8) + packed(120'000, 8) + packed(8, 4) + packed(0, 8);
  bounds += std::string(8 * 119'999, '\0') + packed(1, 8);
  return {sequences + packed(0, 8) + packed(count, 8), bounds, std::string(kSize, '\0')};
}

std::vector<std::string> npy_files() {
  const auto file = [](const std::string& header) {
    return std::string("\x93NUMPY\2\0", 8) + packed(header.size(), 4) + header;
  };
  const std::string start = "{'descr': '<u2', 'fortran_order': False, 'shape': (";
  return {file(filled(start, "1,", ")}")), file(filled("{'", "a", "': 0}")),
          file(filled("{", "'descr': '<u2',", "}")), file(filled("", " ", "{}")),
          file(start + "499000,)}" + std::string(50, ' ')) + std::string(998'000, '\1')};
}

std::vector<std::string> llmc_files() {
  std::string header(1024, '\0');
  header.replace(0, 12, packed(20240520, 4) + packed(1, 4) + packed(499'000, 4));
  return {header + std::string(998'000, '\1'), std::string(kSize, '\0')};
}

std::vector<std::string> line_files() {
  std::vector<std::string> files = json_between("{\"text\":\"\",\"a\":", "}\n");
  files.push_back(filled("", "{\"text\":\"\"}\n", ""));
  files.push_back(filled("{\"text\":\"", "a", "\"}\n"));
  files.push_back(filled("{\"text\":\"", "\\n", "\"}\n"));
  files.push_back(filled("", "\n", "{\"text\":\"\"}"));
  return files;
}

std::vector<std::string> metrics_files() {
  std::vector<std::string> files = json_between("{\"kind\":\"start\",\"config\":", "}\n");
  std::string descending;
  for (int64_t step = 13'000; step > 0; --step) {
    descending += cat(R"({"kind":"validation","step":)", step,
                      R"(,"loss":1,"bits_per_byte":1,"windows":1})", "\n");
  }
  files.push_back(descending);
  files.push_back(filled("",
                         R"({"kind":"guard","step":1,"action":"skip","reason":"","to_step":0})"
                         "\n",
                         ""));
  return files;
}

std::vector<std::string> weights_files() {
  std::vector<std::string> files = json_between("{\"weight_map\":{},\"a\":", "}");
  files.push_back(
      filled("{\"weight_map\":{", "\"#\":\"a.safetensors\",", "\"a\":\"b.safetensors\"}}"));
  files.push_back(
      filled("{\"weight_map\":{", "\"#\":\"#.safetensors\",", "\"a\":\"b.safetensors\"}}"));
  return files;
}

std::vector<std::string> manifest_files() {
  const std::string start =
      R"({"format":"amoeba.checkpoint","schema":2,"content":"full","step":1,"saved_at":0,)"
      R"("config":{},"files":[],)";
  std::vector<std::string> files = json_between(start + R"("tensors":[],"state":)", "");
  files.push_back(filled(start + R"("state":{},"tensors":[)",
                         R"({"name":"#","group":"weights","file":"weights-","dtype":"","shape":[],)"
                         R"("bytes":0,"hash":""},)",
                         "0]"));
  return files;
}

struct Limit {
  std::string target;
  std::vector<std::string> (*files)();
  int64_t fixed_kib;
  double per_byte;
};

#ifdef __SANITIZE_ADDRESS__
constexpr double kMaxSeconds = 10;  // its checks take up to ten times as long
#else
constexpr double kMaxSeconds = 1;
#endif

class Limits : public testing::TestWithParam<Limit> {};

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

TEST_P(Limits, OfAHostileMegabyte) {
  const auto target = std::ranges::find_if(
      targets(), [](const Target& entry) { return entry.name == GetParam().target; });
  ASSERT_NE(target, targets().end());
  double slowest = 0;
  int64_t most = 0;
  size_t index = 0;
  for (const std::string& file : GetParam().files()) {
    ASSERT_LE(file.size(), kSize + 1000);
    const double start = cpu_seconds();
    const test::HostAllocations allocations;
    try {
      target->read(file);
    } catch (const Error&) {  // refusing is as good
    }
    const double seconds = cpu_seconds() - start;
    EXPECT_LE(seconds, kMaxSeconds) << "file " << index << ": " << file.substr(0, 100);
    EXPECT_LE(static_cast<double>(allocations.peak_bytes()),
              1024 * static_cast<double>(GetParam().fixed_kib) +
                  GetParam().per_byte * static_cast<double>(file.size()))
        << "file " << index << ": " << file.substr(0, 100);
    slowest = std::max(slowest, seconds);
    most = std::max(most, allocations.peak_bytes());
    ++index;
  }
  std::cout << GetParam().target << ": at most " << most / 1024 << " KiB and " << slowest << " s\n";
}

INSTANTIATE_TEST_SUITE_P(
    Targets, Limits,
    testing::Values(Limit{"config_toml", toml_files, 20'000, 0},
                    Limit{"config_json", [] { return json_between("", ""); }, 12'000, 5},
                    Limit{"safetensors", safetensors_files, 64, 7},
                    Limit{"manifest", manifest_files, 64, 24},
                    Limit{"tokenizer", tokenizer_files, 2'000, 56},
                    Limit{"token_index", index_files, 64, 2}, Limit{"token_npy", npy_files, 64, 0},
                    Limit{"token_llmc", llmc_files, 64, 0}, Limit{"json_lines", line_files, 64, 5},
                    Limit{"metrics", metrics_files, 64, 24},
                    Limit{"hf_config", [] { return json_between("", ""); }, 12'000, 6},
                    Limit{"hf_weights", weights_files, 64, 24}),
    [](const auto& row) { return row.param.target; });

}  // namespace
}  // namespace amoeba::fuzz
