#include "formats/prepare_tokens.h"

#include <unistd.h>

#include <random>

#include "amoeba/error.h"
#include "base/threads.h"
#include "formats/text_documents.h"
#include "formats/token_files.h"
#include "formats/value.h"

namespace amoeba::formats {

namespace {

constexpr int64_t kBatchBytes = 32 << 20;  // of text that is encoded before it is written

// Two writers never have the same, on this machine or on another that shares its files.
std::string unique_suffix() {
  std::random_device random;
  return cat(".partial-", ::getpid(), "-", random(), random());
}

class Preparation {
 public:
  Preparation(FileSystem& files, const Tokenizer& tokenizer, const PrepareOptions& options,
              const std::string& folder)
      : tokenizer_(tokenizer),
        options_(options),
        writer_(files, folder + kPreparedTokens, tokenizer.vocab_size()) {
    // All of them first: a file that is missing is not found after an hour.
    for (const std::string& path : options.inputs) {
      inputs_.emplace_back(files, path, options.document_separator);
      for (int64_t i = 0; i < inputs_.back().size(); ++i) total_ += inputs_.back().file_bytes(i);
    }
  }

  PreparedTokens run() {
    for (const TextDocuments& documents : inputs_) {
      for (int64_t begin = 0, end = 0; begin < documents.size(); begin = end) {
        AMOEBA_CHECK(!options_.stop || !options_.stop(), "prepare '", options_.output,
                     "': stopped");
        int64_t bytes = 0;
        while (end < documents.size() && bytes < kBatchBytes) bytes += documents.file_bytes(end++);
        add_batch(documents, begin, end);
        done_ += bytes;
        if (options_.progress) options_.progress(done_, total_);
      }
    }
    AMOEBA_CHECK_KIND(kData, writer_.num_tokens() > 0, "prepare '", options_.output,
                      "': the inputs hold no text");
    writer_.finish();
    return {writer_.num_documents(), writer_.num_tokens(), num_bytes_};
  }

 private:
  void add_batch(const TextDocuments& documents, int64_t begin, int64_t end) {
    std::vector<std::vector<int32_t>> tokens(static_cast<size_t>(end - begin));
    std::vector<int64_t> bytes(tokens.size());
    run_in_parallel(options_.num_threads, end - begin, [&](int64_t i) {
      const std::string text = documents.text(begin + i);
      bytes[static_cast<size_t>(i)] = static_cast<int64_t>(text.size());
      if (!text.empty()) tokens[static_cast<size_t>(i)] = encode_document(tokenizer_, text);
    });
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (!tokens[i].empty()) writer_.add_document(tokens[i]);
      num_bytes_ += bytes[i];
    }
  }

  const Tokenizer& tokenizer_;
  const PrepareOptions& options_;
  IndexedTokenWriter writer_;
  std::vector<TextDocuments> inputs_;
  int64_t done_ = 0;
  int64_t total_ = 0;
  int64_t num_bytes_ = 0;
};

std::string info_of(const Tokenizer& tokenizer, const PrepareOptions& options,
                    const PreparedTokens& result) {
  Array inputs;
  for (const std::string& path : options.inputs) inputs.push_back({path});
  return write_json({Object{{"format", {"amoeba.dataset"}},
                            {"version", {int64_t{1}}},
                            {"tokenizer", {tokenizer.name()}},
                            {"tokenizer_fingerprint", {tokenizer.fingerprint()}},
                            {"vocab_size", {tokenizer.vocab_size()}},
                            {"end_of_document", {int64_t{tokenizer.end_of_document()}}},
                            {"documents", {result.num_documents}},
                            {"tokens", {result.num_tokens}},
                            {"text_bytes", {result.num_bytes}},
                            {"inputs", {inputs}}}},
                    2) +
         "\n";
}

}  // namespace

std::vector<int32_t> encode_document(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> tokens = tokenizer.prefix();
  const std::vector<int32_t> ids = tokenizer.encode(text);
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  tokens.push_back(tokenizer.end_of_document());
  return tokens;
}

PreparedTokens prepare_tokens(FileSystem& files, const Tokenizer& tokenizer,
                              const PrepareOptions& options) {
  AMOEBA_CHECK(!options.inputs.empty() && !options.output.empty(),
               "prepare: inputs or output are missing, want both");
  AMOEBA_CHECK_KIND(kData, !files.exists(options.output), "prepare '", options.output,
                    "': it exists already, want a new folder");
  create_directories_durably(files, parent_folder(options.output));
  const std::string partial = options.output + unique_suffix();
  files.create_directories(partial);
  try {
    const PreparedTokens result = Preparation(files, tokenizer, options, partial).run();
    const auto info = files.create(partial + kPreparedInfo);
    info->write(info_of(tokenizer, options, result));
    info->sync();
    info->close();
    files.sync_directory(partial);
    files.rename(partial, options.output);  // fails when another writer was first
    files.sync_directory(parent_folder(options.output));
    return result;
  } catch (const Error&) {
    if (files.exists(partial)) files.remove_all(partial);
    throw;
  }
}

}  // namespace amoeba::formats
