// Configuration files: the two parsers, then the schema of a run.
#include "amoeba/error.h"
#include "fuzz/target.h"
#include "train/plain/run_config.h"

namespace amoeba::fuzz {

namespace {

using formats::Value;

Value parse_json(std::string_view text, std::string_view name) {
  return formats::parse_json(text, name);
}

// The document as JSON, where numbers that are not finite are null.
void check_document(const Value& value) {
  const std::string text = formats::write_json(value);
  expect_same(formats::write_json(formats::parse_json(text, "again")) == text, "the document");
}

void check_run_config(const Value& document) {
  train::RunConfig config;
  formats::Schema schema = train::make_schema(config);
  schema.apply(document, "fuzz");
  schema.check();
  const std::string toml = schema.write_toml(true);
  train::RunConfig again;
  formats::Schema schema_again = train::make_schema(again);
  schema_again.apply(formats::parse_toml(toml, "again"), "again");
  expect_same(schema_again.write_toml(false) == schema.write_toml(false), "the configuration");
  train::check_config(config);
}

template <Value (*parse)(std::string_view, std::string_view)>
bool run(std::string_view data) {
  try {
    const Value document = parse(data, "fuzz");
    check_document(document);
    check_run_config(document);
    return true;
  } catch (const Error&) {
    return false;
  }
}

template <Value (*parse)(std::string_view, std::string_view)>
void read(std::string_view data) {
  train::RunConfig config;
  train::make_schema(config).apply(parse(data, "fuzz"), "fuzz");
}

std::vector<std::string> toml_seeds() {
  return {
      "[model]\ndim = 64\nrope_theta = 1e4\ntie_embeddings = false\n[data]\npath = [\"a\", 'b']\n"
      "weights = [0.5, 1]\n",
      "model.dim = 0x40 # a comment\ntraining = { steps = 1_000, dtype = \"bfloat16\" }\n"
      "sample.prompt = \"\"\"two\nlines \\u00e9\"\"\"\n",
      "[guard]\nwindow = 16\ncold_loss = 1e2\n[optimizer]\nlr = 3e-4\nbeta1 = 0.9\n"};
}

std::vector<std::string> json_seeds() {
  return {
      R"({"model":{"dim":64,"rope_theta":1e4},"data":{"path":["a","b"],"weights":[0.5,1]}})",
      R"({"sample":{"prompt":"\u00e9\ud83d\ude00\n"},"training":{"steps":10,"dtype":"float32"}})",
      R"({"moe":{"num_experts":4,"top_k":2,"route_norm":true},"checkpoint":{"resume":"auto"}})"};
}

}  // namespace

extern const Target kConfigToml{"config_toml", run<formats::parse_toml>, read<formats::parse_toml>,
                                toml_seeds};
extern const Target kConfigJson{"config_json", run<parse_json>, read<parse_json>, json_seeds};

}  // namespace amoeba::fuzz
