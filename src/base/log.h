// The library does not print: it hands messages to the caller's sink.
#pragma once

#include <functional>
#include <string_view>

namespace amoeba {

enum class LogLevel { kInfo, kWarning };

using LogSink = std::function<void(LogLevel, std::string_view)>;

}  // namespace amoeba
