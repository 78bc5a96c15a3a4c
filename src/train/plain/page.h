// The frame of the pages that Amoeba writes: one HTML file that can be mailed and opened anywhere.
// It loads nothing; names, values and titles are escaped here, bodies are markup already.
#pragma once

#include <string>
#include <string_view>

namespace amoeba::train {

std::string render_page(std::string_view title, std::string_view subtitle, std::string_view body);

// A number to see first; cards stand inside <section class="cards">.
std::string card(std::string_view name, std::string_view value, std::string_view note);

std::string panel(std::string_view title, std::string_view note, std::string_view body);

// A panel of rows made by row(); "" without rows.
std::string table_panel(std::string_view title, std::string_view rows);
std::string row(std::string_view name, std::string_view value);

}  // namespace amoeba::train
