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

// ---- pairs of blocks (clusters of two)

__device__ inline uint32_t block_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of both blocks; what they wrote before is visible after.
__device__ inline void synchronize_pair() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// At the same barrier of block `rank` of the pair.
__device__ inline void arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// The same for what the threads of both blocks write to shared memory of either.
__device__ inline void arrive_across(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
__device__ inline void wait_across(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ inline void store_across(uint32_t to, uint32_t rank, uint32_t value) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "st.shared::cluster.u32 [there], %2;\n"
      "}\n" ::"r"(to),
      "r"(rank), "r"(value)
      : "memory");
}

// ---- the copy engine

// A box of a tensor map to shared memory; the barrier counts its bytes. kToPair: to the same place
// of both blocks, at the barriers of both.
template <bool kToPair>
__device__ inline void copy_box(uint32_t to, const void* map, uint32_t barrier, int32_t c0,
                                int32_t c1, int32_t c2) {
  if constexpr (kToPair) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "h"(uint16_t{3})
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3, %4, %5}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
  }
}
template <bool kToPair>
__device__ inline void copy_box(uint32_t to, const void* map, uint32_t barrier, int32_t c0,
                                int32_t c1, int32_t c2, int32_t c3, int32_t c4) {
  if constexpr (kToPair) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(to),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "h"(uint16_t{3})
        : "memory");
  } else {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
        : "memory");
  }
}

// From shared memory to a box of a tensor map; what lies outside the map is left out.
__device__ inline void store_box(const void* map, uint32_t from, int32_t c0, int32_t c1,
                                 int32_t c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
          map),
      "r"(from), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
__device__ inline void store_box(const void* map, uint32_t from, int32_t c0, int32_t c1, int32_t c2,
                                 int32_t c3, int32_t c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], "
      "[%1];" ::"l"(map),
      "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until all but the last kPending groups of this thread's stores have read shared memory.
template <int kPending>
__device__ inline void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Makes this thread's writes to shared memory visible to wgmma and the copy engine.
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

// Accumulators of a thread, in pieces of 64 columns as in epilogues.cuh.
#define AMOEBA_BLOCK(c) "+f"((c)[0]), "+f"((c)[1]), "+f"((c)[2]), "+f"((c)[3])
#define AMOEBA_PIECE(c)                                                                   \
  AMOEBA_BLOCK((c)[0]), AMOEBA_BLOCK((c)[1]), AMOEBA_BLOCK((c)[2]), AMOEBA_BLOCK((c)[3]), \
      AMOEBA_BLOCK((c)[4]), AMOEBA_BLOCK((c)[5]), AMOEBA_BLOCK((c)[6]), AMOEBA_BLOCK((c)[7])
#define AMOEBA_WGMMA_256(type)                                                                  \
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                     \
               " {"                                                                             \
               "%0, %1, %2, %3, %4, %5, %6, %7, "                                               \
               "%8, %9, %10, %11, %12, %13, %14, %15, "                                         \
               "%16, %17, %18, %19, %20, %21, %22, %23, "                                       \
               "%24, %25, %26, %27, %28, %29, %30, %31, "                                       \
               "%32, %33, %34, %35, %36, %37, %38, %39, "                                       \
               "%40, %41, %42, %43, %44, %45, %46, %47, "                                       \
               "%48, %49, %50, %51, %52, %53, %54, %55, "                                       \
               "%56, %57, %58, %59, %60, %61, %62, %63, "                                       \
               "%64, %65, %66, %67, %68, %69, %70, %71, "                                       \
               "%72, %73, %74, %75, %76, %77, %78, %79, "                                       \
               "%80, %81, %82, %83, %84, %85, %86, %87, "                                       \
               "%88, %89, %90, %91, %92, %93, %94, %95, "                                       \
               "%96, %97, %98, %99, %100, %101, %102, %103, "                                   \
               "%104, %105, %106, %107, %108, %109, %110, %111, "                               \
               "%112, %113, %114, %115, %116, %117, %118, %119, "                               \
               "%120, %121, %122, %123, %124, %125, %126, %127"                                 \
               "}, %128, %129, 1, 1, 1, %130, %131;"                                            \
               : AMOEBA_PIECE(c[0]), AMOEBA_PIECE(c[1]), AMOEBA_PIECE(c[2]), AMOEBA_PIECE(c[3]) \
               : "l"(a), "l"(b), "n"(kMnMajorA ? 1 : 0), "n"(kMnMajorB ? 1 : 0))
#define AMOEBA_WGMMA_128(type)                                              \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type \
               " {"                                                         \
               "%0, %1, %2, %3, %4, %5, %6, %7, "                           \
               "%8, %9, %10, %11, %12, %13, %14, %15, "                     \
               "%16, %17, %18, %19, %20, %21, %22, %23, "                   \
               "%24, %25, %26, %27, %28, %29, %30, %31, "                   \
               "%32, %33, %34, %35, %36, %37, %38, %39, "                   \
               "%40, %41, %42, %43, %44, %45, %46, %47, "                   \
               "%48, %49, %50, %51, %52, %53, %54, %55, "                   \
               "%56, %57, %58, %59, %60, %61, %62, %63"                     \
               "}, %64, %65, 1, 1, 1, %66, %67;"                            \
               : AMOEBA_PIECE(c[0]), AMOEBA_PIECE(c[1])                     \
               : "l"(a), "l"(b), "n"(kMnMajorA ? 1 : 0), "n"(kMnMajorB ? 1 : 0))

// c [64, kColumns] += a [64, 16] b [16, kColumns].
template <typename T, int kColumns, bool kMnMajorA, bool kMnMajorB>
__device__ inline void multiply_group(float (&c)[4][8][4], uint64_t a, uint64_t b) {
  static_assert(kColumns == 256 || kColumns == 128);
  if constexpr (kColumns == 256 && std::is_same_v<T, bf16>) {
    AMOEBA_WGMMA_256("bf16");
  } else if constexpr (kColumns == 256) {
    AMOEBA_WGMMA_256("f16");
  } else if constexpr (std::is_same_v<T, bf16>) {
    AMOEBA_WGMMA_128("bf16");
  } else {
    AMOEBA_WGMMA_128("f16");
  }
}

#undef AMOEBA_WGMMA_128
#undef AMOEBA_WGMMA_256
#undef AMOEBA_PIECE
#undef AMOEBA_BLOCK

}  // namespace amoeba::kernels::cuda::device
