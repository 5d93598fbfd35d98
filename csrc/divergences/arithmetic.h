// Arithmetic of numbers that the functors and the vectors share.
#pragma once

#include <cmath>
#include <limits>

// FASTKD_INLINE marks functions that loops call for each entry. Compilers leave some of them uninlined by
// themselves, and each call then passes an entry through memory.
#if defined(__GNUC__)
#define FASTKD_INLINE inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define FASTKD_INLINE __forceinline
#else
#define FASTKD_INLINE inline
#endif

#if defined(__CUDACC__)
#define FASTKD_HD __host__ __device__ __forceinline__
#else
#define FASTKD_HD inline
#endif

// Each CPU instruction set compiles these headers with its own flags. A namespace per set prevents the linker
// from replacing the code of one set by that of another.
#if !defined(FASTKD_ISA)
#define FASTKD_ISA portable
#endif

namespace fastkd {
inline namespace FASTKD_ISA {

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

// Returns weight * x, where 0 * anything = 0. Subnormal weights count as 0, so that a log-ratio to them
// cannot overflow the product.
template <class R>
FASTKD_HD R times_scalar(R weight, R x) {
  return weight < std::numeric_limits<R>::min() ? R(0) : weight * x;
}
FASTKD_HD float times(float weight, float x) { return times_scalar(weight, x); }
FASTKD_HD double times(double weight, double x) { return times_scalar(weight, x); }
FASTKD_HD float times_add(float weight, float x, float sum) {
#if defined(__CUDA_ARCH__)
  return weight < std::numeric_limits<float>::min() ? sum : ::fmaf(weight, x, sum);
#else
  return sum + times(weight, x);
#endif
}
FASTKD_HD double times_add(double weight, double x, double sum) { return sum + times(weight, x); }
// x / y to a few ulp, for numbers no larger than 1.
FASTKD_HD float divide(float x, float y) {
#if defined(__CUDA_ARCH__)
  return ::__fdividef(x, y);
#else
  return x / y;
#endif
}
template <class F>
FASTKD_HD F divide(const F& x, const F& y) {
  return x / y;
}
FASTKD_HD float log2_fast(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::log2f(x);
#endif
}

// Returns a < b ? x : y, with both x and y computed. A branch would run both ways and cost more, since
// neighbouring threads differ in the condition.
FASTKD_HD float select_less(float a, float b, float x, float y) {
#if defined(__CUDA_ARCH__)
  float z;
  asm("{ .reg .pred less; setp.lt.f32 less, %1, %2; selp.f32 %0, %3, %4, less; }"
      : "=f"(z)
      : "f"(a), "f"(b), "f"(x), "f"(y));
  return z;
#else
  return a < b ? x : y;
#endif
}

// log(x), given x = 1 + y with all its digits, and y with all its own. In a CUDA thread an x below the normal
// numbers counts as the smallest of them, and a series replaces the instruction near 1, where the absolute
// error of the latter is larger than the series' error, 3e-6 of the result.
FASTKD_HD float log_one_plus(float y, float x) {
#if defined(__CUDA_ARCH__)
  const float series = ::fmaf(::fmaf(::fmaf(-0.25f, y, 1.0f / 3), y, -0.5f) * y, y, y);
  const float least = std::numeric_limits<float>::min();
  return select_less(0.0625f, ::fabsf(y), static_cast<float>(kLn2) * log2_fast(::fmaxf(x, least)), series);
#else
  return ::fabsf(y) < 0.5f ? ::log1pf(y) : ::logf(x);
#endif
}
FASTKD_HD double log_one_plus(double y, double x) { return ::fabs(y) < 0.5 ? ::log1p(y) : ::log(x); }
FASTKD_HD float abs(float x) { return ::fabsf(x); }
FASTKD_HD double abs(double x) { return ::fabs(x); }
// The smaller and the larger of two numbers, the second one where the first is NaN.
FASTKD_HD float smaller_of(float x, float y) { return ::fminf(x, y); }
FASTKD_HD double smaller_of(double x, double y) { return ::fmin(x, y); }
template <class F>
FASTKD_HD F smaller_of(const F& x, const F& y) {
  return min(x, y);
}
FASTKD_HD float larger_of(float x, float y) { return ::fmaxf(x, y); }
FASTKD_HD double larger_of(double x, double y) { return ::fmax(x, y); }
template <class F>
FASTKD_HD F larger_of(const F& x, const F& y) {
  return max(x, y);
}
FASTKD_HD float where_le(float a, float b, float yes, float no) { return a <= b ? yes : no; }
FASTKD_HD double where_le(double a, double b, double yes, double no) { return a <= b ? yes : no; }
// Returns the sign of x: -1, 0 or 1. The sign of NaN is NaN, except in a CUDA thread.
template <class F>
FASTKD_HD F sign_of(const F& x) {
  return where_le(x, F(0), where_le(F(0), x, F(0), F(-1)), where_le(F(0), x, F(1), x));
}
// Returns sum + y * sign_of(x), for y of at least 0.
template <class F>
FASTKD_HD F add_signed(const F& sum, const F& y, const F& x) {
  return sum + y * sign_of(x);
}
#if defined(__CUDA_ARCH__)
FASTKD_HD float sign_of(float x) { return x == 0 ? 0.0f : ::copysignf(1.0f, x); }
FASTKD_HD float add_signed(float sum, float y, float x) { return x == 0 ? sum : sum + ::copysignf(y, x); }
#endif
// 2^x for any x. Subnormal results may be 0.
FASTKD_HD float exp2_any(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::exp2f(x);
#endif
}
FASTKD_HD double exp2_any(double x) { return ::exp2(x); }

// Returns 1 - mass, the probability that is left to all other columns. A difference below float32's rounding
// of a sum near 1 cannot be told from 0; the result is at least that.
FASTKD_HD double rest_of(double mass) {
  constexpr double kLeast = 0x1p-24;  // the same number as in fastkd/backends/sparse.py
  const double rest = 1 - mass;
  return rest < kLeast ? kLeast : rest;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
