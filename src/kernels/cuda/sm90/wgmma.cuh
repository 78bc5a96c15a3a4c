// Products of a group of four warps (sm_90a wgmma) and the barriers that feed them.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/ptx.cuh"

namespace amoeba::kernels::cuda::device {

// ---- barriers in shared memory

__device__ inline void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Also announces bytes that the copy engine will bring.
__device__ inline void arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Until the phase of that parity is complete.
__device__ inline void wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A box of a tensor map to shared memory; the barrier counts its bytes.
__device__ inline void copy_box(uint32_t to, const void* map, uint32_t barrier, int32_t c0,
                                int32_t c1, int32_t c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
__device__ inline void copy_box(uint32_t to, const void* map, uint32_t barrier, int32_t c0,
                                int32_t c1, int32_t c2, int32_t c3, int32_t c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

// Makes this thread's writes to shared memory visible to wgmma.
__device__ inline void fence_shared_for_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- wgmma

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// A tile in shared memory with the 128-byte swizzle. K-major: groups of eight rows 1024 bytes
// apart. Mn-major: groups of eight along the sum 1024 bytes apart, blocks of 64 columns
// `block_bytes` apart.
__device__ inline uint64_t matrix_descriptor(uint32_t address, uint32_t block_bytes) {
  constexpr uint64_t kGroupBytes = 1024;
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | (kGroupBytes >> 4) << 32 | static_cast<uint64_t>(block_bytes >> 4) << 16 |
         (address & 0x3ffff) >> 4;
}

// c [64, 256] (+)= a [64, 16] b [16, 256].
#define AMOEBA_WGMMA(type)                                                                        \
  asm volatile(                                                                                   \
      "{.reg .pred p;\n setp.ne.b32 p, %130, 0;\n "                                               \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                                \
      " {"                                                                                        \
      "%0, %1, %2, %3, %4, %5, %6, %7, "                                                          \
      "%8, %9, %10, %11, %12, %13, %14, %15, "                                                    \
      "%16, %17, %18, %19, %20, %21, %22, %23, "                                                  \
      "%24, %25, %26, %27, %28, %29, %30, %31, "                                                  \
      "%32, %33, %34, %35, %36, %37, %38, %39, "                                                  \
      "%40, %41, %42, %43, %44, %45, %46, %47, "                                                  \
      "%48, %49, %50, %51, %52, %53, %54, %55, "                                                  \
      "%56, %57, %58, %59, %60, %61, %62, %63, "                                                  \
      "%64, %65, %66, %67, %68, %69, %70, %71, "                                                  \
      "%72, %73, %74, %75, %76, %77, %78, %79, "                                                  \
      "%80, %81, %82, %83, %84, %85, %86, %87, "                                                  \
      "%88, %89, %90, %91, %92, %93, %94, %95, "                                                  \
      "%96, %97, %98, %99, %100, %101, %102, %103, "                                              \
      "%104, %105, %106, %107, %108, %109, %110, %111, "                                          \
      "%112, %113, %114, %115, %116, %117, %118, %119, "                                          \
      "%120, %121, %122, %123, %124, %125, %126, %127"                                            \
      "}, %128, %129, p, 1, 1, %131, %132;}"                                                      \
      : "+f"(c[0][0][0]), "+f"(c[0][0][1]), "+f"(c[0][0][2]), "+f"(c[0][0][3]), "+f"(c[0][1][0]), \
        "+f"(c[0][1][1]), "+f"(c[0][1][2]), "+f"(c[0][1][3]), "+f"(c[0][2][0]), "+f"(c[0][2][1]), \
        "+f"(c[0][2][2]), "+f"(c[0][2][3]), "+f"(c[0][3][0]), "+f"(c[0][3][1]), "+f"(c[0][3][2]), \
        "+f"(c[0][3][3]), "+f"(c[0][4][0]), "+f"(c[0][4][1]), "+f"(c[0][4][2]), "+f"(c[0][4][3]), \
        "+f"(c[0][5][0]), "+f"(c[0][5][1]), "+f"(c[0][5][2]), "+f"(c[0][5][3]), "+f"(c[0][6][0]), \
        "+f"(c[0][6][1]), "+f"(c[0][6][2]), "+f"(c[0][6][3]), "+f"(c[0][7][0]), "+f"(c[0][7][1]), \
        "+f"(c[0][7][2]), "+f"(c[0][7][3]), "+f"(c[1][0][0]), "+f"(c[1][0][1]), "+f"(c[1][0][2]), \
        "+f"(c[1][0][3]), "+f"(c[1][1][0]), "+f"(c[1][1][1]), "+f"(c[1][1][2]), "+f"(c[1][1][3]), \
        "+f"(c[1][2][0]), "+f"(c[1][2][1]), "+f"(c[1][2][2]), "+f"(c[1][2][3]), "+f"(c[1][3][0]), \
        "+f"(c[1][3][1]), "+f"(c[1][3][2]), "+f"(c[1][3][3]), "+f"(c[1][4][0]), "+f"(c[1][4][1]), \
        "+f"(c[1][4][2]), "+f"(c[1][4][3]), "+f"(c[1][5][0]), "+f"(c[1][5][1]), "+f"(c[1][5][2]), \
        "+f"(c[1][5][3]), "+f"(c[1][6][0]), "+f"(c[1][6][1]), "+f"(c[1][6][2]), "+f"(c[1][6][3]), \
        "+f"(c[1][7][0]), "+f"(c[1][7][1]), "+f"(c[1][7][2]), "+f"(c[1][7][3]), "+f"(c[2][0][0]), \
        "+f"(c[2][0][1]), "+f"(c[2][0][2]), "+f"(c[2][0][3]), "+f"(c[2][1][0]), "+f"(c[2][1][1]), \
        "+f"(c[2][1][2]), "+f"(c[2][1][3]), "+f"(c[2][2][0]), "+f"(c[2][2][1]), "+f"(c[2][2][2]), \
        "+f"(c[2][2][3]), "+f"(c[2][3][0]), "+f"(c[2][3][1]), "+f"(c[2][3][2]), "+f"(c[2][3][3]), \
        "+f"(c[2][4][0]), "+f"(c[2][4][1]), "+f"(c[2][4][2]), "+f"(c[2][4][3]), "+f"(c[2][5][0]), \
        "+f"(c[2][5][1]), "+f"(c[2][5][2]), "+f"(c[2][5][3]), "+f"(c[2][6][0]), "+f"(c[2][6][1]), \
        "+f"(c[2][6][2]), "+f"(c[2][6][3]), "+f"(c[2][7][0]), "+f"(c[2][7][1]), "+f"(c[2][7][2]), \
        "+f"(c[2][7][3]), "+f"(c[3][0][0]), "+f"(c[3][0][1]), "+f"(c[3][0][2]), "+f"(c[3][0][3]), \
        "+f"(c[3][1][0]), "+f"(c[3][1][1]), "+f"(c[3][1][2]), "+f"(c[3][1][3]), "+f"(c[3][2][0]), \
        "+f"(c[3][2][1]), "+f"(c[3][2][2]), "+f"(c[3][2][3]), "+f"(c[3][3][0]), "+f"(c[3][3][1]), \
        "+f"(c[3][3][2]), "+f"(c[3][3][3]), "+f"(c[3][4][0]), "+f"(c[3][4][1]), "+f"(c[3][4][2]), \
        "+f"(c[3][4][3]), "+f"(c[3][5][0]), "+f"(c[3][5][1]), "+f"(c[3][5][2]), "+f"(c[3][5][3]), \
        "+f"(c[3][6][0]), "+f"(c[3][6][1]), "+f"(c[3][6][2]), "+f"(c[3][6][3]), "+f"(c[3][7][0]), \
        "+f"(c[3][7][1]), "+f"(c[3][7][2]), "+f"(c[3][7][3])                                      \
      : "l"(a), "l"(b), "r"(add), "n"(kMnMajorA ? 1 : 0), "n"(kMnMajorB ? 1 : 0))

template <typename T, bool kMnMajorA, bool kMnMajorB>
__device__ inline void multiply_group(float (&c)[4][8][4], uint64_t a, uint64_t b,
                                      bool accumulates) {
  const int add = accumulates ? 1 : 0;
  if constexpr (std::is_same_v<T, bf16>) {
    AMOEBA_WGMMA("bf16");
  } else {
    AMOEBA_WGMMA("f16");
  }
}

#undef AMOEBA_WGMMA

}  // namespace amoeba::kernels::cuda::device
