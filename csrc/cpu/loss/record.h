// Converts a row's statistics to its record and back. The record's sums are relative to the row maxima, the
// kernel's to its shifts.
#pragma once

#include "row.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// By how much a row's shifts exceed its maxima, as exponents of 2, and by how much its base exceeds the
// log-ratio of the maxima, in nats.
struct AboveLargest {
  double s, t, ce, base;
};

template <class V, class Div>
inline AboveLargest above_largest(const RowContext<V, Div>& row) {
  const auto& statistics = row.statistics;
  const auto& shift = statistics.shift;
  const double max_s = double(finite(statistics.max_s)), max_t = double(finite(statistics.max_t));
  const double to_s = max_s * row.call.log2_scale_s, to_t = max_t * row.call.log2_scale_t;
  const double to_ce = max_s * row.call.log2_scale_ce;
  return {shift.s - to_s, shift.t - to_t, shift.ce - to_ce, shift.base - kLn2 * (to_t - to_s)};
}

// The label's logit, which the kernel's sum of logits leaves out and the record's includes, in the shard that
// has the label; 0 elsewhere.
template <class Div, class R>
inline double split_logit(const Statistics<R>& statistics) {
  return Div::kSplitsLabel && statistics.label_s != kLowest<R> ? statistics.label_s : 0;
}

template <class V, class Div>
inline void write_record(RowContext<V, Div>& row, double* record) {
  const AboveLargest by = above_largest(row);
  move_sums(row, by.s, by.t, by.ce, by.base);
  const auto& statistics = row.statistics;
  const double max_s = finite(statistics.max_s);
  for (int k = 0; k < record::kCount; ++k) record[k] = 0;
  record[record::kMaxS] = statistics.max_s;
  record[record::kMaxT] = statistics.max_t;
  record[record::kZS] = statistics.z_s;
  record[record::kZT] = statistics.z_t;
  record[record::kZCe] = statistics.z_ce;
  for (int k = 0; k < kMaxStreams; ++k) record[record::kStream0 + k] = statistics.stream[k];
  record[record::kCrossShift] = statistics.cross_shift;
  record[record::kLogitSum] =
      statistics.logit_sum + split_logit<Div>(statistics) - statistics.columns * max_s;
  record[record::kLabelS] = statistics.label_s;
  record[record::kLabelT] = statistics.label_t;
  record[record::kMomentS] = statistics.moment_s / row.call.log2_scale_s;
  record[record::kMomentT] = statistics.moment_t / row.call.log2_scale_t;
  record[record::kArgS] = double(statistics.arg_s);
  record[record::kArgT] = double(statistics.arg_t);
  record[record::kColumns] = statistics.columns;
}

template <class V, class Div>
inline void read_record(RowContext<V, Div>& row, const double* record) {
  using R = typename V::Real;
  auto& statistics = row.statistics;
  statistics.max_s = static_cast<R>(record[record::kMaxS]);
  statistics.max_t = static_cast<R>(record[record::kMaxT]);
  statistics.z_s = record[record::kZS];
  statistics.z_t = record[record::kZT];
  statistics.z_ce = record[record::kZCe];
  for (int k = 0; k < kMaxStreams; ++k) statistics.stream[k] = record[record::kStream0 + k];
  statistics.cross_shift = record[record::kCrossShift];
  statistics.label_s = static_cast<R>(record[record::kLabelS]);
  statistics.label_t = static_cast<R>(record[record::kLabelT]);
  const double max_s = finite(statistics.max_s);
  statistics.moment_s = record[record::kMomentS] * row.call.log2_scale_s;
  statistics.moment_t = record[record::kMomentT] * row.call.log2_scale_t;
  statistics.arg_s = static_cast<int64_t>(record[record::kArgS]);
  statistics.arg_t = static_cast<int64_t>(record[record::kArgT]);
  statistics.columns = record[record::kColumns];
  statistics.logit_sum =
      record[record::kLogitSum] + statistics.columns * max_s - split_logit<Div>(statistics);
  statistics.shift = shifts_for(row);
  const AboveLargest by = above_largest(row);
  move_sums(row, -by.s, -by.t, -by.ce, -by.base);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
