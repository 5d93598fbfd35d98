// The exponentials of logits, which are most of the kernels' work, and the coefficients of the polynomials
// that the SIMD instruction sets share, highest power first.
#pragma once

#include "../../divergences/arithmetic.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// (2^f - 1) / f on [-1/2, 1/2]: minimax with the constant held at ln 2, relative error of 2^f 1.1e-7. All
// arguments near each other have the same error, which would show at high temperatures. There the arguments
// are near 0, where the error of this polynomial vanishes.
constexpr int kExp2CenteredTerms = 5;
constexpr float kExp2Centered[kExp2CenteredTerms] = {0.00133006054f, 0.00966969132f, 0.0555055849f,
                                                     0.240222827f, 0.693147182f};

// The same within 7.4e-6, for 16-bit logits, whose own rounding is a hundred times as large. The error at
// -1/2 equals that at 1/2: logits that differ little then have exponentials that differ little, even where
// they round to different integers.
constexpr int kExp2BriefTerms = 4;
constexpr float kExp2Brief[kExp2BriefTerms] = {0.00939145414f, 0.0558278349f, 0.240276972f, 0.693147181f};

// (log(1 + f) - f) / f^2 on [-1/4, 1/2): minimax, relative error of the logarithm 2.8e-8.
constexpr int kLogTerms = 8;
constexpr float kLog[kLogTerms] = {0.0541324914f, -0.120673686f, 0.149839163f, -0.168228120f,
                                   0.199770778f,  -0.249934420f, 0.333335489f, -0.500000596f};

// Returns log(1 + f) for f in [-1/4, 1/2). The terms are added up in pairs: a chain of fused products, each
// of which waits for the one before, would fill the processor's queue of instructions.
template <class V>
inline V log_near_one(V f) {
  const V f2 = f * f;
  const auto pair = [&](int k) { return mul_add(V(kLog[k]), f, V(kLog[k + 1])); };
  const V high = mul_add(pair(0), f2, pair(2)), low = mul_add(pair(4), f2, pair(6));
  return mul_add(f2, mul_add(high, f2 * f2, low), f);
}

// -2 atanh(z) / z over z^2, for |z| up to 3/7: minimax with the constant held at -2, relative error 6.8e-8.
constexpr int kAtanhTerms = 5;
constexpr float kAtanh[kAtanhTerms] = {-0.329797715f, -0.26758644f, -0.401153356f, -0.666644216f, -2.0f};

// 2^(x * scale - shift), for any scale and shift.
template <class V>
class PlainExp2 {
 public:
  using R = typename V::Real;
  static constexpr bool takes(R, R) { return true; }

  PlainExp2(R scale, R shift) : scale_(scale), less_(-shift) {}
  V operator()(V x) const { return exp2(fma(x, scale_, less_)); }

 private:
  V scale_, less_;
};

// The same by a method of the instruction set, which need not support all scales and shifts: takes() states
// whether it does. `kBrief`: whether the logits have 16 bits, for which less precision is enough. SIMD sets
// also have
//   near(x, seen)   the same, valid only where the exponent is above -127 and below 128,
//   was_near(seen)  whether that held for all calls of near(), provided that the results are finite.
template <class V, bool kBrief = false>
class ShiftedExp2 : public PlainExp2<V> {
 public:
  using PlainExp2<V>::PlainExp2;
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
