// Which tokens each training step and each evaluation sees.
//
// Of every source (file) the last part is held out for validation. An epoch of a source is its
// training part cut into windows of seq_len tokens from a random phase on, in a random order; the
// blend of sources is by largest deficit. All of it is a pure function of (seed, cursor): resuming
// needs a few integers and no generator state.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/file_system.h"
#include "base/rng.h"
#include "formats/token_source.h"
#include "formats/value.h"
#include "train/plain/run_config.h"

namespace amoeba::train {

inline constexpr int32_t kIgnoredTarget = -100;  // no loss here

// One document's stretch inside a row.
struct Segment {
  int64_t row = 0;
  int64_t begin = 0;
  int64_t length = 0;
  bool operator==(const Segment&) const = default;
};

// B = batch_size rows of S = seq_len tokens. A row is a window of one source; where a document ends
// inside it, the target of its last token is ignored, positions restart at 0 and a new segment
// begins. A document that began before the window counts from the window's first token. Padding,
// only behind the last token of a row, belongs to the row's last segment.
struct MicroBatch {
  int64_t batch_size = 0;
  int64_t seq_len = 0;
  std::vector<int32_t> tokens;      // [B, S]
  std::vector<int32_t> targets;     // [B, S] the next token, or kIgnoredTarget
  std::vector<int32_t> positions;   // [B, S]
  std::vector<Segment> segments;    // in order, covering every row; one a row without a boundary
  std::vector<uint8_t> token_mask;  // [B, S] 0: padding, of ignored target; empty: none is
  int64_t num_tokens = 0;           // that are no padding
  int64_t valid_tokens = 0;         // targets that are not ignored
  bool operator==(const MicroBatch&) const = default;
};

// Everything one optimizer step sees, so that the loss can be divided by its valid tokens before
// the first backward.
struct StepBatch {
  std::vector<MicroBatch> micro_batches;
  int64_t valid_tokens = 0;  // of all micro-batches; may be 0
  int64_t num_tokens = 0;    // of all micro-batches, without padding
  bool operator==(const StepBatch&) const = default;
};

// Where training stands in the data.
struct DataCursor {
  int64_t step = 0;                 // steps delivered
  int64_t sequences = 0;            // rows delivered
  std::vector<int64_t> per_source;  // rows of each source, their sum is `sequences`
  bool operator==(const DataCursor&) const = default;

  formats::Value to_value() const;
  // Error(kData) that begins with `what` for a missing key, a wrong type or a negative count.
  static DataCursor from_value(const formats::Value& value, std::string_view what);
};

// What one row is filled with.
struct DataWindow {
  const formats::TokenSource* source;
  int64_t begin;   // of the inputs; -1: before the first token
  int64_t length;  // inputs; below the row's: the rest of it is padding
};

// Length of the held-out part: floor(num_tokens * fraction) with the fraction taken to nine
// decimals, so that 0.29 of 100 tokens are 29. fraction is in [0, 1].
int64_t num_validation_tokens(int64_t num_tokens, double fraction);

// ---------------------------------------------------------------------------------------------------

using Sources = std::vector<std::unique_ptr<formats::TokenSource>>;

struct ValidationBatch {
  MicroBatch micro_batch;
  int64_t num_bytes = 0;  // of original text behind the valid targets: sum_loss / ln 2 / num_bytes
};

// Full windows over the held-out part [v0, n) of each source, in a fixed order. The targets of
// window i are tokens [v0 + i*S, v0 + (i+1)*S), each one's input the token before it; before the
// first token of a source stands an end-of-document token, which is not treated as a boundary, so
// that every token is a target. Tokens behind the last full window are left out, unless there is
// none: then they are one short window. Several sources take turns, so that the first windows
// sample all of them.
class ValidationSet {
 public:
  // The sources must outlive the set.
  ValidationSet(const Sources& sources, const RunConfig& config, int32_t end_of_document);

  int64_t num_windows() const { return static_cast<int64_t>(windows_.size()); }
  // Rows as long as the longest of these windows; shorter ones are padded.
  ValidationBatch batch(int64_t first_window, int64_t count) const;

 private:
  std::vector<DataWindow> windows_;
  int32_t end_of_document_;
};

struct ValidationData {
  Sources sources;
  ValidationSet set;
};

struct TrainingData {
  Sources sources;
  int32_t end_of_document;
  ValidationSet validation;
};

// Open the files of data.path. data.validation_fraction = 1 makes validation data of whole files.
ValidationData open_validation_data(FileSystem& files, const RunConfig& config,
                                    const formats::Tokenizer& tokenizer);
TrainingData open_training_data(FileSystem& files, const RunConfig& config,
                                const formats::Tokenizer& tokenizer);

// ---------------------------------------------------------------------------------------------------

// Delivers training steps. With T training tokens in a source, the windows of an epoch read inputs
// [a, a + S) and targets one further, a = i*S + phase; every one that fits comes exactly once. The
// phase is uniform in [0, S), or in [0, T - S) for T < 2*S. Row k = 1, 2, ... comes from the source
// with the largest weight * k - rows taken (ties: the first).
class DataLoader {
 public:
  // `data` must outlive the loader. Error(kData) for a source with less than seq_len + 1 training
  // tokens; Error(kUsage) for weights or batch sizes that make no sense.
  DataLoader(const TrainingData& data, const RunConfig& config);

  // global_batch_size(step) sequences, as whole micro-batches.
  StepBatch next_step();

  const DataCursor& cursor() const { return cursor_; }
  // Continues as a loader that has delivered `cursor`. Error(kData) if it is of other sources.
  void seek(const DataCursor& cursor);

  int64_t num_training_tokens() const;  // of all sources

 private:
  struct Source {
    const formats::TokenSource* tokens;
    int64_t num_training_tokens;
    double weight;  // all together: 1
    int64_t epoch = 0;
    int64_t index = 0;  // in the epoch
    int64_t phase = 0;
    Permutation order{1, 0, 0};
  };

  void start_epoch(size_t source, int64_t epoch);
  size_t choose_source() const;
  int64_t next_window(size_t source);  // first input token
  MicroBatch next_micro_batch();

  std::vector<Source> sources_;
  TrainingSection training_;
  int64_t seq_len_;
  uint64_t seed_;
  int32_t end_of_document_;
  DataCursor cursor_;
};

}  // namespace amoeba::train
