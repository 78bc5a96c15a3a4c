// The types that weights have in files, under each of their names.
#pragma once

#include <c10/core/ScalarType.h>

#include <string_view>

namespace amoeba::train {

struct FloatType {
  std::string_view name;  // as configurations spell it
  at::ScalarType type;
  std::string_view stored;  // as safetensors spells it
};
inline constexpr FloatType kFloatTypes[] = {{"float32", at::kFloat, "F32"},
                                            {"bfloat16", at::kBFloat16, "BF16"},
                                            {"float16", at::kHalf, "F16"}};

// The first type whose `name`, `type` or `stored` (the member asked for) is `value`, or nullptr.
template <typename Member, typename T>
constexpr const FloatType* find_float_type(Member FloatType::*member, const T& value) {
  for (const FloatType& type : kFloatTypes) {
    if (type.*member == value) return &type;
  }
  return nullptr;
}

}  // namespace amoeba::train
