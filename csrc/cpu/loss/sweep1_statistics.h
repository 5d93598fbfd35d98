// Sweep 1: sums of exponentials and the divergence's streams, relative to the shifts. It reads the rows from
// memory and keeps a running maximum from block to block.
#pragma once

#include "fast_block.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class V, class Div>
class StatisticsSweep {
  using R = typename V::Real;
  static constexpr int kW = V::kWidth;

 public:
  explicit StatisticsSweep(RowContext<V, Div>& row)
      : row_(row), call_(row.call), statistics_(row.statistics), scratch_(row.scratch) {}

  void run() {
    statistics_.columns = static_cast<double>(call_.params.vocab);
    const bool plain = call_.params.metrics == nullptr && !call_.smoothed && call_.most >= kBlock;
    for (int64_t start = 0; start < call_.params.vocab; start += kBlock) {
      if (plain && add_fast(scratch_.at(start))) continue;
      const Block<R> b = row_.load(start);
      raise_shifts(b, largest<V>(b.s, b.n), Div::kReadsTeacher ? largest<V>(b.t, b.n) : kLowest<R>);
      add_exponentials(b);
      if (call_.params.metrics != nullptr) add_moments(b);
      if constexpr (Div::kStreams > 0) add_streams(b, raw_scales_of(row_));
      if (call_.smoothed) statistics_.logit_sum += sum_of_logits(b);
    }
    if (Div::kCross && !(statistics_.stream[0] > 1e-18 && statistics_.stream[0] < 1e30)) find_distant_cross();
  }

 private:
  static constexpr int64_t kSample = 64;
  static constexpr double kSmallBase = 0.5;

  static int64_t first_of(const R* x, int64_t n, R value) {
    int64_t i = 0;
    while (i + 1 < n && x[i] != value) ++i;
    return i;
  }

  // The fast path: adds a block relative to the shifts of the blocks before. Returns false if the block is
  // not plain (is_plain()), or if its logits are too large for these shifts.
  bool add_fast(const Block<R>& b) {
    bool added = false;
    if constexpr (V::kSimd) {
      if (!row_.is_plain(b)) return false;
      const Shifts<R>& shift = statistics_.shift;
      with_memory(row_, b, [&](auto s, auto t) {
        if (!has_finite()) {
          // The first shifts may come from any logits that are not far from the block's others.
          const int64_t n = std::min(b.n, kSample);
          raise_shifts(b, fast_largest<V>(s, n), Div::kReadsTeacher ? fast_largest<V>(t, n) : kLowest<R>);
        }
        if (!has_finite() || !shifts_fit_) return;
        const bool alike =
            call_.same_temperature && shift.s == shift.t && std::fabs(shift.base) <= kSmallBase;
        const FastSums sums = alike ? fast_sums<true>(row_, b, s, t) : fast_sums<false>(row_, b, s, t);
        if (!sums.valid) return;
        statistics_.z_s += sums.s;
        statistics_.z_t += sums.t;
        for (int k = 0; k < Div::kStreams; ++k) statistics_.stream[k] += sums.stream[k];
        if (scratch_.keeps) scratch_.shift(b) = shift;
        add_ce_softmax(b, sums.s, sums.squares);
        added = true;
      });
    }
    return added;
  }

  // Whether a finite logit of each side has been seen.
  bool has_finite() const {
    return statistics_.max_s != kLowest<R> && (!Div::kReadsTeacher || statistics_.max_t != kLowest<R>);
  }

  void raise_shifts(const Block<R>& b, R top_s, R top_t) {
    if (!(top_s > statistics_.max_s) && !(top_t > statistics_.max_t) && b.start != 0) return;
    if (top_s > statistics_.max_s) {
      statistics_.max_s = top_s;
      if (call_.params.metrics != nullptr) statistics_.arg_s = b.start + first_of(b.s, b.n, top_s);
    }
    if (top_t > statistics_.max_t) {
      statistics_.max_t = top_t;
      if (call_.params.metrics != nullptr) statistics_.arg_t = b.start + first_of(b.t, b.n, top_t);
    }
    move_to(row_, shifts_for(row_));
    shifts_fit_ = ShiftedExp2<V>::takes(call_.log2_scale_s, statistics_.shift.s) &&
                  ShiftedExp2<V>::takes(call_.log2_scale_t, statistics_.shift.t);
  }

  void add_exponentials(const Block<R>& b) {
    const ExpSums of_student = student_exponentials(row_, b, kBlock);
    statistics_.z_s += of_student.first;
    if constexpr (Div::kReadsTeacher) statistics_.z_t += teacher_exponentials(row_, b, kBlock).first;
    if (scratch_.keeps) scratch_.shift(b) = statistics_.shift;
    add_ce_softmax(b, of_student.first, of_student.squares);
  }

  void add_ce_softmax(const Block<R>& b, double first, double squares) {
    if (!call_.ce_softmax) return;
    statistics_.z_ce += call_.ce_power == 1   ? first
                        : call_.ce_power == 2 ? squares
                                              : ce_exponentials(row_, b, scratch_.e1);
  }

  void add_streams(const Block<R>& b, const EntryScales<V>& c) {
    if constexpr (kSumsLikeExponentials<Div>) {
      statistics_.stream[0] += sum_of<V>(b.n, [&](int64_t i) {
        const Terms<V> terms = call_.div.terms(raw_entry(c, b, i), c.cross_shift);
        if (b.kept != nullptr) terms.cross.store(b.kept + i);
        return terms.cross;
      });
      return;
    }
    for (int64_t i = 0; i < b.n;) {
      V stream[kMaxStreams] = {V(0), V(0), V(0)};
      for (const int64_t stop = std::min(b.n, i + kStretch); i < stop; i += kW) {
        const Entry<V> e = raw_entry(c, b, i);
        if constexpr (Div::kCross) {
          const Terms<V> terms = call_.div.terms(e, c.cross_shift);
          if (b.kept != nullptr) terms.cross.store(b.kept + i);
          if (b.own != nullptr) terms.own.store(b.own + i);
          call_.div.add_terms(e, terms, stream);
        } else {
          call_.div.stream(e, c.cross_shift, stream);
        }
      }
      for (int k = 0; k < Div::kStreams; ++k) statistics_.stream[k] += horizontal_sum(stream[k]);
    }
  }

  // Adds the sums of exponentials times their exponents, which the entropies need. Only metrics use them.
  // Sums over the logits would cancel where the largest is far from 0.
  void add_moments(const Block<R>& b) {
    const V scale_s(call_.log2_scale_s), scale_t(call_.log2_scale_t);
    const V less_s(-statistics_.shift.s), less_t(-statistics_.shift.t);
    V moment_s(0), moment_t(0);
    for (int64_t i = 0; i < b.n; i += kW) {
      const V xs = fma(V::load(b.s + i), scale_s, less_s);
      moment_s = times_add(V::load(b.es + i), xs, moment_s);
      if constexpr (Div::kReadsTeacher) {
        const V xt = fma(V::load(b.t + i), scale_t, less_t);
        moment_t = times_add(V::load(b.et + i), xt, moment_t);
      }
    }
    statistics_.moment_s += horizontal_sum(moment_s);
    statistics_.moment_t += horizontal_sum(moment_t);
  }

  // Leaves out the padding of the last vector, and a label that is treated apart: both are -inf.
  double sum_of_logits(const Block<R>& b) {
    const int64_t label = Div::kSplitsLabel && b.holds(row_.label_column) ? row_.label_column - b.start : -1;
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
    const double a = call_.div.teacher_power(0), b = call_.div.student_power(0);
    const EntryScales<V> raw = raw_scales_of(row_);
    R top = kLowest<R>;
    for (int64_t start = 0; start < call_.params.vocab; start += kBlock) {
      const Block<R> block = row_.load(start);
      for (int64_t i = 0; i < block.n; i += kW) {
        const V xs = fma(V::load(block.s + i), raw.log2_scale_s, raw.shift_s);
        const V xt = fma(V::load(block.t + i), raw.log2_scale_t, raw.shift_t);
        // Entries that are -inf on both sides do not exist.
        const V larger = where_le(xs, xt, xt, xs);
        const V exponent = where_le(larger, V(kLowest<R>), V(kLowest<R>), V(a) * (xt - raw.base) + V(b) * xs);
        top = std::max(top, horizontal_max(exponent));
      }
    }
    // The rows are infinitely far apart, or there is no finite term at all: the sum is right as it is.
    if (std::isinf(top) || top == 0) return;
    statistics_.cross_shift = top;
    statistics_.stream[0] = statistics_.stream[1] = statistics_.stream[2] = 0;
    for (int64_t start = 0; start < call_.params.vocab; start += kBlock) {
      const Block<R> block = row_.load(start);
      student_exponentials(row_, block, kBlock);
      teacher_exponentials(row_, block, kBlock);
      if (scratch_.keeps) scratch_.shift(block) = statistics_.shift;
      add_streams(block, raw_scales_of(row_));
    }
  }

  RowContext<V, Div>& row_;
  const Call<V, Div>& call_;
  Statistics<R>& statistics_;
  Scratch<V, Div>& scratch_;
  bool shifts_fit_ = false;  // whether ShiftedExp2 can handle the shifts
};

template <class V, class Div>
inline void find_statistics(RowContext<V, Div>& row) {
  StatisticsSweep<V, Div>(row).run();
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
