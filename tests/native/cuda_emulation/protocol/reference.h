// The loss of a row and its gradients by their formulas, in double: forward KL or JSD, cross-entropy with
// label smoothing, and z-loss.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "csrc/params.h"

namespace protocol {

using Vector = std::vector<double>;

inline double log_sum_exp(const Vector& x) {
  const double max = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const double value : x) sum += std::exp(value - max);
  return max + std::log(sum);
}

inline Vector log_softmax(Vector x, double temperature) {
  for (double& value : x) value /= temperature;
  const double lse = log_sum_exp(x);
  for (double& value : x) value -= lse;
  return x;
}

struct RowResult {
  double loss = 0;
  Vector grad_student, grad_teacher;
};

// Computes a row whose label counts. Without a divergence the teacher's gradient is 0.
inline RowResult reference_row(const fastkd::DenseParams& p, const Vector& student, const Vector& teacher,
                               int64_t label, double loss_scale, double grad_scale) {
  const size_t columns = student.size();
  RowResult row{0, Vector(columns), Vector(columns)};
  if (p.kd_weight != 0) {
    const Vector log_q = log_softmax(student, p.temperature);
    const Vector log_p = log_softmax(teacher, p.teacher_temperature);
    // The forward KL is that to the student itself, JSD consists of those to the mixture.
    const bool is_jsd = p.divergence == fastkd::Divergence::kJSD;
    const double b = is_jsd ? p.beta : 1;
    Vector log_m = log_q;
    for (size_t i = 0; is_jsd && i < columns; ++i) {
      const double larger = std::max(log_p[i], log_q[i]);
      log_m[i] = larger + std::log(b * std::exp(log_p[i] - larger) + (1 - b) * std::exp(log_q[i] - larger));
    }
    double to_p = 0, to_q = 0;
    for (size_t i = 0; i < columns; ++i) {
      to_p += std::exp(log_p[i]) * (log_p[i] - log_m[i]);
      to_q += std::exp(log_q[i]) * (log_q[i] - log_m[i]);
    }
    row.loss += p.kd_weight * (b * to_p + (1 - b) * to_q);
    for (size_t i = 0; i < columns; ++i) {
      const double prob_p = std::exp(log_p[i]), prob_q = std::exp(log_q[i]);
      const double by_q = is_jsd ? (1 - b) * prob_q * (log_q[i] - log_m[i] - to_q) : prob_q - prob_p;
      row.grad_student[i] = p.kd_weight / p.temperature * by_q;
      row.grad_teacher[i] = p.kd_weight / p.teacher_temperature * b * prob_p * (log_p[i] - log_m[i] - to_p);
    }
  }
  const double lse = log_sum_exp(student), at_label = p.ce_weight * (1 - p.label_smoothing);
  const double at_each = p.ce_weight * p.label_smoothing / static_cast<double>(columns);
  row.loss += p.z_loss * lse * lse;
  for (size_t i = 0; i < columns; ++i) {
    const double weight = at_each + (static_cast<int64_t>(i) == label ? at_label : 0);
    row.loss += weight * (lse - student[i]);
    row.grad_student[i] += (p.ce_weight + 2 * p.z_loss * lse) * std::exp(student[i] - lse) - weight;
  }
  row.loss *= loss_scale;
  for (Vector* gradient : {&row.grad_student, &row.grad_teacher}) {
    for (double& value : *gradient) value *= grad_scale;
  }
  return row;
}

}  // namespace protocol
