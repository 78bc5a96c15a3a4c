#include "train/plain/data_loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "support/errors.h"
#include "support/memory_file_system.h"

namespace amoeba::train {
namespace {

using formats::TokenSource;

constexpr int32_t kEnd = 1000000;  // end of document

// Tokens given one by one, so that each can be told from every other. Token t stands for t % 3 + 1
// bytes, which catches a count of tokens where bytes are meant.
class ListSource final : public TokenSource {
 public:
  // A document begins behind each kEnd and at each of `documents`.
  ListSource(std::string name, std::vector<int32_t> tokens, std::set<int64_t> documents = {})
      : name_(std::move(name)), tokens_(std::move(tokens)), documents_(std::move(documents)) {}
  const std::string& name() const override { return name_; }
  int64_t num_tokens() const override { return static_cast<int64_t>(tokens_.size()); }
  int64_t num_documents() const override { return 1; }
  int64_t next_document(int64_t begin, int64_t end) const override {
    for (int64_t i = begin + 1; i < end; ++i) {
      if (tokens_.at(static_cast<size_t>(i - 1)) == kEnd || documents_.contains(i)) return i;
    }
    return end;
  }
  int64_t num_bytes(int64_t begin, int64_t end) const override {
    int64_t bytes = 0;
    for (int64_t i = begin; i < end; ++i) bytes += bytes_of(tokens_.at(static_cast<size_t>(i)));
    return bytes;
  }
  void read(int64_t begin, std::span<int32_t> out) const override {
    for (size_t i = 0; i < out.size(); ++i) out[i] = tokens_.at(static_cast<size_t>(begin) + i);
  }
  static int64_t bytes_of(int32_t token) { return token == kEnd ? 0 : token % 3 + 1; }

 private:
  std::string name_;
  std::vector<int32_t> tokens_;
  std::set<int64_t> documents_;
};

// Tokens first, first + 1, ...; with `document` > 0 every document-th is an end of document.
std::unique_ptr<TokenSource> counting(int64_t size, int32_t first = 0, int64_t document = 0) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < size; ++i) {
    const bool ends = document > 0 && (i + 1) % document == 0;
    tokens.push_back(ends ? kEnd : first + static_cast<int32_t>(i));
  }
  return std::make_unique<ListSource>(cat("from ", first), std::move(tokens));
}

template <typename... Rest>
Sources make_sources(Rest... rest) {
  Sources sources;
  (sources.push_back(std::move(rest)), ...);
  return sources;
}

RunConfig make_config(int64_t seq_len, int64_t local, int64_t global, double fraction = 0.0) {
  RunConfig config;
  config.training.seq_len = seq_len;
  config.training.local_batch_size = local;
  config.training.global_batch_size = global;
  config.data.validation_fraction = fraction;
  return config;
}

TrainingData make_data(Sources sources, const RunConfig& config) {
  ValidationSet set(sources, config, kEnd);
  return {std::move(sources), kEnd, std::move(set)};
}

// The rows of the next `steps` steps as (first input token).
std::vector<int32_t> first_tokens(DataLoader& loader, int64_t steps) {
  std::vector<int32_t> out;
  for (int64_t i = 0; i < steps; ++i) {
    for (const MicroBatch& batch : loader.next_step().micro_batches) {
      for (int64_t row = 0; row < batch.batch_size; ++row) {
        out.push_back(batch.tokens[static_cast<size_t>(row * batch.seq_len)]);
      }
    }
  }
  return out;
}

TEST(NumValidationTokens, IsTheFlooredProduct) {
  const struct {
    int64_t tokens;
    double fraction;
    int64_t want;
  } cases[] = {
      {4298239, 0.05, 214911},
      {100, 0.29, 29},  // 0.29 * 100 is below 29 in floating point
      {100, 0.07, 7},
      {0, 0.5, 0},
      {7, 0.0, 0},
      {7, 1.0, 7},
      {19, 0.1, 1},
      {3, 1e-10, 0},
      {INT64_MAX, 1.0, INT64_MAX},
      {INT64_MAX, 0.5, INT64_MAX / 2},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(num_validation_tokens(c.tokens, c.fraction), c.want)
        << c.tokens << ", " << c.fraction;
  }
  for (const double fraction : {-0.1, 1.5, std::nan("")}) {
    EXPECT_EQ(test::error_message(ErrorKind::kUsage, [&] { num_validation_tokens(9, fraction); }),
              cat("data.validation_fraction is ", fraction, ", want 0 to 1"));
  }
}

TEST(DataLoader, EveryWindowOfAnEpochComesOnce) {
  const struct {
    int64_t tokens, seq_len;
    double fraction;
  } cases[] = {{1000, 7, 0.0}, {1000, 7, 0.25}, {100, 10, 0.1}, {8, 7, 0.0}, {9, 7, 0.0},
               {15, 7, 0.0},   {16, 7, 0.0},    {50, 1, 0.3},   {2, 1, 0.0}};
  for (const auto& c : cases) {
    const RunConfig config = make_config(c.seq_len, 1, 1, c.fraction);
    const TrainingData data = make_data(make_sources(counting(c.tokens)), config);
    DataLoader loader(data, config);
    const int64_t end = c.tokens - num_validation_tokens(c.tokens, c.fraction);
    EXPECT_EQ(loader.num_training_tokens(), end);
    std::set<int64_t> phases;
    for (int64_t epoch = 0; epoch < 40; ++epoch) {
      const int64_t first = loader.next_step().micro_batches[0].tokens[0];
      const int64_t phase = first % c.seq_len;
      const int64_t windows = (end - 1 - phase) / c.seq_len;
      std::set<int64_t> seen = {first};
      for (int64_t i = 1; i < windows; ++i) {
        const MicroBatch batch = loader.next_step().micro_batches[0];
        EXPECT_EQ(batch.tokens[0] % c.seq_len, phase);
        EXPECT_LT(batch.targets.back(), end);
        seen.insert(batch.tokens[0]);
      }
      EXPECT_EQ(static_cast<int64_t>(seen.size()), windows) << c.tokens << ", epoch " << epoch;
      phases.insert(phase);
    }
    // 40 draws miss one of at most 10 phases with probability 0.15 at most; the seed is fixed.
    EXPECT_EQ(static_cast<int64_t>(phases.size()), std::min(c.seq_len, end - c.seq_len));
  }
}

TEST(DataLoader, TargetsAreTheNextTokens) {
  const RunConfig config = make_config(16, 3, 6);
  const TrainingData data = make_data(make_sources(counting(500)), config);
  DataLoader loader(data, config);
  const StepBatch step = loader.next_step();
  EXPECT_EQ(step.num_tokens, 96);
  EXPECT_EQ(step.valid_tokens, 96);
  ASSERT_EQ(step.micro_batches.size(), 2u);
  for (const MicroBatch& batch : step.micro_batches) {
    EXPECT_EQ(batch.batch_size, 3);
    EXPECT_EQ(batch.seq_len, 16);
    EXPECT_EQ(batch.valid_tokens, 48);
    EXPECT_EQ(batch.num_tokens, 48);
    EXPECT_TRUE(batch.token_mask.empty());
    ASSERT_EQ(batch.tokens.size(), 48u);
    for (size_t i = 0; i < 48; ++i) {
      EXPECT_EQ(batch.tokens[i], batch.tokens[i / 16 * 16] + static_cast<int32_t>(i % 16));
      EXPECT_EQ(batch.targets[i], batch.tokens[i] + 1);
      EXPECT_EQ(batch.positions[i], static_cast<int32_t>(i % 16));
    }
    EXPECT_EQ(batch.segments, (std::vector<Segment>{{0, 0, 16}, {1, 0, 16}, {2, 0, 16}}));
  }
}

TEST(DataLoader, OrderDependsOnTheSeedNotOnTheBatchSizes) {
  const auto order = [](int64_t seed, int64_t local, int64_t global, int64_t steps) {
    RunConfig config = make_config(5, local, global);
    config.training.seed = seed;
    const TrainingData data = make_data(make_sources(counting(400), counting(300, 1000)), config);
    DataLoader loader(data, config);
    return first_tokens(loader, steps);
  };
  const std::vector<int32_t> base = order(1, 1, 1, 24);
  EXPECT_EQ(order(1, 4, 4, 6), base);
  EXPECT_EQ(order(1, 2, 8, 3), base);
  EXPECT_EQ(order(1, 4, 0, 6), base);  // 0: the local batch
  EXPECT_NE(order(2, 1, 1, 24), base);
  EXPECT_FALSE(std::is_sorted(base.begin(), base.end()));
}

TEST(DataLoader, SourcesAndEpochsHaveOrdersOfTheirOwn) {
  const RunConfig config = make_config(1, 1, 1);
  const TrainingData data = make_data(make_sources(counting(51), counting(51)), config);
  DataLoader loader(data, config);
  std::map<int64_t, std::vector<int32_t>> orders;  // of (source, epoch); equal sources take turns
  for (int64_t i = 0; i < 200; ++i)
    orders[i % 2 + i / 100 * 2].push_back(first_tokens(loader, 1)[0]);
  for (int64_t a = 0; a < 4; ++a) {
    for (int64_t b = 0; b < a; ++b) EXPECT_NE(orders[a], orders[b]) << a << ", " << b;
  }
}

// ---------------------------------------------------------------------------------------------------

TEST(DataLoader, ContinuesIdenticallyFromEveryCursor) {
  RunConfig config = make_config(9, 2, 4, 0.1);
  const TrainingData data =
      make_data(make_sources(counting(120), counting(90, 1000, 13), counting(14, 2000, 2)), config);
  for (const std::vector<double>& weights : {std::vector<double>{}, {1.0, 2.0, 0.5}}) {
    config.data.weights = weights;
    DataLoader whole(data, config);
    constexpr size_t kSteps = 40;  // each source is begun anew several times
    std::vector<StepBatch> steps;
    std::vector<DataCursor> cursors = {whole.cursor()};
    for (size_t i = 0; i < kSteps; ++i) {
      steps.push_back(whole.next_step());
      cursors.push_back(whole.cursor());
    }
    EXPECT_EQ(cursors.back().step, 40);
    EXPECT_EQ(cursors.back().sequences, 160);
    DataLoader used(data, config);  // seeks forwards and backwards from anywhere
    for (size_t split = 0; split <= kSteps; ++split) {
      const size_t from = split * 17 % (kSteps + 1);
      const std::string json = formats::write_json(cursors[from].to_value());
      used.seek(DataCursor::from_value(formats::parse_json(json, "cursor"), "cursor"));
      EXPECT_EQ(used.cursor(), cursors[from]);
      for (size_t i = from; i < kSteps; ++i) {
        ASSERT_EQ(used.next_step(), steps[i]) << "from " << from << ", step " << i;
      }
    }
  }
}

TEST(DataLoader, TheBatchRampDeliversWholeMicroBatchesAndResumes) {
  RunConfig config = make_config(5, 2, 8);
  config.training.batch_ramp_start = 2;
  config.training.batch_ramp_steps = 6;
  const TrainingData data = make_data(make_sources(counting(120), counting(90, 1000, 13)), config);
  DataLoader whole(data, config);
  const std::vector<size_t> micro_batches = {1, 1, 2, 2, 3, 3, 4, 4, 4};
  std::vector<StepBatch> steps;
  std::vector<DataCursor> cursors = {whole.cursor()};
  int64_t sequences = 0;
  for (size_t i = 0; i < micro_batches.size(); ++i) {
    steps.push_back(whole.next_step());
    cursors.push_back(whole.cursor());
    sequences += static_cast<int64_t>(2 * micro_batches[i]);
    ASSERT_EQ(steps[i].micro_batches.size(), micro_batches[i]) << i;
    EXPECT_EQ(steps[i].num_tokens, static_cast<int64_t>(micro_batches[i]) * 2 * 5) << i;
    EXPECT_EQ(whole.cursor().sequences, sequences) << i;
  }
  for (size_t from = 0; from <= steps.size(); ++from) {
    DataLoader resumed(data, config);
    resumed.seek(cursors[from]);
    for (size_t i = from; i < steps.size(); ++i) {
      ASSERT_EQ(resumed.next_step(), steps[i]) << "from " << from << ", step " << i;
    }
  }
  // The order of the sequences is the one without a ramp.
  config.training.batch_ramp_start = config.training.batch_ramp_steps = 0;
  DataLoader flat(data, config);
  std::vector<MicroBatch> all, ramped;
  for (int i = 0; i < 6; ++i) {
    for (const MicroBatch& batch : flat.next_step().micro_batches) all.push_back(batch);
  }
  for (const StepBatch& step : steps) {
    ramped.insert(ramped.end(), step.micro_batches.begin(), step.micro_batches.end());
  }
  ASSERT_EQ(all.size(), ramped.size());
  EXPECT_EQ(all, ramped);
}

TEST(DataLoader, BlendsByLargestDeficit) {
  const struct {
    std::vector<double> weights;
    std::vector<double> shares;
    std::vector<int64_t> first;  // sources of the first rows
  } cases[] = {
      {{}, {0.5, 0.3, 0.2}, {0, 1, 2, 0, 0, 1, 0, 2, 1, 0}},  // 500, 300 and 200 tokens
      {{1, 1, 1}, {1.0 / 3, 1.0 / 3, 1.0 / 3}, {0, 1, 2, 0, 1, 2}},
      {{0, 3, 1}, {0.0, 0.75, 0.25}, {1, 1, 2, 1, 1}},
      {{0, 0, 5}, {0.0, 0.0, 1.0}, {2, 2, 2}},
  };
  for (const auto& c : cases) {
    RunConfig config = make_config(4, 1, 1);
    config.data.weights = c.weights;
    const TrainingData data =
        make_data(make_sources(counting(500), counting(300, 1000), counting(200, 2000)), config);
    DataLoader loader(data, config);
    for (size_t k = 1; k <= 400; ++k) {
      const int32_t source = first_tokens(loader, 1)[0] / 1000;
      if (k <= c.first.size()) {
        EXPECT_EQ(source, c.first[k - 1]) << k;
      }
      for (size_t i = 0; i < 3; ++i) {
        const auto taken = static_cast<double>(loader.cursor().per_source[i]);
        ASSERT_LT(std::abs(c.shares[i] * static_cast<double>(k) - taken), 1.0 + 1e-9) << k;
      }
    }
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(c.shares[i] > 0.0 || loader.cursor().per_source[i] == 0) << i;
    }
  }
}

// ---------------------------------------------------------------------------------------------------

// A window over the whole of a small source, so that the row is known: S + 1 tokens have one phase.
TEST(DataLoader, CutsRowsAtDocuments) {
  constexpr int32_t kNone = kIgnoredTarget;
  const struct {
    std::vector<int32_t> tokens, targets, positions;
    std::vector<Segment> segments;
    int64_t valid;
  } cases[] = {
      {{1, 2, kEnd, 4, 5, 6}, {2, kEnd, kNone, 5, 6}, {0, 1, 2, 0, 1}, {{0, 0, 3}, {0, 3, 2}}, 4},
      {{kEnd, 2, 3, 4, 5, kEnd},
       {kNone, 3, 4, 5, kEnd},
       {0, 0, 1, 2, 3},
       {{0, 0, 1}, {0, 1, 4}},
       4},
      {{1, 2, 3, 4, kEnd, 6}, {2, 3, 4, kEnd, kNone}, {0, 1, 2, 3, 4}, {{0, 0, 5}}, 4},
      {{1, kEnd, 3, kEnd, 5, kEnd},
       {kEnd, kNone, kEnd, kNone, kEnd},
       {0, 1, 0, 1, 0},
       {{0, 0, 2}, {0, 2, 2}, {0, 4, 1}},
       3},
  };
  for (const auto& c : cases) {
    const RunConfig config = make_config(5, 1, 2);
    const TrainingData data =
        make_data(make_sources(std::make_unique<ListSource>("list", c.tokens)), config);
    const StepBatch step = DataLoader(data, config).next_step();
    ASSERT_EQ(step.micro_batches.size(), 2u);
    for (const MicroBatch& batch : step.micro_batches) {
      EXPECT_EQ(batch.tokens, std::vector<int32_t>(c.tokens.begin(), c.tokens.end() - 1));
      EXPECT_EQ(batch.targets, c.targets);
      EXPECT_EQ(batch.positions, c.positions);
      EXPECT_EQ(batch.segments, c.segments);
      EXPECT_EQ(batch.valid_tokens, c.valid);
    }
    EXPECT_EQ(step.valid_tokens, 2 * c.valid);
    EXPECT_EQ(step.num_tokens, 10);
  }
}

TEST(DataLoader, SegmentsOfAllRowsComeInOrder) {
  const RunConfig config = make_config(8, 3, 3);
  const TrainingData data = make_data(make_sources(counting(200, 0, 5)), config);
  DataLoader loader(data, config);
  for (int64_t i = 0; i < 20; ++i) {
    const MicroBatch batch = loader.next_step().micro_batches[0];
    int64_t covered = 0;
    for (const Segment& segment : batch.segments) {
      EXPECT_EQ(segment.row * 8 + segment.begin, covered);
      EXPECT_LE(segment.begin + segment.length, 8);
      EXPECT_GE(segment.length, 1);
      covered += segment.length;
    }
    EXPECT_EQ(covered, 24);
    EXPECT_EQ(batch.valid_tokens,
              24 - std::count(batch.targets.begin(), batch.targets.end(), kIgnoredTarget));
    EXPECT_EQ(std::count(batch.targets.begin(), batch.targets.end(), kIgnoredTarget),
              std::count(batch.tokens.begin(), batch.tokens.end(), kEnd));
  }
}

// ---------------------------------------------------------------------------------------------------

TEST(ValidationSet, TargetsAreTheHeldOutTokensOnce) {
  const RunConfig config = make_config(7, 1, 1, 0.25);
  const Sources sources = make_sources(counting(1000));
  const ValidationSet set(sources, config, kEnd);
  ASSERT_EQ(set.num_windows(), 35);  // of 250 tokens, the last 5 left out
  int32_t expected = 750;
  for (int64_t first = 0; first < 35; first += 4) {
    const int64_t count = std::min<int64_t>(4, 35 - first);
    const ValidationBatch batch = set.batch(first, count);
    EXPECT_EQ(batch.micro_batch.batch_size, count);
    EXPECT_EQ(batch.micro_batch.valid_tokens, count * 7);
    int64_t bytes = 0;
    for (size_t i = 0; i < batch.micro_batch.targets.size(); ++i, ++expected) {
      EXPECT_EQ(batch.micro_batch.targets[i], expected);
      EXPECT_EQ(batch.micro_batch.tokens[i], expected - 1);
      EXPECT_EQ(batch.micro_batch.positions[i], static_cast<int32_t>(i % 7));
      bytes += ListSource::bytes_of(expected);
    }
    EXPECT_EQ(batch.num_bytes, bytes);
  }
  EXPECT_EQ(expected, 995);
}

TEST(ValidationSet, TrainingNeverSeesItsTargets) {
  const RunConfig config = make_config(6, 2, 2, 0.3);
  const TrainingData data = make_data(make_sources(counting(100)), config);
  std::set<int32_t> held_out, trained;
  for (int64_t i = 0; i < data.validation.num_windows(); ++i) {
    const MicroBatch batch = data.validation.batch(i, 1).micro_batch;
    held_out.insert(batch.targets.begin(), batch.targets.end());
  }
  EXPECT_EQ(held_out.size(), 30u);
  DataLoader loader(data, config);
  for (int64_t i = 0; i < 100; ++i) {
    const MicroBatch batch = loader.next_step().micro_batches[0];
    trained.insert(batch.tokens.begin(), batch.tokens.end());
    trained.insert(batch.targets.begin(), batch.targets.end());
  }
  EXPECT_EQ(*trained.rbegin(), 69);
  EXPECT_EQ(*held_out.begin(), 70);
}

// Megatron's index may part documents that no end-of-document token ends.
TEST(ValidationSet, DocumentsEndWhereTheSourceSays) {
  const Sources sources = make_sources(std::make_unique<ListSource>(
      "list", std::vector<int32_t>{10, 11, 12, 13, 14, 15, 16, 17}, std::set<int64_t>{0, 2, 3, 7}));
  const ValidationSet set(sources, make_config(4, 1, 1, 1.0), kEnd);
  ASSERT_EQ(set.num_windows(), 2);
  const auto [rows, num_bytes] = set.batch(0, 2);
  EXPECT_EQ(rows.tokens, (std::vector<int32_t>{kEnd, 10, 11, 12, 13, 14, 15, 16}));
  EXPECT_EQ(rows.targets, (std::vector<int32_t>{10, 11, -100, -100, 14, 15, 16, -100}));
  EXPECT_EQ(rows.positions, (std::vector<int32_t>{0, 1, 2, 0, 0, 1, 2, 3}));
  EXPECT_EQ(rows.segments, (std::vector<Segment>{{0, 0, 3}, {0, 3, 1}, {1, 0, 4}}));
  EXPECT_EQ(rows.valid_tokens, 5);
  int64_t want = 0;
  for (const int32_t target : {10, 11, 14, 15, 16}) want += ListSource::bytes_of(target);
  EXPECT_EQ(num_bytes, want);
}

TEST(ValidationSet, CountsTheBytesOfValidTargetsOnly) {
  // Held out: tokens 4 to 9. The first input ends a document, so its target is ignored.
  const Sources sources = make_sources(std::make_unique<ListSource>(
      "list", std::vector<int32_t>{0, 0, 0, kEnd, 1, 2, kEnd, 4, 5, 8}));
  const ValidationSet set(sources, make_config(3, 1, 1, 0.6), kEnd);
  ASSERT_EQ(set.num_windows(), 2);
  const ValidationBatch batch = set.batch(0, 2);
  const MicroBatch& rows = batch.micro_batch;
  EXPECT_EQ(rows.tokens, (std::vector<int32_t>{kEnd, 1, 2, kEnd, 4, 5}));
  EXPECT_EQ(rows.targets, (std::vector<int32_t>{-100, 2, kEnd, -100, 5, 8}));
  EXPECT_EQ(rows.positions, (std::vector<int32_t>{0, 0, 1, 0, 0, 1}));
  EXPECT_EQ(rows.segments, (std::vector<Segment>{{0, 0, 1}, {0, 1, 2}, {1, 0, 1}, {1, 1, 2}}));
  EXPECT_EQ(rows.valid_tokens, 4);
  EXPECT_EQ(batch.num_bytes, 3 + 0 + 3 + 3);
}

TEST(ValidationSet, AWholeSourceBeginsWithAnEndOfDocument) {
  const Sources sources = make_sources(counting(7, 30));
  const ValidationSet set(sources, make_config(3, 1, 1, 1.0), kEnd);
  ASSERT_EQ(set.num_windows(), 2);
  const MicroBatch rows = set.batch(0, 2).micro_batch;
  EXPECT_EQ(rows.tokens, (std::vector<int32_t>{kEnd, 30, 31, 32, 33, 34}));
  EXPECT_EQ(rows.targets, (std::vector<int32_t>{30, 31, 32, 33, 34, 35}));
  EXPECT_EQ(rows.positions, (std::vector<int32_t>{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(rows.segments, (std::vector<Segment>{{0, 0, 3}, {1, 0, 3}}));
}

TEST(ValidationSet, AShortSourceIsOneWindowWithPadding) {
  // The second is all there is of its source; the end of document inside it is no padding.
  const Sources sources = make_sources(
      counting(11, 50), std::make_unique<ListSource>("short", std::vector<int32_t>{1, 2, kEnd, 4}));
  const ValidationSet set(sources, make_config(6, 1, 1, 1.0), kEnd);
  ASSERT_EQ(set.num_windows(), 2);  // 11 tokens are one full window, the rest of it is left out
  EXPECT_TRUE(set.batch(0, 1).micro_batch.token_mask.empty());
  const ValidationBatch batch = set.batch(0, 2);
  const MicroBatch& rows = batch.micro_batch;
  EXPECT_EQ(rows.tokens,
            (std::vector<int32_t>{kEnd, 50, 51, 52, 53, 54, kEnd, 1, 2, kEnd, kEnd, kEnd}));
  EXPECT_EQ(rows.targets,
            (std::vector<int32_t>{50, 51, 52, 53, 54, 55, 1, 2, kEnd, -100, -100, -100}));
  EXPECT_EQ(rows.token_mask, (std::vector<uint8_t>{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0}));
  EXPECT_EQ(rows.positions, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(rows.segments, (std::vector<Segment>{{0, 0, 6}, {1, 0, 6}}));
  EXPECT_EQ(rows.num_tokens, 10);
  EXPECT_EQ(rows.valid_tokens, 9);
  int64_t bytes = 0;
  for (const int32_t target : {50, 51, 52, 53, 54, 55, 1, 2}) bytes += ListSource::bytes_of(target);
  EXPECT_EQ(batch.num_bytes, bytes);
}

TEST(ValidationSet, PaddingBehindADocumentsEndJoinsTheLastSegment) {
  const Sources sources =
      make_sources(std::make_unique<ListSource>("short", std::vector<int32_t>{1, kEnd, 3, kEnd, 5}),
                   counting(8, 50));
  const ValidationSet set(sources, make_config(8, 1, 1, 1.0), kEnd);
  ASSERT_EQ(set.num_windows(), 2);
  const MicroBatch rows = set.batch(0, 2).micro_batch;
  const auto first_row = [](const auto& values) {
    return std::vector(values.begin(), values.begin() + 8);
  };
  EXPECT_EQ(first_row(rows.targets),
            (std::vector<int32_t>{1, kEnd, -100, kEnd, -100, -100, -100, -100}));
  EXPECT_EQ(first_row(rows.token_mask), (std::vector<uint8_t>{1, 1, 1, 1, 1, 0, 0, 0}));
  EXPECT_EQ(rows.segments, (std::vector<Segment>{{0, 0, 3}, {0, 3, 5}, {1, 0, 8}}));
  EXPECT_EQ(first_row(rows.positions), (std::vector<int32_t>{0, 1, 2, 0, 1, 2, 3, 4}));
  EXPECT_EQ(rows.num_tokens, 13);
  EXPECT_EQ(rows.valid_tokens, 11);
}

TEST(ValidationSet, AShortWindowAloneIsNotPadded) {
  const Sources sources = make_sources(
      std::make_unique<ListSource>("short", std::vector<int32_t>{1, kEnd, 3, kEnd, 5}));
  const ValidationSet set(sources, make_config(1 << 20, 1, 1, 1.0), kEnd);
  const MicroBatch row = set.batch(0, 1).micro_batch;
  EXPECT_EQ(row.seq_len, 5);
  EXPECT_EQ(row.targets, (std::vector<int32_t>{1, kEnd, -100, kEnd, -100}));
  EXPECT_TRUE(row.token_mask.empty());
  EXPECT_EQ(row.segments, (std::vector<Segment>{{0, 0, 3}, {0, 3, 2}}));
  EXPECT_EQ(row.valid_tokens, 3);
}

TEST(ValidationSet, NothingHeldOutIsNoWindow) {
  const Sources sources = make_sources(counting(40));
  EXPECT_EQ(ValidationSet(sources, make_config(6, 1, 1, 0.0), kEnd).num_windows(), 0);
  EXPECT_EQ(ValidationSet(sources, make_config(6, 1, 1, 0.025), kEnd).num_windows(), 1);  // 1 token
}

TEST(ValidationSet, SourcesTakeTurns) {
  const Sources sources = make_sources(counting(8), counting(20, 100), counting(3, 200));
  const ValidationSet set(sources, make_config(4, 1, 1, 1.0), kEnd);
  ASSERT_EQ(set.num_windows(), 8);  // 2, 5 and a short one
  std::vector<int32_t> last_targets;
  for (int64_t i = 0; i < 8; ++i) {
    last_targets.push_back(set.batch(i, 1).micro_batch.targets.back());
  }
  EXPECT_EQ(last_targets, (std::vector<int32_t>{3, 103, 202, 7, 107, 111, 115, 119}));
}

TEST(ValidationSet, RefusesWindowsOutOfRange) {
  const Sources sources = make_sources(counting(40));
  const ValidationSet set(sources, make_config(4, 1, 1, 1.0), kEnd);
  const auto message = [&](int64_t first, int64_t count) {
    return test::error_message(ErrorKind::kUsage, [&] { set.batch(first, count); });
  };
  EXPECT_EQ(message(8, 3), "validation: windows [8, 11), want a range inside [0, 10)");
  EXPECT_EQ(message(-1, 1), "validation: windows [-1, 0), want a range inside [0, 10)");
  EXPECT_EQ(message(2, 0), "validation: windows [2, 2), want a range inside [0, 10)");
  EXPECT_EQ(ValidationSet(sources, make_config(4, 1, 1, 0.0), kEnd).num_windows(), 0);
}

// ---------------------------------------------------------------------------------------------------

TEST(OpenData, ReadsTheFilesOfTheConfiguration) {
  test::MemoryFileSystem files;
  for (const char* name : {"/a", "/b"}) {
    const auto file = files.create(name);
    for (int i = 0; i < 50; ++i) file->write("four");
    file->write(";");
    file->close();
  }
  const formats::ByteTokenizer tokenizer;
  RunConfig config = make_config(10, 2, 4, 0.1);
  EXPECT_EQ(
      test::error_message(ErrorKind::kUsage, [&] { open_training_data(files, config, tokenizer); }),
      "data.path is empty, want at least one file");
  config.data.path = {"/a", "/b"};
  const TrainingData data = open_training_data(files, config, tokenizer);
  EXPECT_EQ(data.end_of_document, 256);
  EXPECT_EQ(data.validation.num_windows(), 4);
  EXPECT_EQ(data.validation.batch(0, 4).num_bytes, 40);
  DataLoader loader(data, config);
  EXPECT_EQ(loader.num_training_tokens(), 2 * 181);
  EXPECT_EQ(loader.next_step().valid_tokens, 40);
  config.data.document_separator = ";";
  config.data.validation_fraction = 1.0;
  const ValidationData whole = open_validation_data(files, config, tokenizer);
  EXPECT_EQ(whole.sources.size(), 2u);
  EXPECT_EQ(whole.set.num_windows(), 40);
}

TEST(DataLoader, RefusesWhatCannotBeTrainedOn) {
  const auto message = [](ErrorKind kind, int64_t tokens, const auto& change) {
    return test::error_message(kind, [&] {
      const RunConfig valid = make_config(8, 2, 4, 0.0);
      const TrainingData data =
          make_data(make_sources(counting(100), counting(tokens, 500)), valid);
      RunConfig config = valid;
      change(config);
      DataLoader(data, config);
    });
  };
  const auto nothing = [](RunConfig&) {};
  EXPECT_EQ(message(ErrorKind::kData, 8, nothing),
            "data 'from 500': text of 8 tokens is shorter than one sequence of 9");
  EXPECT_EQ(message(ErrorKind::kData, 10,
                    [](RunConfig& config) { config.data.validation_fraction = 0.2; }),
            "data 'from 500': text of 8 tokens is shorter than one sequence of 9");
  const struct {
    std::vector<double> weights;
    std::string message;
  } cases[] = {
      {{1.0}, "data.weights has 1 numbers, want 2, one for each file of data.path"},
      {{1.0, -2.0}, "data.weights holds -2, want finite numbers of at least 0"},
      {{INFINITY, 1.0}, "data.weights holds inf, want finite numbers of at least 0"},
      {{0.0, 0.0}, "data.weights add up to 0, want a finite number above 0"},
      {{1e308, 1e308}, "data.weights add up to inf, want a finite number above 0"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(
        message(ErrorKind::kUsage, 90, [&](RunConfig& config) { config.data.weights = c.weights; }),
        c.message);
  }
  EXPECT_EQ(message(ErrorKind::kUsage, 90, [](RunConfig& config) { config.training.seq_len = 0; }),
            "training.seq_len is 0, want at least 1");
  EXPECT_EQ(message(ErrorKind::kUsage, 90,
                    [](RunConfig& config) { config.training.local_batch_size = 0; }),
            "configuration: training.local_batch_size is 0, want at least 1");
  for (const int64_t global : {5, -2}) {
    EXPECT_EQ(message(ErrorKind::kUsage, 90,
                      [&](RunConfig& config) { config.training.global_batch_size = global; }),
              cat("configuration: training.global_batch_size is ", global,
                  " and training.local_batch_size is 2, want a multiple"));
  }
}

TEST(DataCursor, RefusesWhatIsNoCursor) {
  const struct {
    std::string json, message;
  } cases[] = {
      {R"({"step": -1, "sequences": 0, "per_source": []})", "m: step is -1, want at least 0"},
      {R"({"step": 0, "sequences": -5, "per_source": []})", "m: sequences is -5, want at least 0"},
      {R"({"step": 0, "sequences": 0, "per_source": [-3]})",
       "m: per_source is -3, want at least 0"},
      {R"({"step": 0, "sequences": 0, "per_source": ["x"]})",
       "m: per_source holds a string, want integers"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(test::error_message(
                  ErrorKind::kData,
                  [&] { DataCursor::from_value(formats::parse_json(c.json, "json"), "m"); }),
              c.message);
  }
  EXPECT_NE(test::error_message(
                ErrorKind::kData,
                [] { DataCursor::from_value(formats::parse_json(R"({"step": 1})", "j"), "m"); })
                .find("sequences"),
            std::string::npos);
}

TEST(DataLoader, RefusesCursorsOfOtherSources) {
  const RunConfig config = make_config(8, 2, 4);
  const TrainingData data = make_data(make_sources(counting(100), counting(50)), config);
  DataLoader loader(data, config);
  loader.next_step();
  const DataCursor before = loader.cursor();
  const struct {
    std::vector<int64_t> per_source;
    std::string message;
  } cases[] = {
      {{4}, "data cursor: it counts 1 sources, data.path has 2"},
      {{3, 2}, "data cursor: a source has 2 rows, want 0 to 1"},
      {{5, -1}, "data cursor: a source has 5 rows, want 0 to 4"},
      {{INT64_MAX, INT64_MAX}, "data cursor: a source has 9223372036854775807 rows, want 0 to 4"},
      {{-1, 4}, "data cursor: a source has -1 rows, want 0 to 4"},
      {{2, 1}, "data cursor: 1 of 4 rows belong to no source"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(test::error_message(ErrorKind::kData,
                                  [&] {
                                    loader.seek({1, 4, c.per_source});
                                  }),
              c.message);
    EXPECT_EQ(loader.cursor(), before);
  }
}

}  // namespace
}  // namespace amoeba::train
