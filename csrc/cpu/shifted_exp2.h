// The exponentials of logits, which are most of the kernels' work.
#pragma once

#include "../divergences/functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

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
