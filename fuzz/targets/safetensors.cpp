#include "formats/safetensors.h"

#include "amoeba/error.h"
#include "fuzz/target.h"

namespace amoeba::fuzz {

namespace {

using formats::SafetensorsFile;

bool same(const SafetensorsFile& a, const SafetensorsFile& b) {
  return a.metadata == b.metadata && same_tensors(a.tensors, b.tensors);
}

SafetensorsFile read_file(std::string_view data) {
  InputFiles input({{"f", data}});
  return formats::read_safetensors(input, "f");
}

void read(std::string_view data) { read_file(data); }

bool run(std::string_view data) {
  SafetensorsFile file;
  try {
    file = read_file(data);
  } catch (const Error&) {
    return false;
  }
  test::MemoryFileSystem files;
  formats::write_safetensors(files, "again", file.tensors, file.metadata);
  expect_same(same(formats::read_safetensors(files, "again"), file), "the file");
  return true;
}

std::vector<std::string> seeds() {
  return {safetensors_text(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})", 24),
          safetensors_text(
              R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[],)"
              R"("data_offsets":[4,6]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
              6),
          safetensors_text(R"({"e":{"dtype":"I64","shape":[0,7],"data_offsets":[0,0]}}   )", 0),
          safetensors_text("{}", 0)};
}

}  // namespace

extern const Target kSafetensors{"safetensors", run, read, seeds};

}  // namespace amoeba::fuzz
