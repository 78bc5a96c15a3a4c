#include "train/plain/report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "train_plain/markup.h"
#include "train_plain/synthetic_history.h"

namespace amoeba::train {
namespace {

using test::HistoryShape;
using test::synthetic_history;

int64_t count(std::string_view text, std::string_view part) {
  int64_t found = 0;
  for (std::size_t i = text.find(part); i != text.npos; i = text.find(part, i + 1)) ++found;
  return found;
}

bool has(const std::string& text, std::string_view part) { return text.find(part) != text.npos; }

TEST(Markup, TheReaderSeesPlantedFaults) {
  struct Case {
    std::string markup, want;
  };
  const Case cases[] = {
      {"<p class=\"a\">x &lt; y<br/></p>", ""},
      {"<p><b></p></b>", "unbalanced close"},
      {"<p>", "never closed: p"},
      {"</p>", "unbalanced close"},
      {"a & b", "unknown entity"},
      {"a > b", "stray >"},
      {"a < b", "open tag"},
      {"<p class=a></p>", "attribute without quotes"},
      {"<p a=\"1\" a=\"2\"></p>", "attribute twice"},
      {"<p a=\"1\"b=\"2\"></p>", "no space before an attribute"},
      {"<p a=\"x & y\"></p>", "unknown entity"},
      {"a\x01", "control character"},
      {"<style>p > b {}</style>", ""},
      {"<script>a < b", "open raw text"},
  };
  for (const Case& c : cases) {
    const std::string error = test::markup_error(c.markup);
    EXPECT_TRUE(c.want.empty() ? error.empty() : error.starts_with(c.want))
        << c.markup << ": " << error;
  }
}

TEST(Report, AnyShapeOfRunIsAWholePage) {
  const HistoryShape shapes[] = {
      {},
      {.num_steps = 1, .validation_interval = 0, .num_layers = 1, .num_experts = 64},
      {.num_steps = 30, .log_interval = 1, .validation_interval = 1, .num_layers = 0},
      {.num_steps = 100, .num_layers = 3, .num_experts = 1},
      {.num_steps = 200, .num_layers = 61, .num_experts = 64},
  };
  for (const HistoryShape& shape : shapes) {
    const std::string page = render_report(synthetic_history(shape));
    EXPECT_EQ(test::markup_error(page), "") << shape.num_layers;
    EXPECT_EQ(count(page, "Expert load of layer "), shape.num_layers);
    EXPECT_EQ(has(page, "Validation bits per byte"),
              shape.validation_interval > 0 && shape.num_steps >= shape.validation_interval)
        << shape.num_steps;
    EXPECT_EQ(has(page, "class=\"legend\""), shape.num_layers > 0);
  }
}

TEST(Report, AnEmptyHistoryIsAPageThatSaysSo) {
  const std::string page = render_report({});
  EXPECT_EQ(test::markup_error(page), "");
  EXPECT_TRUE(has(page, "no steps yet, not ended in order"));
  EXPECT_FALSE(has(page, "<svg"));
}

TEST(Report, ItShowsTheNumbersOfTheRun) {
  RunHistory history = synthetic_history({});
  history.validations = {{100, 1.5, 2.25, 839}, {200, 1.25, 1.75, 839}, {300, 1.375, 2.0, 839}};
  history.steps.back().loss = 1.4321;
  const std::string page = render_report(history, {.title = "runs/demo"});
  for (const char* part :
       {"<title>runs/demo</title>", "<h1>runs/demo</h1>", "520 steps, 2,129,920 tokens, completed",
        "<dd>2.0000</dd><dd class=\"note\">best 1.7500 at step 200</dd>",
        "<dd>1.4321</dd><dd class=\"note\">at step 520</dd>", "<dd>2m14s</dd>", "<dd>1.23M</dd>",
        "457k active (37 %)", "<dd>fused</dd>", "first of the list that takes float32 on the CPU",
        "CPU, 16 threads", "<b>In the beginning</b> there was a small model",
        "<th>weight_decay</th><td>0.1</td>", "<th>folder</th><td>runs/demo</td>",
        "amoeba train configs/demo.toml --training.steps 520",
        "<th>processor</th><td>a processor</td>",
        "<th>last checkpoint</th><td>runs/demo/checkpoint-520</td>"}) {
    EXPECT_TRUE(has(page, part)) << part;
  }
}

TEST(Report, ItLoadsNothing) {
  const std::string page = render_report(synthetic_history({}));
  for (const char* part :
       {"http:", "https:", "//", "src=", "href=", "url(", "@import", "<link", "<img"}) {
    EXPECT_FALSE(has(page, part)) << part;
  }
  EXPECT_TRUE(has(page, "prefers-color-scheme: dark"));
}

TEST(Report, HostileTextStaysText) {
  const std::string attack =
      "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&lt;\x01\xFF</pre></style>-->";
  RunHistory history = synthetic_history({});
  StartRecord& start = history.starts.front();
  for (std::string* text :
       {&start.version, &start.command, &start.backend, &start.backend_reason, &start.device}) {
    *text = attack;
  }
  start.machine = {{attack, formats::Value{.data = attack}}};
  start.config = {
      .data = formats::Object{
          {attack,
           formats::Value{.data = formats::Object{{attack, formats::Value{.data = attack}}}}},
          {attack + "2",
           formats::Value{.data = formats::Array{formats::Value{.data = std::string("<b>")}}}}}};
  EndRecord& end = history.ends.front();
  for (std::string* text : {&end.reason, &end.prompt, &end.checkpoint}) *text = attack;
  end.sample = attack + attack;
  const std::string page = render_report(history, {.title = attack});
  EXPECT_EQ(test::markup_error(page), "");
  EXPECT_EQ(count(page, "<script"), 1) << "only our own";
  EXPECT_EQ(count(page, "<img"), 0);
  EXPECT_EQ(count(page, "&lt;script&gt;alert(1)"), 19) << "every copy is shown";
}

TEST(Report, MissingAndRejectedStepsAreGapsAndMarks) {
  RunHistory history = synthetic_history({.num_steps = 100, .log_interval = 1});
  for (const std::size_t i : {20u, 60u}) {
    history.steps[i].rejected = true;
    history.steps[i].loss = kMissing;
    history.steps[i].grad_norm = std::numeric_limits<double>::infinity();
    history.steps[i].experts.clear();
  }
  const std::string page = render_report(history);
  EXPECT_EQ(test::markup_error(page), "");
  EXPECT_TRUE(has(page, "2 rejected steps (dashed)"));
  const std::string loss = test::attribute_after(page, "class=\"line raw\"", "d");
  EXPECT_EQ(count(loss, "M"), 3) << "two gaps make three pieces";
  const std::string marks = test::attribute_after(page, "class=\"mark\"", "d");
  EXPECT_EQ(count(marks, "M"), 2);
  EXPECT_FALSE(has(loss, "nan") || has(loss, "inf"));
}

TEST(Report, SessionsAreListedAndTheirTimeAdded) {
  RunHistory history = synthetic_history({});
  history.starts.push_back(history.starts.front());
  history.starts.back().step = 200;
  history.starts.back().command = "amoeba train --checkpoint.resume auto";
  std::string page = render_report(history);
  EXPECT_TRUE(has(page, "Command, resumed from step 200"));
  EXPECT_TRUE(has(page, "2 sessions, 1 of them not ended in order and not counted"));
  EXPECT_TRUE(has(page, "tokens, not ended in order"));
  history.ends.push_back(history.ends.front());
  page = render_report(history);
  EXPECT_TRUE(has(page, "<dd>4m28s</dd><dd class=\"note\">2 sessions</dd>"));
}

TEST(Report, TheSizeIsBounded) {
  RunHistory history = synthetic_history(
      {.num_steps = 100'000, .log_interval = 1, .validation_interval = 10, .num_layers = 1});
  for (std::size_t i = 0; i < history.steps.size(); i += 2) history.steps[i].rejected = true;
  const std::string page = render_report(history);
  EXPECT_EQ(test::markup_error(page), "");
  EXPECT_LT(page.size(), 3'000'000u);
}

// The worst case for the heat maps: no two neighbours in time have the same colour.
TEST(Report, TheSizeOfRestlessHeatMapsIsBounded) {
  RunHistory history =
      synthetic_history({.num_steps = 300, .log_interval = 1, .num_layers = 61, .num_experts = 64});
  const std::size_t records_of_a_column = history.steps.size() / 51;
  for (std::size_t i = 0; i < history.steps.size(); ++i) {
    for (ExpertLoad& layer : history.steps[i].experts) {
      for (std::size_t e = 0; e < layer.load.size(); ++e) {
        layer.load[e] = (e + i / records_of_a_column) % 2 == 0 ? 100 : 1000;
      }
    }
  }
  const std::string page = render_report(history);
  EXPECT_EQ(test::markup_error(page), "");
  EXPECT_LT(page.size(), 3'000'000u);
  EXPECT_GT(page.size(), 1'000'000u) << "the case is as bad as it is meant to be";
}

}  // namespace
}  // namespace amoeba::train
