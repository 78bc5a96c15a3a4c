// A text goes through: added tokens in the raw text, normalizers, added tokens in the normalized
// text, pre-tokenizers, BPE; each on the pieces that the one before left. Errors name the file and
// the place in it.
#include "formats/tokenizer_json.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <span>
#include <unordered_map>
#include <variant>

#include "amoeba/error.h"
#include "base/hash.h"
#include "base/text.h"
#include "formats/added_tokens.h"
#include "formats/bpe.h"
#include "formats/byte_alphabet.h"
#include "formats/regex.h"
#include "formats/unicode.h"
#include "formats/value.h"

namespace amoeba::formats {

namespace {

// GPT-2's pattern, which `tokenizers` builds into ByteLevel.
constexpr std::string_view kByteLevelPattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t done = 0;
  for (size_t at = 0; !from.empty() && (at = text.find(from, at)) != text.npos; done = at) {
    out.append(text.substr(done, at - done)).append(to);
    at += from.size();
  }
  return out.append(text.substr(done));
}

// ---- Pre-tokenizers -----------------------------------------------------------------------------

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct Split {
  std::variant<Regex, std::string> pattern;
  Behavior behavior = Behavior::kIsolated;
  bool invert = false;
};
struct Metaspace {
  enum class Prepend { kAlways, kFirst, kNever };
  std::string mark;
  Prepend prepend = Prepend::kAlways;
};
struct PrefixSpace {};  // ByteLevel's add_prefix_space
using Step = std::variant<Split, Metaspace, PrefixSpace>;

struct Range {
  size_t begin = 0;
  size_t end = 0;
  bool is_match = false;
};

// Where `split` matches in `text` and what lies between, in order, nothing left out.
void find_ranges(const Split& split, std::string_view text, std::vector<Range>& ranges) {
  ranges.clear();
  size_t done = 0;
  const auto add = [&](size_t begin, size_t end) {
    if (begin > done) ranges.push_back({done, begin, split.invert});
    ranges.push_back({begin, end, !split.invert});
    done = end;
  };
  if (const auto* literal = std::get_if<std::string>(&split.pattern)) {
    for (size_t at = 0; (at = text.find(*literal, at)) != text.npos; at += literal->size()) {
      add(at, at + literal->size());
    }
  } else {
    const Regex& regex = std::get<Regex>(split.pattern);
    std::optional<size_t> last_end;
    for (size_t start = 0; start <= text.size();) {
      const auto match = regex.find(text, start);
      if (!match) break;
      if (match->begin == match->end && last_end == match->end) {  // an empty one behind a match
        if (start == text.size()) break;
        read_character(text, start);
        continue;
      }
      add(match->begin, match->end);
      start = match->end;
      last_end = match->end;
    }
  }
  if (done < text.size()) ranges.push_back({done, text.size(), split.invert});
}

// Joins or drops ranges as `behavior` says, in place.
void apply_behavior(Behavior behavior, std::vector<Range>& ranges) {
  if (behavior == Behavior::kRemoved) {
    std::erase_if(ranges, [](const Range& range) { return range.is_match; });
  }
  if (behavior == Behavior::kRemoved || behavior == Behavior::kIsolated) return;
  const bool backwards = behavior == Behavior::kMergedWithNext;
  if (backwards) std::reverse(ranges.begin(), ranges.end());
  std::vector<Range> kept;
  bool previous_is_match = false;
  for (const Range& range : ranges) {
    const bool joins = behavior == Behavior::kContiguous ? range.is_match == previous_is_match
                                                         : range.is_match && !previous_is_match;
    previous_is_match = range.is_match;
    if (!joins || kept.empty()) {
      kept.push_back(range);
    } else {
      kept.back().begin = std::min(kept.back().begin, range.begin);
      kept.back().end = std::max(kept.back().end, range.end);
    }
  }
  if (backwards) std::reverse(kept.begin(), kept.end());
  ranges = std::move(kept);
}

// ---- What a file may ask for --------------------------------------------------------------------

// Every text goes through every step: without bounds a short file could ask for any time and, with
// replacements that double a text one after another, any memory.
constexpr size_t kMaxSteps = 64;
constexpr size_t kMaxPrependBytes = 64;
constexpr size_t kMaxGrowth = 16;

// Counts steps and the factor by which they can lengthen a text.
class Budget {
 public:
  explicit Budget(std::string_view where) : where_(where) {}

  void add_step() {
    AMOEBA_CHECK_KIND(kData, ++num_steps_ <= kMaxSteps, where_, ": more than ", kMaxSteps,
                      " steps");
  }
  // `size` bytes become at most `replacement`.
  void add_growth(size_t size, size_t replacement) {
    if (replacement <= size) return;
    const size_t factor = (replacement + size - 1) / size;
    AMOEBA_CHECK_KIND(kData, factor <= kMaxGrowth / growth_, where_,
                      ": replacements make a text more than ", kMaxGrowth, " times as long");
    growth_ *= factor;
  }

 private:
  std::string where_;
  size_t num_steps_ = 0;
  size_t growth_ = 1;
};

// ---- Reading the file ---------------------------------------------------------------------------

using TextStep = std::function<std::string(std::string_view)>;

struct Decoder {
  bool byte_level = false;
  bool byte_fallback = false;
  std::vector<std::pair<std::string, std::string>> replacements = {};
  std::string strip = {};      // a text that is taken off the start of the whole,
  int64_t strip_count = 0;     // up to this many times
  std::string metaspace = {};  // this mark becomes a space,
  bool drops_first = false;    // or nothing in the first token
};

// Everything that tokenizer.json says, each part checked.
class Reader {
 public:
  Reader(const Value& root, const std::string& path) : root_(root), what_(path) {}

  std::vector<TextStep> normalizers() const {
    std::vector<TextStep> steps;
    Budget budget(what_ + ": normalizer");
    if (const Value* value = part(root_, "normalizer")) add_normalizer(*value, budget, steps);
    return steps;
  }

  // `byte_level`: whether the words are bytes.
  std::vector<Step> pre_tokenizers(bool& byte_level) const {
    std::vector<Step> steps;
    byte_level = false;
    Budget budget(what_ + ": pre_tokenizer");
    if (const Value* value = part(root_, "pre_tokenizer")) {
      add_pre_tokenizer(*value, budget, steps, byte_level);
    }
    return steps;
  }

  std::vector<int32_t> prefix() const {
    std::vector<int32_t> ids;
    if (const Value* value = part(root_, "post_processor")) add_prefix(*value, ids);
    return ids;
  }

  Decoder decoder() const {
    Decoder decoder;
    const Value* value = part(root_, "decoder");
    AMOEBA_CHECK_KIND(kData, value != nullptr, what_, ": decoder is null, want one");
    const std::string where = what_ + ": decoder";
    const std::string& type = value->string_at("type", where);
    if (type == "Metaspace") {
      const Metaspace metaspace = read_metaspace(*value, where);
      decoder.metaspace = metaspace.mark;
      decoder.drops_first = metaspace.prepend != Metaspace::Prepend::kNever;
      return decoder;
    }
    Budget budget(where);
    if (type != "Sequence") {
      add_decoder(*value, where, budget, decoder);
      return decoder;
    }
    for (const Value& item : value->array_at("decoders", where)) {
      add_decoder(item, where, budget, decoder);
    }
    return decoder;
  }

  std::vector<AddedToken> added_tokens() const {
    std::vector<AddedToken> tokens;
    const Value* list = part(root_, "added_tokens");
    if (list == nullptr) return tokens;
    const std::string where = what_ + ": added_tokens";
    AMOEBA_CHECK_KIND(kData, list->get_if<Array>() != nullptr, where, " is ", list->type_name(),
                      ", want an array");
    for (const Value& item : *list->get_if<Array>()) {
      const auto flag = [&](std::string_view key) {
        return item.find(key) != nullptr && item.bool_at(key, where);
      };
      const int64_t id = item.integer_at("id", where);
      tokens.push_back({item.string_at("content", where), checked_id(id, where), flag("special"),
                        flag("single_word"), flag("lstrip"), flag("rstrip"), flag("normalized")});
    }
    return tokens;
  }

  // With `byte_level`, tokens that stand for no bytes go to `others`: no text leads to them.
  BpeModel model(bool byte_level, std::vector<std::pair<std::string, int32_t>>& others) const {
    const std::string where = what_ + ": model";
    const Value& model = root_.at("model", what_);
    if (model.find("type") != nullptr) {
      const std::string& type = model.string_at("type", where);
      AMOEBA_CHECK_KIND(kData, type == "BPE", where, ": type is '", printable(type), "', want BPE");
    }
    refuse_unless(is_off(model.find("dropout")), where, "dropout", "none");
    refuse_unless(is_off(model.find("continuing_subword_prefix")), where,
                  "continuing_subword_prefix", "none");
    refuse_unless(is_off(model.find("end_of_word_suffix")), where, "end_of_word_suffix", "none");
    BpeModel bpe;
    bpe.byte_symbols = byte_level;
    const auto flag = [&](std::string_view key) {
      return part(model, key) != nullptr && model.bool_at(key, where);
    };
    bpe.byte_fallback = flag("byte_fallback");
    bpe.fuse_unknown = flag("fuse_unk");
    bpe.ignore_merges = flag("ignore_merges");

    std::unordered_map<std::string_view, int32_t> ids;
    const Value& vocabulary = model.at("vocab", where);
    AMOEBA_CHECK_KIND(kData, vocabulary.get_if<Object>() != nullptr, where, ": vocab is ",
                      vocabulary.type_name(), ", want an object");
    std::unordered_map<int32_t, std::string_view> owners;
    for (const auto& [text, value] : *vocabulary.get_if<Object>()) {
      const auto* number = value.get_if<int64_t>();
      AMOEBA_CHECK_KIND(kData, number != nullptr, where, ": token '", printable(text), "' is ",
                        value.type_name(), ", want an integer");
      const int32_t id = checked_id(*number, where);
      const auto [owner, is_new] = owners.emplace(id, text);
      AMOEBA_CHECK_KIND(kData, is_new, where, ": tokens '", printable(owner->second), "' and '",
                        printable(text), "' both have id ", id);
      ids.emplace(text, id);
      if (!byte_level) {
        bpe.vocabulary.emplace_back(text, id);
      } else if (auto bytes = byte_level_text(text)) {
        bpe.vocabulary.emplace_back(std::move(*bytes), id);
      } else {
        others.emplace_back(text, id);
      }
    }
    if (part(model, "unk_token") != nullptr) {
      const std::string& unknown = model.string_at("unk_token", where);
      const auto found = ids.find(unknown);
      AMOEBA_CHECK_KIND(kData, found != ids.end(), where, ": unk_token is '", printable(unknown),
                        "', want a token of the vocabulary");
      bpe.unknown = found->second;
    }
    for (const Value& merge : model.array_at("merges", where)) {
      const auto [left, right] = read_merge(merge, where);
      const auto left_id = ids.find(left), right_id = ids.find(right);
      AMOEBA_CHECK_KIND(kData, left_id != ids.end() && right_id != ids.end(), where, ": merge '",
                        printable(left), " ", printable(right),
                        "', want two tokens of the vocabulary");
      bpe.merges.emplace_back(left_id->second, right_id->second);
    }
    return bpe;
  }

 private:
  // A member that is there and not null.
  static const Value* part(const Value& value, std::string_view key) {
    const Value* found = value.find(key);
    return found == nullptr || found->get_if<std::monostate>() != nullptr ? nullptr : found;
  }

  static bool is_off(const Value* value) {
    if (value == nullptr || value->get_if<std::monostate>() != nullptr) return true;
    const auto* text = value->get_if<std::string>();
    const auto* number = value->get_if<double>();
    const auto* integer = value->get_if<int64_t>();
    return (text != nullptr && text->empty()) || (number != nullptr && *number == 0.0) ||
           (integer != nullptr && *integer == 0);
  }

  static void refuse_unless(bool ok, const std::string& where, std::string_view what,
                            std::string_view want) {
    AMOEBA_CHECK_KIND(kData, ok, where, ": ", what, " is set, want ", want,
                      " (it is not supported)");
  }

  [[noreturn]] static void refuse(const std::string& where, const std::string& type,
                                  std::string_view known) {
    fail(ErrorKind::kData,
         cat(where, ": type '", printable(type), "' is not supported, want one of ", known));
  }

  static int32_t checked_id(int64_t id, const std::string& where) {
    constexpr int64_t kMaxId = (1 << 24) - 1;
    AMOEBA_CHECK_KIND(kData, id >= 0 && id <= kMaxId, where, ": id is ", id, ", want 0 to ",
                      kMaxId);
    return static_cast<int32_t>(id);
  }

  static std::pair<std::string_view, std::string_view> read_merge(const Value& merge,
                                                                  const std::string& where) {
    if (const auto* text = merge.get_if<std::string>()) {
      const size_t space = text->find(' ');
      AMOEBA_CHECK_KIND(kData, space != text->npos && text->find(' ', space + 1) == text->npos,
                        where, ": merge '", printable(*text), "', want two tokens and one space");
      return {std::string_view(*text).substr(0, space), std::string_view(*text).substr(space + 1)};
    }
    const auto* pair = merge.get_if<Array>();
    const bool good = pair != nullptr && pair->size() == 2 &&
                      (*pair)[0].get_if<std::string>() != nullptr &&
                      (*pair)[1].get_if<std::string>() != nullptr;
    AMOEBA_CHECK_KIND(kData, good, where, ": a merge is ", merge.type_name(),
                      ", want a text or two of them");
    return {*(*pair)[0].get_if<std::string>(), *(*pair)[1].get_if<std::string>()};
  }

  // {"String": text} or {"Regex": pattern}.
  static std::variant<Regex, std::string> read_pattern(const Value& owner,
                                                       const std::string& where) {
    const Value& pattern = owner.at("pattern", where);
    if (pattern.find("Regex") != nullptr) return Regex(pattern.string_at("Regex", where), where);
    const std::string& text = pattern.string_at("String", where);
    AMOEBA_CHECK_KIND(kData, !text.empty(), where, ": pattern is empty, want a text");
    return text;
  }

  static Metaspace read_metaspace(const Value& value, const std::string& where) {
    Metaspace metaspace;
    metaspace.mark = value.string_at("replacement", where);
    size_t at = 0;
    const bool one = !metaspace.mark.empty() && (read_character(metaspace.mark, at), true) &&
                     at == metaspace.mark.size();
    AMOEBA_CHECK_KIND(kData, one, where, ": replacement is '", printable(metaspace.mark),
                      "', want one character");
    std::string scheme = "always";
    if (part(value, "prepend_scheme") != nullptr) {
      scheme = value.string_at("prepend_scheme", where);
    } else if (part(value, "add_prefix_space") != nullptr &&
               !value.bool_at("add_prefix_space", where)) {
      scheme = "never";
    }
    if (scheme == "always") {
      metaspace.prepend = Metaspace::Prepend::kAlways;
    } else if (scheme == "first") {
      metaspace.prepend = Metaspace::Prepend::kFirst;
    } else if (scheme == "never") {
      metaspace.prepend = Metaspace::Prepend::kNever;
    } else {
      refuse(where, scheme, "always, first, never");
    }
    return metaspace;
  }

  void add_normalizer(const Value& value, Budget& budget, std::vector<TextStep>& steps) const {
    const std::string where = what_ + ": normalizer";
    const std::string& type = value.string_at("type", where);
    budget.add_step();
    if (type == "Sequence") {
      for (const Value& item : value.array_at("normalizers", where)) {
        add_normalizer(item, budget, steps);
      }
    } else if (type == "NFC") {
      steps.push_back(nfc);
    } else if (type == "Lowercase") {
      steps.push_back(lower_case);
    } else if (type == "Prepend") {
      const std::string& prefix = value.string_at("prepend", where);
      AMOEBA_CHECK_KIND(kData, prefix.size() <= kMaxPrependBytes, where, ": prepend has ",
                        prefix.size(), " bytes, want at most ", kMaxPrependBytes);
      steps.push_back([prefix](std::string_view text) {
        return text.empty() ? std::string() : cat(prefix, text);
      });
    } else if (type == "Replace") {
      steps.push_back(read_replace(value, where, budget));
    } else {
      refuse(where, type, "Sequence, NFC, Lowercase, Prepend, Replace");
    }
  }

  static TextStep read_replace(const Value& value, const std::string& where, Budget& budget) {
    auto split = std::make_shared<Split>(Split{read_pattern(value, where)});
    const std::string content = value.string_at("content", where);
    if (const auto* text = std::get_if<std::string>(&split->pattern)) {
      budget.add_growth(text->size(), content.size());
    } else {
      budget.add_growth(1, content.size() + 1);  // an empty match is replaced, too
    }
    return [split, content](std::string_view text) {
      std::vector<Range> ranges;
      find_ranges(*split, text, ranges);
      std::string out;
      for (const Range& range : ranges) {
        out += range.is_match ? std::string_view(content)
                              : text.substr(range.begin, range.end - range.begin);
      }
      return out;
    };
  }

  void add_pre_tokenizer(const Value& value, Budget& budget, std::vector<Step>& steps,
                         bool& byte_level) const {
    const std::string where = what_ + ": pre_tokenizer";
    const std::string& type = value.string_at("type", where);
    budget.add_step();
    if (type == "Sequence") {
      for (const Value& item : value.array_at("pretokenizers", where)) {
        add_pre_tokenizer(item, budget, steps, byte_level);
      }
      return;
    }
    AMOEBA_CHECK_KIND(kData, !byte_level, where, ": '", printable(type),
                      "' comes behind ByteLevel, want ByteLevel last");
    if (type == "Split") {
      static constexpr std::pair<std::string_view, Behavior> kBehaviors[] = {
          {"Removed", Behavior::kRemoved},
          {"Isolated", Behavior::kIsolated},
          {"MergedWithPrevious", Behavior::kMergedWithPrevious},
          {"MergedWithNext", Behavior::kMergedWithNext},
          {"Contiguous", Behavior::kContiguous}};
      const std::string& name = value.string_at("behavior", where);
      const auto* behavior = std::find_if(std::begin(kBehaviors), std::end(kBehaviors),
                                          [&](const auto& entry) { return entry.first == name; });
      if (behavior == std::end(kBehaviors)) {
        refuse(where, name, "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
      }
      steps.push_back(
          Split{read_pattern(value, where), behavior->second, value.bool_at("invert", where)});
    } else if (type == "Digits") {
      steps.push_back(Split{Regex("\\p{N}", where), value.bool_at("individual_digits", where)
                                                        ? Behavior::kIsolated
                                                        : Behavior::kContiguous});
    } else if (type == "Metaspace") {
      Metaspace metaspace = read_metaspace(value, where);
      const std::string mark = metaspace.mark;
      steps.push_back(std::move(metaspace));
      if (value.find("split") == nullptr || value.bool_at("split", where)) {
        steps.push_back(Split{mark, Behavior::kMergedWithNext});
      }
    } else if (type == "ByteLevel") {
      if (value.bool_at("add_prefix_space", where)) steps.push_back(PrefixSpace());
      if (value.find("use_regex") == nullptr || value.bool_at("use_regex", where)) {
        steps.push_back(Split{Regex(kByteLevelPattern, where)});
      }
      byte_level = true;
    } else {
      refuse(where, type, "Sequence, Split, Digits, Metaspace, ByteLevel");
    }
  }

  void add_prefix(const Value& value, std::vector<int32_t>& ids) const {
    const std::string where = what_ + ": post_processor";
    const std::string& type = value.string_at("type", where);
    if (type == "Sequence") {
      for (const Value& item : value.array_at("processors", where)) add_prefix(item, ids);
    } else if (type == "TemplateProcessing") {
      for (const Value& item : value.array_at("single", where)) {
        if (item.find("SpecialToken") == nullptr) break;  // the text itself
        const std::string& name = item.at("SpecialToken", where).string_at("id", where);
        const Value& token = value.at("special_tokens", where).at(name, where);
        for (const Value& id : token.array_at("ids", where)) {
          const auto* number = id.get_if<int64_t>();
          AMOEBA_CHECK_KIND(kData, number != nullptr, where, ": an id of '", printable(name),
                            "' is ", id.type_name(), ", want an integer");
          ids.push_back(checked_id(*number, where));
        }
      }
    } else if (type != "ByteLevel") {
      refuse(where, type, "Sequence, ByteLevel, TemplateProcessing");
    }
  }

  void add_decoder(const Value& value, const std::string& where, Budget& budget,
                   Decoder& decoder) const {
    const std::string& type = value.string_at("type", where);
    budget.add_step();
    if (type == "ByteLevel") {
      decoder.byte_level = true;
    } else if (type == "ByteFallback") {
      decoder.byte_fallback = true;
    } else if (type == "Replace") {
      const auto pattern = read_pattern(value, where);
      const auto* text = std::get_if<std::string>(&pattern);
      refuse_unless(text != nullptr && !decoder.byte_fallback, where,
                    "a Replace with a pattern or behind ByteFallback",
                    "a String pattern before it");
      const std::string& content = value.string_at("content", where);
      budget.add_growth(text->size(), content.size());
      decoder.replacements.emplace_back(*text, content);
    } else if (type == "Strip") {
      refuse_unless(value.integer_at("stop", where) == 0, where, "Strip's stop", "0");
      decoder.strip = value.string_at("content", where);
      decoder.strip_count = value.integer_at("start", where);
    } else if (type != "Fuse") {
      refuse(where, type,
             "ByteLevel, Metaspace, or a Sequence of Replace, ByteFallback, Fuse, Strip");
    }
  }

  const Value& root_;
  const std::string what_;
};

// ---- The tokenizer ------------------------------------------------------------------------------

std::string normalize(const std::vector<TextStep>& steps, std::string text) {
  for (const TextStep& step : steps) text = step(text);
  return text;
}

// The tokens of one kind; what is looked for in normalized text is itself normalized.
std::vector<AddedToken> select(const std::vector<AddedToken>& tokens, bool normalized,
                               const std::vector<TextStep>& normalizers) {
  std::vector<AddedToken> selected;
  for (const AddedToken& token : tokens) {
    if (token.normalized != normalized) continue;
    selected.push_back(token);
    if (normalized) selected.back().text = normalize(normalizers, token.text);
  }
  return selected;
}

class JsonTokenizer final : public Tokenizer {
 public:
  JsonTokenizer(const std::string& path, std::string fingerprint, const Reader& reader,
                const std::string& end_of_document)
      : path_(path),
        fingerprint_(std::move(fingerprint)),
        normalizers_(reader.normalizers()),
        steps_(reader.pre_tokenizers(byte_level_)),
        prefix_(reader.prefix()),
        decoder_(reader.decoder()),
        all_added_(reader.added_tokens()),
        added_raw_(select(all_added_, false, normalizers_)),
        added_normalized_(select(all_added_, true, normalizers_)) {
    AMOEBA_CHECK_KIND(kData, decoder_.byte_level == byte_level_, path, ": the decoder is ",
                      decoder_.byte_level ? "" : "not ", "ByteLevel, want it as the pre_tokenizer");
    std::vector<std::pair<std::string, int32_t>> others;
    const BpeModel model = reader.model(byte_level_, others);
    bpe_ = std::make_unique<Bpe>(model, path + ": model");
    fill_token_texts(model, others);
    for (const int32_t id : prefix_) {
      AMOEBA_CHECK_KIND(kData, id < vocab_size(), path, ": post_processor: id is ", id,
                        ", want one below the vocabulary's ", vocab_size());
    }
    find_end_of_document(end_of_document);
  }

  std::string name() const override { return path_; }
  std::string fingerprint() const override { return fingerprint_; }
  int64_t vocab_size() const override { return static_cast<int64_t>(texts_.size()); }
  int32_t end_of_document() const override { return end_of_document_; }
  std::vector<int32_t> prefix() const override { return prefix_; }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    encode(text, /*special_as_text=*/true, ids);
    return ids;
  }

  std::vector<int32_t> encode_prompt(std::string_view text) const override {
    std::vector<int32_t> ids = prefix_;
    encode(text, /*special_as_text=*/false, ids);
    return ids;
  }

  std::string decode(const std::vector<int32_t>& ids) const override {
    std::string text;
    bool is_first = true;
    for (const int32_t id : ids) {
      AMOEBA_CHECK(id >= 0, "decode: token id is ", id, ", want at least 0");
      std::string_view piece = token_text(id);
      if (!decoder_.metaspace.empty() && is_first && !piece.empty()) {
        piece.remove_prefix(static_cast<size_t>(added_bytes(id)));
        is_first = false;
      }
      text += piece;
    }
    return text.erase(0, count_stripped(text));
  }

  std::string_view token_text(int32_t id) const override {
    return id >= 0 && id < vocab_size() ? std::string_view(texts_[static_cast<size_t>(id)])
                                        : std::string_view();
  }

  int64_t added_bytes(int32_t id) const override {
    const std::string_view text = token_text(id);
    if (decoder_.metaspace.empty()) return static_cast<int64_t>(count_stripped(text));
    // The whole of a run of marks goes, as in `tokenizers`.
    const size_t spaces = std::min(text.find_first_not_of(' '), text.size());
    return decoder_.drops_first ? static_cast<int64_t>(spaces) : 0;
  }

 private:
  struct Scratch {
    Bpe::Scratch bpe;
    std::vector<std::vector<Range>> ranges;  // one a step
  };

  void fill_token_texts(const BpeModel& model,
                        const std::vector<std::pair<std::string, int32_t>>& others) {
    // A file names its tokens one by one, so a much larger id is damage, not a vocabulary.
    const size_t num_named = model.vocabulary.size() + others.size() + all_added_.size();
    const auto put = [&](int32_t id, std::string text) {
      const auto index = static_cast<size_t>(id);
      AMOEBA_CHECK_KIND(kData, index < 2 * num_named + 65536, path_, ": token '", printable(text),
                        "' has id ", id, " among ", num_named, " tokens");
      if (index >= texts_.size()) texts_.resize(index + 1);
      texts_[index] = std::move(text);
    };
    for (const auto& [text, id] : model.vocabulary) put(id, byte_level_ ? text : decoded(text));
    for (const auto& [text, id] : others) put(id, decoded(text));
    for (const AddedToken& token : all_added_) {
      const std::string text = token.normalized ? normalize(normalizers_, token.text) : token.text;
      put(token.id, token.special ? std::string() : decoded(text));
    }
  }

  // Bytes that Strip takes off the start of a text.
  size_t count_stripped(std::string_view text) const {
    size_t size = 0;
    for (int64_t i = 0; i < decoder_.strip_count && !decoder_.strip.empty(); ++i) {
      if (!text.substr(size).starts_with(decoder_.strip)) break;
      size += decoder_.strip.size();
    }
    return size;
  }

  // What the decoder makes of one token.
  std::string decoded(const std::string& token) const {
    if (decoder_.byte_level) return byte_level_text(token).value_or(token);
    if (!decoder_.metaspace.empty()) return replace_all(token, decoder_.metaspace, " ");
    std::string text = token;
    for (const auto& [from, to] : decoder_.replacements) {
      text = replace_all(text, from, to);
    }
    const auto digit = [](char c) {
      return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    };
    if (decoder_.byte_fallback && text.size() == 6 && text.starts_with("<0x") && text[5] == '>' &&
        digit(text[3]) >= 0 && digit(text[4]) >= 0) {
      return std::string(1, static_cast<char>(digit(text[3]) * 16 + digit(text[4])));
    }
    return text;
  }

  void find_end_of_document(const std::string& named) {
    static const std::string kUsual[] = {"<|endoftext|>", "</s>",
                                         "<\uFF5Cend\u2581of\u2581sentence\uFF5C>",
                                         "<|end_of_text|>", "<eos>"};
    const auto id_of = [&](const std::string& text) {
      for (const AddedToken& token : all_added_) {
        if (token.special && token.text == text) return token.id;
      }
      return -1;
    };
    end_of_document_ = named.empty() ? -1 : id_of(named);
    AMOEBA_CHECK_KIND(kData, named.empty() || end_of_document_ >= 0, path_,
                      ": eos_token of tokenizer_config.json is '", printable(named),
                      "', want a special token of added_tokens");
    for (const std::string& text : kUsual) {
      if (end_of_document_ < 0) end_of_document_ = id_of(text);
    }
    AMOEBA_CHECK_KIND(kData, end_of_document_ >= 0, path_,
                      ": no token ends a document, want an eos_token in tokenizer_config.json "
                      "beside it, or a special token named one of ",
                      join(kUsual, ", "));
  }

  void encode(std::string_view text, bool special_as_text, std::vector<int32_t>& ids) const {
    std::string valid;
    if (!is_utf8(text)) text = valid = to_utf8(text);
    Scratch scratch;
    scratch.ranges.resize(steps_.size());
    for (const AddedTokens::Piece& piece : added_raw_.cut(text, special_as_text)) {
      if (piece.id >= 0) {
        ids.push_back(piece.id);
        continue;
      }
      std::string_view part = text.substr(piece.begin, piece.end - piece.begin);
      std::string normalized;
      if (!normalizers_.empty()) part = normalized = normalize(normalizers_, std::string(part));
      for (const AddedTokens::Piece& inner : added_normalized_.cut(part, special_as_text)) {
        if (inner.id >= 0) {
          ids.push_back(inner.id);
          continue;
        }
        const bool at_start = piece.begin == 0 && inner.begin == 0;
        pre_tokenize(0, part.substr(inner.begin, inner.end - inner.begin), at_start, scratch, ids);
      }
    }
  }

  // `at_start`: the word begins the whole text.
  void pre_tokenize(size_t index, std::string_view word, bool at_start, Scratch& scratch,
                    std::vector<int32_t>& ids) const {
    if (word.empty()) return;
    if (index == steps_.size()) return bpe_->encode(word, scratch.bpe, ids);
    const auto go_on = [&](std::string_view part, bool starts) {
      pre_tokenize(index + 1, part, starts, scratch, ids);
    };
    const Step& step = steps_[index];
    if (const auto* split = std::get_if<Split>(&step)) {
      std::vector<Range>& ranges = scratch.ranges[index];
      find_ranges(*split, word, ranges);
      apply_behavior(split->behavior, ranges);
      for (const Range& range : ranges) {
        go_on(word.substr(range.begin, range.end - range.begin), at_start && range.begin == 0);
      }
    } else if (const auto* metaspace = std::get_if<Metaspace>(&step)) {
      const bool prepend = metaspace->prepend == Metaspace::Prepend::kAlways ||
                           (metaspace->prepend == Metaspace::Prepend::kFirst && at_start);
      std::string marked = replace_all(word, " ", metaspace->mark);
      if (prepend && !marked.starts_with(metaspace->mark)) marked.insert(0, metaspace->mark);
      go_on(marked, at_start);
    } else {
      go_on(word.starts_with(' ') ? std::string(word) : cat(" ", word), at_start);
    }
  }

  std::string path_;
  std::string fingerprint_;
  std::vector<TextStep> normalizers_;
  bool byte_level_ = false;
  std::vector<Step> steps_;
  std::vector<int32_t> prefix_;
  Decoder decoder_;
  std::vector<AddedToken> all_added_;
  AddedTokens added_raw_;
  AddedTokens added_normalized_;
  std::unique_ptr<Bpe> bpe_;
  std::vector<std::string> texts_;  // by id
  int32_t end_of_document_ = -1;
};

// The eos_token of tokenizer_config.json beside `path`, or "".
std::string configured_end(FileSystem& files, const std::string& path) {
  const std::string config = parent_folder(path) + "/tokenizer_config.json";
  if (!files.exists(config)) return "";
  const Value root = parse_json_member(files.read(config), config, "eos_token");
  const Value* token = root.find("eos_token");
  if (token == nullptr || token->get_if<std::monostate>() != nullptr) return "";
  if (const auto* text = token->get_if<std::string>()) return *text;
  return token->string_at("content", config + ": eos_token");
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer_json(FileSystem& files, const std::string& path) {
  const std::string text = files.read(path);
  // A merge has three values in ten bytes and more: ["a","b"],
  const Value root = parse_json(text, path, static_cast<int64_t>(4096 + text.size() / 3));
  return std::make_unique<JsonTokenizer>(path, xxh3_128_hex(std::as_bytes(std::span(text))),
                                         Reader(root, path), configured_end(files, path));
}

}  // namespace amoeba::formats
