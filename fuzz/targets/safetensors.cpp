#include "formats/safetensors.h"

#include "amoeba/error.h"
#include "fuzz/target.h"

namespace amoeba::fuzz {

namespace {

using formats::SafetensorsFile;

bool same(const SafetensorsFile& a, const SafetensorsFile& b) {
  if (a.metadata != b.metadata || a.tensors.size() != b.tensors.size()) return false;
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    const formats::TensorEntry &x = a.tensors[i], &y = b.tensors[i];
    if (x.name != y.name || x.dtype != y.dtype || x.shape != y.shape) return false;
    if (as_text(x.data) != as_text(y.data)) return false;
  }
  return true;
}

bool run(const std::string& data) {
  test::MemoryFileSystem files;
  put(files, "f", data);
  SafetensorsFile file;
  try {
    file = formats::read_safetensors(files, "f");
  } catch (const Error&) {
    return false;
  }
  formats::write_safetensors(files, "again", file.tensors, file.metadata);
  expect_same(same(formats::read_safetensors(files, "again"), file), "the file");
  return true;
}

std::string file_of(const std::string& header, size_t num_data) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += static_cast<char>(header.size() >> (8 * i));
  return text + header + std::string(num_data, 'x');
}

std::vector<std::string> seeds() {
  return {file_of(R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})", 24),
          file_of(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[],)"
                  R"("data_offsets":[4,6]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
                  6),
          file_of(R"({"e":{"dtype":"I64","shape":[0,7],"data_offsets":[0,0]}}   )", 0),
          file_of("{}", 0)};
}

}  // namespace

extern const Target kSafetensors{"safetensors", run, seeds};

}  // namespace amoeba::fuzz
