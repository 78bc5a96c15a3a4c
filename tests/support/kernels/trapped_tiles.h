// The compiled kernels of amx_bf16 on CPUs without AMX: each tile instruction is an illegal one
// there, and the handler of that signal emulates it.
#pragma once

#include "kernels/cpu/implementation.h"

namespace amoeba::test {

// "amx_bf16_trapped", or nullptr: not x86-64, no AVX512-BF16, or a CPU that has tiles itself. Calls
// set the handler of SIGILL of the process.
const kernels::cpu::Implementation* trapped_amx();

}  // namespace amoeba::test
