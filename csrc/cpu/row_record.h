// A row's state to and from its record, which speaks of the largest logits where the kernel has its shifts.
#pragma once

#include "row_state.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// The base of the record's streams: ratios are plain there, and a cross stream is one of its exponentials.
template <class Div>
inline double base_in_record(double to_s, double to_t) {
  return Div::kCross ? kLn2 * (to_t - to_s) : 0;
}

template <class V, class Div, class R>
inline void write_record(const RowSetup<V, Div>& setup, RowState<R>& row, double* record) {
  const double to_s = double(finite(row.max_s)) * setup.to_exponent_s;
  const double to_t = double(finite(row.max_t)) * setup.to_exponent_t;
  const double to_1 = double(finite(row.max_s)) * setup.to_exponent_1;
  move_sums(setup.div, row, row.shift.s - to_s, row.shift.t - to_t, row.shift.one - to_1,
            row.shift.base - base_in_record<Div>(to_s, to_t));
  const double values[record::kCount] = {row.max_s,
                                         row.max_t,
                                         row.z_s,
                                         row.z_t,
                                         row.z_1,
                                         row.stream[0],
                                         row.stream[1],
                                         row.stream[2],
                                         row.cross_shift,
                                         row.logit_sum,
                                         row.label_s,
                                         row.label_t,
                                         row.moment_s,
                                         row.moment_t,
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
  row.z_1 = record[record::kZOne];
  for (int k = 0; k < kMaxStreams; ++k) row.stream[k] = record[record::kStream0 + k];
  row.cross_shift = record[record::kCrossShift];
  row.logit_sum = record[record::kLogitSum];
  row.label_s = static_cast<R>(record[record::kLabelS]);
  row.label_t = static_cast<R>(record[record::kLabelT]);
  row.moment_s = record[record::kMomentS];
  row.moment_t = record[record::kMomentT];
  row.arg_s = static_cast<int64_t>(record[record::kArgS]);
  row.arg_t = static_cast<int64_t>(record[record::kArgT]);
  row.columns = record[record::kColumns];
  row.shift = shifts_for(setup, row);
  const double to_s = double(finite(row.max_s)) * setup.to_exponent_s;
  const double to_t = double(finite(row.max_t)) * setup.to_exponent_t;
  const double to_1 = double(finite(row.max_s)) * setup.to_exponent_1;
  move_sums(setup.div, row, to_s - row.shift.s, to_t - row.shift.t, to_1 - row.shift.one,
            base_in_record<Div>(to_s, to_t) - row.shift.base);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
