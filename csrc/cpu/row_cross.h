// The terms of the cross stream sum p^a q^(1 - a), for divergences with a single power a.
#pragma once

#include "row_entries.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Fills b.left with the terms and returns their sum. Where all entries of the block are near each other,
// cross_term() reduces to one exponential, which then has a loop of its own. `shifted`: whether the terms
// have a cross shift; `exponents`: a scratch buffer.
template <class V, class Div, class R>
inline double cross_terms(const Div& div, const EntryScales<V>& c, bool shifted, const Block<R>& b,
                          R* exponents) {
  constexpr int kW = V::kWidth;
  V far(shifted ? 1 : 0);
  for (int64_t i = 0; i < b.n; i += kW) {
    Entry<V> e;
    add_logits(c, b, i, e);
    const V by = V(div.teacher_power(0) * kLog2e) * e.relative;
    far = where_le(abs(by), V(20), far, V(1));  // NaN counts as far
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
