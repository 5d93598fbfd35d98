// Loops over a block that compute exponentials and their sums, and nothing else. Exponentials are long chains
// of dependent instructions; a loop that also did the rest of the work would hold too few of them in flight.
// The results that these loops store are read back from L1. Logits in whole, contiguous vectors are converted
// where they are used.
#pragma once

#include "../simd/exp2.h"
#include "row.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Logits that are stored in memory as the numbers that the kernel computes with.
template <class V>
struct Floats {
  static constexpr int64_t kBytes = sizeof(typename V::Real);
  const typename V::Real* x;

  explicit Floats(const void* p) : x(static_cast<const typename V::Real*>(p)) {}
  V at(int64_t i) const { return V::load(x + i); }
};

template <class V, bool kBf16>
struct Halves {
  static constexpr int64_t kBytes = 2;
  const uint16_t* x;

  explicit Halves(const void* p) : x(static_cast<const uint16_t*>(p)) {}
  V at(int64_t i) const { return V::load16(x + i, kBf16); }
};

// The exponential for logits in Memory. The short polynomial is precise enough for 16-bit logits, but not for
// divergences that take logarithms of the exponentials or other powers of them: they would show its error
// where the models differ little.
template <class V, class Div, class Memory>
using Exp2Of = ShiftedExp2<V, Memory::kBytes == 2 && !Div::kLog && !Div::kCross>;

// Returns the address of the teacher's logits from `column` on, or null without a teacher.
template <class V, class Div>
inline const char* teacher_at(const RowContext<V, Div>& row, int64_t column) {
  return Div::kReadsTeacher ? row.t.at(column) : nullptr;
}

// Calls body(s, t) with the block's logits of both sides, in memory.
template <class V, class Div, class Body>
inline void with_memory(const RowContext<V, Div>& row, const Block<typename V::Real>& b, const Body& body) {
  const char *const s = row.s.at(b.start), *const t = teacher_at(row, b.start);
  switch (row.s.dtype) {
    case Dtype::kBFloat16:
      return body(Halves<V, true>(s), Halves<V, true>(t));
    case Dtype::kFloat16:
      return body(Halves<V, false>(s), Halves<V, false>(t));
    default:
      return body(Floats<V>(s), Floats<V>(t));
  }
}

// Calls body(s, t) with the block's logits of both sides if kFields includes logits: as with_memory() does,
// or with the logits that the block has been loaded to.
template <Fields kFields, class V, class Div, class Body>
inline void with_logits(const RowContext<V, Div>& row, const Block<typename V::Real>& b, const Body& body) {
  if (kFields != Fields::kAll || b.s != nullptr) return body(Floats<V>(b.s), Floats<V>(b.t));
  if constexpr (V::kSimd && kFields == Fields::kAll) with_memory(row, b, body);
}

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
template <class V, class R = typename V::Real>
inline ExpSums exponentials(const R* x, int64_t n, R scale, R shift, R* out, const char* ahead,
                            int64_t step) {
  ExpSums sums;
  V squares(0);
  with_exp2<V>(scale, shift, [&](auto exp2_of) {
    sums.first = sum_of<V>(n, [&](int64_t i) {
      const V e = exp2_of(V::load(x + i));
      e.store(out + i);
      squares = mul_add(e, e, squares);
      prefetch(ahead + i * step);
      return e;
    });
  });
  sums.squares = horizontal_sum(squares);
  return sums;
}

// `toward`: distance in columns to the block that the sweep visits next.
template <class V, class Div>
inline ExpSums student_exponentials(const RowContext<V, Div>& row, const Block<typename V::Real>& b,
                                    int64_t toward) {
  return exponentials<V>(b.s, b.n, row.call.log2_scale_s, row.statistics.shift.s, b.es,
                         row.s.at(b.start + toward), row.s.step);
}

template <class V, class Div>
inline ExpSums teacher_exponentials(const RowContext<V, Div>& row, const Block<typename V::Real>& b,
                                    int64_t toward) {
  return exponentials<V>(b.t, b.n, row.call.log2_scale_t, row.statistics.shift.t, b.et,
                         row.t.at(b.start + toward), row.t.step);
}

// Fills `out` with the student's exponentials at temperature 1, where they are neither those of the
// divergence nor their squares. Returns their sum.
template <class V, class Div>
inline double ce_exponentials(const RowContext<V, Div>& row, const Block<typename V::Real>& b,
                              typename V::Real* out) {
  V sum(0);
  const auto add = [&](int64_t i, V e) {
    e.store(out + i);
    sum = sum + e;
  };
  if (row.call.ce_power == 3) {
    for (int64_t i = 0; i < b.n; i += V::kWidth) {
      const V e = V::load(b.es + i);
      add(i, e * e * e);
    }
  } else if (row.call.ce_power == 4) {
    for (int64_t i = 0; i < b.n; i += V::kWidth) {
      const V e = V::load(b.es + i), square = e * e;
      add(i, square * square);
    }
  } else {
    with_exp2<V>(row.call.log2_scale_ce, row.statistics.shift.ce, [&](auto exp2_of) {
      with_logits<Fields::kAll>(row, b, [&](auto s, auto) {
        for (int64_t i = 0; i < b.n; i += V::kWidth) add(i, exp2_of(s.at(i)));
      });
    });
  }
  return horizontal_sum(sum);
}

template <class V, class Exp2, class Memory>
inline void plain_exponentials(Exp2 exp2_of, Memory x, int64_t n, typename V::Real* out, const char* ahead) {
  for (int64_t i = 0; i < n; i += V::kWidth) {
    exp2_of(x.at(i)).store(out + i);
    prefetch(ahead + i * Memory::kBytes);
  }
}

// For the later sweeps: returns a block with its exponentials, which are computed unless the first sweep has
// kept them. `logits`: whether the caller will use with_logits(); `toward`: distance in columns to the block
// that the sweep visits next.
template <class V, class Div>
inline Block<typename V::Real> with_exponentials(RowContext<V, Div>& row, int64_t start, bool logits,
                                                 int64_t toward) {
  using R = typename V::Real;
  constexpr bool kTeacher = Div::kReadsTeacher;
  const bool keeps = row.scratch.keeps;
  const Block<R> bare = row.scratch.at(start);
  const R scale_s = row.call.log2_scale_s, scale_t = row.call.log2_scale_t;
  const Shifts<R>& shift = row.statistics.shift;
  if (keeps && !logits) return bare;
  if constexpr (V::kSimd) {
    const bool plain = row.is_plain(bare);
    if (plain && keeps) return bare;
    if (plain && ShiftedExp2<V>::takes(scale_s, shift.s) && ShiftedExp2<V>::takes(scale_t, shift.t)) {
      with_memory(row, bare, [&](auto s, auto t) {
        using Exp2 = Exp2Of<V, Div, decltype(s)>;
        plain_exponentials<V>(Exp2(scale_s, shift.s), s, bare.n, bare.es, row.s.at(start + toward));
        if constexpr (kTeacher)
          plain_exponentials<V>(Exp2(scale_t, shift.t), t, bare.n, bare.et, row.t.at(start + toward));
      });
      return bare;
    }
  }
  const Block<R> b = row.load(start);
  if (keeps) return b;
  student_exponentials(row, b, toward);
  if constexpr (kTeacher) teacher_exponentials(row, b, toward);
  return b;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
