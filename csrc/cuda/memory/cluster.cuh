// Hopper's clusters and bulk copies: blocks that run together and write into each other's shared memory, and
// a copy engine that fills it. The device code is for sm_90 and newer. Without a GPU, the tests interpret its
// PTX (tests/native/cuda_emulation/machine/ptx.cpp).
#pragma once

#include <cstdint>

#include "dynamic_shared.cuh"

namespace fastkd {
namespace cuda {

// Counts the bytes of copies and stores that are under way to a block, or the threads that have arrived, in
// one phase after the other. One thread of the block begins it. All threads of the block may wait for a
// phase.
struct Arrival {
  uint64_t state;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ __forceinline__ uint32_t shared_address(const void* x) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(x));
}

// `volatile` where these are read: what follows from them is then computed again for each row, and occupies
// no registers during the sweeps of all rows.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned x;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(x));
  return x;
}

__device__ __forceinline__ unsigned cluster_size() {
  unsigned x;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(x));
  return x;
}

// A barrier over all threads of the cluster, in two halves. What precedes the first half is ordered before
// what follows the second one.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

// The first half for a block that has nothing to show but that it runs, and the arrivals that it has begun.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Writes into the shared memory of block `rank` of the cluster, at the place where `to` is in this block's,
// and counts the bytes at that block's `arrival`.
__device__ __forceinline__ void send(uint4* to, unsigned rank, const uint4& x, Arrival* arrival) {
  asm volatile(
      "{ .reg .b32 place, signal;\n"
      "mapa.shared::cluster.u32 place, %0, %2;\n"
      "mapa.shared::cluster.u32 signal, %1, %2;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [place], {%3, %4, %5, %6}, "
      "[signal]; }"
      :
      : "r"(shared_address(to)), "r"(shared_address(arrival)), "r"(rank), "r"(x.x), "r"(x.y), "r"(x.z),
        "r"(x.w)
      : "memory");
}

// Begins an arrival whose phases complete when as many threads have arrived, and the announced bytes.
__device__ __forceinline__ void begin_arrival(Arrival* arrival, unsigned threads) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(arrival)), "r"(threads)
               : "memory");
}

// Orders what this thread has written to shared memory before the copies that a thread starts behind the next
// barrier of the block.
__device__ __forceinline__ void fence_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Shows the arrivals that this thread has begun to the copy engine, and to the blocks that its next arrival
// at the cluster's barrier reaches.
__device__ __forceinline__ void show_arrivals() {
  fence_copies();
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives in block `rank` of the cluster, at the place where `arrival` is in this block's shared memory. What
// the block has read before its last barrier is ordered before what others write after they have waited for
// the phase: such reads have returned. A release in the cluster's scope would only wait for writes, too.
__device__ __forceinline__ void arrive_at(Arrival* arrival, unsigned rank) {
  asm volatile(
      "{ .reg .b32 signal;\n"
      "mapa.shared::cluster.u32 signal, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [signal]; }" ::"r"(shared_address(arrival)),
      "r"(rank)
      : "memory");
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

// Waits for the bytes that threads of this block have announced and copied in a phase, the present one or the
// one before.
__device__ __forceinline__ void await_copies(Arrival* arrival, unsigned phase) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(shared_address(arrival)),
      "r"(phase % 2)
      : "memory");
}

// The same for a phase to which all blocks of the cluster contribute, by what they send or by arriving.
__device__ __forceinline__ void await_cluster(Arrival* arrival, unsigned phase) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(shared_address(arrival)),
      "r"(phase % 2)
      : "memory");
}

#else

// On other targets these functions are declared only.
__device__ unsigned cluster_rank();
__device__ unsigned cluster_size();
__device__ void cluster_arrive();
__device__ void cluster_arrive_relaxed();
__device__ void cluster_wait();
__device__ void send(uint4* to, unsigned rank, const uint4& x, Arrival* arrival);
__device__ void begin_arrival(Arrival* arrival, unsigned threads);
__device__ void fence_copies();
__device__ void show_arrivals();
__device__ void arrive_at(Arrival* arrival, unsigned rank);
__device__ void expect_bytes(Arrival* arrival, uint32_t bytes);
__device__ void bulk_copy(void* to, const void* from, uint32_t bytes, Arrival* arrival);
__device__ void await_copies(Arrival* arrival, unsigned phase);
__device__ void await_cluster(Arrival* arrival, unsigned phase);

#endif

}  // namespace cuda
}  // namespace fastkd
