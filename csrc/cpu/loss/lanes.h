// Builds the entries that the divergences work on, a vector of columns at a time.
#pragma once

#include <algorithm>

#include "row.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// The row's constants as vectors, adapted to one block. Those from `log_ratio_offset` on are known after the
// first sweep.
template <class V>
struct EntryScales {
  V log2_scale_s, log2_scale_t, shift_s, shift_t, less_to_nats, less_temperatures, less_distance, base;
  V cross_shift;
  V log_ratio_offset;             // Row::log_ratio_offset
  V row_r_s, row_r_t;             // factors from exponentials relative to the row's shifts to probabilities
  V r_s, r_t;                     // the same for the block's exponentials, whose shifts may be others
  V factor_s, factor_t;           // factors from the block's exponentials to the row's
  V factor_cross, factor_own;     // the same for Terms::cross and Terms::own
  double factor;                  // factor_s as a number
  Shifts<typename V::Real> kept;  // the shifts of the block's exponentials
};

template <class V, class Div>
inline EntryScales<V> raw_scales_of(const RowContext<V, Div>& row) {
  const Call<V, Div>& call = row.call;
  const auto& shift = row.statistics.shift;
  EntryScales<V> c;
  c.log2_scale_s = V(call.log2_scale_s), c.log2_scale_t = V(call.log2_scale_t);
  c.shift_s = V(-shift.s), c.shift_t = V(-shift.t);
  c.less_to_nats = V(call.less_to_nats), c.less_temperatures = V(call.less_temperatures);
  c.less_distance = V(-shift.distance);
  c.base = V(double(shift.s) - shift.t + kLog2e * shift.base);
  c.cross_shift = V(row.statistics.cross_shift);
  return c;
}

// Returns the relative rounding of `x` as a number R, 0 where that is not one.
template <class R>
inline double rounding_of(double x) {
  const double relative = static_cast<R>(x) / x - 1;
  return std::fabs(relative) < std::numeric_limits<R>::epsilon() ? relative : 0;
}

// Sets the factors to probabilities. Logarithms of these are compared with log-ratios (Functor::kLog), which
// therefore follow the factors' roundings: their difference would be as large as JSD between near models.
template <class V, class Div>
inline void set_normalisers(const RowContext<V, Div>& row, EntryScales<V>& c, double r_s, double r_t) {
  using R = typename V::Real;
  c.r_s = V(r_s), c.r_t = V(r_t);
  double offset = row.normalised.log_ratio_offset;
  if constexpr (Div::kLog) offset += rounding_of<R>(r_t) - rounding_of<R>(r_s);
  c.log_ratio_offset = V(offset);
}

// Sets all constants, for a block with the row's own shifts.
template <class V, class Div>
inline EntryScales<V> scales_of(const RowContext<V, Div>& row) {
  EntryScales<V> c = raw_scales_of(row);
  c.factor_cross = c.factor_own = c.factor_s = c.factor_t = V(1);
  c.factor = 1;
  c.kept = row.statistics.shift;
  set_normalisers(row, c, reciprocal<Div>(row.statistics.z_s), reciprocal<Div>(row.statistics.z_t));
  c.row_r_s = c.r_s, c.row_r_t = c.r_t;
  return c;
}

// Adapts the constants to a block whose exponentials were kept relative to other shifts.
template <class V, class Div>
inline void adapt(const RowContext<V, Div>& row, EntryScales<V>& c, const Shifts<typename V::Real>& kept) {
  if (kept == c.kept) return;
  const auto& shift = row.statistics.shift;
  c.kept = kept;
  // Shifts only rise, with two exceptions: a shift that both sides shared until they parted, and the first
  // shift of a row that begins without finite exponents. In the latter case everything kept is 0, and its
  // factor only has to be finite; hence the bound.
  constexpr double kMostFall = 32;
  const double by_s = std::min(double(kept.s) - shift.s, kMostFall);
  const double by_t = std::min(double(kept.t) - shift.t, kMostFall);
  const double factor_s = by_s == 0 ? 1 : std::exp2(by_s), factor_t = by_t == 0 ? 1 : std::exp2(by_t);
  if constexpr (kKeepsTerms<Div>) {
    const double a = row.call.div.teacher_power(0), by_base = kept.base - shift.base;
    const double by_own = Div::kOwnPower ? (a + row.call.div.student_power(0)) * by_s : by_s;
    c.factor_own = V(std::exp2(by_own));
    c.factor_cross = V(std::exp2(by_own + kLog2e * a * by_base));
  }
  c.factor_s = V(factor_s), c.factor_t = V(factor_t);
  set_normalisers(row, c, reciprocal<Div>(row.statistics.z_s) * factor_s,
                  reciprocal<Div>(row.statistics.z_t) * factor_t);
  c.factor = factor_s;
}

// Computed from the logits' difference, which is exact where the logits are near each other. The rounding of
// the two exponents would drown a small ratio.
template <class V>
FASTKD_INLINE V ratio_of(const EntryScales<V>& c, V s, V t) {
  const V difference = mul_add(t, c.less_temperatures, s);
  if constexpr (V::kFused) return fma(difference, c.less_to_nats, c.less_distance);
  return (difference + c.less_distance) * c.less_to_nats;
}

template <class V>
FASTKD_INLINE void add_logits(const EntryScales<V>& c, V s, V t, Entry<V>& e) {
  e.xs = fma(s, c.log2_scale_s, c.shift_s);
  e.xt = fma(t, c.log2_scale_t, c.shift_t);
  e.log_ratio_raw = ratio_of(c, s, t);
  e.relative = e.log_ratio_raw;
  e.base = c.base;
}

// Sets what depends on the logits, for the entries from column i of the block on.
template <class V>
FASTKD_INLINE void add_logits(const EntryScales<V>& c, const Block<typename V::Real>& b, int64_t i,
                              Entry<V>& e) {
  add_logits(c, V::load(b.s + i), V::load(b.t + i), e);
}

// Returns the fields of an entry that the first sweep knows.
template <class V>
FASTKD_INLINE Entry<V> raw_entry(const EntryScales<V>& c, const Block<typename V::Real>& b, int64_t i) {
  Entry<V> e;
  add_logits(c, b, i, e);
  e.es = V::load(b.es + i);
  e.et = V::load(b.et + i);
  return e;
}

// Returns the fields of an entry that the exponentials determine. `r_s`, `r_t`: the factors from exponentials
// to probabilities, or to multiples of them.
template <class V>
FASTKD_INLINE Entry<V> shares(const Block<typename V::Real>& b, int64_t i, V r_s, V r_t) {
  Entry<V> e;
  e.es = V::load(b.es + i);
  e.et = V::load(b.et + i);
  e.q = e.es * r_s;
  e.p = e.et * r_t;
  e.q_minus_p = e.q - e.p;
  return e;
}

// The same for probabilities.
template <class V, class Div>
FASTKD_INLINE Entry<V> probabilities(const EntryScales<V>& c, const Block<typename V::Real>& b, int64_t i) {
  if constexpr (!Div::kCross) return shares(b, i, c.r_s, c.r_t);
  // In two steps, as the terms of the cross stream are computed, so that both round alike.
  Entry<V> e;
  e.es = V::load(b.es + i) * c.factor_s;
  e.et = V::load(b.et + i) * c.factor_t;
  e.q = e.es * c.row_r_s;
  e.p = e.et * c.row_r_t;
  e.q_minus_p = e.q - e.p;
  return e;
}

// Whether the one stream is the sum of p^a q^(1 - a). It is added up in the order of the exponentials:
// between equal rows it is then exactly the student's sum of exponentials.
template <class Div>
constexpr bool kSumsLikeExponentials = Div::kCross && Div::kStreams == 1;

template <class V>
inline Row<V> widened(const Row<double>& row) {
  Row<V> wide;
  wide.log_ratio_offset = V(row.log_ratio_offset);
  for (int k = 0; k < kMaxStreams; ++k) wide.stream[k] = V(row.stream[k]), wide.scale[k] = V(row.scale[k]);
  for (int k = 0; k < kMaxSums; ++k) wide.sum[k] = V(row.sum[k]);
  for (int k = 0; k < kMaxConstants; ++k) wide.constant[k] = V(row.constant[k]);
  wide.cross_shift = V(row.cross_shift);
  wide.cross_inverse = V(row.cross_inverse);
  wide.distant = row.distant;
  wide.bits_s = V(row.bits_s), wide.bits_t = V(row.bits_t);
  return wide;
}

// Returns the entry with the fields that `kFields` names. `s`, `t`: the block's logits, read for kAll only.
template <Fields kFields, class Div, class V, class Logits>
FASTKD_INLINE Entry<V> entry_as(const EntryScales<V>& c, const Block<typename V::Real>& b, int64_t i,
                                Logits s, Logits t) {
  Entry<V> e = probabilities<V, Div>(c, b, i);
  if constexpr (kFields == Fields::kAll) {
    const V logit_s = s.at(i), logit_t = t.at(i);
    add_logits(c, logit_s, logit_t, e);
    e.log_ratio = e.log_ratio_raw + c.log_ratio_offset;
    if constexpr (Div::kLog) e.log = V::load(b.logs + i);
  }
  return e;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
