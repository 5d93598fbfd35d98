// Computes the numbers that a row's loss is made of, from its state.
#pragma once

#include <cmath>

#include "row.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// A distribution seen as two classes, a label and all others.
struct Split {
  double label, others;          // probabilities, each with all its digits
  double log_label, log_others;  // in nats
};

// Computes the two classes from log2 of the odds of label to others.
inline Split split(double bits) {
  const double odds = kLn2 * bits, rest = std::log1p(std::exp(-std::fabs(odds)));
  Split s;
  s.log_label = (odds < 0 ? odds : 0) - rest;
  s.log_others = (odds < 0 ? 0 : -odds) - rest;
  s.label = std::exp(s.log_label);
  s.others = std::exp(s.log_others);
  return s;
}

// Returns what the divergence's value() needs, except for the sums of the middle sweep.
template <class V, class Div, class R>
inline Row<double> normalised(const RowSetup<V, Div>& setup, const RowState<R>& state) {
  Row<double> row{};
  if constexpr (!RowSetup<V, Div>::kTeacher) return row;
  // From the quotient of the two sums, so that equal rows have an offset of exactly 0.
  const double between = std::log2(state.z_t / state.z_s);
  const double bits_s = Div::kCross || Div::kSplitsLabel || Div::kDistant ? std::log2(state.z_s) : 0;
  row.log_ratio_offset = kLn2 * (double(state.shift.s) - state.shift.t - between) + state.shift.base;
  const double base = double(state.shift.s) - state.shift.t + kLog2e * state.shift.base;
  for (int k = 0; k < Div::kStreams; ++k) {
    const double a = setup.div.teacher_power(k), b = setup.div.student_power(k);
    const double shift = k == 0 ? state.cross_shift + a * base : 0;
    row.scale[k] = Div::kCross ? std::exp2(shift - (a + b) * bits_s - a * between)
                   : a == 1    ? 1 / state.z_t
                               : 1 / state.z_s;
    row.stream[k] = state.stream[k] * row.scale[k];
  }
  if constexpr (Div::kCross) {
    row.cross_shift = state.cross_shift;
    row.cross_inverse = state.stream[0] == 0 ? 0 : 1 / state.stream[0];
    // This formula holds where the powers add up to 1, as they do for all divergences that use log_cross.
    row.log_cross = kLn2 * (state.cross_shift + std::log2(state.stream[0] / state.z_s)) +
                    setup.div.teacher_power(0) * row.log_ratio_offset;
  }
  if constexpr (Div::kDistant) row.bits_s = bits_s, row.bits_t = bits_s + between;
  if constexpr (Div::kSplitsLabel) {
    const Split student = split(state.label_s * setup.to_exponent_s - double(state.shift.s) - bits_s);
    const Split teacher =
        split(state.label_t * setup.to_exponent_t - double(state.shift.t) - std::log2(state.z_t));
    row.p_label = teacher.label, row.q_label = student.label;
    row.p_others = teacher.others, row.q_others = student.others;
    row.label_ratio = teacher.log_label - student.log_label;
    row.others_ratio = teacher.log_others - student.log_others;
  }
  return row;
}

// Returns log2 of the label's odds at temperature 1, for sums that leave the label out.
template <class R>
inline double label_odds(const RowState<R>& row) {
  return row.label_s * kLog2e - row.shift.one - std::log2(row.z_1);
}

template <class V, class Div, class R>
inline double lse_at_one(const RowSetup<V, Div>& setup, const RowState<R>& row) {
  const double others = kLn2 * (double(row.shift.one) + std::log2(row.z_1));
  if (!Div::kSplitsLabel || !setup.needs_label) return others;
  // From the larger class, whose logarithm is finite.
  const double odds = label_odds(row);
  return odds > 0 ? row.label_s - split(odds).log_label : others - split(odds).log_others;
}

// Returns the cross-entropy to the label, with the label smoothing of the call.
template <class V, class Div, class R>
inline double cross_entropy(const RowSetup<V, Div>& setup, const RowState<R>& row, double lse) {
  const double nll = Div::kSplitsLabel ? -split(label_odds(row)).log_label : lse - row.label_s;
  const double e = setup.params.label_smoothing;
  if (e == 0) return nll;
  const double sum = Div::kSplitsLabel ? row.logit_sum + row.label_s : row.logit_sum;
  return (1 - e) * nll + e * (lse - sum / row.columns);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
