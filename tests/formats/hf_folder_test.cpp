#include "formats/hf_folder.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "support/errors.h"
#include "support/memory_file_system.h"

namespace amoeba::formats {
namespace {

using test::error_message;

void put(FileSystem& files, const std::string& path, std::string_view text) {
  const auto file = files.create(path);
  file->write(text);
  file->close();
}

void put_weights(FileSystem& files, const std::string& path,
                 const std::vector<std::string>& names) {
  const std::vector<std::byte> bytes(4, std::byte{7});
  std::vector<TensorEntry> tensors;
  for (const std::string& name : names) tensors.push_back({name, "F32", {1}, bytes});
  write_safetensors(files, path, tensors, {});
}

TEST(HfFolder, SingleFileAndShardsGiveTheSameTensors) {
  test::MemoryFileSystem files;
  files.create_directories("/one");
  put(files, "/one/config.json", R"({"model_type": "mixtral"})");
  put_weights(files, "/one/model.safetensors", {"a", "b"});
  files.create_directories("/two");
  put_weights(files, "/two/x.safetensors", {"b"});
  put_weights(files, "/two/y.safetensors", {"a"});
  put(files, "/two/model.safetensors.index.json",
      R"({"metadata": {}, "weight_map": {"a": "y.safetensors", "b": "x.safetensors"}})");
  for (const char* folder : {"/one", "/two"}) {
    const HfWeights weights = open_hf_weights(files, folder);
    ASSERT_EQ(weights.tensors.size(), 2u) << folder;
    for (const char* name : {"a", "b"}) {
      ASSERT_EQ(weights.tensors.count(name), 1u) << folder;
      EXPECT_EQ(weights.tensors.at(name).data[0], std::byte{7}) << folder;
    }
  }
  EXPECT_TRUE(is_hf_folder(files, "/one"));
  EXPECT_FALSE(is_hf_folder(files, "/two"));
  EXPECT_EQ(read_hf_config_json(files, "/one").string_at("model_type", ""), "mixtral");
}

struct HostileFolder {
  const char* what;
  std::map<std::string, std::vector<std::string>> weights;  // file -> tensors
  std::string index;                                        // empty: none
  std::string message;                                      // a part of the error
};

TEST(HfFolder, HostileFoldersAreRefused) {
  const std::vector<HostileFolder> cases = {
      {"no weights", {}, "", "'/f' holds neither"},
      {"two sources",
       {{"model.safetensors", {"a"}}},
       R"({"weight_map": {"a": "model.safetensors"}})",
       "'/f' holds both"},
      {"no map", {}, R"({"metadata": {}})", "weight_map"},
      {"map is a list", {}, R"({"weight_map": []})", "weight_map is array, want an object"},
      {"shard is a number", {}, R"({"weight_map": {"a": 1}})", "weight_map['a'] is integer"},
      {"shard outside",
       {},
       R"({"weight_map": {"a": "../x.safetensors"}})",
       "weight_map['a'] is '../x.safetensors', want the name of a .safetensors file beside it"},
      {"shard of another kind", {}, R"({"weight_map": {"a": "x.bin"}})", "is 'x.bin'"},
      {"tensor given twice",
       {{"x.safetensors", {"a"}}},
       R"({"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}})",
       "duplicate"},
      {"no shard",
       {},
       R"({"weight_map": {"a": "x.safetensors"}})",
       "'x.safetensors' does not exist"},
      {"shard without the tensor",
       {{"x.safetensors", {"a"}}},
       R"({"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}})",
       "shard 'x.safetensors' does not hold tensor 'b'"},
      {"tensor outside the index",
       {{"x.safetensors", {"a", "b"}}},
       R"({"weight_map": {"a": "x.safetensors"}})",
       "x.safetensors: tensor 'b' is not in the index"},
      {"one tensor in two shards",
       {{"x.safetensors", {"a"}}, {"y.safetensors", {"a", "b"}}},
       R"({"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}})",
       "y.safetensors: tensor 'a' belongs to 'x.safetensors' by the index"},
      {"two indices in one", {}, R"({"weight_map": {}, "weight_map": {}})", "duplicate"},
  };
  for (const HostileFolder& hostile : cases) {
    test::MemoryFileSystem files;
    files.create_directories("/f");
    for (const auto& [file, names] : hostile.weights) put_weights(files, "/f/" + file, names);
    if (!hostile.index.empty()) put(files, "/f/model.safetensors.index.json", hostile.index);
    const std::string message =
        error_message(ErrorKind::kData, [&] { open_hf_weights(files, "/f"); });
    EXPECT_NE(message.find(hostile.message), message.npos) << hostile.what << ": " << message;
  }
}

TEST(HfFolder, ConfigMustBeAnObject) {
  test::MemoryFileSystem files;
  files.create_directories("/f");
  EXPECT_NE(error_message(ErrorKind::kData, [&] { read_hf_config_json(files, "/f"); })
                .find("'/f' holds no config.json"),
            std::string::npos);
  put(files, "/f/config.json", "[]");
  EXPECT_NE(error_message(ErrorKind::kData, [&] { read_hf_config_json(files, "/f"); })
                .find("/f/config.json: is array, want an object"),
            std::string::npos);
}

}  // namespace
}  // namespace amoeba::formats
