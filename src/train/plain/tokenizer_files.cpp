#include "train/plain/tokenizer_files.h"

namespace amoeba::train {

std::vector<AttachedFile> read_tokenizer_files(FileSystem& files, const std::string& name) {
  if (name == "bytes") return {};
  std::vector<AttachedFile> attached = {{kTokenizerFile, files.read(name)}};
  for (const char* beside :
       {"tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}) {
    const std::string path = parent_folder(name) + "/" + beside;
    if (files.exists(path)) attached.push_back({beside, files.read(path)});
  }
  return attached;
}

}  // namespace amoeba::train
