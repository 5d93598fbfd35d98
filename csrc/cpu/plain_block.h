// Sweep 1 over a block of finite logits, none far from the others, in whole vectors in memory: one loop, in which
// each is read, converted and used while it is in a register. Whether the block is one shows when it is done.
#pragma once

#include "exponentials.h"
#include "row_entries.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Logits as they lie in memory.
template <class V>
struct Floats {
  static constexpr int64_t kBytes = sizeof(typename V::Real);
  const typename V::Real* x;

  explicit Floats(const char* p) : x(reinterpret_cast<const typename V::Real*>(p)) {}
  V at(int64_t i) const { return V::load(x + i); }
};

template <class V, bool kBf16>
struct Halves {
  static constexpr int64_t kBytes = 2;
  const uint16_t* x;

  explicit Halves(const char* p) : x(reinterpret_cast<const uint16_t*>(p)) {}
  V at(int64_t i) const { return V::load16(x + i, kBf16); }
};

// body(s, t): the block's logits of both sides.
template <class V, class Div, class R, class Body>
inline void with_memory(const RowBlocks<V, Div>& blocks, const Block<R>& b, const Body& body) {
  const char *const s = blocks.s.at(b.start), *const t = blocks.t.at(b.start);
  switch (blocks.s.dtype) {
    case Dtype::kBFloat16:
      return body(Halves<V, true>(s), Halves<V, true>(t));
    case Dtype::kFloat16:
      return body(Halves<V, false>(s), Halves<V, false>(t));
    default:
      return body(Floats<V>(s), Floats<V>(t));
  }
}

// Of which 0 times any is 0.
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

struct PlainSums {
  bool valid;
  double s, squares, t, stream[kMaxStreams];
};

// `kAlike`: both sides have the same scale and shift. One set of constants then fits in registers, two do not.
template <bool kAlike, class V, class Div, class R, class Memory>
inline PlainSums plain_sums(const RowSetup<V, Div>& setup, const RowState<R>& row,
                            const RowBlocks<V, Div>& blocks, const Block<R>& b, Memory s, Memory t) {
  constexpr bool kTeacher = RowSetup<V, Div>::kTeacher;
  const EntryScales<V> c = raw_scales_of(setup, row);
  const ShiftedExp2<V> exp2_s(setup.to_exponent_s, row.shift.s);
  const ShiftedExp2<V> exp2_t = kAlike ? exp2_s : ShiftedExp2<V>(setup.to_exponent_t, row.shift.t);
  const char *const ahead_s = blocks.s.at(b.start + kBlock), *const ahead_t = blocks.t.at(b.start + kBlock);
  // Copies, which no store can reach.
  R *const out_s = b.es, *const out_t = b.et;
  const int64_t n = b.n;
  const Div div = setup.div;
  V seen(0), of_s(0), squares(0), of_t(0);
  Finite<V> stream[kMaxStreams] = {V(0), V(0), V(0)};
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const V logit_s = s.at(i), es = exp2_s.near(logit_s, seen);
    of_s = of_s + es;
    squares = fma(es, es, squares);
    if constexpr (V::kKeeps) es.store(out_s + i);
    prefetch(ahead_s + i * Memory::kBytes);
    if constexpr (kTeacher) {
      const V logit_t = t.at(i), et = exp2_t.near(logit_t, seen);
      of_t = of_t + et;
      if constexpr (V::kKeeps) et.store(out_t + i);
      prefetch(ahead_t + i * Memory::kBytes);
      if constexpr (Div::kStreams > 0) {
        Entry<V> logits;
        add_logits(c, logit_s, logit_t, logits);
        Entry<Finite<V>> e;
        e.es = es, e.et = et, e.ratio = logits.ratio;
        div.stream(e, Finite<V>(V(0)), stream);
      }
    }
  }
  // NaN is not less than anything.
  constexpr double kMost = kBlock * 256.0;
  PlainSums sums{false, horizontal_sum(of_s), horizontal_sum(squares), horizontal_sum(of_t), {0, 0, 0}};
  sums.valid = sums.s <= kMost && sums.t <= kMost && ShiftedExp2<V>::was_near(seen);
  for (int k = 0; k < Div::kStreams; ++k) sums.stream[k] = horizontal_sum(stream[k].v);
  return sums;
}

// At temperature 1, where that is neither of the two sums.
template <class V, class R, class Memory>
inline double plain_sum_at(R scale, R shift, int64_t n, Memory s) {
  const ShiftedExp2<V> exp2_of(scale, shift);
  V sum(0);
  for (int64_t i = 0; i < n; i += V::kWidth) sum = sum + exp2_of(s.at(i));
  return horizontal_sum(sum);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
