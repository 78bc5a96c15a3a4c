#include "train/plain/data_loader.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "amoeba/error.h"
#include "train/plain/schedule.h"

namespace amoeba::train {

namespace {

// Streams of random_bits, ASCII for "dataphas" and "dataordr": no other user of the seed has them.
constexpr uint64_t kPhaseStream = 0x6461746170686173u;
constexpr uint64_t kOrderStream = 0x646174616f726472u;

int64_t checked_seq_len(const RunConfig& config) {
  const int64_t seq_len = config.training.seq_len;
  AMOEBA_CHECK(seq_len >= 1, "training.seq_len is ", seq_len, ", want at least 1");
  return seq_len;
}

MicroBatch make_batch(int64_t batch_size, int64_t seq_len) {
  MicroBatch batch;
  batch.batch_size = batch_size;
  batch.seq_len = seq_len;
  const auto size = static_cast<size_t>(batch_size * seq_len);
  batch.tokens.resize(size);
  batch.targets.resize(size);
  batch.positions.resize(size);
  batch.segments.reserve(static_cast<size_t>(batch_size));
  return batch;
}

// Whatever stands there must reach no count, loss or gradient: the end-of-document token is as good
// as any. Positions go on, so that they stay below S.
void pad_row(MicroBatch& batch, int64_t row, int64_t length, int32_t end_of_document) {
  batch.token_mask.resize(batch.tokens.size(), 1);
  for (int64_t i = length; i < batch.seq_len; ++i) {
    const auto at = static_cast<size_t>(row * batch.seq_len + i);
    batch.tokens[at] = end_of_document;
    batch.targets[at] = kIgnoredTarget;
    batch.positions[at] = batch.positions[at - 1] + 1;
    batch.token_mask[at] = 0;
  }
  batch.segments.back().length += batch.seq_len - length;
}

// Fills `row` with a window; returns the bytes of text behind the valid targets.
int64_t fill_row(MicroBatch& batch, int64_t row, const DataWindow& window,
                 int32_t end_of_document) {
  std::vector<int32_t> tokens(static_cast<size_t>(window.length + 1), end_of_document);
  const int64_t first_read = std::max<int64_t>(window.begin, 0);
  window.source->read(first_read,
                      std::span(tokens).subspan(static_cast<size_t>(first_read - window.begin)));

  int64_t num_bytes = 0, segment_begin = 0;
  const auto end_segment = [&](int64_t end, int64_t valid) {
    batch.segments.push_back({row, segment_begin, end - segment_begin});
    batch.valid_tokens += valid;
    const int64_t first_target = window.begin + segment_begin + 1;
    num_bytes += window.source->num_bytes(first_target, first_target + valid);
    segment_begin = end;
  };
  const int64_t window_end = window.begin + window.length + 1;
  int64_t document = window.source->next_document(first_read, window_end);
  for (int64_t i = 0; i < window.length; ++i) {
    const auto at = static_cast<size_t>(row * batch.seq_len + i);
    const bool ends_document = window.begin + i + 1 == document;
    batch.tokens[at] = tokens[static_cast<size_t>(i)];
    batch.targets[at] = ends_document ? kIgnoredTarget : tokens[static_cast<size_t>(i + 1)];
    batch.positions[at] = static_cast<int32_t>(i - segment_begin);
    if (ends_document) {
      end_segment(i + 1, i - segment_begin);
      document = window.source->next_document(document, window_end);
    }
  }
  if (segment_begin < window.length) end_segment(window.length, window.length - segment_begin);
  batch.num_tokens += window.length;
  if (window.length < batch.seq_len) pad_row(batch, row, window.length, end_of_document);
  return num_bytes;
}

Sources open_sources(FileSystem& files, const DataSection& data,
                     const formats::Tokenizer& tokenizer) {
  AMOEBA_CHECK(!data.path.empty(), "data.path is empty, want at least one file");
  Sources sources;
  for (const std::string& path : data.path) {
    sources.push_back(formats::open_tokens(files, path, tokenizer, data.document_separator));
  }
  return sources;
}

// The share of each source, together 1.
std::vector<double> blend_weights(const DataSection& data, std::span<const int64_t> tokens) {
  std::vector<double> weights = data.weights;
  if (weights.empty()) weights.assign(tokens.begin(), tokens.end());
  AMOEBA_CHECK(weights.size() == tokens.size(), "data.weights has ", weights.size(),
               " numbers, want ", tokens.size(), ", one for each file of data.path");
  double sum = 0.0;
  for (const double weight : weights) {
    AMOEBA_CHECK(std::isfinite(weight) && weight >= 0.0, "data.weights holds ", weight,
                 ", want finite numbers of at least 0");
    sum += weight;
  }
  AMOEBA_CHECK(std::isfinite(sum) && sum > 0.0, "data.weights add up to ", sum,
               ", want a finite number above 0");
  for (double& weight : weights) weight /= sum;
  return weights;
}

}  // namespace

int64_t num_validation_tokens(int64_t num_tokens, double fraction) {
  AMOEBA_CHECK(fraction >= 0.0 && fraction <= 1.0, "data.validation_fraction is ", fraction,
               ", want 0 to 1");
  constexpr int64_t kUnit = 1000000000;
  const int64_t parts = std::llround(fraction * static_cast<double>(kUnit));
  // floor(num_tokens * parts / kUnit) without a product beyond 64 bits.
  return num_tokens / kUnit * parts + num_tokens % kUnit * parts / kUnit;
}

// ---------------------------------------------------------------------------------------------------

formats::Value DataCursor::to_value() const {
  formats::Array rows;
  for (const int64_t count : per_source) rows.emplace_back().data = count;
  return {formats::Object{{"step", {step}}, {"sequences", {sequences}}, {"per_source", {rows}}}};
}

DataCursor DataCursor::from_value(const formats::Value& value, std::string_view what) {
  const auto count = [&](std::string_view key, int64_t number) {
    AMOEBA_CHECK_KIND(kData, number >= 0, what, ": ", key, " is ", number, ", want at least 0");
    return number;
  };
  DataCursor cursor;
  cursor.step = count("step", value.integer_at("step", what));
  cursor.sequences = count("sequences", value.integer_at("sequences", what));
  for (const formats::Value& rows : value.array_at("per_source", what)) {
    const auto* number = rows.get_if<int64_t>();
    AMOEBA_CHECK_KIND(kData, number != nullptr, what, ": per_source holds a ", rows.type_name(),
                      ", want integers");
    cursor.per_source.push_back(count("per_source", *number));
  }
  return cursor;
}

// ---------------------------------------------------------------------------------------------------

ValidationSet::ValidationSet(const Sources& sources, const RunConfig& config,
                             int32_t end_of_document)
    : end_of_document_(end_of_document) {
  const int64_t seq_len = checked_seq_len(config);
  for (int64_t i = 0, before = -1; num_windows() > before; ++i) {
    before = num_windows();
    for (const auto& source : sources) {
      const int64_t size = source->num_tokens();
      const int64_t held_out = num_validation_tokens(size, config.data.validation_fraction);
      const bool is_short = i == 0 && held_out > 0 && held_out < seq_len;
      if (is_short || i < held_out / seq_len) {
        windows_.push_back(
            {source.get(), size - held_out + i * seq_len - 1, is_short ? held_out : seq_len});
      }
    }
  }
}

ValidationBatch ValidationSet::batch(int64_t first_window, int64_t count) const {
  AMOEBA_CHECK(first_window >= 0 && count >= 1 && first_window <= num_windows() - count,
               "validation: windows [", first_window, ", ", first_window + count,
               "), want a range inside [0, ", num_windows(), ")");
  int64_t width = 0;
  for (int64_t row = 0; row < count; ++row) {
    width = std::max(width, windows_[static_cast<size_t>(first_window + row)].length);
  }
  ValidationBatch out{make_batch(count, width), 0};
  for (int64_t row = 0; row < count; ++row) {
    out.num_bytes += fill_row(out.micro_batch, row,
                              windows_[static_cast<size_t>(first_window + row)], end_of_document_);
  }
  return out;
}

ValidationData open_validation_data(FileSystem& files, const RunConfig& config,
                                    const formats::Tokenizer& tokenizer) {
  Sources sources = open_sources(files, config.data, tokenizer);
  ValidationSet set(sources, config, tokenizer.end_of_document());
  return {std::move(sources), std::move(set)};
}

TrainingData open_training_data(FileSystem& files, const RunConfig& config,
                                const formats::Tokenizer& tokenizer) {
  ValidationData data = open_validation_data(files, config, tokenizer);
  return {std::move(data.sources), tokenizer.end_of_document(), std::move(data.set)};
}

// ---------------------------------------------------------------------------------------------------

DataLoader::DataLoader(const TrainingData& data, const RunConfig& config)
    : training_(config.training),
      seq_len_(checked_seq_len(config)),
      seed_(static_cast<uint64_t>(config.training.seed)),
      end_of_document_(data.end_of_document) {
  global_batch_size(training_, 0);  // checks its keys
  std::vector<int64_t> sizes;
  for (const auto& source : data.sources) {
    const int64_t size = source->num_tokens();
    sizes.push_back(size - num_validation_tokens(size, config.data.validation_fraction));
    AMOEBA_CHECK_KIND(kData, sizes.back() > seq_len_, "data '", source->name(), "': text of ",
                      sizes.back(), " tokens is shorter than one sequence of ", seq_len_ + 1);
  }
  const std::vector<double> weights = blend_weights(config.data, sizes);
  for (size_t i = 0; i < sizes.size(); ++i) {
    sources_.push_back({data.sources[i].get(), sizes[i], weights[i]});
    start_epoch(i, 0);
  }
  cursor_.per_source.assign(sizes.size(), 0);
}

void DataLoader::start_epoch(size_t source, int64_t epoch) {
  Source& s = sources_[source];
  const uint64_t counter = (static_cast<uint64_t>(source) << 32) | static_cast<uint64_t>(epoch);
  const int64_t last_target = s.num_training_tokens - 1;
  const int64_t num_phases = std::min(seq_len_, last_target - seq_len_ + 1);
  s.epoch = epoch;
  s.index = 0;
  s.phase = static_cast<int64_t>(random_uniform(seed_, kPhaseStream, counter) *
                                 static_cast<double>(num_phases));
  s.order = Permutation((last_target - s.phase) / seq_len_, seed_,
                        random_bits(seed_, kOrderStream, counter));
}

size_t DataLoader::choose_source() const {
  size_t best = 0;
  double largest_deficit = 0.0;
  for (size_t i = 0; i < sources_.size(); ++i) {
    const double deficit = sources_[i].weight * static_cast<double>(cursor_.sequences + 1) -
                           static_cast<double>(cursor_.per_source[i]);
    if (i == 0 || deficit > largest_deficit) {
      best = i;
      largest_deficit = deficit;
    }
  }
  return best;
}

int64_t DataLoader::next_window(size_t source) {
  Source& s = sources_[source];
  if (s.index == s.order.size()) start_epoch(source, s.epoch + 1);
  return s.order(s.index++) * seq_len_ + s.phase;
}

MicroBatch DataLoader::next_micro_batch() {
  MicroBatch batch = make_batch(training_.local_batch_size, seq_len_);
  for (int64_t row = 0; row < batch.batch_size; ++row) {
    const size_t source = choose_source();
    const DataWindow window{sources_[source].tokens, next_window(source), seq_len_};
    fill_row(batch, row, window, end_of_document_);
    ++cursor_.sequences;
    ++cursor_.per_source[source];
  }
  return batch;
}

StepBatch DataLoader::next_step() {
  StepBatch step;
  const int64_t size = global_batch_size(training_, cursor_.step);
  for (int64_t i = 0; i < size / training_.local_batch_size; ++i) {
    step.micro_batches.push_back(next_micro_batch());
    step.valid_tokens += step.micro_batches.back().valid_tokens;
    step.num_tokens += step.micro_batches.back().num_tokens;
  }
  ++cursor_.step;
  return step;
}

void DataLoader::seek(const DataCursor& cursor) {
  AMOEBA_CHECK_KIND(kData, cursor.per_source.size() == sources_.size(), "data cursor: it counts ",
                    cursor.per_source.size(), " sources, data.path has ", sources_.size());
  int64_t rest = cursor.sequences;
  for (const int64_t rows : cursor.per_source) {
    AMOEBA_CHECK_KIND(kData, rows >= 0 && rows <= rest, "data cursor: a source has ", rows,
                      " rows, want 0 to ", rest);
    rest -= rows;
  }
  AMOEBA_CHECK_KIND(kData, rest == 0, "data cursor: ", rest, " of ", cursor.sequences,
                    " rows belong to no source");
  for (size_t i = 0; i < sources_.size(); ++i) {
    int64_t left = cursor.per_source[i];
    start_epoch(i, 0);
    while (left > sources_[i].order.size()) {  // epochs differ in length with their phase
      left -= sources_[i].order.size();
      start_epoch(i, sources_[i].epoch + 1);
    }
    sources_[i].index = left;
  }
  cursor_ = cursor;
}

int64_t DataLoader::num_training_tokens() const {
  int64_t sum = 0;
  for (const Source& source : sources_) sum += source.num_training_tokens;
  return sum;
}

}  // namespace amoeba::train
