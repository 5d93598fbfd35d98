// Four floats in 128 bits, in the vector extensions of GCC and Clang: SSE2 on every x86-64, NEON on ARM.
// Where the two instruction sets differ in more than names, small functions below choose between them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "exp2.h"

namespace fastkd {
inline namespace FASTKD_ISA {

typedef float Floats4 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));
typedef uint32_t Bits4 __attribute__((vector_size(16)));
typedef uint16_t Halves4 __attribute__((vector_size(8)));
typedef uint16_t Halves8 __attribute__((vector_size(16)));

inline Floats4 all_lanes(float x) { return Floats4{x, x, x, x}; }
inline Floats4 floats_of(Bits4 x) { return (Floats4)x; }
inline Bits4 bits_of(Floats4 x) { return (Bits4)x; }
// Lanes of `mask` are all ones or all zeros, as comparisons return them.
inline Bits4 choose(Bits4 mask, Bits4 yes, Bits4 no) { return (mask & yes) | (~mask & no); }

struct Vec {
  using Real = float;
  static constexpr bool kSimd = true;
#if defined(__ARM_FEATURE_FMA)
  static constexpr bool kFused = true;
#else
  static constexpr bool kFused = false;
#endif
  static constexpr int kWidth = 4;
  Floats4 v;

  Vec() = default;
  Vec(Floats4 x) : v(x) {}
  explicit Vec(double x) : v(all_lanes(static_cast<float>(x))) {}

  static Vec load(const float* p) {
    Vec x;
    std::memcpy(&x.v, p, sizeof x.v);
    return x;
  }
  static Vec load16(const uint16_t* p, bool bf16);
  void store(float* p) const { std::memcpy(p, &v, sizeof v); }
};

inline Vec operator+(Vec a, Vec b) { return a.v + b.v; }
inline Vec operator-(Vec a, Vec b) { return a.v - b.v; }
inline Vec operator*(Vec a, Vec b) { return a.v * b.v; }
inline Vec operator/(Vec a, Vec b) { return a.v / b.v; }

#if defined(__SSE2__)
inline Vec max(Vec a, Vec b) { return (Floats4)_mm_max_ps((__m128)a.v, (__m128)b.v); }
inline Vec min(Vec a, Vec b) { return (Floats4)_mm_min_ps((__m128)a.v, (__m128)b.v); }
#else
// ARM's own maximum of a number and NaN is NaN.
inline Vec max(Vec a, Vec b) { return floats_of(choose((Bits4)(a.v > b.v), bits_of(a.v), bits_of(b.v))); }
inline Vec min(Vec a, Vec b) { return floats_of(choose((Bits4)(a.v < b.v), bits_of(a.v), bits_of(b.v))); }
#endif

#if defined(__ARM_FEATURE_FMA)
inline Vec fma(Vec a, Vec b, Vec c) {
  return (Floats4)vfmaq_f32((float32x4_t)c.v, (float32x4_t)a.v, (float32x4_t)b.v);
}
inline Vec fms(Vec a, Vec b, Vec c) { return fma(a, b, Vec(-c.v)); }  // a * b - c
inline Vec mul_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
#else
// SSE2 has no fused operation. The product is taken in parts, of which the first is exact, so that a sum much
// smaller than the product has its digits right; it is rounded twice.
constexpr uint32_t kHighBits = 0xfffff000u;  // the first 12 digits of a float
inline Floats4 high_part(Floats4 x) { return floats_of(bits_of(x) & kHighBits); }
inline Vec fma(Vec a, Vec b, Vec c) {
  const Floats4 a_high = high_part(a.v), b_high = high_part(b.v);
  const Vec rest = a_high * (b.v - b_high) + (a.v - a_high) * b.v;
  // With an infinite factor the rest may be NaN, or infinite with the other sign. The bounds are above what
  // it can be otherwise.
  return Vec(a_high * b_high + c.v) + min(Vec(1e36), max(rest, Vec(-1e36)));
}
inline Vec fms(Vec a, Vec b, Vec c) { return fma(a, b, Vec(-c.v)); }  // a * b - c
inline Vec mul_add(Vec a, Vec b, Vec c) { return a.v * b.v + c.v; }
#endif

inline Vec abs(Vec a) { return floats_of(bits_of(a.v) & 0x7fffffffu); }
// a <= b ? yes : no, lane by lane
inline Vec where_le(Vec a, Vec b, Vec yes, Vec no) {
  return floats_of(choose((Bits4)(a.v <= b.v), bits_of(yes.v), bits_of(no.v)));
}

// All ones where the weight is a normal number or NaN.
inline Bits4 counts(Vec weight) { return ~(Bits4)(weight.v < all_lanes(std::numeric_limits<float>::min())); }
inline Vec times(Vec weight, Vec x) { return floats_of(counts(weight) & bits_of(weight.v * x.v)); }

// sum + weight * x, where 0 * anything = 0
inline Vec times_add(Vec weight, Vec x, Vec sum) {
  return mul_add(weight, floats_of(counts(weight) & bits_of(x.v)), sum);
}

inline double horizontal_sum(Vec a) {
  return (double(a.v[0]) + double(a.v[2])) + (double(a.v[1]) + double(a.v[3]));
}
inline float horizontal_max(Vec a) {
  const float low = a.v[0] > a.v[1] ? a.v[0] : a.v[1], high = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return low > high ? low : high;
}

inline Vec bits_or(Vec a, Vec b) { return floats_of(bits_of(a.v) | bits_of(b.v)); }
inline Vec exponent_field(Vec n) { return floats_of(bits_of(n.v) << 23); }
inline bool has_only_bits(Vec x, uint32_t bits) {
  const Bits4 found = bits_of(x.v);
  return ((found[0] | found[1] | found[2] | found[3]) & ~bits) == 0;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd

#include "exp2_rounded.h"

namespace fastkd {
inline namespace FASTKD_ISA {

inline Vec log_one_plus(Vec y, Vec x) {
  // x = 2^k (1 + f) with 1 + f in [0.75, 1.5)
  constexpr int32_t kOffset = 0x3f400000;  // 0.75
  const Ints4 above = (Ints4)x.v - kOffset;
  const Ints4 exponent = above >> 23;
  const Vec k = __builtin_convertvector(exponent, Floats4);
  const Vec m = (Floats4)((above & 0x007fffff) + kOffset);
  const Vec f = floats_of(choose((Bits4)(exponent == 0), bits_of(y.v), bits_of((m - Vec(1.0)).v)));
  const Vec log = mul_add(k, Vec(kLn2), log_near_one(f));
  return floats_of(choose((Bits4)(x.v == x.v), bits_of(log.v), bits_of(x.v)));
}

// 16-bit numbers in the lower half of each lane, as float32 and back.
inline Vec from_f16(Bits4 h) {
#if defined(__ARM_NEON)
  return (Floats4)vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32((uint32x4_t)h)));
#else
  const Bits4 magnitude = (h & 0x7fffu) << 13, sign = (h & 0x8000u) << 16;
  constexpr uint32_t kBias = 112u << 23, kTop = 0x0f800000u;  // difference of the exponents; infinity
  const Bits4 normal = magnitude + kBias;
  // A subnormal number's digits are those of 2^-14 + x, whose difference is exact.
  const Vec smallest(6.103515625e-5);
  const Vec subnormal = Vec(floats_of(normal + (1u << 23))) - smallest;
  const Bits4 finite = choose((Bits4)(magnitude < (1u << 23)), bits_of(subnormal.v), normal);
  return floats_of(choose((Bits4)(magnitude >= kTop), normal + kBias, finite) | sign);
#endif
}

inline Bits4 to_f16(Vec x) {
#if defined(__ARM_NEON)
  return (Bits4)vmovl_u16(vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x.v)));
#else
  const Bits4 bits = bits_of(x.v), magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  const Bits4 normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14, adding 0.5 leaves the rounded subnormal number in the low bits.
  const Bits4 subnormal = bits_of(floats_of(magnitude) + all_lanes(0.5f)) - 0x3f000000u;
  Bits4 found = choose((Bits4)(magnitude < 0x38800000u), subnormal, normal);
  found = choose((Bits4)(magnitude >= 0x477ff000u), Bits4{} + 0x7c00u, found);  // rounds to 65536 or more
  found = choose((Bits4)(magnitude > 0x7f800000u), Bits4{} + 0x7e00u, found);
  return found | sign;
#endif
}

inline Vec Vec::load16(const uint16_t* p, bool bf16) {
  Halves4 h;
  std::memcpy(&h, p, sizeof h);
#if defined(__SSE2__)
  const __m128i both = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  if (bf16) return (Floats4)_mm_unpacklo_epi16(_mm_setzero_si128(), both);
  return from_f16((Bits4)_mm_unpacklo_epi16(both, _mm_setzero_si128()));
#else
  const Bits4 wide = __builtin_convertvector(h, Bits4);
  return bf16 ? Vec(floats_of(wide << 16)) : from_f16(wide);
#endif
}

// Rounds to the nearest bfloat16, in the upper half of each lane; a tie goes to the one further from zero.
// The rounding could carry a NaN's digits into its sign; `nan` makes the function check for NaN.
inline Bits4 round_bf16(Vec x, bool nan) {
  const Bits4 rounded = bits_of(x.v) + 0x8000u;
  return nan ? choose((Bits4)(x.v == x.v), rounded, Bits4{} + 0x7fc00000u) : rounded;
}

// Converts two vectors to 16-bit numbers.
inline Halves8 to16(Vec low, Vec high, bool bf16, bool nan) {
  const Bits4 a = bf16 ? round_bf16(low, nan) : to_f16(low) << 16;
  const Bits4 b = bf16 ? round_bf16(high, nan) : to_f16(high) << 16;
#if defined(__SSE2__)
  return (Halves8)_mm_packs_epi32(_mm_srai_epi32((__m128i)a, 16), _mm_srai_epi32((__m128i)b, 16));
#else
  const Halves4 x = __builtin_convertvector(a >> 16, Halves4), y = __builtin_convertvector(b >> 16, Halves4);
  Halves8 out;
  std::memcpy(&out, &x, sizeof x);
  std::memcpy(reinterpret_cast<char*>(&out) + sizeof x, &y, sizeof y);
  return out;
#endif
}

inline void store16(Vec low, Vec high, uint16_t* p, bool bf16, bool nan) {
  const Halves8 x = to16(low, high, bf16, nan);
  std::memcpy(p, &x, sizeof x);
}

// Stores that bypass the caches where there are some, for memory that is not read soon. `p` is aligned to 16
// bytes.
#if defined(__SSE2__)
inline void stream(Vec x, float* p) { _mm_stream_ps(p, (__m128)x.v); }
inline void stream16(Vec low, Vec high, uint16_t* p, bool bf16, bool nan) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)to16(low, high, bf16, nan));
}
inline void stream_fence() { _mm_sfence(); }
#else
inline void stream(Vec x, float* p) { x.store(p); }
inline void stream16(Vec low, Vec high, uint16_t* p, bool bf16, bool nan) {
  store16(low, high, p, bf16, nan);
}
inline void stream_fence() {}
#endif
inline void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace FASTKD_ISA
}  // namespace fastkd
