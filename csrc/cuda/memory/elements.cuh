// Element types: how neighbouring logits are stored in 32-bit words, and how they are converted to float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fastkd {
namespace cuda {

constexpr int kVectorBytes = 16;  // the widest access of one thread

struct Float32 {
  using Bits = uint32_t;
  static constexpr int kPerWord = 1;
  static constexpr Bits kMinusInfinity = 0xff800000u;
  static __device__ __forceinline__ void unpack(uint32_t word, float* x) { x[0] = __uint_as_float(word); }
  static __device__ __forceinline__ uint32_t pack(const float* x) { return __float_as_uint(x[0]); }
};

// Returns the packed two of `Two` as a word, and the other way round.
template <class Two>
__device__ __forceinline__ Two two_of(uint32_t word) {
  return *reinterpret_cast<const Two*>(&word);
}
template <class Two>
__device__ __forceinline__ uint32_t word_of(const Two& two) {
  return *reinterpret_cast<const uint32_t*>(&two);
}

struct BFloat16 {
  using Bits = uint16_t;
  static constexpr int kPerWord = 2;
  static constexpr Bits kMinusInfinity = 0xff80;
  static __device__ __forceinline__ void unpack(uint32_t word, float* x) {
    x[0] = __uint_as_float(word << 16);
    x[1] = __uint_as_float(word & 0xffff0000u);
  }
  static __device__ __forceinline__ uint32_t pack(const float* x) {
    return word_of(__floats2bfloat162_rn(x[0], x[1]));
  }
  // The larger ones of two pairs. It ignores NaN.
  static __device__ __forceinline__ uint32_t max(uint32_t a, uint32_t b) {
    return word_of(__hmax2(two_of<__nv_bfloat162>(a), two_of<__nv_bfloat162>(b)));
  }
};

struct Float16 {
  using Bits = uint16_t;
  static constexpr int kPerWord = 2;
  static constexpr Bits kMinusInfinity = 0xfc00;
  static __device__ __forceinline__ void unpack(uint32_t word, float* x) {
    const float2 two = __half22float2(two_of<__half2>(word));
    x[0] = two.x;
    x[1] = two.y;
  }
  static __device__ __forceinline__ uint32_t pack(const float* x) {
    return word_of(__floats2half2_rn(x[0], x[1]));
  }
  static __device__ __forceinline__ uint32_t max(uint32_t a, uint32_t b) {
    return word_of(__hmax2(two_of<__half2>(a), two_of<__half2>(b)));
  }
};

// The number of elements that a thread processes at a time: as many as one vector access moves.
template <class E>
constexpr int kGroupSize = kVectorBytes / sizeof(typename E::Bits);

}  // namespace cuda
}  // namespace fastkd
