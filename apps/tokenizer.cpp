#include <cstdio>
#include <iostream>
#include <iterator>

#include "amoeba/error.h"
#include "apps/options.h"
#include "apps/verbs.h"
#include "base/clock.h"
#include "base/text.h"
#include "formats/tokenizer.h"
#include "formats/train_bpe.h"

namespace amoeba::apps {

namespace {

int run_train_bpe(const Arguments& arguments) {
  formats::TrainBpeOptions options;
  std::string output, vocab_size = "16384", threads = "0";
  std::vector<std::string> special;
  const Command command{
      "tokenizer train",
      "Learns a byte-level BPE from text and writes a tokenizer.json.",
      {{"--input", "text or JSONL file; repeat for more", &options.inputs},
       {"--output", "the tokenizer.json to write", nullptr, &output},
       {"--vocab-size", "tokens, special ones and the 256 bytes among them (default 16384)",
        nullptr, &vocab_size},
       {"--special", "special token; repeat for more; default: <|endoftext|>", &special},
       {"--pattern", "regular expression of a word; default: Qwen2's", nullptr, &options.pattern},
       {"--document-separator", "text between the documents of a text file; default: none", nullptr,
        &options.document_separator},
       {"--num-threads", "CPU threads; 0: all cores (default 0)", nullptr, &threads}}};
  if (parse(command, arguments).help_shown) return 0;
  AMOEBA_CHECK(!options.inputs.empty() && !output.empty(),
               "tokenizer train: --input or --output is missing, want both");
  if (!special.empty()) options.special_tokens = special;
  options.vocab_size = to_integer("--vocab-size", vocab_size);
  options.num_threads = to_integer("--num-threads", threads);
  catch_stop_signals();
  train::Progress progress = terminal_progress();
  const Clock clock;
  options.stop = stop_requested;
  options.progress = [&](const char* unit, int64_t done, int64_t total) {
    progress.live(train::format_work("training the tokenizer", done, total, unit), clock.seconds());
  };
  PosixFileSystem files;
  create_directories_durably(files, parent_folder(output));  // not found wanting after an hour
  const std::string text = formats::train_bpe(files, options);
  write_file_atomically(files, output, text);
  const auto tokenizer = formats::make_tokenizer(files, output);
  progress.line(cat(output, ": ", format_count(tokenizer->vocab_size()), " tokens in ",
                    format_duration(clock.seconds())));
  return 0;
}

int run_encode(const Arguments& arguments) {
  std::string path, text;
  const Command command{
      "tokenizer encode",
      "Prints the ids of a text, as of a prompt: special tokens are taken as such.",
      {{"--tokenizer", "bytes or the path of a tokenizer.json", nullptr, &path},
       {"--text", "the text; default: standard input", nullptr, &text}}};
  if (parse(command, arguments).help_shown) return 0;
  PosixFileSystem files;
  const auto tokenizer = formats::make_tokenizer(files, path);
  if (text.empty()) text.assign(std::istreambuf_iterator<char>(std::cin), {});
  const char* space = "";
  for (const int32_t id : tokenizer->encode_prompt(text)) {
    std::printf("%s%d", space, id);
    space = " ";
  }
  std::printf("\n");
  return 0;
}

int run_decode(const Arguments& arguments) {
  std::string path;
  const Command command{"tokenizer decode",
                        "Prints the text of the ids on standard input.",
                        {{"--tokenizer", "bytes or the path of a tokenizer.json", nullptr, &path}}};
  if (parse(command, arguments).help_shown) return 0;
  PosixFileSystem files;
  const auto tokenizer = formats::make_tokenizer(files, path);
  std::vector<int32_t> ids;
  for (std::string word; std::cin >> word;) {
    const int64_t id = to_integer("tokenizer decode: an id", word);
    AMOEBA_CHECK(id < tokenizer->vocab_size(), "tokenizer decode: an id is ", id, ", want 0 to ",
                 tokenizer->vocab_size() - 1);
    ids.push_back(static_cast<int32_t>(id));
  }
  const std::string text = tokenizer->decode(ids);
  std::fwrite(text.data(), 1, text.size(), stdout);
  return 0;
}

}  // namespace

int run_tokenizer(const Arguments& arguments) {
  static constexpr Verb kActions[] = {
      {"train", "learn a byte-level BPE from text", run_train_bpe},
      {"encode", "ids of a text", run_encode},
      {"decode", "text of ids", run_decode},
  };
  return run_action("tokenizer", "Trains and tries tokenizers", kActions, arguments);
}

}  // namespace amoeba::apps
