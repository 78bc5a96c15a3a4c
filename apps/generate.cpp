#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <optional>

#include "amoeba/error.h"
#include "apps/options.h"
#include "apps/verbs.h"
#include "formats/value.h"
#include "train/generate.h"
#include "train/load_model.h"
#include "train/plain/json_lines.h"

namespace amoeba::apps {

namespace {

std::string help_footer() {
  return R"(How the next token is chosen: --temperature divides the logits (0: the likeliest token, always),
then --top-k keeps the k likeliest tokens, then --top-p of those the fewest that together have
probability p, and one of the rest is drawn. Equal seeds draw equally.

One prompt is continued as it is written. Several prompts are decoded together and give one JSON
object each: {"prompt", "text", "num_tokens", "reason"}. --chat reads a line, writes an answer, and
keeps what was said until the context is full; then the older half is forgotten. Ctrl-C ends it.

examples:
  amoeba generate --checkpoint runs/demo --prompt "In the beginning"
  amoeba generate --checkpoint runs/demo --prompt "In the" --top-k 40 --top-p 0.9 --stop "."
  amoeba generate --checkpoint runs/demo --prompts-file prompts.jsonl --temperature 0
  amoeba generate --checkpoint runs/demo --chat --stop $'\n'
)";
}

void write_out(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

std::string describe(const train::GenerateTimes& times) {
  const auto part = [](const char* what, int64_t tokens, double seconds) {
    const double speed = seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
    return cat(what, ": ", tokens, " tokens, ", static_cast<int64_t>(speed), " a second");
  };
  return cat(part("prompt", times.read_tokens, times.read_seconds), "; ",
             part("decoding", times.decoded_tokens, times.decode_seconds));
}

// Lines of standard input until it ends or a stop is asked for.
class InputLines {
 public:
  std::optional<std::string> next() {
    for (;;) {
      const size_t end = held_.find('\n');
      if (end != std::string::npos || (is_at_end_ && !held_.empty())) {
        std::string line = held_.substr(0, end);
        held_.erase(0, end == std::string::npos ? end : end + 1);
        return line;
      }
      if (is_at_end_ || !read_more()) return std::nullopt;
    }
  }

 private:
  // A signal does not end read(): the system begins it again. So wait in short turns before it.
  bool read_more() {
    constexpr int kMilliseconds = 100;
    pollfd input{STDIN_FILENO, POLLIN, 0};
    while (!stop_requested() && poll(&input, 1, kMilliseconds) <= 0) {
    }
    if (stop_requested()) return false;
    char bytes[4096];
    const ssize_t size = read(STDIN_FILENO, bytes, sizeof bytes);
    AMOEBA_CHECK_KIND(kData, size >= 0, "generate: standard input cannot be read");
    is_at_end_ = size == 0;
    held_.append(bytes, static_cast<size_t>(size));
    return true;
  }

  std::string held_;
  bool is_at_end_ = false;
};

void chat(train::LoadedModel& loaded, train::GenerateOptions options, train::Progress& progress) {
  options.on_text = [](int64_t, std::string_view text) { write_out(text); };
  train::Conversation conversation(*loaded.model, *loaded.tokenizer, options);
  InputLines lines;
  const bool is_terminal = isatty(STDIN_FILENO) == 1;
  bool is_line_open = false;  // in what was said
  int64_t times_shortened = 0;
  while (!stop_requested()) {
    if (is_terminal) write_out("> ");
    const std::optional<std::string> line = lines.next();
    if (!line) break;
    if (line->find_first_not_of(" \t\r") == std::string::npos) continue;
    const train::Generated answer = conversation.reply(cat(is_line_open ? "\n" : "", *line, "\n"));
    write_out("\n");
    is_line_open = !answer.stop_string.ends_with('\n');
    if (conversation.times_shortened() > times_shortened) {
      times_shortened = conversation.times_shortened();
      progress.line("generate: the context was full, the older half of what was said is forgotten");
    }
  }
  if (is_terminal) write_out("\n");
  progress.line(describe(conversation.times()));
}

void continue_one(train::LoadedModel& loaded, const std::string& prompt,
                  train::GenerateOptions options, train::Progress& progress) {
  options.on_text = [](int64_t, std::string_view text) { write_out(text); };
  write_out(prompt);
  train::GenerateTimes times;
  train::generate_all(*loaded.model, *loaded.tokenizer, {prompt}, options, times);
  write_out("\n");
  progress.line(cat(describe(times), "; step ", loaded.step));
}

void continue_all(train::LoadedModel& loaded, const std::vector<std::string>& prompts,
                  const train::GenerateOptions& options, train::Progress& progress) {
  train::GenerateTimes times;
  const std::vector<train::Generated> texts =
      train::generate_all(*loaded.model, *loaded.tokenizer, prompts, options, times);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const formats::Object record = {{"prompt", {prompts[i]}},
                                    {"text", {texts[i].text}},
                                    {"num_tokens", {texts[i].num_tokens}},
                                    {"reason", {std::string(name_of(texts[i].reason))}}};
    std::printf("%s\n", formats::write_json({record}).c_str());
  }
  std::fflush(stdout);
  progress.line(cat(describe(times), "; step ", loaded.step));
}

std::vector<std::string> read_prompts(FileSystem& files, const std::string& path) {
  std::vector<std::string> prompts;
  for (const train::JsonLine& line : train::read_json_lines(files, path)) {
    prompts.push_back(line.value.string_at("prompt", line.where));
    AMOEBA_CHECK_KIND(kData, !prompts.back().empty(), line.where,
                      ": prompt is empty, want some text");
  }
  return prompts;
}

}  // namespace

int run_generate(const Arguments& arguments) {
  std::string checkpoint, prompt_file, prompts_file, num_tokens = "200", temperature = "0.8";
  std::string top_k = "0", top_p = "1", seed = "1", batch_size = "16";
  std::string device = "auto", threads = "0", backend;
  std::vector<std::string> prompts;
  bool is_chat = false;
  train::GenerateOptions options;
  const Command command{
      "generate",
      "Writes text with a trained model. The prompt and the text go to standard output.",
      {{"--checkpoint", "run folder (its newest checkpoint) or one checkpoint's folder", nullptr,
        &checkpoint},
       {"--prompt", "text to continue; may be repeated", &prompts},
       {"--prompt-file", "continue the text of this file", nullptr, &prompt_file},
       {"--prompts-file", "JSONL: continue the \"prompt\" of every line", nullptr, &prompts_file},
       {"--chat", "answer the lines of standard input", nullptr, nullptr, &is_chat},
       {"--num-tokens", "tokens to write (default 200)", nullptr, &num_tokens},
       {"--temperature", "0 takes the likeliest token, 1 samples as trained (default 0.8)", nullptr,
        &temperature},
       {"--top-k", "draw from the k likeliest tokens; 0: from all (default 0)", nullptr, &top_k},
       {"--top-p", "draw from the likeliest tokens of this probability; 1: from all (default 1)",
        nullptr, &top_p},
       {"--seed", "equal seeds write equal text (default 1)", nullptr, &seed},
       {"--stop", "end before this text; may be repeated", &options.stop_strings},
       {"--batch-size", "prompts decoded at once (default 16)", nullptr, &batch_size},
       {"--device", "auto, cpu or cuda (default auto)", nullptr, &device},
       {"--num-threads", "CPU threads; 0: all cores (default 0)", nullptr, &threads},
       {"--compute-backend", "expert backend; default: the run's", nullptr, &backend}},
      /*takes_overrides=*/false,
      help_footer};
  if (parse(command, arguments).help_shown) return 0;
  AMOEBA_CHECK(!checkpoint.empty(), "generate: --checkpoint is missing, want a run's folder");
  const int num_kinds = (prompts.empty() ? 0 : 1) + (prompt_file.empty() ? 0 : 1) +
                        (prompts_file.empty() ? 0 : 1) + (is_chat ? 1 : 0);
  AMOEBA_CHECK(num_kinds > 0, "generate: --prompt is missing, want it, --prompt-file, ",
               "--prompts-file or --chat");
  AMOEBA_CHECK(num_kinds == 1, "generate: got ", num_kinds,
               " of --prompt, --prompt-file, --prompts-file and --chat, want one");
  for (const std::string& prompt : prompts) {
    AMOEBA_CHECK(!prompt.empty(), "generate: --prompt is empty, want some text");
  }
  for (const std::string& stop : options.stop_strings) {
    AMOEBA_CHECK(!stop.empty(), "generate: --stop is empty, want some text");
  }
  options.num_tokens = to_integer("--num-tokens", num_tokens);
  options.sampling.temperature = to_number("--temperature", temperature);
  options.sampling.top_k = to_integer("--top-k", top_k);
  options.sampling.top_p = to_number("--top-p", top_p);
  AMOEBA_CHECK(options.sampling.top_p > 0 && options.sampling.top_p <= 1, "--top-p: got '", top_p,
               "', want above 0 and at most 1");
  options.seed = static_cast<uint64_t>(to_integer("--seed", seed));
  options.batch_size = to_integer("--batch-size", batch_size);
  AMOEBA_CHECK(options.batch_size >= 1, "--batch-size: got '", batch_size, "', want at least 1");
  options.stop = stop_requested;

  train::Progress progress = terminal_progress();
  PosixFileSystem files;
  if (!prompts_file.empty()) prompts = read_prompts(files, prompts_file);
  if (!prompt_file.empty()) {
    prompts = {files.read(prompt_file)};
    AMOEBA_CHECK_KIND(kData, !prompts[0].empty(), "generate: '", prompt_file,
                      "' is empty, want some text");
  }
  train::LoadedModel loaded = train::load_model(
      files, checkpoint, {device, to_integer("--num-threads", threads), backend, 0},
      terminal_log(progress));
  options.context = loaded.config.training.seq_len;
  catch_stop_signals();
  if (is_chat) {
    chat(loaded, options, progress);
  } else if (prompts.size() == 1 && prompts_file.empty()) {
    continue_one(loaded, prompts[0], options, progress);
  } else {
    continue_all(loaded, prompts, options, progress);
  }
  return 0;
}

}  // namespace amoeba::apps
