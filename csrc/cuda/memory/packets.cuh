// Packets: the words by which each warp tells all warps that share a row what it has found, and reductions by
// means of them. All warps take the packets in the same order, so that all have the same bits, on every run.
#pragma once

#include "reduce.cuh"

namespace fastkd {
namespace cuda {

// The packets of one exchange, one of each warp, in this block's shared memory. The compiler would forget of
// a pointer which memory it points to.
struct Packets {
  uint32_t address;
  unsigned count;

  static __device__ __forceinline__ Packets at(const uint4* vectors, unsigned count) {
    return {static_cast<uint32_t>(__cvta_generic_to_shared(vectors)), count};
  }
  __device__ __forceinline__ const uint4* vectors() const {
    return static_cast<const uint4*>(__cvta_shared_to_generic(address));
  }
};

template <int kWords>
constexpr int kPacketVectors = (kWords + 3) / 4;

template <class Value, int kWords>
__device__ __forceinline__ void pack_packet(const Value (&x)[kWords],
                                            uint4 (&packet)[kPacketVectors<kWords>]) {
  static_assert(sizeof(Value) == sizeof(uint32_t), "words");
  uint32_t word[4 * kPacketVectors<kWords>] = {};
  memcpy(word, x, sizeof(x));
#pragma unroll
  for (int i = 0; i < kPacketVectors<kWords>; ++i) {
    packet[i] = make_uint4(word[4 * i], word[4 * i + 1], word[4 * i + 2], word[4 * i + 3]);
  }
}

// Reads the first `kWords` words of packet `i`, of `kOf` words.
template <int kOf, class Value, int kWords>
__device__ __forceinline__ void read_packet(const Packets& packets, unsigned i, Value (&x)[kWords]) {
  uint32_t word[4 * kPacketVectors<kWords>];
#pragma unroll
  for (int k = 0; k < kPacketVectors<kWords>; ++k) {
    const uint4 four = packets.vectors()[i * kPacketVectors<kOf> + k];
    word[4 * k] = four.x, word[4 * k + 1] = four.y, word[4 * k + 2] = four.z, word[4 * k + 3] = four.w;
  }
  memcpy(x, word, sizeof(x));
}

// Sends the reductions over each warp to all warps that share the row.
template <class Op, class Place, int kCount>
__device__ __forceinline__ Packets send_reductions(const Place& place, typename Op::Value (&x)[kCount]) {
  reduce_lanes<Op>(x);
  uint4 mine[kPacketVectors<kCount>];
  pack_packet(x, mine);
  return place.exchange(mine);
}

// Sets each x[i] to its reduction over all packets.
template <class Op, int kCount>
__device__ __forceinline__ void reduce_packets(const Packets& packets, typename Op::Value (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = Op::kNeutral;
#pragma unroll 1
  for (unsigned i = threadIdx.x % kWarp; i < packets.count; i += kWarp) {
    typename Op::Value one[kCount];
    read_packet<kCount>(packets, i, one);
#pragma unroll
    for (int k = 0; k < kCount; ++k) x[k] = Op::combine(x[k], one[k]);
  }
  reduce_lanes<Op>(x);
}

// Replaces each x[i] by its reduction over all threads that share the row.
template <class Op, class Place, int kCount>
__device__ __forceinline__ void reduce_row(const Place& place, typename Op::Value (&x)[kCount]) {
  reduce_packets<Op>(send_reductions<Op>(place, x), x);
  if constexpr (Place::kManyRows) __syncthreads();
  place.release();
}

}  // namespace cuda
}  // namespace fastkd
