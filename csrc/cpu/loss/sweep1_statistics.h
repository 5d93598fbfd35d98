// Sweep 1: sums of exponentials and the divergence's streams, relative to the shifts. It reads the rows from
// memory and keeps a running maximum from block to block.
#pragma once

#include "fast_block.h"

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

template <class V, class Div>
class RowStatistics {
  using R = typename V::Real;
  using Setup = RowSetup<V, Div>;
  static constexpr int kW = V::kWidth;

 public:
  RowStatistics(const Setup& setup, RowState<R>& row, RowBlocks<V, Div>& blocks)
      : setup_(setup), row_(row), blocks_(blocks) {}

  void find() {
    row_.columns = static_cast<double>(setup_.params.vocab);
    const bool plain =
        !Div::kCross && setup_.params.metrics == nullptr && !setup_.smoothed && setup_.most >= kBlock;
    for (int64_t start = 0; start < setup_.params.vocab; start += kBlock) {
      if (plain && add_plain(blocks_.at(start))) continue;
      const Block<R> b = blocks_.load(start, row_.label);
      raise_shifts(b, largest<V>(b.s, b.n), Setup::kTeacher ? largest<V>(b.t, b.n) : kLowest<R>);
      add_exponentials(b);
      if constexpr (Div::kStreams > 0) add_streams(b, raw_scales_of(setup_, row_));
      if (setup_.params.metrics != nullptr) add_moments(b);
      if (setup_.smoothed) row_.logit_sum += sum_of_logits(b);
    }
    if (Div::kCross && !(row_.stream[0] > 1e-18 && row_.stream[0] < 1e30)) find_distant_cross();
  }

 private:
  static constexpr int64_t kSample = 64;
  static constexpr R kSmallBase = 0.5;

  static int64_t first_of(const R* x, int64_t n, R value) {
    int64_t i = 0;
    while (i + 1 < n && x[i] != value) ++i;
    return i;
  }

  // The fast path: adds a block relative to the shifts of the blocks before. Returns false if the block is
  // not plain (is_plain()), or if its logits are too large for these shifts.
  bool add_plain(const Block<R>& b) {
    bool added = false;
    if constexpr (V::kSimd && !Div::kCross) {
      if (!blocks_.is_plain(b, row_.label)) return false;
      const Shifts<R>& shift = row_.shift;
      with_memory(blocks_, b, [&](auto s, auto t) {
        if (!has_finite()) {
          // The first shifts may come from any logits that are not far from the block's others.
          const int64_t n = std::min(b.n, kSample);
          raise_shifts(b, plain_largest<V>(s, n), Setup::kTeacher ? plain_largest<V>(t, n) : kLowest<R>);
        }
        if (!has_finite() || !takes_) return;
        const bool alike =
            setup_.same_temperature && shift.s == shift.t && std::fabs(shift.ratio) <= kSmallBase;
        const PlainSums sums = alike ? plain_sums<true>(setup_, row_, blocks_, b, s, t)
                                     : plain_sums<false>(setup_, row_, blocks_, b, s, t);
        if (!sums.valid) return;
        row_.z_s += sums.s;
        row_.z_t += sums.t;
        for (int k = 0; k < Div::kStreams; ++k) row_.stream[k] += sums.stream[k];
        if (blocks_.keeps) blocks_.shift(b) = shift;
        add_softmax(b, sums.s, sums.squares);
        added = true;
      });
    }
    return added;
  }

  // Whether a finite logit of each side has been seen.
  bool has_finite() const {
    return row_.max_s != kLowest<R> && (!Setup::kTeacher || row_.max_t != kLowest<R>);
  }

  void raise_shifts(const Block<R>& b, R top_s, R top_t) {
    if (!(top_s > row_.max_s) && !(top_t > row_.max_t) && b.start != 0) return;
    if (top_s > row_.max_s) {
      row_.max_s = top_s;
      if (setup_.params.metrics != nullptr) row_.arg_s = b.start + first_of(b.s, b.n, top_s);
    }
    if (top_t > row_.max_t) {
      row_.max_t = top_t;
      if (setup_.params.metrics != nullptr) row_.arg_t = b.start + first_of(b.t, b.n, top_t);
    }
    move_to(setup_, row_, shifts_for(setup_, row_));
    takes_ = ShiftedExp2<V>::takes(setup_.to_exponent_s, row_.shift.s) &&
             ShiftedExp2<V>::takes(setup_.to_exponent_t, row_.shift.t);
  }

  void add_exponentials(const Block<R>& b) {
    const ExpSums of_student = student_exponentials(setup_, row_, blocks_, b, kBlock);
    row_.z_s += of_student.first;
    if constexpr (Setup::kTeacher) row_.z_t += teacher_exponentials(setup_, row_, blocks_, b, kBlock).first;
    if (blocks_.keeps) blocks_.shift(b) = row_.shift;
    add_softmax(b, of_student.first, of_student.squares);
  }

  void add_softmax(const Block<R>& b, double first, double squares) {
    if (!setup_.softmax) return;
    row_.z_1 += setup_.power == 1   ? first
                : setup_.power == 2 ? squares
                                    : exponentials_at_one(setup_, row_, blocks_, b, blocks_.e1);
  }

  void add_streams(const Block<R>& b, const EntryScales<V>& c) {
    if constexpr (kKeepsTerms<Div>) {
      row_.stream[0] += cross_terms(setup_.div, c, row_.cross_shift != 0, b, blocks_.e1);
      return;
    }
    for (int64_t i = 0; i < b.n;) {
      V stream[kMaxStreams] = {V(0), V(0), V(0)};
      for (const int64_t stop = std::min(b.n, i + kStretch); i < stop; i += kW) {
        setup_.div.stream(raw_entry(c, b, i), c.cross_shift, stream);
      }
      for (int k = 0; k < Div::kStreams; ++k) row_.stream[k] += horizontal_sum(stream[k]);
    }
  }

  // Adds the sums of exponentials times logits, which the entropies need. Only metrics use them.
  void add_moments(const Block<R>& b) {
    V moment_s(0), moment_t(0);
    for (int64_t i = 0; i < b.n; i += kW) {
      moment_s = times_add(V::load(b.es + i), V::load(b.s + i), moment_s);
      if constexpr (Setup::kTeacher) moment_t = times_add(V::load(b.et + i), V::load(b.t + i), moment_t);
    }
    row_.moment_s += horizontal_sum(moment_s);
    row_.moment_t += horizontal_sum(moment_t);
  }

  // Leaves out the padding of the last vector, and a label that is treated apart: both are -inf.
  double sum_of_logits(const Block<R>& b) {
    const int64_t label = Setup::kSplits && b.holds(row_.label) ? row_.label - b.start : -1;
    double sum = 0;
    V total(0);
    int64_t i = 0;
    for (; i + kW <= b.n; i += kW) {
      if (label >= i && label < i + kW) {
        for (int64_t k = i; k < i + kW; ++k) sum += k == label ? R(0) : b.s[k];
      } else {
        total = total + V::load(b.s + i);
      }
    }
    for (; i < b.n; ++i) sum += i == label ? R(0) : b.s[i];
    return sum + horizontal_sum(total);
  }

  // Computes the sum of p^a q^b once more, relative to its largest term, for rows so far apart that its terms
  // over- or underflow.
  void find_distant_cross() {
    const double a = setup_.div.teacher_power(0), b = setup_.div.student_power(0);
    const EntryScales<V> raw = raw_scales_of(setup_, row_);
    R top = kLowest<R>;
    for (int64_t start = 0; start < setup_.params.vocab; start += kBlock) {
      const Block<R> block = blocks_.load(start, row_.label);
      for (int64_t i = 0; i < block.n; i += kW) {
        const V xs = fma(V::load(block.s + i), raw.to_s, raw.shift_s);
        const V xt = fma(V::load(block.t + i), raw.to_t, raw.shift_t);
        // Entries that are -inf on both sides do not exist.
        const V larger = where_le(xs, xt, xt, xs);
        const V exponent = where_le(larger, V(kLowest<R>), V(kLowest<R>), V(a) * (xt - raw.base) + V(b) * xs);
        top = std::max(top, horizontal_max(exponent));
      }
    }
    // The rows are infinitely far apart, or there is no finite term at all: the sum is right as it is.
    if (std::isinf(top) || top == 0) return;
    row_.cross_shift = top;
    row_.stream[0] = row_.stream[1] = row_.stream[2] = 0;
    for (int64_t start = 0; start < setup_.params.vocab; start += kBlock) {
      const Block<R> block = blocks_.load(start, row_.label);
      student_exponentials(setup_, row_, blocks_, block, kBlock);
      teacher_exponentials(setup_, row_, blocks_, block, kBlock);
      if (blocks_.keeps) blocks_.shift(block) = row_.shift;
      add_streams(block, raw_scales_of(setup_, row_));
    }
  }

  const Setup& setup_;
  RowState<R>& row_;
  RowBlocks<V, Div>& blocks_;
  bool takes_ = false;  // whether ShiftedExp2 can handle the shifts
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
