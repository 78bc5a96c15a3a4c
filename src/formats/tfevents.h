// TensorBoard's event files, written by hand: scalars only.
//
// A file is a row of TFRecords (tensorflow/core/lib/io/record_writer.h): length as 8 bytes, its
// masked CRC-32C, the data, the data's masked CRC-32C, integers little-endian. The data is a
// protocol buffer (tensorflow/core/util/event.proto):
//   Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5;
//           SessionLog session_log = 7 }
//   Summary { repeated Value value = 1 { string tag = 1; float simple_value = 2 } }
//   SessionLog { SessionStatus status = 1 }, START = 1
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file_system.h"

namespace amoeba::formats {

// CRC-32C (Castagnoli), RFC 3720 appendix B.4.
uint32_t crc32c(std::span<const std::byte> data);
// Rotated right by 15 bits, plus 0xa282ead8: a CRC over data that holds CRCs is weak.
uint32_t masked_crc32c(std::span<const std::byte> data);

struct Scalar {
  std::string tag;
  double value = 0;  // stored as a float
};

class EventWriter {
 public:
  // Creates a file of its own in `folder`, named after `unix_seconds`; TensorBoard reads the files
  // of a folder in the order of their names. `steps_done`: readers drop what earlier files say
  // about later steps.
  EventWriter(FileSystem& files, const std::string& folder, double unix_seconds,
              int64_t steps_done);

  // One event, handed to the system at once.
  void write(int64_t step, double unix_seconds, const std::vector<Scalar>& scalars);
  void close();  // makes the events durable and reports late errors

  const std::string& path() const { return path_; }

 private:
  void write_record(const std::string& event);
  std::string path_;
  std::unique_ptr<WritableFile> file_;
};

}  // namespace amoeba::formats
