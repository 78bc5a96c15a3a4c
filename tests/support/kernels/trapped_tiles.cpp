#include "support/kernels/trapped_tiles.h"

#if defined(__x86_64__)
#include <signal.h>
#include <sys/ucontext.h>

#include <cstdlib>
#include <cstring>

#include "kernels/cpu/fused/cpu_features.h"
#include "kernels/cpu/fused/fused.h"
#include "kernels/cpu/fused/kernels.h"
#include "support/kernels/emulated_tiles.h"
#endif

namespace amoeba::test {

#if defined(__x86_64__)
namespace {

namespace cpu = kernels::cpu;

// One instruction with a three-byte VEX prefix (Intel 64 and IA-32 Architectures Software
// Developer's Manual, volume 2, chapter 2).
class Instruction {
 public:
  explicit Instruction(const mcontext_t& state) : state_(state) {
    const auto* code = reinterpret_cast<const uint8_t*>(state.gregs[REG_RIP]);
    const uint8_t first = code[1], second = code[2];
    is_vex_ = code[0] == 0xc4 && (first & 0x1f) == 2 && (second & 0x84) == 0;  // map 0F38, W0, 128
    has_index_bit_ = (first & 0x40) == 0;
    has_base_bit_ = (first & 0x20) == 0;
    third = ~(second >> 3) & 0xf;
    prefix = second & 3;
    opcode = code[3];
    const uint8_t modrm = code[4];
    is_memory = modrm >> 6 != 3;
    reg = (modrm >> 3) & 7;
    rm = modrm & 7;
    length = 5;
    if (is_memory) read_address(code, modrm >> 6);
  }

  bool is(uint8_t wanted_prefix, uint8_t wanted_opcode, bool wants_memory) const {
    return is_vex_ && prefix == wanted_prefix && opcode == wanted_opcode &&
           is_memory == wants_memory;
  }

  int prefix, opcode, reg, rm, third;
  bool is_memory;
  int64_t length, address = 0, index = 0;

 private:
  int64_t value_of(int number) const {
    constexpr int kOrder[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                              REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                              REG_R12, REG_R13, REG_R14, REG_R15};
    return state_.gregs[kOrder[number]];
  }

  void read_address(const uint8_t* code, int mode) {
    int base = rm;
    if (rm == 4) {
      const uint8_t sib = code[length++];
      base = sib & 7;
      const int number = ((sib >> 3) & 7) + 8 * has_index_bit_;
      if (number != 4) index = value_of(number) << (sib >> 6);
    }
    const bool has_no_base = mode == 0 && base == 5;
    const int64_t displacement_bytes = mode == 1 ? 1 : (mode == 2 || has_no_base ? 4 : 0);
    if (displacement_bytes == 1) {
      address = static_cast<int8_t>(code[length]);
    } else if (displacement_bytes == 4) {
      int32_t displacement;
      std::memcpy(&displacement, code + length, sizeof displacement);
      address = displacement;
    }
    length += displacement_bytes;
    if (!has_no_base) {
      address += value_of(base + 8 * has_base_bit_);
    } else if (rm == 5) {
      address += state_.gregs[REG_RIP] + length;
    }
  }

  const mcontext_t& state_;
  bool is_vex_, has_index_bit_, has_base_bit_;
};

bool emulate(const Instruction& i) {
  constexpr uint8_t kNone = 0, kF3 = 2, kF2 = 3;
  void* memory = reinterpret_cast<void*>(i.address);
  if (i.is(kNone, 0x49, true) && i.reg == 0) {
    EmulatedTiles::configure(*static_cast<const cpu::TileShapes*>(memory));
  } else if (i.is(kNone, 0x49, false) && i.reg == 0 && i.rm == 0) {
    EmulatedTiles::release();
  } else if (i.is(kF2, 0x49, false) && i.rm == 0) {
    EmulatedTiles::zero(i.reg);
  } else if (i.is(kF2, 0x4b, true) && i.rm == 4) {
    EmulatedTiles::load(i.reg, memory, i.index);
  } else if (i.is(kF3, 0x4b, true) && i.rm == 4) {
    EmulatedTiles::store(i.reg, memory, i.index);
  } else if (i.is(kF3, 0x5c, false)) {
    EmulatedTiles::multiply_add(i.reg, i.rm, i.third);
  } else {
    return false;
  }
  return true;
}

void on_illegal_instruction(int, siginfo_t*, void* context) {
  mcontext_t& state = static_cast<ucontext_t*>(context)->uc_mcontext;
  const Instruction instruction(state);
  if (!emulate(instruction)) std::abort();
  state.gregs[REG_RIP] += instruction.length;
}

const cpu::FusedKernels& kernels_for(const cpu::Call&) { return cpu::kAmxBf16; }

cpu::Implementation make_trapped() {
  struct sigaction action = {};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
  kernels::Variant variant = emulated_amx().variant;
  variant.name = "amx_bf16_trapped";
  variant.summary = "AMX-BF16 with trapped tile instructions";
  return cpu::implementation<kernels_for>(variant);
}

}  // namespace

const cpu::Implementation* trapped_amx() {
  const cpu::CpuFeatures features = cpu::cpu_features();
  if (!features.avx512_bf16 || features.amx_bf16) return nullptr;
  static const cpu::Implementation implementation = make_trapped();
  return &implementation;
}
#else
const kernels::cpu::Implementation* trapped_amx() { return nullptr; }
#endif

}  // namespace amoeba::test
