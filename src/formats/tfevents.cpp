#include "formats/tfevents.h"

#include <array>
#include <bit>
#include <cmath>
#include <string_view>

#include "amoeba/error.h"

namespace amoeba::formats {

namespace {

constexpr uint32_t kReversedPolynomial = 0x82f63b78u;  // 0x1edc6f41, lowest bit first
constexpr uint32_t kMaskDelta = 0xa282ead8u;

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? kReversedPolynomial : 0);
    table[byte] = crc;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

template <typename Integer>
void append_fixed(std::string& out, Integer value) {
  for (size_t byte = 0; byte < sizeof value; ++byte) {
    out.push_back(static_cast<char>((value >> (8 * byte)) & 0xff));
  }
}

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>((value & 0x7f) | 0x80));
  out.push_back(static_cast<char>(value));
}

// Wire types of a protocol buffer.
enum class Wire : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void append_key(std::string& out, uint32_t field, Wire wire) {
  append_varint(out, field << 3 | static_cast<uint32_t>(wire));
}

void append_double(std::string& out, uint32_t field, double value) {
  append_key(out, field, Wire::kFixed64);
  append_fixed(out, std::bit_cast<uint64_t>(value));
}

void append_float(std::string& out, uint32_t field, float value) {
  append_key(out, field, Wire::kFixed32);
  append_fixed(out, std::bit_cast<uint32_t>(value));
}

void append_integer(std::string& out, uint32_t field, int64_t value) {
  append_key(out, field, Wire::kVarint);
  append_varint(out, static_cast<uint64_t>(value));
}

void append_bytes(std::string& out, uint32_t field, std::string_view bytes) {
  append_key(out, field, Wire::kBytes);
  append_varint(out, bytes.size());
  out += bytes;
}

std::string begin_event(double unix_seconds, int64_t step) {
  std::string event;
  append_double(event, 1, unix_seconds);
  if (step != 0) append_integer(event, 2, step);  // proto3 leaves defaults out
  return event;
}

uint32_t masked_crc(std::string_view text) { return masked_crc32c(std::as_bytes(std::span(text))); }

// Two sessions may begin in one second.
std::string free_path(FileSystem& files, const std::string& folder, double unix_seconds) {
  const std::string stem =
      cat(folder, "/events.out.tfevents.", static_cast<int64_t>(std::floor(unix_seconds)));
  std::string path = stem + ".amoeba";
  for (int64_t number = 2; files.exists(path); ++number) path = cat(stem, ".amoeba.", number);
  return path;
}

}  // namespace

uint32_t crc32c(std::span<const std::byte> data) {
  uint32_t crc = 0xffffffffu;
  for (const std::byte byte : data) {
    crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<uint32_t>(byte)) & 0xff];
  }
  return ~crc;
}

uint32_t masked_crc32c(std::span<const std::byte> data) {
  return std::rotr(crc32c(data), 15) + kMaskDelta;
}

EventWriter::EventWriter(FileSystem& files, const std::string& folder, double unix_seconds,
                         int64_t steps_done) {
  files.create_directories(folder);
  path_ = free_path(files, folder, unix_seconds);
  file_ = files.create(path_);
  std::string version = begin_event(unix_seconds, 0);
  append_bytes(version, 3, "brain.Event:2");
  write_record(version);
  // The start of a session: what earlier files hold from its step on is void.
  std::string session = begin_event(unix_seconds, steps_done + 1);
  std::string log;
  append_integer(log, 1, 1);
  append_bytes(session, 7, log);
  write_record(session);
}

void EventWriter::write(int64_t step, double unix_seconds, const std::vector<Scalar>& scalars) {
  std::string summary;
  for (const Scalar& scalar : scalars) {
    std::string value;
    append_bytes(value, 1, scalar.tag);
    append_float(value, 2, static_cast<float>(scalar.value));
    append_bytes(summary, 1, value);
  }
  std::string event = begin_event(unix_seconds, step);
  append_bytes(event, 5, summary);
  write_record(event);
}

void EventWriter::write_record(const std::string& event) {
  std::string length;
  append_fixed(length, static_cast<uint64_t>(event.size()));
  std::string record = length;
  append_fixed(record, masked_crc(length));
  record += event;
  append_fixed(record, masked_crc(event));
  file_->write(record);
}

void EventWriter::close() {
  file_->sync();
  file_->close();
}

}  // namespace amoeba::formats
