#include "train/generate.h"

#include <algorithm>
#include <span>
#include <utility>

#include "amoeba/error.h"
#include "base/clock.h"
#include "base/rng.h"
#include "train/cached_model.h"
#include "train/plain/text_stream.h"

namespace amoeba::train {

namespace {

constexpr uint64_t kSampleStream = 0x73616d706c65;  // "sample"

struct Sequence {
  int64_t prompt = -1;           // its number; -1: the row is vacant
  std::vector<int32_t> seen;     // what the row holds
  std::vector<int32_t> pending;  // what it is to read next
  uint64_t num_draws = 0;
  int64_t times_shortened = 0;
  bool is_ended = true;
  TextStream stream{{}};
  Generated out;
};

// Sequences that are written together, one a row of the caches.
class Writer {
 public:
  Writer(nn::Model& model, const formats::Tokenizer& tokenizer, const GenerateOptions& options,
         int64_t num_rows)
      : tokenizer_(tokenizer),
        options_(options),
        model_(model, num_rows, options.context),
        sequences_(static_cast<size_t>(num_rows)) {}

  Sequence& sequence(int64_t row) { return sequences_[static_cast<size_t>(row)]; }
  const GenerateTimes& times() const { return times_; }

  // Appends `tokens` to what the row holds and begins a new text there.
  void begin(int64_t row, int64_t prompt, const std::vector<int32_t>& tokens);
  void vacate(int64_t row);
  bool any_left() const;
  // One token more for each sequence that has not ended.
  void step();

 private:
  void make_room(int64_t row);
  void read_alone(int64_t row);
  void read_together(const std::vector<int64_t>& rows);
  void take(int64_t row, std::span<const float> logits);
  void end(Sequence& sequence, EndReason reason);
  void add_text(Sequence& sequence, const std::string& text);

  const formats::Tokenizer& tokenizer_;
  const GenerateOptions& options_;
  CachedModel model_;
  std::vector<Sequence> sequences_;
  GenerateTimes times_;
};

void Writer::begin(int64_t row, int64_t prompt, const std::vector<int32_t>& tokens) {
  Sequence& s = sequence(row);
  s.prompt = prompt;
  s.pending.insert(s.pending.end(), tokens.begin(), tokens.end());
  AMOEBA_CHECK(!s.pending.empty(), "generate: the prompt is empty, want at least one character");
  s.stream = TextStream(options_.stop_strings);
  s.out = {};
  s.is_ended = false;
  if (options_.num_tokens == 0) end(s, EndReason::kNumTokens);
}

void Writer::vacate(int64_t row) {
  sequence(row) = {};
  model_.truncate(row, 0);
}

bool Writer::any_left() const {
  return std::any_of(sequences_.begin(), sequences_.end(),
                     [](const Sequence& s) { return !s.is_ended; });
}

void Writer::step() {
  std::vector<int64_t> together;
  for (int64_t row = 0; row < static_cast<int64_t>(sequences_.size()); ++row) {
    Sequence& s = sequence(row);
    if (s.is_ended) continue;
    if (options_.stop && options_.stop()) {
      end(s, EndReason::kInterrupted);
      continue;
    }
    make_room(row);
    if (s.pending.size() == 1 && !s.seen.empty()) {
      together.push_back(row);
    } else {
      read_alone(row);
    }
  }
  if (!together.empty()) read_together(together);
}

// A full context keeps its later half, or all that is new where that is more.
void Writer::make_room(int64_t row) {
  Sequence& s = sequence(row);
  const auto context = static_cast<size_t>(options_.context);
  if (s.seen.size() + s.pending.size() <= context) return;
  const size_t kept = std::clamp(s.pending.size(), context / 2, context);
  s.seen.insert(s.seen.end(), s.pending.begin(), s.pending.end());
  s.pending.assign(s.seen.end() - static_cast<std::ptrdiff_t>(kept), s.seen.end());
  s.seen.clear();
  model_.truncate(row, 0);
  ++s.times_shortened;
}

void Writer::read_alone(int64_t row) {
  const Clock clock;
  const auto count = static_cast<int64_t>(sequence(row).pending.size());
  const at::Tensor hidden = model_.read({&row, 1}, sequence(row).pending);
  const at::Tensor logits = model_.logits(hidden.narrow(0, count - 1, 1));
  times_.read_tokens += count;
  times_.read_seconds += clock.seconds();
  take(row, {logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel())});
}

void Writer::read_together(const std::vector<int64_t>& rows) {
  const Clock clock;
  std::vector<int32_t> tokens;
  for (const int64_t row : rows) tokens.push_back(sequence(row).pending[0]);
  const at::Tensor logits = model_.logits(model_.read(rows, tokens));  // [rows, V]
  const auto vocab_size = static_cast<size_t>(logits.size(1));
  const float* values = logits.const_data_ptr<float>();
  for (size_t i = 0; i < rows.size(); ++i) {
    take(rows[i], {values + i * vocab_size, vocab_size});
  }
  times_.decoded_tokens += static_cast<int64_t>(rows.size());
  times_.decode_seconds += clock.seconds();
}

// `logits` past the tokenizer's vocabulary are padding of the model's.
void Writer::take(int64_t row, std::span<const float> logits) {
  Sequence& s = sequence(row);
  s.seen.insert(s.seen.end(), s.pending.begin(), s.pending.end());
  s.pending.clear();
  const double uniform = random_uniform(options_.seed, kSampleStream, s.num_draws++);
  const auto vocab_size = static_cast<size_t>(tokenizer_.vocab_size());
  const int32_t token =
      sample_token(logits.first(std::min(logits.size(), vocab_size)), options_.sampling, uniform);
  ++s.out.num_tokens;
  if (token == tokenizer_.end_of_document()) {
    end(s, EndReason::kEndOfDocument);
    return;
  }
  s.pending.push_back(token);
  add_text(s, s.stream.push(tokenizer_.token_text(token)));
  if (s.stream.stopped()) {
    s.out.stop_string = s.stream.stop_string();
    end(s, EndReason::kStopString);
  } else if (s.out.num_tokens == options_.num_tokens) {
    end(s, EndReason::kNumTokens);
  }
}

void Writer::end(Sequence& sequence, EndReason reason) {
  add_text(sequence, sequence.stream.finish());
  sequence.out.reason = reason;
  sequence.is_ended = true;
}

void Writer::add_text(Sequence& sequence, const std::string& text) {
  if (text.empty()) return;
  sequence.out.text += text;
  if (options_.on_text) options_.on_text(sequence.prompt, text);
}

void check_options(const GenerateOptions& options) {
  AMOEBA_CHECK(options.context >= 2, "generate: context is ", options.context, ", want at least 2");
  AMOEBA_CHECK(options.batch_size >= 1, "generate: batch_size is ", options.batch_size,
               ", want at least 1");
  check_sampling(options.sampling);
}

}  // namespace

std::string_view name_of(EndReason reason) {
  constexpr std::string_view kNames[] = {"num_tokens", "end_of_document", "stop_string",
                                         "interrupted"};
  return kNames[static_cast<size_t>(reason)];
}

std::vector<Generated> generate_all(nn::Model& model, const formats::Tokenizer& tokenizer,
                                    const std::vector<std::string>& prompts,
                                    const GenerateOptions& options, GenerateTimes& times) {
  check_options(options);
  const auto num_prompts = static_cast<int64_t>(prompts.size());
  const int64_t num_rows = std::min(options.batch_size, num_prompts);
  std::vector<Generated> out(prompts.size());
  Writer writer(model, tokenizer, options, num_rows);
  for (int64_t next = 0; next < num_prompts || writer.any_left();) {
    for (int64_t row = 0; row < num_rows && next < num_prompts; ++row) {
      if (writer.sequence(row).prompt >= 0) continue;
      writer.begin(row, next, tokenizer.encode_prompt(prompts[static_cast<size_t>(next)]));
      ++next;
    }
    writer.step();
    for (int64_t row = 0; row < num_rows; ++row) {
      Sequence& s = writer.sequence(row);
      if (s.prompt < 0 || !s.is_ended) continue;
      out[static_cast<size_t>(s.prompt)] = std::move(s.out);
      writer.vacate(row);
    }
  }
  times = writer.times();
  return out;
}

Generated generate(nn::Model& model, const formats::Tokenizer& tokenizer, std::string_view prompt,
                   const GenerateOptions& options) {
  GenerateTimes times;
  return generate_all(model, tokenizer, {std::string(prompt)}, options, times)[0];
}

// ---------------------------------------------------------------------------------------------------

struct Conversation::State {
  State(nn::Model& model, const formats::Tokenizer& used_tokenizer,
        const GenerateOptions& used_options)
      : tokenizer(used_tokenizer),
        options(used_options),
        writer(model, used_tokenizer, options, /*num_rows=*/1) {}

  const formats::Tokenizer& tokenizer;
  GenerateOptions options;
  Writer writer;
  bool has_begun = false;
};

Conversation::Conversation(nn::Model& model, const formats::Tokenizer& tokenizer,
                           const GenerateOptions& options) {
  check_options(options);
  state_ = std::make_unique<State>(model, tokenizer, options);
}

Conversation::~Conversation() = default;

Generated Conversation::reply(std::string_view text) {
  AMOEBA_CHECK(!text.empty(), "generate: the text is empty, want at least one character");
  Writer& writer = state_->writer;
  std::vector<int32_t> tokens = state_->tokenizer.encode_prompt(text);
  if (state_->has_begun) {  // the prefix begins a text, not a turn
    const auto prefix = static_cast<std::ptrdiff_t>(state_->tokenizer.prefix().size());
    tokens.erase(tokens.begin(), tokens.begin() + prefix);
  }
  state_->has_begun = true;
  writer.begin(0, /*prompt=*/0, tokens);
  while (writer.any_left()) writer.step();
  return writer.sequence(0).out;
}

const GenerateTimes& Conversation::times() const { return state_->writer.times(); }

int64_t Conversation::times_shortened() const { return state_->writer.sequence(0).times_shortened; }

}  // namespace amoeba::train
