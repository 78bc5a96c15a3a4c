// Version of Amoeba; the build checks that it equals the CMake project's.
#pragma once

namespace amoeba {

inline constexpr const char* kVersion = "0.1.0";

}  // namespace amoeba
