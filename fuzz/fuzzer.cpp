// libFuzzer over one target:  amoeba_fuzz TARGET [options of libFuzzer] [corpus folders]
// amoeba_fuzz seeds FOLDER writes the seeds of every target to FOLDER/TARGET/.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/file_system.h"
#include "fuzz/target.h"

namespace {

const amoeba::fuzz::Target* chosen = nullptr;

void write_seeds(const std::string& folder) {
  amoeba::PosixFileSystem files;
  for (const amoeba::fuzz::Target& target : amoeba::fuzz::targets()) {
    files.create_directories(folder + "/" + target.name);
    int number = 0;
    for (const std::string& seed : target.seeds()) {
      amoeba::fuzz::put(files, folder + "/" + target.name + "/seed-" + std::to_string(number++),
                        seed);
    }
    std::puts(target.name);
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (*argc == 3 && std::string((*argv)[1]) == "seeds") {
    write_seeds((*argv)[2]);
    std::exit(0);
  }
  for (const amoeba::fuzz::Target& target : amoeba::fuzz::targets()) {
    if (*argc > 1 && std::string((*argv)[1]) == target.name) chosen = &target;
  }
  if (chosen == nullptr) {
    std::fprintf(stderr, "usage: amoeba_fuzz TARGET [options] [folders], or seeds FOLDER\n");
    std::exit(2);
  }
  (*argv)[1] = (*argv)[0];
  ++*argv;
  --*argc;
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  chosen->run({reinterpret_cast<const char*>(data), size});
  return 0;
}
