#include "formats/unicode.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

namespace amoeba::formats {

// ---- UTF-8 --------------------------------------------------------------------------------------

char32_t read_character(std::string_view text, size_t& at, bool* ill_formed) {
  const auto lead = static_cast<unsigned char>(text[at++]);
  if (lead < 0x80) return lead;
  // Bounds of the second byte are narrower behind some leads (Unicode table 3-7).
  int num_more = 0;
  unsigned char low = 0x80, high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    num_more = 1;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    num_more = 2;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;  // no surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    num_more = 3;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  }
  char32_t character = lead & (0x3Fu >> num_more);
  bool complete = num_more > 0;
  for (int i = 0; i < num_more && complete; ++i) {
    const unsigned char next = at < text.size() ? static_cast<unsigned char>(text[at]) : 0;
    complete = next >= low && next <= high;
    if (!complete) break;
    character = (character << 6) | (next & 0x3Fu);
    ++at;
    low = 0x80;
    high = 0xBF;
  }
  if (complete) return character;
  if (ill_formed != nullptr) *ill_formed = true;
  return kReplacement;
}

void append_character(std::string& text, char32_t c) {
  if (c < 0x80) {
    text += static_cast<char>(c);
    return;
  }
  const int num_more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  const char32_t mark = num_more == 1 ? 0xC0 : num_more == 2 ? 0xE0 : 0xF0;
  text += static_cast<char>(mark | (c >> (6 * num_more)));
  for (int i = num_more - 1; i >= 0; --i) {
    text += static_cast<char>(0x80 | ((c >> (6 * i)) & 0x3F));
  }
}

bool is_utf8(std::string_view text) {
  bool ill_formed = false;
  for (size_t at = 0; at < text.size() && !ill_formed;) read_character(text, at, &ill_formed);
  return !ill_formed;
}

std::string to_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) append_character(out, read_character(text, at));
  return out;
}

// ---- Normalization form C -----------------------------------------------------------------------

namespace {

// Hangul syllables (Unicode standard, section 3.12): lead L, vowel V, tail T.
constexpr char32_t kHangul = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11A7;
constexpr char32_t kNumLeads = 19, kNumVowels = 21, kNumTails = 28;
constexpr char32_t kNumSyllables = kNumLeads * kNumVowels * kNumTails;

class NfcTables {
 public:
  NfcTables() : may_change_(0x110000) {
    for (const CombiningClass& run : combining_classes()) {
      for (uint32_t c = run.first; c <= run.last; ++c) {
        classes_[c] = static_cast<uint8_t>(run.number);
        may_change_[c] = true;
      }
    }
    for (const Decomposition& d : decompositions()) {
      parts_[d.character] = &d;
      if (!d.composes) may_change_[d.character] = true;
      if (d.second != 0) may_change_[d.second] = true;
      if (d.composes) composed_[pair(d.first, d.second)] = d.character;
    }
    for (char32_t i = 0; i < kNumVowels; ++i) may_change_[kVowel + i] = true;
    for (char32_t i = 1; i < kNumTails; ++i) may_change_[kTail + i] = true;
  }

  // False: c begins a new normal form whatever stands before it, and stays as it is on its own.
  bool may_change(char32_t c) const { return may_change_[c]; }

  uint8_t combining_class(char32_t c) const {
    const auto found = classes_.find(c);
    return found == classes_.end() ? 0 : found->second;
  }

  void decompose(char32_t c, std::u32string& out) const {
    if (c >= kHangul && c < kHangul + kNumSyllables) {
      const char32_t index = c - kHangul;
      out += kLead + index / (kNumVowels * kNumTails);
      out += kVowel + index % (kNumVowels * kNumTails) / kNumTails;
      if (index % kNumTails != 0) out += kTail + index % kNumTails;
      return;
    }
    const auto found = parts_.find(c);
    if (found == parts_.end()) {
      out += c;
      return;
    }
    decompose(found->second->first, out);  // a handful of levels in Unicode's data
    if (found->second->second != 0) decompose(found->second->second, out);
  }

  // The character that a and b make, or 0.
  char32_t compose(char32_t a, char32_t b) const {
    if (a >= kLead && a < kLead + kNumLeads && b >= kVowel && b < kVowel + kNumVowels) {
      return kHangul + ((a - kLead) * kNumVowels + (b - kVowel)) * kNumTails;
    }
    if (a >= kHangul && a < kHangul + kNumSyllables && (a - kHangul) % kNumTails == 0 &&
        b > kTail && b < kTail + kNumTails) {
      return a + (b - kTail);
    }
    const auto found = composed_.find(pair(a, b));
    return found == composed_.end() ? 0 : found->second;
  }

 private:
  static uint64_t pair(uint64_t a, uint64_t b) { return a << 32 | b; }

  std::vector<bool> may_change_;
  std::unordered_map<char32_t, uint8_t> classes_;
  std::unordered_map<char32_t, const Decomposition*> parts_;
  std::unordered_map<uint64_t, char32_t> composed_;
};

// Decomposes, orders and composes `text` in place (annex 15, section 1.3).
void normalize(const NfcTables& tables, std::u32string& text) {
  std::u32string parts;
  for (const char32_t c : text) tables.decompose(c, parts);
  const auto is_mark = [&](char32_t c) { return tables.combining_class(c) != 0; };
  for (auto begin = parts.begin(); begin != parts.end();) {
    begin = std::find_if(begin, parts.end(), is_mark);
    const auto end = std::find_if_not(begin, parts.end(), is_mark);
    std::stable_sort(begin, end, [&](char32_t a, char32_t b) {
      return tables.combining_class(a) < tables.combining_class(b);
    });
    begin = end;
  }
  text.clear();
  size_t starter = std::u32string::npos;
  uint8_t last_class = 0;  // of what was kept since the starter
  for (const char32_t c : parts) {
    const uint8_t number = tables.combining_class(c);
    if (starter != std::u32string::npos) {
      const bool blocked = starter + 1 < text.size() && last_class >= number;
      const char32_t together = blocked ? 0 : tables.compose(text[starter], c);
      if (together != 0) {
        text[starter] = together;
        continue;
      }
    }
    if (number == 0) starter = text.size();
    last_class = number;
    text += c;
  }
}

}  // namespace

std::string nfc(std::string_view text) {
  static const NfcTables tables;
  std::string out;
  out.reserve(text.size());
  std::u32string segment;
  size_t kept = 0;      // text before here is in `out`
  size_t previous = 0;  // start of the last character that may not change
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = read_character(text, at);
    if (c < 0x300 || !tables.may_change(c)) {
      previous = begin;
      continue;
    }
    // What may change, with the character before it, up to the next one that may not.
    at = std::max(previous, kept);
    out += text.substr(kept, at - kept);
    segment.clear();
    while (at < text.size()) {
      const size_t next = at;
      const char32_t member = read_character(text, at);
      if (next > begin && !tables.may_change(member)) {
        at = next;
        break;
      }
      segment += member;
    }
    normalize(tables, segment);
    for (const char32_t member : segment) append_character(out, member);
    kept = at;
    previous = at;
  }
  return out += text.substr(kept);
}

std::string lower_case(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const char32_t c = read_character(text, at);
    const auto table = lower_cases();
    const auto found = std::lower_bound(
        table.begin(), table.end(), c,
        [](const LowerCase& entry, char32_t character) { return entry.character < character; });
    if (found == table.end() || found->character != c) {
      append_character(out, c);
      continue;
    }
    append_character(out, found->first);
    if (found->second != 0) append_character(out, found->second);
  }
  return out;
}

}  // namespace amoeba::formats
