// Computes a row's metrics from its state.
#pragma once

#include "value.h"

namespace fastkd {
inline namespace FASTKD_ISA {

inline double entropy(double z, double moment, double shift, double temperature) {
  return kLn2 * (shift + std::log2(z)) - moment / z / temperature;
}

// The entropy of a distribution, given the entropy among all columns but the label: that of the two classes,
// plus that among the others.
inline double entropy_with_label(double among_others, double others, double label) {
  return others * among_others - (label > 0 ? label * std::log(label) : 0) -
         (others > 0 ? others * std::log(others) : 0);
}

template <class V, class Div, class R>
inline void write_metrics(const RowSetup<V, Div>& setup, const RowState<R>& row, double divergence,
                          double nll, R* out) {
  constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
  constexpr bool kTeacher = RowSetup<V, Div>::kTeacher;
  const DenseParams& params = setup.params;
  double student = entropy(row.z_s, row.moment_s, row.shift.s, params.temperature);
  double teacher =
      kTeacher ? entropy(row.z_t, row.moment_t, row.shift.t, params.teacher_temperature) : kUnknown;
  int64_t arg_s = row.arg_s, arg_t = row.arg_t;
  if constexpr (Div::kSplitsLabel) {
    const Row<double> parts = normalised(setup, row);
    student = entropy_with_label(parts.q_others > 0 ? student : 0, parts.q_others, parts.q_label);
    teacher = entropy_with_label(parts.p_others > 0 ? teacher : 0, parts.p_others, parts.p_label);
    // -1 stands for the label itself. Of equal logits the first column counts (shards do not compare
    // columns).
    const auto leads = [&](R label, R max, int64_t arg) {
      return label > max || (label == max && !params.sharded && row.label < arg);
    };
    if (leads(row.label_s, row.max_s, arg_s)) arg_s = -1;
    if (leads(row.label_t, row.max_t, arg_t)) arg_t = -1;
  }
  out[metric::kKd] = static_cast<R>(kTeacher ? params.kd_metric * divergence : kUnknown);
  out[metric::kCe] = static_cast<R>(setup.needs_label ? nll : kUnknown);
  out[metric::kStudentEntropy] = static_cast<R>(student);
  out[metric::kTeacherEntropy] = static_cast<R>(teacher);
  out[metric::kAgreement] = static_cast<R>(kTeacher ? arg_s == arg_t : kUnknown);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
