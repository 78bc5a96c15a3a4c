#include "formats/tfevents.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <numeric>

#include "support/errors.h"
#include "support/faults.h"
#include "support/memory_file_system.h"

namespace amoeba::formats {
namespace {

using test::FaultyFileSystem;
using test::MemoryFileSystem;

std::string hex(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    constexpr const char* kDigits = "0123456789abcdef";
    out += kDigits[static_cast<unsigned char>(c) >> 4];
    out += kDigits[c & 15];
  }
  return out;
}

uint32_t crc_of(const std::vector<uint8_t>& bytes) {
  return crc32c(std::as_bytes(std::span(bytes)));
}

TEST(Crc32c, EqualsThePublishedVectors) {
  std::vector<uint8_t> up(32), down(32);
  std::iota(up.begin(), up.end(), 0);
  std::iota(down.rbegin(), down.rend(), 0);
  // RFC 3720, appendix B.4.
  EXPECT_EQ(crc_of(std::vector<uint8_t>(32, 0)), 0x8a9136aau);
  EXPECT_EQ(crc_of(std::vector<uint8_t>(32, 0xff)), 0x62a8ab43u);
  EXPECT_EQ(crc_of(up), 0x46dd794eu);
  EXPECT_EQ(crc_of(down), 0x113fdb5cu);
  // The check value of the catalogue of CRC algorithms (CRC-32/ISCSI).
  EXPECT_EQ(crc_of({'1', '2', '3', '4', '5', '6', '7', '8', '9'}), 0xe3069283u);
  EXPECT_EQ(crc_of({}), 0u);
}

TEST(EventWriter, WritesTheBytesOfTensorBoardsOwnWriter) {
  MemoryFileSystem files;
  EventWriter writer(files, "/run/tensorboard", 1700000000.25, 300);
  writer.write(300, 1700000001.5, {{"loss", 2.5}, {"lr", -0.1}});
  writer.write((int64_t{1} << 40) + 5, 1700000002.0, {{std::string(130, 'x'), 0.0}});
  writer.close();
  EXPECT_EQ(writer.path(), "/run/tensorboard/events.out.tfevents.1700000000.amoeba");
  // RecordWriter over event_pb2.Event of the package tensorboard 2.21.0.
  const std::string want =
      "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe9"
      "100000000000000095fbfe180900001040fc54d94110ad023a020801cb79b93b"
      "2600000000000000734fe3000900006040fc54d94110ac022a180a0b0a046c6f737315000020400a090a026c"
      "7215cdccccbde601d631"
      "a0000000000000002a5572250900008040fc54d941108580808080202a8d010a8a010a8201" +
      hex(std::string(130, 'x')) + "150000000009ccc8c1";
  EXPECT_EQ(hex(files.read(writer.path())), want);
}

TEST(EventWriter, EverySessionHasAFileOfItsOwn) {
  MemoryFileSystem files;
  const EventWriter first(files, "/t", 1700000000.25, 0);
  const EventWriter second(files, "/t", 1700000000.75, 5);
  const EventWriter third(files, "/t", 1700000001.0, 9);
  EXPECT_EQ(files.list("/t"), (std::vector<std::string>{"events.out.tfevents.1700000000.amoeba",
                                                        "events.out.tfevents.1700000000.amoeba.2",
                                                        "events.out.tfevents.1700000001.amoeba"}));
}

// Whatever fails is reported, and what was written before is whole records.
TEST(EventWriter, ReportsEveryFailureOfTheDisk) {
  const auto write_all = [](FileSystem& files) {
    EventWriter writer(files, "/t", 1.0, 0);
    writer.write(1, 2.0, {{"loss", 1.0}});
    writer.close();
  };
  MemoryFileSystem whole;
  FaultyFileSystem counter(whole);
  write_all(counter);
  const std::string complete = whole.read("/t/events.out.tfevents.1.amoeba");
  ASSERT_GE(counter.num_operations(), 7);
  for (int64_t index = 0; index < counter.num_operations(); ++index) {
    MemoryFileSystem files;
    FaultyFileSystem faulty(files);
    faulty.fail_at(index, "no luck");
    const std::string message = test::error_message(ErrorKind::kData, [&] { write_all(faulty); });
    EXPECT_NE(message.find("no luck"), std::string::npos) << index;
    if (!files.exists("/t/events.out.tfevents.1.amoeba")) continue;
    EXPECT_TRUE(complete.starts_with(files.read("/t/events.out.tfevents.1.amoeba"))) << index;
  }
}

}  // namespace
}  // namespace amoeba::formats
