// Checkpoints on disk, without LibTorch.
//
//   RUN/checkpoints/step-00000100/manifest.json
//                                 weights-00001-of-00002.safetensors ...
//                                 optimizer-00001-of-00001.safetensors ...
//                                 tokenizer.json, or what else was attached
//
// A folder gets its final name only when all of it is on disk, so a crash at any point leaves the
// checkpoints that were there. "step-N.partial" is a save or a removal that did not finish;
// "step-N.replaced" is the older of two saves of one step, kept until the newer one is in place.
// There is no "latest" file: the newest folder whose hashes agree is the latest.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "formats/safetensors.h"
#include "formats/value.h"

namespace amoeba::train {

inline constexpr int64_t kCheckpointSchema = 2;
inline constexpr int64_t kMaxShardBytes = int64_t{1} << 31;
// The copy of data.tokenizer that a checkpoint carries; without one the tokenizer is bytes.
inline constexpr const char* kTokenizerFile = "tokenizer.json";

// A file kept with the tensors as it is.
struct AttachedFile {
  std::string name;  // without a folder
  std::string text;
};

struct CheckpointContent {
  int64_t step = 0;
  bool weights_only = false;  // for use and export: no optimizer, not to be resumed
  int64_t saved_at = 0;       // seconds since 1970; 0: not known
  std::vector<formats::TensorEntry> weights;
  std::vector<formats::TensorEntry> optimizer;
  std::vector<AttachedFile> files;
  formats::Value state;   // what resuming needs besides tensors: data cursor, tokens seen, ...
  formats::Value config;  // the resolved configuration
};

// "step-00000012": what files and folders of a step are called.
std::string step_name(int64_t step);

// Writes a checkpoint and returns its folder. A tensor is never split: one larger than
// `max_shard_bytes` gets a file of its own. On Error(kData) (no space, a failing disk) every
// checkpoint that was there still is.
std::string save_checkpoint(FileSystem& files, const std::string& run_folder,
                            const CheckpointContent& content,
                            int64_t max_shard_bytes = kMaxShardBytes);

// A verified checkpoint; the tensors, in the order they were saved, point into the mapped files.
struct Checkpoint {
  std::string folder;
  int64_t step = 0;
  bool weights_only = false;
  int64_t saved_at = 0;
  std::vector<std::string> attached;  // names of files in the folder
  formats::Value state;
  formats::Value config;
  std::vector<formats::SafetensorsFile> files;
  std::vector<formats::TensorEntry> weights;
  std::vector<formats::TensorEntry> optimizer;
};

// Checks everything: schema, files, the exact set of tensors, each tensor's type and hash.
// Error(kData) names the file and the tensor. Checkpoints of older schemas are brought to
// kCheckpointSchema in memory; a newer one is refused with its number.
Checkpoint load_checkpoint(FileSystem& files, const std::string& folder);

// What the manifest alone says; it is verified, the files it names are not read.
struct CheckpointSummary {
  int64_t step = 0;
  int64_t schema = 0;  // as written
  bool weights_only = false;
  int64_t saved_at = 0;
  int64_t bytes = 0;        // of tensors and attached files
  int64_t tokens_seen = 0;  // 0 when the state does not say
};
CheckpointSummary summarize_checkpoint(FileSystem& files, const std::string& folder);

struct CheckpointFolder {
  int64_t step = 0;
  std::string folder;
};

// The folders under `run_folder` that hold a manifest, newest first, not verified.
std::vector<CheckpointFolder> find_checkpoints(FileSystem& files, const std::string& run_folder);

struct LatestCheckpoint {
  std::optional<Checkpoint> checkpoint;  // none: no folder verifies
  std::vector<std::string> skipped;      // why each newer folder was passed over, one line each
};
LatestCheckpoint load_latest_checkpoint(FileSystem& files, const std::string& run_folder);

// Removes all but the newest `keep_latest_k` checkpoints (0: keeps all; 1 is Error(kUsage)) and
// those of steps that are multiples of `keep_every` (0: none), and what unfinished saves left, and
// returns the removed folders. Nothing is removed before the newest checkpoint is verified; when it
// does not verify, its error is thrown.
std::vector<std::string> prune_checkpoints(FileSystem& files, const std::string& run_folder,
                                           int64_t keep_latest_k, int64_t keep_every = 0);

// Removes the checkpoints of later steps, the newest first: a crash leaves a row without a gap.
void remove_checkpoints_after(FileSystem& files, const std::string& run_folder, int64_t step);

}  // namespace amoeba::train
