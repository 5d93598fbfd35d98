// The cross stream of a divergence of one power, sum p^a q^(1 - a), and its terms.
#pragma once

#include "row_entries.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Fills b.left with the terms. Where all entries of the block are near each other, cross_term() comes down to
// one exponential, which then has a loop of its own; `exponents` is scratch.
template <class V, class Div, class R>
inline double cross_terms(const Div& div, const EntryScales<V>& c, bool shifted, const Block<R>& b,
                          R* exponents) {
  constexpr int kW = V::kWidth;
  V far(shifted ? 1 : 0);
  for (int64_t i = 0; i < b.n; i += kW) {
    Entry<V> e;
    add_logits(c, b, i, e);
    const V by = V(div.teacher_power(0) * kLog2e) * e.relative;
    far = where_le(abs(by), V(20), far, V(1));  // NaN is far
    by.store(exponents + i);
  }
  const auto store = [&](int64_t i, V term) {
    term.store(b.left + i);
    return term;
  };
  if (horizontal_max(far) == 0) {
    return sum_of<V>(b.n,
                     [&](int64_t i) { return store(i, V::load(b.es + i) * exp2(V::load(exponents + i))); });
  }
  return sum_of<V>(b.n, [&](int64_t i) { return store(i, div.term(raw_entry(c, b, i), c.cross_shift)); });
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
