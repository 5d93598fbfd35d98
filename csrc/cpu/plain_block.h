// The fast path for blocks whose logits are whole, contiguous vectors in memory. They are converted where
// they are used.
#pragma once

#include "exponentials.h"
#include "row_entries.h"

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
// divergences that take logarithms of the exponentials: they would show its error where the models differ
// little.
template <class V, class Div, class Memory>
using Exp2Of = ShiftedExp2<V, Memory::kBytes == 2 && !Div::kLog>;

// Returns the address of the teacher's logits from `column` on, or null without a teacher.
template <class V, class Div>
inline const char* teacher_at(const RowBlocks<V, Div>& blocks, int64_t column) {
  return RowSetup<V, Div>::kTeacher ? blocks.t.at(column) : nullptr;
}

// Calls body(s, t) with the block's logits of both sides, in memory.
template <class V, class Div, class R, class Body>
inline void with_memory(const RowBlocks<V, Div>& blocks, const Block<R>& b, const Body& body) {
  const char *const s = blocks.s.at(b.start), *const t = teacher_at(blocks, b.start);
  switch (blocks.s.dtype) {
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
template <Fields kFields, class V, class Div, class R, class Body>
inline void with_logits(const RowBlocks<V, Div>& blocks, const Block<R>& b, const Body& body) {
  if (kFields != Fields::kAll || b.s != nullptr) return body(Floats<V>(b.s), Floats<V>(b.t));
  if constexpr (V::kSimd && kFields == Fields::kAll) with_memory(blocks, b, body);
}

// Returns the largest of n logits; NaN is ignored.
template <class V, class Memory>
inline typename V::Real plain_largest(Memory x, int64_t n) {
  V top(kLowest<typename V::Real>);
  for (int64_t i = 0; i < n; i += V::kWidth) top = max(x.at(i), top);
  return horizontal_max(top);
}

// A vector known to be finite, so that times_add() needs no guard against 0 * inf.
template <class V>
struct Finite {
  V v;
  Finite() = default;
  Finite(V x) : v(x) {}
};
template <class V>
inline Finite<V> times_add(Finite<V> weight, Finite<V> x, Finite<V> sum) {
  return fma(weight.v, x.v, sum.v);
}

// The sums of sweep 1 over a block of finite logits, none of which is far from the others. Only after the
// loop it is known whether the block is one (`valid`).
struct PlainSums {
  bool valid;
  double s, squares, t, stream[kMaxStreams];
};

// `kAlike`: both sides have the same scale and shift, and the base is small. One set of constants then fits
// in registers (two do not), and ratios need neither scale nor base before they are added up.
template <bool kAlike, class V, class Div, class R, class Memory>
inline PlainSums plain_sums(const RowSetup<V, Div>& setup, const RowState<R>& row,
                            const RowBlocks<V, Div>& blocks, const Block<R>& b, Memory s, Memory t) {
  constexpr bool kTeacher = RowSetup<V, Div>::kTeacher;
  constexpr int kW = V::kWidth;
  const EntryScales<V> c = raw_scales_of(setup, row);
  using Exp2 = Exp2Of<V, Div, Memory>;
  const Exp2 exp2_s(setup.to_exponent_s, row.shift.s);
  const Exp2 exp2_t = kAlike ? exp2_s : Exp2(setup.to_exponent_t, row.shift.t);
  const char* const ahead_s = blocks.s.at(b.start + kBlock);
  const char* const ahead_t = teacher_at(blocks, b.start + kBlock);
  const bool stored = V::kKeeps || setup.power > 2;
  // Copies in local variables: the compiler knows that the stores below do not change them.
  R *const out_s = b.es, *const out_t = b.et;
  const int64_t n = b.n;
  const Div div = setup.div;
  V seen(0), all_s(0), squares(0), all_t(0), streams[kMaxStreams] = {V(0), V(0), V(0)};
  for (int64_t i = 0; i < n;) {
    V of_s(0), of_t(0);
    Finite<V> stream[kMaxStreams] = {V(0), V(0), V(0)};
    struct Exponentials {
      V s, t;
    };
    const auto exponentials_at = [&](int64_t i) {
      Exponentials e;
      const V logit_s = s.at(i), es = e.s = exp2_s.near(logit_s, seen);
      squares = fma(es, es, squares);
      if (stored) es.store(out_s + i);
      prefetch(ahead_s + i * Memory::kBytes);
      if constexpr (kTeacher) {
        const V logit_t = t.at(i), et = e.t = exp2_t.near(logit_t, seen);
        if constexpr (V::kKeeps) et.store(out_t + i);
        prefetch(ahead_t + i * Memory::kBytes);
        if constexpr (Div::kStreams > 0) {
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
    }
    for (; i < stop; i += kW) {
      const Exponentials one = exponentials_at(i);
      of_s = of_s + one.s;
      if constexpr (kTeacher) of_t = of_t + one.t;
    }
    all_s = all_s + of_s, all_t = all_t + of_t;
    for (int k = 0; k < Div::kStreams; ++k) streams[k] = streams[k] + stream[k].v;
  }
  // NaN fails both comparisons.
  PlainSums sums{false, horizontal_sum(all_s), horizontal_sum(squares), horizontal_sum(all_t), {0, 0, 0}};
  sums.valid = sums.s <= setup.most && sums.t <= setup.most && Exp2::was_near(seen);
  for (int k = 0; k < Div::kStreams; ++k) {
    sums.stream[k] = horizontal_sum(streams[k]);
    if (kAlike) {
      const double z = div.teacher_power(k) == 1 ? sums.t : sums.s;
      sums.stream[k] = sums.stream[k] * (kLn2 * setup.to_exponent_s) - row.shift.base * z;
    }
  }
  return sums;
}

// Computes the student's exponentials at temperature 1, where they are neither those of the divergence nor
// their squares. Returns their sum.
template <class V, class Div, class R>
inline double exponentials_at_one(const RowSetup<V, Div>& setup, const RowState<R>& row,
                                  const RowBlocks<V, Div>& blocks, const Block<R>& b, R* out) {
  V sum(0);
  const auto add = [&](int64_t i, V e) {
    e.store(out + i);
    sum = sum + e;
  };
  if (setup.power == 3) {
    for (int64_t i = 0; i < b.n; i += V::kWidth) {
      const V e = V::load(b.es + i);
      add(i, e * e * e);
    }
  } else if (setup.power == 4) {
    for (int64_t i = 0; i < b.n; i += V::kWidth) {
      const V e = V::load(b.es + i), square = e * e;
      add(i, square * square);
    }
  } else {
    with_exp2<V>(setup.to_exponent_1, row.shift.one, [&](auto exp2_of) {
      with_logits<Fields::kAll>(blocks, b, [&](auto s, auto) {
        for (int64_t i = 0; i < b.n; i += V::kWidth) add(i, exp2_of(s.at(i)));
      });
    });
  }
  return horizontal_sum(sum);
}

template <class V, class R, class Exp2, class Memory>
inline void plain_exponentials(Exp2 exp2_of, Memory x, int64_t n, R* out, const char* ahead) {
  for (int64_t i = 0; i < n; i += V::kWidth) {
    exp2_of(x.at(i)).store(out + i);
    prefetch(ahead + i * Memory::kBytes);
  }
}

// For the later sweeps: returns a block with its exponentials, which are computed unless the first sweep has
// kept them. `logits`: whether the caller will use with_logits(); `toward`: distance in columns to the block
// that the sweep visits next.
template <class V, class Div, class R>
inline Block<R> with_exponentials(const RowSetup<V, Div>& setup, const RowState<R>& row,
                                  RowBlocks<V, Div>& blocks, int64_t start, bool logits, int64_t toward) {
  constexpr bool kTeacher = RowSetup<V, Div>::kTeacher;
  const Block<R> bare = blocks.at(start);
  const R scale_s = setup.to_exponent_s, scale_t = setup.to_exponent_t;
  const Shifts<R>& shift = row.shift;
  if (blocks.keeps && !logits) return bare;
  if constexpr (V::kSimd) {
    const bool plain = blocks.is_plain(bare, row.label);
    if (plain && blocks.keeps) return bare;
    if (plain && ShiftedExp2<V>::takes(scale_s, shift.s) && ShiftedExp2<V>::takes(scale_t, shift.t)) {
      with_memory(blocks, bare, [&](auto s, auto t) {
        using Exp2 = Exp2Of<V, Div, decltype(s)>;
        plain_exponentials<V>(Exp2(scale_s, shift.s), s, bare.n, bare.es, blocks.s.at(start + toward));
        if constexpr (kTeacher)
          plain_exponentials<V>(Exp2(scale_t, shift.t), t, bare.n, bare.et, blocks.t.at(start + toward));
      });
      return bare;
    }
  }
  const Block<R> b = blocks.load(start, row.label);
  if (blocks.keeps) return b;
  student_exponentials(setup, row, blocks, b, toward);
  if constexpr (kTeacher) teacher_exponentials(setup, row, blocks, b, toward);
  return b;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
