// Loops over a block that compute exponentials and their sums, and nothing else. Exponentials are long chains
// of dependent instructions; a loop that also did the rest of the work would hold too few of them in flight.
// The results that these loops store are read back from L1.
#pragma once

#include "row_blocks.h"
#include "shifted_exp2.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct ExpSums {
  double first = 0, squares = 0;
};

// Calls body(f) with f(x) = 2^(x * scale - shift), for any scale and shift.
template <class V, class Body>
inline void with_exp2(typename V::Real scale, typename V::Real shift, const Body& body) {
  if (ShiftedExp2<V>::takes(scale, shift)) {
    body(ShiftedExp2<V>(scale, shift));
  } else {
    body(PlainExp2<V>(scale, shift));
  }
}

// Computes out = 2^(x * scale - shift) and returns the sums of these and of their squares. The row's next
// block, at `ahead` with `step` bytes per column, is prefetched: the hardware's prefetcher stops at the end
// of a page, which is about where a block ends. (A prefetch past the row is harmless.)
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

// `toward`: distance in columns to the block that the sweep visits next.
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
