#include "train/plain/page.h"

#include "amoeba/error.h"
#include "train/plain/plot.h"
#include "train/plain/report_assets.h"

namespace amoeba::train {

std::string render_page(std::string_view title, std::string_view subtitle, std::string_view body) {
  const std::string name = escape_html(title);
  return cat(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>",
      name, "</title><style>", kReportStyle, "</style></head>\n<body><main><header><h1>", name,
      "</h1><p>", escape_html(subtitle), "</p></header>\n", body,
      "</main><div id=\"hover\"></div><script>", kReportScript, "</script></body></html>\n");
}

std::string card(std::string_view name, std::string_view value, std::string_view note) {
  const bool is_long = value.size() > 14;
  return cat("<dl class=\"card\"><dt>", escape_html(name), "</dt><dd",
             is_long ? " class=\"small\"" : "", ">", escape_html(value), "</dd>",
             note.empty() ? "" : cat("<dd class=\"note\">", escape_html(note), "</dd>"), "</dl>");
}

std::string panel(std::string_view title, std::string_view note, std::string_view body) {
  return cat("<div class=\"panel\"><h3>", escape_html(title),
             note.empty() ? "" : cat(" <span>", escape_html(note), "</span>"), "</h3>", body,
             "</div>");
}

std::string table_panel(std::string_view title, std::string_view rows) {
  if (rows.empty()) return "";
  return panel(title, "", cat("<table>", rows, "</table>"));
}

std::string row(std::string_view name, std::string_view value) {
  return cat("<tr><th>", escape_html(name), "</th><td>", escape_html(value), "</td></tr>");
}

}  // namespace amoeba::train
