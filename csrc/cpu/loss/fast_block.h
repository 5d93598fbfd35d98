// The fast path of sweep 1, for blocks of finite logits in whole, contiguous vectors: one loop computes the
// exponentials and all sums.
#pragma once

#include "exponentials.h"
#include "lanes.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Returns the largest of n logits; NaN is ignored.
template <class V, class Memory>
inline typename V::Real fast_largest(Memory x, int64_t n) {
  V top(kLowest<typename V::Real>);
  for (int64_t i = 0; i < n; i += V::kWidth) top = max(x.at(i), top);
  return horizontal_max(top);
}

// A vector known to be finite, so that times_add() needs no guard against 0 * inf, and cross_term() and
// power_of() none against masked entries. The two sides are within kNearTerms of each other, too.
template <class V>
struct Finite {
  V v;
  Finite() = default;
  Finite(V x) : v(x) {}
};
template <class V>
inline Finite<V> operator+(Finite<V> a, Finite<V> b) {
  return a.v + b.v;
}
template <class V>
inline Finite<V> times_add(Finite<V> weight, Finite<V> x, Finite<V> sum) {
  return mul_add(weight.v, x.v, sum.v);
}
template <class V>
inline Finite<V> power_of(Finite<V> exponent, Finite<V>, double power) {
  if (std::fabs(power) <= 1) return exp2_near(exponent.v, V(power));
  return exp2_any(V(power) * exponent.v);
}
template <class V>
inline Finite<V> cross_term(const Entry<Finite<V>>& e, Finite<V> power, double a, double, Finite<V>) {
  return power.v * exp2_near(e.relative.v, V(a * kLog2e));
}

// The sums of sweep 1 over a block of finite logits, none of which is far from the others. Only after the
// loop it is known whether the block is one (`valid`).
struct FastSums {
  bool valid;
  double s, squares, t, stream[kMaxStreams];
};

// `kAlike`: both sides have the same scale and shift, and the base is small. One set of constants then fits
// in registers (two do not), and ratios need neither scale nor base before they are added up.
template <bool kAlike, class V, class Div, class Memory>
inline FastSums fast_sums(const RowContext<V, Div>& row, const Block<typename V::Real>& b, Memory s,
                          Memory t) {
  using R = typename V::Real;
  constexpr bool kTeacher = Div::kReadsTeacher;
  const Call<V, Div>& call = row.call;
  const Shifts<R>& shift = row.statistics.shift;
  constexpr int kW = V::kWidth;
  const EntryScales<V> c = raw_scales_of(row);
  using Exp2 = Exp2Of<V, Div, Memory>;
  const Exp2 exp2_s(call.log2_scale_s, shift.s);
  const Exp2 exp2_t = kAlike ? exp2_s : Exp2(call.log2_scale_t, shift.t);
  const char* const ahead_s = row.s.at(b.start + kBlock);
  const char* const ahead_t = teacher_at(row, b.start + kBlock);
  // Copies in local variables: the compiler knows that the stores below do not change them.
  R *const out_s = b.es, *const out_t = b.et, *const out_cross = b.kept, *const out_own = b.own;
  const int64_t n = b.n;
  const Div div = call.div;
  V seen(0), all_s(0), squares(0), all_t(0), most_relative(0), streams[kMaxStreams] = {V(0), V(0), V(0)};
  for (int64_t i = 0; i < n;) {
    V of_s(0), of_t(0);
    Finite<V> stream[kMaxStreams] = {V(0), V(0), V(0)};
    V of_terms(0);
    struct Exponentials {
      V s, t, term;
    };
    const auto exponentials_at = [&](int64_t i) {
      Exponentials e;
      const V logit_s = s.at(i), es = e.s = exp2_s.near(logit_s, seen);
      squares = mul_add(es, es, squares);
      es.store(out_s + i);
      prefetch(ahead_s + i * Memory::kBytes);
      if constexpr (kTeacher) {
        const V logit_t = t.at(i), et = e.t = exp2_t.near(logit_t, seen);
        if (!Div::kCross || out_cross == nullptr) et.store(out_t + i);
        prefetch(ahead_t + i * Memory::kBytes);
        if constexpr (Div::kCross) {
          Entry<Finite<V>> entry;
          entry.es = es, entry.et = et;
          entry.xs = fma(logit_s, c.log2_scale_s, c.shift_s);
          entry.xt = fma(logit_t, c.log2_scale_t, c.shift_t);
          entry.relative = ratio_of(c, logit_s, logit_t);
          most_relative = max(abs(entry.relative.v), most_relative);
          const Terms<Finite<V>> terms = div.terms(entry, Finite<V>(V(0)));
          if (out_cross != nullptr) terms.cross.v.store(out_cross + i);
          if (out_own != nullptr) terms.own.v.store(out_own + i);
          e.term = terms.cross.v;
          if constexpr (!kSumsLikeExponentials<Div>) div.add_terms(entry, terms, stream);
        } else if constexpr (Div::kStreams > 0) {
          Entry<Finite<V>> entry;
          entry.es = es, entry.et = et;
          entry.log_ratio_raw = kAlike ? logit_t - logit_s : ratio_of(c, logit_s, logit_t);
          div.stream(entry, Finite<V>(V(0)), stream);
        }
      }
      return e;
    };
    // Adds two vectors at a time, as sum_of() adds four. For 16-bit logits the extra precision is not worth
    // it.
    constexpr bool kFine = Memory::kBytes > 2;
    const int64_t stop = kFine ? std::min(n, i + kStretch) : n;
    for (; kFine && i + 2 * kW <= stop; i += 2 * kW) {
      const Exponentials one = exponentials_at(i), other = exponentials_at(i + kW);
      of_s = of_s + (one.s + other.s);
      if constexpr (kTeacher) of_t = of_t + (one.t + other.t);
      if constexpr (kSumsLikeExponentials<Div>) of_terms = of_terms + (one.term + other.term);
    }
    for (; i < stop; i += kW) {
      const Exponentials one = exponentials_at(i);
      of_s = of_s + one.s;
      if constexpr (kTeacher) of_t = of_t + one.t;
      if constexpr (kSumsLikeExponentials<Div>) of_terms = of_terms + one.term;
    }
    all_s = all_s + of_s, all_t = all_t + of_t;
    if constexpr (kSumsLikeExponentials<Div>) {
      streams[0] = streams[0] + of_terms;
    } else {
      for (int k = 0; k < Div::kStreams; ++k) streams[k] = streams[k] + stream[k].v;
    }
  }
  // NaN fails both comparisons.
  FastSums sums{false, horizontal_sum(all_s), horizontal_sum(squares), horizontal_sum(all_t), {0, 0, 0}};
  sums.valid = sums.s <= call.most && sums.t <= call.most && Exp2::was_near(seen);
  if constexpr (Div::kCross) {
    sums.valid =
        sums.valid && std::fabs(div.teacher_power(0)) * kLog2e * horizontal_max(most_relative) <= kNearTerms;
  }
  for (int k = 0; k < Div::kStreams; ++k) {
    sums.stream[k] = horizontal_sum(streams[k]);
    if (kAlike && !Div::kCross) {
      const double z = div.teacher_power(k) == 1 ? sums.t : sums.s;
      sums.stream[k] = sums.stream[k] * (kLn2 * call.log2_scale_s) - shift.base * z;
    }
  }
  return sums;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
