// Eight floats in an AVX register, with FMA and F16C.
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
  static constexpr int kWidth = 8;
  __m256 v;

  Vec() = default;
  Vec(__m256 x) : v(x) {}
  explicit Vec(double x) : v(_mm256_set1_ps(static_cast<float>(x))) {}

  static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static Vec load16(const uint16_t* p, bool bf16) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if (!bf16) return _mm256_cvtph_ps(h);
    // A single shuffle, within each half of a register that holds the numbers twice. A widening instruction
    // crosses the halves and takes three times as long.
    constexpr char kZero = -128;
    const __m256i upper = _mm256_setr_epi8(
        kZero, kZero, 0, 1, kZero, kZero, 2, 3, kZero, kZero, 4, 5, kZero, kZero, 6, 7,  //
        kZero, kZero, 8, 9, kZero, kZero, 10, 11, kZero, kZero, 12, 13, kZero, kZero, 14, 15);
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(h), upper));
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
};

inline Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.v, b.v); }
inline Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
inline Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
inline Vec fms(Vec a, Vec b, Vec c) { return _mm256_fmsub_ps(a.v, b.v, c.v); }  // a * b - c
inline Vec mul_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a.v, b.v); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a.v, b.v); }
inline Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
// a <= b ? yes : no, lane by lane
inline Vec where_le(Vec a, Vec b, Vec yes, Vec no) {
  return _mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ));
}

inline Vec times(Vec weight, Vec x) {
  const __m256 keep = _mm256_cmp_ps(weight.v, _mm256_set1_ps(std::numeric_limits<float>::min()), _CMP_NLT_UQ);
  return _mm256_and_ps(keep, _mm256_mul_ps(weight.v, x.v));
}

// sum + weight * x, where 0 * anything = 0
inline Vec times_add(Vec weight, Vec x, Vec sum) {
  const __m256 keep = _mm256_cmp_ps(weight.v, _mm256_set1_ps(std::numeric_limits<float>::min()), _CMP_NLT_UQ);
  return _mm256_fmadd_ps(weight.v, _mm256_and_ps(keep, x.v), sum.v);
}

inline double horizontal_sum(Vec a) {
  const __m256d four = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(a.v)),
                                     _mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1)));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
inline float horizontal_max(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline Vec bits_or(Vec a, Vec b) { return _mm256_or_ps(a.v, b.v); }
inline Vec exponent_field(Vec n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(n.v), 23));
}
inline bool has_only_bits(Vec x, uint32_t bits) {
  return _mm256_testc_si256(_mm256_set1_epi32(static_cast<int>(bits)), _mm256_castps_si256(x.v)) != 0;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd

#include "exp2_rounded.h"

namespace fastkd {
inline namespace FASTKD_ISA {

inline Vec log_one_plus(Vec y, Vec x) {
  // x = 2^k (1 + f) with 1 + f in [0.75, 1.5)
  const __m256i offset = _mm256_set1_epi32(0x3f400000);  // 0.75
  const __m256i above = _mm256_sub_epi32(_mm256_castps_si256(x.v), offset);
  const __m256i exponent = _mm256_srai_epi32(above, 23);
  const __m256 near = _mm256_castsi256_ps(_mm256_cmpeq_epi32(exponent, _mm256_setzero_si256()));
  const __m256 m =
      _mm256_castsi256_ps(_mm256_add_epi32(_mm256_and_si256(above, _mm256_set1_epi32(0x007fffff)), offset));
  const __m256 f = _mm256_blendv_ps(_mm256_sub_ps(m, _mm256_set1_ps(1.0f)), y.v, near);
  const Vec log = fma(_mm256_cvtepi32_ps(exponent), Vec(kLn2), log_near_one(Vec(f)));
  return _mm256_blendv_ps(log.v, x.v, _mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
}

// Rounds to the nearest bfloat16, in the upper half of each lane; a tie goes to the one further from zero,
// which takes a third of the instructions of a tie to even. The rounding could carry a NaN's digits into its
// sign; `nan` makes the function check for NaN.
inline __m256i round_bf16(Vec x, bool nan) {
  const __m256i rounded = _mm256_add_epi32(_mm256_castps_si256(x.v), _mm256_set1_epi32(0x8000));
  if (!nan) return rounded;
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), is_nan);
}

// Converts two vectors to 16-bit numbers.
inline __m256i to16(Vec low, Vec high, bool bf16, bool nan) {
  if (!bf16) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return _mm256_set_m128i(_mm256_cvtps_ph(high.v, kNearest), _mm256_cvtps_ph(low.v, kNearest));
  }
  const __m256i a = _mm256_srli_epi32(round_bf16(low, nan), 16);
  const __m256i b = _mm256_srli_epi32(round_bf16(high, nan), 16);
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
}

inline void store16(Vec low, Vec high, uint16_t* p, bool bf16, bool nan) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to16(low, high, bf16, nan));
}

// Stores that bypass the caches, for memory that is not read soon. `p` is aligned to 32 bytes.
inline void stream(Vec x, float* p) { _mm256_stream_ps(p, x.v); }
inline void stream16(Vec low, Vec high, uint16_t* p, bool bf16, bool nan) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to16(low, high, bf16, nan));
}
inline void stream_fence() { _mm_sfence(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace FASTKD_ISA
}  // namespace fastkd
