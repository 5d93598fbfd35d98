// Computes the numbers that a row's loss is made of, from its statistics.
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

// Sets row.normalised, except for the sums of sweep 2.
template <class V, class Div>
inline void normalise(RowContext<V, Div>& row) {
  Row<double>& normalised = row.normalised;
  normalised = Row<double>{};
  if constexpr (!Div::kReadsTeacher) return;
  const Div& div = row.call.div;
  const auto& statistics = row.statistics;
  const auto& shift = statistics.shift;
  // From the quotient of the two sums, so that equal rows have an offset of exactly 0.
  const double between = std::log2(statistics.z_t / statistics.z_s);
  const double bits_s = Div::kCross || Div::kSplitsLabel || Div::kDistant ? std::log2(statistics.z_s) : 0;
  normalised.log_ratio_offset = kLn2 * (double(shift.s) - shift.t - between) + shift.base;
  const double base = double(shift.s) - shift.t + kLog2e * shift.base;
  for (int k = 0; k < Div::kStreams; ++k) {
    const double a = div.teacher_power(k), b = div.student_power(k);
    const double by = k == 0 ? statistics.cross_shift + a * base : 0;
    normalised.scale[k] = Div::kCross ? std::exp2(by - (a + b) * bits_s - a * between)
                          : a == 1    ? 1 / statistics.z_t
                                      : 1 / statistics.z_s;
    normalised.stream[k] = statistics.stream[k] * normalised.scale[k];
  }
  if constexpr (Div::kCross) {
    normalised.cross_shift = statistics.cross_shift;
    normalised.cross_inverse = statistics.stream[0] == 0 ? 0 : 1 / statistics.stream[0];
    // This formula holds where the powers add up to 1, as they do for all divergences that use log_cross.
    normalised.log_cross =
        kLn2 * (statistics.cross_shift + std::log2(statistics.stream[0] / statistics.z_s)) +
        div.teacher_power(0) * normalised.log_ratio_offset;
  }
  if constexpr (Div::kDistant) normalised.bits_s = bits_s, normalised.bits_t = bits_s + between;
  if constexpr (Div::kSplitsLabel) {
    const Split student = split(statistics.label_s * row.call.log2_scale_s - double(shift.s) - bits_s);
    const Split teacher =
        split(statistics.label_t * row.call.log2_scale_t - double(shift.t) - std::log2(statistics.z_t));
    normalised.p_label = teacher.label, normalised.q_label = student.label;
    normalised.p_others = teacher.others, normalised.q_others = student.others;
    normalised.label_ratio = teacher.log_label - student.log_label;
    normalised.others_ratio = teacher.log_others - student.log_others;
  }
}

// Returns log2 of the label's odds at temperature 1, for sums that leave the label out.
template <class R>
inline double label_odds(const Statistics<R>& statistics) {
  return statistics.label_s * kLog2e - statistics.shift.ce - std::log2(statistics.z_ce);
}

// Returns the student's log-sum-exp at temperature 1.
template <class V, class Div>
inline double ce_log_sum_exp(const RowContext<V, Div>& row) {
  const auto& statistics = row.statistics;
  const double others = kLn2 * (double(statistics.shift.ce) + std::log2(statistics.z_ce));
  if (!Div::kSplitsLabel || !row.call.needs_label) return others;
  // From the larger class, whose logarithm is finite.
  const double odds = label_odds(statistics);
  return odds > 0 ? statistics.label_s - split(odds).log_label : others - split(odds).log_others;
}

// Returns the cross-entropy to the label, with the label smoothing of the call. `lse`: ce_log_sum_exp().
template <class V, class Div>
inline double cross_entropy(const RowContext<V, Div>& row, double lse) {
  const auto& statistics = row.statistics;
  const double nll = Div::kSplitsLabel ? -split(label_odds(statistics)).log_label : lse - statistics.label_s;
  const double e = row.call.params.label_smoothing;
  if (e == 0) return nll;
  const double sum = Div::kSplitsLabel ? statistics.logit_sum + statistics.label_s : statistics.logit_sum;
  return (1 - e) * nll + e * (lse - sum / statistics.columns);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
