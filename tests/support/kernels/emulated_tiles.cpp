#include "support/kernels/emulated_tiles.h"

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "amoeba/error.h"

namespace amoeba::test {
namespace {

constexpr int kNumTiles = 8;

struct Tile {
  int num_rows = 0, row_bytes = 0;  // 0: not to be used
  unsigned char data[kernels::cpu::kTileRows][kernels::cpu::kTileRowBytes] = {};

  template <typename T>
  T get(int row, int i) const {
    T value;
    std::memcpy(&value, &data[row][i * static_cast<int>(sizeof(T))], sizeof value);
    return value;
  }
  void set(int row, int i, float value) { std::memcpy(&data[row][i * 4], &value, sizeof value); }
};

struct Registers {
  bool is_configured = false;
  Tile tiles[kNumTiles];
};
thread_local Registers registers;
thread_local int64_t num_multiply_adds = 0;

Tile& usable(const char* operation, int tile) {
  AMOEBA_CHECK(registers.is_configured, operation, ": no shapes are configured on this thread");
  Tile& found = registers.tiles[tile];
  AMOEBA_CHECK(found.num_rows > 0, operation, ": register ", tile, " has no rows, want some");
  return found;
}

// A subnormal number is zero, going in and coming out.
float flushed(float value) {
  return std::fabs(value) < FLT_MIN ? std::copysign(0.0f, value) : value;
}

float half_of(uint32_t pair, bool high) {
  return flushed(std::bit_cast<float>(high ? pair & 0xffff0000 : pair << 16));
}

// A product of two bf16 is exact in fp32 where it is normal; then an addition is as good as the
// fused operation, which is a slow call where the compiler may not use the instruction.
float multiply_add(float a, float b, float sum) {
  const float product = a * b, size = std::fabs(product);
  const bool is_exact = (size >= FLT_MIN && size <= FLT_MAX) || a == 0 || b == 0;
  return flushed(is_exact ? flushed(sum) + product : std::fma(a, b, flushed(sum)));
}

// The first and the second values of a tile's pairs as fp32.
struct Halves {
  explicit Halves(const Tile& tile) {
    for (int row = 0; row < tile.num_rows; ++row) {
      for (int i = 0; i < tile.row_bytes / 4; ++i) {
        const auto pair = tile.get<uint32_t>(row, i);
        value[0][row][i] = half_of(pair, false);
        value[1][row][i] = half_of(pair, true);
      }
    }
  }
  float value[2][16][16];
};

}  // namespace

void EmulatedTiles::configure(const kernels::cpu::TileShapes& shapes) {
  AMOEBA_CHECK(shapes.palette == 1, "ldtilecfg: palette is ", int{shapes.palette}, ", want 1");
  registers = Registers();
  for (int i = 0; i < 16; ++i) {
    const int num_rows = shapes.num_rows[i], row_bytes = shapes.row_bytes[i];
    AMOEBA_CHECK(num_rows <= 16 && row_bytes <= 64 && (num_rows == 0) == (row_bytes == 0) &&
                     (i < kNumTiles || num_rows == 0),
                 "ldtilecfg: register ", i, " is ", num_rows, " rows of ", row_bytes, " bytes");
    if (i >= kNumTiles) continue;
    registers.tiles[i].num_rows = num_rows;
    registers.tiles[i].row_bytes = row_bytes;
  }
  registers.is_configured = true;
}

void EmulatedTiles::release() { registers = Registers(); }

bool EmulatedTiles::is_configured() { return registers.is_configured; }

int64_t EmulatedTiles::num_multiplied() { return num_multiply_adds; }

void EmulatedTiles::zero(int tile) {
  Tile& zeroed = usable("tilezero", tile);
  std::memset(zeroed.data, 0, sizeof zeroed.data);
}

void EmulatedTiles::load(int tile, const void* from, int64_t stride) {
  zero(tile);
  Tile& loaded = usable("tileloadd", tile);
  for (int row = 0; row < loaded.num_rows; ++row) {
    std::memcpy(loaded.data[row], static_cast<const char*>(from) + row * stride,
                static_cast<size_t>(loaded.row_bytes));
  }
}

void EmulatedTiles::store(int tile, void* to, int64_t stride) {
  const Tile& stored = usable("tilestored", tile);
  for (int row = 0; row < stored.num_rows; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, stored.data[row],
                static_cast<size_t>(stored.row_bytes));
  }
}

// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS: products of
// the first and of the second values of all pairs add up apart, from zero and in order, each by a
// fused multiply-add to nearest even; then both to each other, then that to the tile.
void EmulatedTiles::multiply_add(int sum, int left, int right) {
  Tile& c = usable("tdpbf16ps", sum);
  const Tile &a = usable("tdpbf16ps", left), &b = usable("tdpbf16ps", right);
  AMOEBA_CHECK(sum != left && sum != right && left != right, "tdpbf16ps: registers ", sum, ", ",
               left, ", ", right, ", want three");
  AMOEBA_CHECK(
      a.num_rows == c.num_rows && b.row_bytes == c.row_bytes && a.row_bytes == 4 * b.num_rows,
      "tdpbf16ps: [", c.num_rows, ", ", c.row_bytes, "] += [", a.num_rows, ", ", a.row_bytes,
      "] * [", b.num_rows, ", ", b.row_bytes, "]");
  ++num_multiply_adds;
  const Halves x(a), y(b);
  const int num_columns = c.row_bytes / 4;
  for (int m = 0; m < c.num_rows; ++m) {
    float sums[2][16] = {};
    for (int k = 0; k < b.num_rows; ++k) {
      for (int half = 0; half < 2; ++half) {
        const float left_value = x.value[half][m][k];
        for (int n = 0; n < num_columns; ++n) {
          float& to = sums[half][n];
          to = test::multiply_add(left_value, y.value[half][k][n], to);
        }
      }
    }
    for (int n = 0; n < num_columns; ++n) {
      const float both = flushed(sums[0][n] + sums[1][n]);
      c.set(m, n, flushed(flushed(c.get<float>(m, n)) + both));
    }
  }
}

// The same manual, VDPBF16PS.
float add_pair(uint32_t a, uint32_t b, float sum) {
  sum = multiply_add(half_of(a, true), half_of(b, true), sum);
  return multiply_add(half_of(a, false), half_of(b, false), sum);
}

}  // namespace amoeba::test
