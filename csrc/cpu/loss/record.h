// Converts a row's state to its record and back. The record's sums are relative to the row maxima, the
// kernel's to its shifts.
#pragma once

#include "row.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// By how much a row's shifts exceed its maxima, as exponents of 2, and by how much its base exceeds the
// log-ratio of the maxima, in nats.
struct AboveLargest {
  double s, t, one, base;
};

template <class V, class Div, class R>
inline AboveLargest above_largest(const RowSetup<V, Div>& setup, const RowState<R>& row) {
  const double to_s = double(finite(row.max_s)) * setup.to_exponent_s;
  const double to_t = double(finite(row.max_t)) * setup.to_exponent_t;
  const double to_1 = double(finite(row.max_s)) * setup.to_exponent_1;
  return {row.shift.s - to_s, row.shift.t - to_t, row.shift.one - to_1,
          row.shift.base - kLn2 * (to_t - to_s)};
}

// The label's logit, which the kernel's sum of logits leaves out and the record's includes, in the shard that
// has the label; 0 elsewhere.
template <class Div, class R>
inline double split_logit(const RowState<R>& row) {
  return Div::kSplitsLabel && row.label_s != kLowest<R> ? row.label_s : 0;
}

template <class V, class Div, class R>
inline void write_record(const RowSetup<V, Div>& setup, RowState<R>& row, double* record) {
  const AboveLargest by = above_largest(setup, row);
  move_sums(setup.div, row, by.s, by.t, by.one, by.base);
  const double max_s = finite(row.max_s), max_t = finite(row.max_t);
  const double values[record::kCount] = {row.max_s,
                                         row.max_t,
                                         row.z_s,
                                         row.z_t,
                                         row.z_1,
                                         row.stream[0],
                                         row.stream[1],
                                         row.stream[2],
                                         row.cross_shift,
                                         row.logit_sum + split_logit<Div>(row) - row.columns * max_s,
                                         row.label_s,
                                         row.label_t,
                                         row.moment_s - row.z_s * max_s,
                                         row.moment_t - row.z_t * max_t,
                                         double(row.arg_s),
                                         double(row.arg_t),
                                         row.columns,
                                         0,
                                         0};
  static_assert(sizeof values == sizeof(double) * record::kCount, "a value for each column");
  for (int k = 0; k < record::kCount; ++k) record[k] = values[k];
}

template <class V, class Div, class R>
inline void read_record(const RowSetup<V, Div>& setup, RowState<R>& row, const double* record) {
  row.max_s = static_cast<R>(record[record::kMaxS]);
  row.max_t = static_cast<R>(record[record::kMaxT]);
  row.z_s = record[record::kZS];
  row.z_t = record[record::kZT];
  row.z_1 = record[record::kZCe];
  for (int k = 0; k < kMaxStreams; ++k) row.stream[k] = record[record::kStream0 + k];
  row.cross_shift = record[record::kCrossShift];
  row.label_s = static_cast<R>(record[record::kLabelS]);
  row.label_t = static_cast<R>(record[record::kLabelT]);
  const double max_s = finite(row.max_s), max_t = finite(row.max_t);
  row.moment_s = record[record::kMomentS] + row.z_s * max_s;
  row.moment_t = record[record::kMomentT] + row.z_t * max_t;
  row.arg_s = static_cast<int64_t>(record[record::kArgS]);
  row.arg_t = static_cast<int64_t>(record[record::kArgT]);
  row.columns = record[record::kColumns];
  row.logit_sum = record[record::kLogitSum] + row.columns * max_s - split_logit<Div>(row);
  row.shift = shifts_for(setup, row);
  const AboveLargest by = above_largest(setup, row);
  move_sums(setup.div, row, -by.s, -by.t, -by.one, -by.base);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
