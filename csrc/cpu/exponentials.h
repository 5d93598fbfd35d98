// Loops over a block that do nothing but exponentials and their sums. A loop that did all at once would hold
// too few of its long chains of dependent instructions in flight; what it stores comes back from L1.
#pragma once

#include "row_blocks.h"
#include "shifted_exp2.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct ExpSums {
  double first = 0, squares = 0;
};

// body(f) with f(x) = 2^(x * scale - shift)
template <class V, class Body>
inline void with_exp2(typename V::Real scale, typename V::Real shift, const Body& body) {
  if (ShiftedExp2<V>::takes(scale, shift)) {
    body(ShiftedExp2<V>(scale, shift));
  } else {
    body(PlainExp2<V>(scale, shift));
  }
}

// out = 2^(x * scale - shift), and the sums. The row is asked for beforehand at `ahead`: the hardware's
// prefetcher stops at the page's end, about where a block does. (A prefetch past the row is harmless.)
template <class V, class R>
inline ExpSums exponentials(const R* x, int64_t n, R scale, R shift, R* out, const char* ahead,
                            int64_t step) {
  ExpSums sums;
  V squares(0);
  with_exp2<V>(scale, shift, [&](auto exp2_of) {
    sums.first = sum_of<V>(n, [&](int64_t i) {
      const V e = exp2_of(V::load(x + i));
      e.store(out + i);
      squares = fma(e, e, squares);
      prefetch(ahead + i * step);
      return e;
    });
  });
  sums.squares = horizontal_sum(squares);
  return sums;
}

// `toward`: columns to the block that comes next.
template <class V, class Div, class R>
inline ExpSums student_exponentials(const RowSetup<V, Div>& setup, const RowState<R>& row,
                                    RowBlocks<V, Div>& blocks, const Block<R>& b, int64_t toward) {
  return exponentials<V>(b.s, b.n, setup.to_exponent_s, row.shift.s, b.es, blocks.s.at(b.start + toward),
                         blocks.s.step);
}

template <class V, class Div, class R>
inline ExpSums teacher_exponentials(const RowSetup<V, Div>& setup, const RowState<R>& row,
                                    RowBlocks<V, Div>& blocks, const Block<R>& b, int64_t toward) {
  return exponentials<V>(b.t, b.n, setup.to_exponent_t, row.shift.t, b.et, blocks.t.at(b.start + toward),
                         blocks.t.step);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
