// Reads an operator's arguments from LibTorch's stable stack and writes its results there.
//
// Used instead of TORCH_BOX: the operators take up to 22 arguments, most of them alike, and the
// string conversion of torch's headers (up to 2.13) loses its string on every call.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>

namespace amoeba::ops {

// Each argument is read once and in order: reading takes over its memory.
class StackReader {
 public:
  explicit StackReader(const StableIValue* stack) : next_(stack) {}

  template <typename T>
  T read() {
    return torch::stable::detail::to<T>(*next_++);
  }

 private:
  const StableIValue* next_;
};

template <>
inline std::string StackReader::read<std::string>() {
  const auto handle = read<StringHandle>();
  const char* data = nullptr;
  size_t length = 0;
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  const std::string text(data, length);
  TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return text;
}

// Called when every argument has been read: results overwrite them.
template <typename... Results>
void write_results(StableIValue* stack, const Results&... results) {
  ((*stack++ = torch::stable::detail::from(results)), ...);
}

}  // namespace amoeba::ops
