// The exponentials of logits, which are most of the kernels' work.
#pragma once

#include "../divergences/entry.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// 2^(x * scale - shift).
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

// The same by an instruction set's own way, which then `takes` not all scales and shifts. `kBrief`: of logits
// of 16 bits, for which less precision will do. SIMD sets also have
//   near(x, seen)   the same where exponents stay above -127 and below 128,
//   was_near(seen)  whether all have, given that the results are finite.
template <class V, bool kBrief = false>
class ShiftedExp2 : public PlainExp2<V> {
 public:
  using PlainExp2<V>::PlainExp2;
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
