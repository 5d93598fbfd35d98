// Sixteen floats in an AVX-512 register.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "exp2.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct Vec {
  using Real = float;
  static constexpr bool kSimd = true, kFused = true;
  static constexpr int kWidth = 16;
  __m512 v;

  Vec() = default;
  Vec(__m512 x) : v(x) {}
  explicit Vec(double x) : v(_mm512_set1_ps(static_cast<float>(x))) {}

  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static Vec load16(const uint16_t* p, bool bf16) {
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if (bf16) return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
    return _mm512_cvtph_ps(h);
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
};

inline Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.v, b.v); }
inline Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.v, b.v); }
inline Vec operator/(Vec a, Vec b) { return _mm512_div_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
inline Vec fms(Vec a, Vec b, Vec c) { return _mm512_fmsub_ps(a.v, b.v, c.v); }  // a * b - c
inline Vec mul_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a.v, b.v); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a.v, b.v); }
inline Vec abs(Vec a) { return _mm512_abs_ps(a.v); }
// a <= b ? yes : no, lane by lane
inline Vec where_le(Vec a, Vec b, Vec yes, Vec no) {
  return _mm512_mask_mov_ps(no.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ), yes.v);
}

inline Vec times(Vec weight, Vec x) {
  const __mmask16 keep =
      _mm512_cmp_ps_mask(weight.v, _mm512_set1_ps(std::numeric_limits<float>::min()), _CMP_NLT_UQ);
  return _mm512_maskz_mul_ps(keep, weight.v, x.v);
}

// sum + weight * x, where 0 * anything = 0
inline Vec times_add(Vec weight, Vec x, Vec sum) {
  const __mmask16 keep =
      _mm512_cmp_ps_mask(weight.v, _mm512_set1_ps(std::numeric_limits<float>::min()), _CMP_NLT_UQ);
  return _mm512_mask3_fmadd_ps(weight.v, x.v, sum.v, keep);
}

inline double horizontal_sum(Vec a) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a.v));
  return _mm512_reduce_add_pd(_mm512_add_pd(low, _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))));
}
inline float horizontal_max(Vec a) { return _mm512_reduce_max_ps(a.v); }

inline Vec bits_or(Vec a, Vec b) { return _mm512_or_ps(a.v, b.v); }
inline Vec exponent_field(Vec n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(n.v), 23));
}
inline bool has_only_bits(Vec x, uint32_t bits) {
  return _mm512_test_epi32_mask(_mm512_castps_si512(x.v), _mm512_set1_epi32(static_cast<int>(~bits))) == 0;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd

#include "exp2_rounded.h"

namespace fastkd {
inline namespace FASTKD_ISA {

inline Vec log_one_plus(Vec y, Vec x) {
  // x = 2^k m with m in [0.75, 1.5)
  const __m512 m = _mm512_getmant_ps(x.v, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
  const __m512 k = _mm512_sub_ps(_mm512_getexp_ps(x.v), _mm512_getexp_ps(m));
  const __mmask16 near = _mm512_cmp_ps_mask(k, _mm512_setzero_ps(), _CMP_EQ_OQ);
  const __m512 f = _mm512_mask_mov_ps(_mm512_sub_ps(m, _mm512_set1_ps(1.0f)), near, y.v);
  return fma(k, Vec(kLn2), log_near_one(Vec(f)));
}

// Rounds to the nearest bfloat16, in the lower half of each lane; a tie goes to the one further from zero.
// The rounding could carry a NaN's digits into its sign; `nan` makes the function check for NaN.
inline __m512i round_bf16(Vec x, bool nan) {
  __m512i rounded = _mm512_add_epi32(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x8000));
  if (nan) {
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q),
                                    _mm512_set1_epi32(0x7fc00000));
  }
  return _mm512_srli_epi32(rounded, 16);
}

// Converts two vectors to 16-bit numbers.
inline __m512i to16(Vec low, Vec high, bool bf16, bool nan) {
  if (!bf16) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(low.v, kNearest)),
                              _mm512_cvtps_ph(high.v, kNearest), 1);
  }
  // The pack takes turns between its operands every 128 bits; the permutation puts them one after the other.
  const __m512i packed = _mm512_packus_epi32(round_bf16(low, nan), round_bf16(high, nan));
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), packed);
}

inline void store16(Vec low, Vec high, uint16_t* p, bool bf16, bool nan) {
  _mm512_storeu_si512(p, to16(low, high, bf16, nan));
}

// Stores that bypass the caches, for memory that is not read soon. `p` is aligned to 64 bytes.
inline void stream(Vec x, float* p) { _mm512_stream_ps(p, x.v); }
inline void stream16(Vec low, Vec high, uint16_t* p, bool bf16, bool nan) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), to16(low, high, bf16, nan));
}
inline void stream_fence() { _mm_sfence(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace FASTKD_ISA
}  // namespace fastkd
