// Runs one tokenizer over records for tests/agreement/*.py.
//
// Usage: driver TOKENIZER encode|prompt|decode INPUT OUTPUT
// Records: length in bytes as 8 little-endian bytes, then the bytes: text, or ids as int32. Prints
// the CPU seconds of the thread in the calls and the bytes of text.
#include <ctime>

#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "amoeba/error.h"
#include "formats/tokenizer.h"

namespace {

using namespace amoeba;

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

void run(const std::string& tokenizer_path, const std::string& mode, const std::string& input,
         const std::string& output) {
  PosixFileSystem files;
  const auto tokenizer = formats::make_tokenizer(files, tokenizer_path);
  const std::vector<std::string> records = read_records(files, input);
  const auto file = files.create(output);
  double seconds = 0;
  size_t num_bytes = 0;
  for (const std::string& record : records) {
    const double start = cpu_seconds();
    if (mode == "decode") {
      std::vector<int32_t> ids(record.size() / sizeof(int32_t));
      if (!ids.empty()) std::memcpy(ids.data(), record.data(), ids.size() * sizeof(int32_t));
      const std::string text = tokenizer->decode(ids);
      seconds += cpu_seconds() - start;
      num_bytes += text.size();
      write_record(*file, text);
    } else {
      const std::vector<int32_t> ids =
          mode == "prompt" ? tokenizer->encode_prompt(record) : tokenizer->encode(record);
      seconds += cpu_seconds() - start;
      num_bytes += record.size();
      write_record(*file,
                   {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)});
    }
  }
  file->close();
  std::printf("%.6f %zu %d\n", seconds, num_bytes, tokenizer->end_of_document());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    AMOEBA_CHECK(argc == 5, "driver: got ", argc - 1, " arguments, want 4");
    run(argv[1], argv[2], argv[3], argv[4]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
