#include <cstdio>

#include "amoeba/error.h"
#include "apps/options.h"
#include "apps/verbs.h"
#include "base/clock.h"
#include "base/text.h"
#include "formats/prepare_tokens.h"
#include "formats/token_source.h"
#include "formats/value.h"

namespace amoeba::apps {

namespace {

constexpr const char* kTokenizerDoc = "bytes or the path of a tokenizer.json (default bytes)";
constexpr const char* kSeparatorDoc =
    "text between the documents of a text file; default: a file is one document";

int run_prepare(const Arguments& arguments) {
  formats::PrepareOptions options;
  std::string tokenizer_name = "bytes", threads = "0";
  const Command command{
      "data prepare",
      "Encodes text once, into a folder that data.path takes.",
      {{"--input", "text or JSONL file; repeat for more", &options.inputs},
       {"--output", "the folder to make", nullptr, &options.output},
       {"--tokenizer", kTokenizerDoc, nullptr, &tokenizer_name},
       {"--document-separator", kSeparatorDoc, nullptr, &options.document_separator},
       {"--num-threads", "CPU threads; 0: all cores (default 0)", nullptr, &threads}}};
  if (parse(command, arguments).help_shown) return 0;
  AMOEBA_CHECK(!options.inputs.empty() && !options.output.empty(),
               "data prepare: --input or --output is missing, want both");
  options.num_threads = to_integer("--num-threads", threads);
  catch_stop_signals();
  train::Progress progress = terminal_progress();
  const Clock clock;
  options.stop = stop_requested;
  options.progress = [&](int64_t done, int64_t total) {
    progress.live(train::format_work("encoding", done, total, "bytes"), clock.seconds());
  };
  PosixFileSystem files;
  const auto tokenizer = formats::make_tokenizer(files, tokenizer_name);
  const formats::PreparedTokens result = formats::prepare_tokens(files, *tokenizer, options);
  progress.line(cat(options.output, ": ", format_count(result.num_documents), " documents, ",
                    format_count(result.num_tokens), " tokens, ", format_bytes(result.num_bytes),
                    " of text in ", format_duration(clock.seconds())));
  return 0;
}

int run_info(const Arguments& arguments) {
  std::string path, tokenizer_name = "bytes", separator;
  const Command command{"data info",
                        "Reads all tokens of what data.path would take. Prints one line of JSON.",
                        {{"--path", "the file or folder", nullptr, &path},
                         {"--tokenizer", kTokenizerDoc, nullptr, &tokenizer_name},
                         {"--document-separator", kSeparatorDoc, nullptr, &separator}}};
  if (parse(command, arguments).help_shown) return 0;
  AMOEBA_CHECK(!path.empty(), "data info: --path is missing, want a file or folder");
  PosixFileSystem files;
  const auto tokenizer = formats::make_tokenizer(files, tokenizer_name);
  const auto source = formats::open_tokens(files, path, *tokenizer, separator);
  const int64_t num_tokens = source->num_tokens();
  const formats::Value info{
      formats::Object{{"path", {path}},
                      {"tokenizer", {tokenizer->name()}},
                      {"vocab_size", {tokenizer->vocab_size()}},
                      {"end_of_document", {int64_t{tokenizer->end_of_document()}}},
                      {"documents", {source->num_documents()}},
                      {"tokens", {num_tokens}},
                      {"text_bytes", {source->num_bytes(0, num_tokens)}}}};
  std::printf("%s\n", formats::write_json(info).c_str());
  return 0;
}

}  // namespace

int run_data(const Arguments& arguments) {
  static constexpr Verb kActions[] = {
      {"prepare", "encode text into a folder of tokens", run_prepare},
      {"info", "documents, tokens and bytes of a data set", run_info},
  };
  return run_action("data", "Makes and shows data sets", kActions, arguments);
}

}  // namespace amoeba::apps
