// Eight floats in an AVX register, with FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "polynomials.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct Vec {
  using Real = float;
  static constexpr bool kSimd = true;
  static constexpr int kWidth = 8;
  __m256 v;

  Vec() = default;
  Vec(__m256 x) : v(x) {}
  explicit Vec(double x) : v(_mm256_set1_ps(static_cast<float>(x))) {}

  static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static Vec load16(const uint16_t* p, bool bf16) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if (bf16) return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
    return _mm256_cvtph_ps(h);
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
};

inline Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.v, b.v); }
inline Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
inline Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
inline Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.v, b.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a.v, b.v); }

inline Vec times(Vec weight, Vec x) {
  const __m256 keep = _mm256_cmp_ps(weight.v, _mm256_set1_ps(std::numeric_limits<float>::min()), _CMP_NLT_UQ);
  return _mm256_and_ps(keep, _mm256_mul_ps(weight.v, x.v));
}

// sum + weight * x, where 0 * anything = 0
inline Vec times_add(Vec weight, Vec x, Vec sum) { return sum + times(weight, x); }

inline double horizontal_sum(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float horizontal_max(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

// 2^x within 2 ulp; 0 below the normal numbers, NaN at NaN.
inline Vec exp2(Vec x) {
  const __m256 bounded = _mm256_max_ps(_mm256_set1_ps(-126.0f), x.v);  // in this order NaN passes
  const __m256 n = _mm256_floor_ps(bounded);
  const __m256 f = _mm256_sub_ps(bounded, n);
  __m256 y = _mm256_set1_ps(kExp2[0]);
  for (int i = 1; i < kExp2Terms; ++i) y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(kExp2[i]));
  const __m256i scaled =
      _mm256_add_epi32(_mm256_castps_si256(y), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23));
  const __m256 normal = _mm256_cmp_ps(x.v, _mm256_set1_ps(-126.0f), _CMP_NLT_UQ);
  const __m256 result = _mm256_and_ps(normal, _mm256_castsi256_ps(scaled));
  const __m256 nan = _mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q);
  return _mm256_blendv_ps(result, x.v, nan);
}

inline Vec log1p(Vec u) {
  const __m256 one = _mm256_set1_ps(1.0f);
  const __m256 w = _mm256_add_ps(one, u.v);
  // w = 2^k m with m in [0.75, 1.5); what rounding 1 + u lost comes back as a first-order term.
  const __m256i offset = _mm256_set1_epi32(0x3f400000);  // 0.75
  const __m256i above = _mm256_sub_epi32(_mm256_castps_si256(w), offset);
  const __m256 k = _mm256_cvtepi32_ps(_mm256_srai_epi32(above, 23));
  const __m256 m =
      _mm256_castsi256_ps(_mm256_add_epi32(_mm256_and_si256(above, _mm256_set1_epi32(0x007fffff)), offset));
  const __m256 lost = _mm256_div_ps(_mm256_sub_ps(u.v, _mm256_sub_ps(w, one)), w);
  const __m256 f = _mm256_sub_ps(m, one);
  const __m256 s = _mm256_div_ps(f, _mm256_add_ps(f, _mm256_set1_ps(2.0f)));
  const __m256 z = _mm256_mul_ps(s, s);
  __m256 y = _mm256_set1_ps(kLog[0]);
  for (int i = 1; i < 4; ++i) y = _mm256_fmadd_ps(y, z, _mm256_set1_ps(kLog[i]));
  y = _mm256_fmadd_ps(_mm256_mul_ps(y, z), s, _mm256_add_ps(s, s));
  y = _mm256_add_ps(y, lost);
  y = _mm256_fmadd_ps(k, _mm256_set1_ps(0.69314718f), y);
  y = _mm256_blendv_ps(y, u.v, _mm256_cmp_ps(u.v, _mm256_set1_ps(INFINITY), _CMP_EQ_OQ));
  y = _mm256_blendv_ps(y, _mm256_set1_ps(-INFINITY), _mm256_cmp_ps(w, _mm256_setzero_ps(), _CMP_EQ_OQ));
  return _mm256_blendv_ps(y, u.v, _mm256_cmp_ps(u.v, u.v, _CMP_UNORD_Q));
}

inline __m128i to16(Vec x, bool bf16) {
  if (!bf16) return _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}

inline void store16(Vec x, uint16_t* p, bool bf16) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to16(x, bf16));
}

// Past the caches, for memory that nobody reads soon; `p` is aligned to 32 bytes.
inline void stream(Vec x, float* p) { _mm256_stream_ps(p, x.v); }
inline void stream16(Vec low, Vec high, uint16_t* p, bool bf16) {
  const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(to16(low, bf16)), to16(high, bf16), 1);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), both);
}
inline void stream_fence() { _mm_sfence(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace FASTKD_ISA
}  // namespace fastkd
