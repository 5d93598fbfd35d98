// Computes a row's metrics from its statistics.
#pragma once

#include "value.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// In nats, of the normaliser and the sum of exponentials times their exponents of 2.
inline double entropy(double z, double moment) { return kLn2 * (std::log2(z) - moment / z); }

// The entropy of a distribution, given the entropy among all columns but the label: that of the two classes,
// plus that among the others.
inline double entropy_with_label(double among_others, double others, double label) {
  return others * among_others - (label > 0 ? label * std::log(label) : 0) -
         (others > 0 ? others * std::log(others) : 0);
}

// `nll`: the cross-entropy to the label; `out`: metric::kCount numbers.
template <class V, class Div>
inline void write_metrics(const RowContext<V, Div>& row, double divergence, double nll,
                          typename V::Real* out) {
  using R = typename V::Real;
  constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
  constexpr bool kTeacher = Div::kReadsTeacher;
  const DenseParams& params = row.call.params;
  const auto& statistics = row.statistics;
  double student = entropy(statistics.z_s, statistics.moment_s);
  double teacher = kTeacher ? entropy(statistics.z_t, statistics.moment_t) : kUnknown;
  int64_t arg_s = statistics.arg_s, arg_t = statistics.arg_t;
  if constexpr (Div::kSplitsLabel) {
    const Row<double>& parts = row.normalised;
    student = entropy_with_label(parts.q_others > 0 ? student : 0, parts.q_others, parts.q_label);
    teacher = entropy_with_label(parts.p_others > 0 ? teacher : 0, parts.p_others, parts.p_label);
    // -1 stands for the label itself. Of equal logits the first column counts (shards do not compare
    // columns).
    const auto leads = [&](R label, R max, int64_t arg) {
      return label > max || (label == max && !params.sharded && row.label_column < arg);
    };
    if (leads(statistics.label_s, statistics.max_s, arg_s)) arg_s = -1;
    if (leads(statistics.label_t, statistics.max_t, arg_t)) arg_t = -1;
  }
  out[metric::kKd] = static_cast<R>(kTeacher ? params.kd_metric * divergence : kUnknown);
  out[metric::kCe] = static_cast<R>(row.call.needs_label ? nll : kUnknown);
  out[metric::kStudentEntropy] = static_cast<R>(student);
  out[metric::kTeacherEntropy] = static_cast<R>(teacher);
  out[metric::kAgreement] = static_cast<R>(kTeacher ? arg_s == arg_t : kUnknown);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
