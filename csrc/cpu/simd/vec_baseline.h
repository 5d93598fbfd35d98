// A vector as an array of a few numbers, in portable C++, compiled for float and for double. It is also the
// list of what an instruction set supplies; another set is one file vec_NAME.h beside this one, with
//   Vec                      a type with Real, kWidth (lanes), kSimd, kFused (whether fma() and mul_add() are
//                            one instruction, which rounds once), load(), store(), and a constructor from a
//                            double that fills all lanes
//   + - * /                  lane by lane
//   fma(a, b, c)             a * b + c, rounded once
//   fms(a, b, c)             a * b - c, rounded once
//   mul_add(a, b, c)         a * b + c, rounded once or twice, whichever is faster
//   max(a, b), min(a, b)     the second operand where one is NaN
//   abs(a)
//   where_le(a, b, yes, no)  a <= b ? yes : no
//   times(w, x)              w * x, 0 where w is below the normal numbers (NaN counts as above)
//   times_add(w, x, sum)     sum + times(w, x), which may be fused
//   horizontal_sum(a)        the sum of the lanes, as a double
//   horizontal_max(a)        the largest lane; the caller excludes NaN
//   exp2(x)                  2^x for x below 127; 0 far below, NaN at NaN
//   exp2_any(x)              2^x for any x, infinite where it overflows
//   log_one_plus(y, x)       the natural logarithm of x = 1 + y, a normal number, given both with all their
//                            digits; NaN at NaN
//   stream(x, p)             a store that may bypass the caches, to an aligned address
//   stream_fence()           makes such stores visible to other threads
//   prefetch(p)              of any address
// and, with kSimd,
//   Vec::load16(p, bf16)     lanes from 16-bit numbers: bfloat16, or float16 if not `bf16`
//   store16(low, high, p, bf16, nan), stream16(...)
//                            two vectors as 16-bit numbers; `nan`: whether a lane may be NaN
//   ShiftedExp2<Vec, kBrief> a specialisation of the class in exp2.h with near() and was_near()
// isa/NAME.cpp then compiles the kernels over it, with flags in CMakeLists.txt; isa/kernels.h declares them
// and dispatch.cpp chooses them.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "exp2.h"
#include "half.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class R>
struct VecOf {
  using Real = R;
  static constexpr bool kSimd = false, kFused = false;
  static constexpr int kWidth = 8;
  R v[kWidth];

  VecOf() = default;
  explicit VecOf(double x) {
    for (R& lane : v) lane = static_cast<R>(x);
  }

  static VecOf load(const R* p) {
    VecOf x;
    for (int i = 0; i < kWidth; ++i) x.v[i] = p[i];
    return x;
  }
  void store(R* p) const {
    for (int i = 0; i < kWidth; ++i) p[i] = v[i];
  }
};

template <class R, class Body>
inline VecOf<R> lanes(const Body& body) {
  VecOf<R> out;
  for (int i = 0; i < VecOf<R>::kWidth; ++i) out.v[i] = body(i);
  return out;
}

template <class R>
inline VecOf<R> operator+(VecOf<R> a, VecOf<R> b) {
  return lanes<R>([&](int i) { return a.v[i] + b.v[i]; });
}
template <class R>
inline VecOf<R> operator-(VecOf<R> a, VecOf<R> b) {
  return lanes<R>([&](int i) { return a.v[i] - b.v[i]; });
}
template <class R>
inline VecOf<R> operator*(VecOf<R> a, VecOf<R> b) {
  return lanes<R>([&](int i) { return a.v[i] * b.v[i]; });
}
template <class R>
inline VecOf<R> operator/(VecOf<R> a, VecOf<R> b) {
  return lanes<R>([&](int i) { return a.v[i] / b.v[i]; });
}
// Without the instruction, a fused operation is a slow library call. In double the product of two floats is
// exact.
template <class R>
inline VecOf<R> fma(VecOf<R> a, VecOf<R> b, VecOf<R> c) {
  return lanes<R>([&](int i) { return static_cast<R>(double(a.v[i]) * b.v[i] + c.v[i]); });
}
// a * b - c
template <class R>
inline VecOf<R> fms(VecOf<R> a, VecOf<R> b, VecOf<R> c) {
  return lanes<R>([&](int i) { return static_cast<R>(double(a.v[i]) * b.v[i] - c.v[i]); });
}
template <class R>
inline VecOf<R> mul_add(VecOf<R> a, VecOf<R> b, VecOf<R> c) {
  return a * b + c;
}
template <class R>
inline VecOf<R> max(VecOf<R> a, VecOf<R> b) {
  return lanes<R>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
template <class R>
inline VecOf<R> min(VecOf<R> a, VecOf<R> b) {
  return lanes<R>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
template <class R>
inline VecOf<R> abs(VecOf<R> a) {
  return lanes<R>([&](int i) { return std::fabs(a.v[i]); });
}
template <class R>
inline VecOf<R> where_le(VecOf<R> a, VecOf<R> b, VecOf<R> yes, VecOf<R> no) {
  return lanes<R>([&](int i) { return a.v[i] <= b.v[i] ? yes.v[i] : no.v[i]; });
}
template <class R>
inline VecOf<R> times(VecOf<R> weight, VecOf<R> x) {
  return lanes<R>([&](int i) { return times_scalar(weight.v[i], x.v[i]); });
}
template <class R>
inline VecOf<R> times_add(VecOf<R> weight, VecOf<R> x, VecOf<R> sum) {
  return sum + times(weight, x);
}
template <class R>
inline double horizontal_sum(VecOf<R> a) {
  double sum = 0;
  for (R lane : a.v) sum += lane;
  return sum;
}
template <class R>
inline R horizontal_max(VecOf<R> a) {
  R top = a.v[0];
  for (R lane : a.v) top = lane > top ? lane : top;
  return top;
}
template <class R>
inline VecOf<R> exp2(VecOf<R> x) {
  return lanes<R>([&](int i) { return std::exp2(x.v[i]); });
}
template <class R>
inline VecOf<R> exp2_any(VecOf<R> x) {
  return exp2(x);
}
template <class R>
inline VecOf<R> log_one_plus(VecOf<R> y, VecOf<R> x) {
  return lanes<R>([&](int i) { return log_one_plus(y.v[i], x.v[i]); });
}
template <class R>
inline void stream(VecOf<R> x, R* p) {
  x.store(p);
}
inline void stream_fence() {}
inline void prefetch(const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
