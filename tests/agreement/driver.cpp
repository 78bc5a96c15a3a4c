// Runs tokenizers and readers of data for tests/agreement/*.py.
//
// Usage: driver TOKENIZER encode|prompt|decode RECORDS OUTPUT
//        driver TOKENIZER prepare TEXT FOLDER
//        driver TOKENIZER data PATH OUTPUT
//        driver VOCAB_SIZE train JSONL OUTPUT
//        driver - safetensors RECORDS OUTPUT
// Records: length in bytes as 8 little-endian bytes, then the bytes: text, or ids as int32. The
// first form prints the CPU seconds of the thread in the calls and the bytes of text. The third
// writes all tokens as one record and the first tokens of the documents as int64, and prints the
// bytes of text. The last takes each record for a file and answers with the error, or with a line
// "ok" and one of name, dtype, shape and data in hexadecimal digits for each tensor.
#include <cstdio>
#include <cstring>
#include <ctime>
#include <exception>
#include <span>
#include <string>

#include "amoeba/error.h"
#include "formats/prepare_tokens.h"
#include "formats/safetensors.h"
#include "formats/token_source.h"
#include "formats/tokenizer.h"
#include "formats/train_bpe.h"

namespace {

using namespace amoeba;

constexpr const char* kSeparator = "\n\n";

double cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

std::vector<std::string> read_records(FileSystem& files, const std::string& path) {
  const std::string all = files.read(path);
  std::vector<std::string> records;
  for (size_t at = 0; at < all.size();) {
    uint64_t size = 0;
    std::memcpy(&size, all.data() + at, sizeof size);
    records.push_back(all.substr(at + sizeof size, size));
    at += sizeof size + size;
  }
  return records;
}

void write_record(WritableFile& file, std::string_view data) {
  const uint64_t size = data.size();
  file.write({reinterpret_cast<const char*>(&size), sizeof size});
  file.write(data);
}

template <typename T>
void write_record(WritableFile& file, const std::vector<T>& numbers) {
  const auto* data = reinterpret_cast<const char*>(numbers.data());
  write_record(file, std::string_view(data, numbers.size() * sizeof(T)));
}

void run_records(FileSystem& files, const formats::Tokenizer& tokenizer, const std::string& mode,
                 const std::string& input, const std::string& output) {
  const auto file = files.create(output);
  double seconds = 0;
  size_t num_bytes = 0;
  for (const std::string& record : read_records(files, input)) {
    const double start = cpu_seconds();
    if (mode == "decode") {
      std::vector<int32_t> ids(record.size() / sizeof(int32_t));
      if (!ids.empty()) std::memcpy(ids.data(), record.data(), ids.size() * sizeof(int32_t));
      const std::string text = tokenizer.decode(ids);
      seconds += cpu_seconds() - start;
      num_bytes += text.size();
      write_record(*file, std::string_view(text));
    } else {
      const std::vector<int32_t> ids =
          mode == "prompt" ? tokenizer.encode_prompt(record) : tokenizer.encode(record);
      seconds += cpu_seconds() - start;
      num_bytes += record.size();
      write_record(*file, ids);
    }
  }
  file->close();
  std::printf("%.6f %zu\n", seconds, num_bytes);
}

void run_data(FileSystem& files, const formats::Tokenizer& tokenizer, const std::string& input,
              const std::string& output) {
  const auto source = formats::open_tokens(files, input, tokenizer, kSeparator);
  const int64_t size = source->num_tokens();
  std::vector<int32_t> tokens(static_cast<size_t>(size));
  source->read(0, tokens);
  std::vector<int64_t> documents;
  for (int64_t at = 0; at < size; at = source->next_document(at, size)) documents.push_back(at);
  AMOEBA_CHECK(source->num_documents() == static_cast<int64_t>(documents.size()), "data: got ",
               source->num_documents(), " documents, want ", documents.size());
  const auto file = files.create(output);
  write_record(*file, tokens);
  write_record(*file, documents);
  file->close();
  std::printf("%lld\n", static_cast<long long>(source->num_bytes(0, size)));
}

void run_prepare(FileSystem& files, const formats::Tokenizer& tokenizer, const std::string& input,
                 const std::string& output) {
  formats::PrepareOptions options;
  options.inputs = {input};
  options.output = output;
  options.document_separator = kSeparator;
  formats::prepare_tokens(files, tokenizer, options);
}

std::string hexadecimal(std::span<const std::byte> data) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : data) {
    text += kDigits[std::to_integer<int>(byte) / 16];
    text += kDigits[std::to_integer<int>(byte) % 16];
  }
  return text;
}

std::string read_as_safetensors(FileSystem& files, const std::string& path) {
  try {
    const formats::SafetensorsFile file = formats::read_safetensors(files, path);
    std::string text = "ok";
    for (const formats::TensorEntry& tensor : file.tensors) {
      text += cat("\n", hexadecimal(std::as_bytes(std::span(tensor.name))), " ", tensor.dtype, " ");
      for (const int64_t size : tensor.shape) text += cat(size, ",");
      text += cat(" ", hexadecimal(tensor.data));
    }
    return text;
  } catch (const Error& error) {
    return error.what();
  }
}

void run_safetensors(FileSystem& files, const std::string& input, const std::string& output) {
  const auto answers = files.create(output);
  const std::string path = output + ".file";
  for (const std::string& record : read_records(files, input)) {
    const auto file = files.create(path);
    file->write(record);
    file->close();
    write_record(*answers, std::string_view(read_as_safetensors(files, path)));
  }
  answers->close();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    AMOEBA_CHECK(argc == 5, "driver: got ", argc - 1, " arguments, want 4");
    PosixFileSystem files;
    const std::string mode = argv[2];
    if (mode == "safetensors") {
      run_safetensors(files, argv[3], argv[4]);
      return 0;
    }
    if (mode == "train") {
      formats::TrainBpeOptions options;
      options.inputs = {argv[3]};
      options.vocab_size = std::stoll(argv[1]);
      write_file_atomically(files, argv[4], formats::train_bpe(files, options));
      return 0;
    }
    const auto tokenizer = formats::make_tokenizer(files, argv[1]);
    if (mode == "data") {
      run_data(files, *tokenizer, argv[3], argv[4]);
    } else if (mode == "prepare") {
      run_prepare(files, *tokenizer, argv[3], argv[4]);
    } else {
      run_records(files, *tokenizer, mode, argv[3], argv[4]);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
