// 2^x by rounding: x = n + f, where the integer n becomes the exponent and f, at most 1/2, goes into a
// polynomial. A file vec_NAME.h includes this one after its Vec, with, beside the list in vec_baseline.h,
//   bits_or(a, b)            the bits of either
//   exponent_field(n)        the lowest bits of each lane, moved to where a float has its exponent
//   has_only_bits(x, bits)   whether no lane has any other bit
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "exp2.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Adding 1.5 * 2^23 rounds to an integer, whose value is then in the low bits. With 127 added, the low bits
// are an exponent field.
constexpr float kToExponent = 12582912.0f + 127.0f;

// 2^(n + f) as power * (1 + rest), where n is given as a sum with kToExponent.
struct Exp2Parts {
  Vec power, rest;
};

template <bool kBrief>
inline Exp2Parts exp2_parts(Vec n, Vec f) {
  constexpr const float* c = kBrief ? kExp2Brief : kExp2Centered;
  constexpr int kTerms = kBrief ? kExp2BriefTerms : kExp2CenteredTerms;
  Vec y(c[0]);
  for (int i = 1; i < kTerms; ++i) y = mul_add(y, f, Vec(c[i]));
  return {exponent_field(n), y * f};
}

inline Exp2Parts exp2_parts(Vec x) {
  const Vec to_exponent(kToExponent);
  const Vec bounded = max(Vec(-127.0), x);  // in this order NaN stays NaN
  const Vec n = bounded + to_exponent;
  return exp2_parts<false>(n, bounded - (n - to_exponent));
}

// 2^x within 2 ulp for x below 127.5; 0 below the normal numbers, NaN at NaN.
inline Vec exp2(Vec x) {
  const Exp2Parts e = exp2_parts(x);
  return mul_add(e.power, e.rest, e.power);
}

// The same for any x: infinite from 127.5 on. (As a sum of two products infinity would become NaN.)
inline Vec exp2_any(Vec x) {
  const Exp2Parts e = exp2_parts(min(Vec(128.0), x));
  return e.power * (e.rest + Vec(1.0));
}

// 2^(x * by), where the exponent is above -127 and below 128.
inline Vec exp2_near(Vec x, Vec by) {
  const Vec to_exponent(kToExponent), n = mul_add(x, by, to_exponent), whole = n - to_exponent;
  const Exp2Parts e = exp2_parts<false>(n, Vec::kFused ? fms(x, by, whole) : x * by - whole);
  return mul_add(e.power, e.rest, e.power);
}

// The shift is an integer, so one operation both rounds the exponent and shifts it.
template <bool kBrief>
class ShiftedExp2<Vec, kBrief> {
 public:
  static bool takes(float scale, float shift) {
    constexpr float kMost = kInParts ? 1920.0f : 1048576.0f;
    return std::fabs(shift) < kMost && lowest(scale, shift) > std::numeric_limits<float>::lowest();
  }

  ShiftedExp2(float scale, float shift)
      : by_(scale),
        to_exponent_(kToExponent - shift),
        lowest_(lowest(scale, shift)),
        inverse_(leading_digits(1 / scale)),
        inverse_rest_(1.0 / scale - leading_digits(1 / scale)) {}

  Vec operator()(Vec x) const {
    const Vec bounded = max(lowest_, x);
    return at(bounded, mul_add(bounded, by_, to_exponent_));
  }

  // An exponent out of bounds sets bits in `seen` that no other exponent sets; NaN and infinity do, too.
  // was_near() looks for these bits.
  Vec near(Vec x, Vec& seen) const {
    const Vec n = mul_add(x, by_, to_exponent_);
    seen = bits_or(seen, n);
    return at(x, n);
  }
  static bool was_near(Vec seen) {
    constexpr uint32_t kExponent = 0xff, kRounds = 0x4b400000;  // 1.5 * 2^23
    return has_only_bits(seen, kRounds | kExponent);
  }

 private:
  Vec at(Vec x, Vec n) const {
    const Exp2Parts e = exp2_parts<kBrief>(n, left(x, n - to_exponent_));
    return mul_add(e.power, e.rest, e.power);
  }

  // Whether left() multiplies by the inverse of the scale in two parts (Cody and Waite's reduction), for want
  // of an operation that rounds once.
  static constexpr bool kInParts = !Vec::kFused && !kBrief;

  // x * by - whole. The product is much larger than the difference, so most of its digits count.
  Vec left(Vec x, Vec whole) const {
    if constexpr (Vec::kFused) return fms(x, by_, whole);
    // The product of `whole`, below 2^11, and the inverse's first 13 digits is exact, and so is the
    // difference.
    if constexpr (kInParts) return (x - whole * inverse_ - whole * inverse_rest_) * by_;
    return x * by_ - whole;
  }

  static float leading_digits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= 0xfffff800u;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }

  static float lowest(float scale, float shift) { return (shift - 127.0f) / scale; }

  Vec by_, to_exponent_, lowest_, inverse_, inverse_rest_;
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
