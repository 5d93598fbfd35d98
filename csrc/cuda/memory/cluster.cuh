// Hopper's clusters and bulk copies: blocks that run together and write into each other's shared memory, and
// a copy engine that fills it. The device code is for sm_90 and newer. Without a GPU, the tests interpret its
// PTX (tests/native/cuda_emulation/machine/ptx.cpp).
#pragma once

#include <cstdint>

#include "dynamic_shared.cuh"

namespace fastkd {
namespace cuda {

// Counts the bytes of copies that are under way. One thread begins it, announces the bytes and starts the
// copies. All threads may wait for it; once it has ended, they no longer have to.
struct Arrival {
  uint64_t state;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ __forceinline__ uint32_t shared_address(const void* x) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(x));
}

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned x;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(x));
  return x;
}

__device__ __forceinline__ unsigned cluster_size() {
  unsigned x;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(x));
  return x;
}

// A barrier over all threads of the cluster, in two halves. Writes before the first half, including those to
// the shared memory of other blocks, are visible after the second.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Writes into the shared memory of block `rank` of the cluster, at the place where `x` is in this block's.
__device__ __forceinline__ void store_remote(uint32_t* x, unsigned rank, uint32_t value) {
  asm volatile(
      "{ .reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.shared::cluster.u32 [remote], %2; }"
      :
      : "r"(shared_address(x)), "r"(rank), "r"(value)
      : "memory");
}

__device__ __forceinline__ void begin_arrivals(Arrival* all, int count) {
  for (int i = 0; i < count; ++i)
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(all + i)) : "memory");
  // The fence makes the counters visible to the copy engine.
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void expect_bytes(Arrival* arrival, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrival)),
               "r"(bytes)
               : "memory");
}

// `bytes`, `from` and `to` are multiples of 16; `to` is in this block's shared memory.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, uint32_t bytes, Arrival* arrival) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(arrival))
      : "memory");
}

__device__ __forceinline__ void await_arrival(Arrival* arrival) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n"
      "@!done bra again; }" ::"r"(shared_address(arrival))
      : "memory");
}

#else

// On other targets these functions are declared only.
__device__ unsigned cluster_rank();
__device__ unsigned cluster_size();
__device__ void cluster_arrive();
__device__ void cluster_wait();
__device__ void store_remote(uint32_t* x, unsigned rank, uint32_t value);
__device__ void begin_arrivals(Arrival* all, int count);
__device__ void expect_bytes(Arrival* arrival, uint32_t bytes);
__device__ void bulk_copy(void* to, const void* from, uint32_t bytes, Arrival* arrival);
__device__ void await_arrival(Arrival* arrival);

#endif

}  // namespace cuda
}  // namespace fastkd
