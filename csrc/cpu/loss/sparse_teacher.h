// Computes a sparse teacher's divergence of one row in float64: its entries, and all other columns as one
// more class. fastkd/backends/sparse.py does the same in torch, for backends and calls that cannot process a
// row at once.
#pragma once

#include <vector>

#include "../isa/kernels.h"
#include "value.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// One per thread, reused for all of its rows.
template <class R>
class SparseRow {
 public:
  explicit SparseRow(const DenseParams& params) : params_(params), teacher_(params.sparse) {
    if (teacher_.entries == 0) return;
    const size_t classes = static_cast<size_t>(teacher_.entries) + 1;
    entry_.resize(classes);
    for (auto* x : {&logit_, &log_p_, &log_q_, &by_student_, &by_teacher_}) x->resize(classes);
  }

  double value = 0;
  double coefficient = 0;  // factor of q in the gradient by s / T, at all columns but the entries

  // Reads the entries of row r and computes its divergence. `lse`: the log-sum-exp of the student's logits
  // over the temperature.
  void find(int64_t r, const RowPointer& s, double lse) {
    value = coefficient = 0;
    row_ = r;
    count_ = classes_ = 0;
    for (int64_t k = 0; k < teacher_.entries; ++k) {
      const double logprob = logprob_at(k);
      if (logprob == kLowest<double>) continue;
      entry_[count_] = k;
      log_p_[count_] = logprob;
      logit_[count_] = load_one<double>(s.at(column_at(k)), s.dtype);
      log_q_[count_] = logit_[count_] / params_.temperature - lse;
      ++count_;
    }
    classes_ = count_;
    if (count_ == 0) return;
    if (teacher_.tail == Tail::kDrop) {
      find_dropped();
    } else {
      find_classes();
    }
  }

  // Calls body(column, its logit, the gradient by s / T) for each entry.
  template <class Body>
  void visit(const Body& body) const {
    for (int64_t i = 0; i < count_; ++i) body(column_at(entry_[i]), logit_[i], by_student_[i]);
  }

  // Writes the gradient by the log-probabilities. `scale`: the divergence's factor. The gradient of entries
  // that do not exist is 0.
  void write_gradient(int64_t r, double scale) const {
    if (teacher_.grad == nullptr) return;
    R* const grad = static_cast<R*>(teacher_.grad) + r * teacher_.entries;
    std::fill_n(grad, teacher_.entries, R(0));
    for (int64_t i = 0; i < count_; ++i) grad[entry_[i]] = static_cast<R>(scale * by_teacher_[i]);
  }

  void skip(int64_t r) {
    count_ = 0;
    write_gradient(r, 0);
  }

  // `max_s`: the student's largest logit.
  void write_metrics(double max_s, R* out) const {
    int64_t best = 0;
    for (int64_t i = 1; i < count_; ++i) {
      if (log_p_[i] > log_p_[best]) best = i;
    }
    // Relative to the largest log-probability, since all may be too small for an exponential of their own.
    double z = 0, moment = 0;
    for (int64_t i = 0; i < classes_; ++i) {
      const double away = log_p_[i] - log_p_[best], e = std::exp(away);
      z += e;
      moment += times(e, away);
    }
    out[metric::kKd] = static_cast<R>(params_.kd_metric * value);
    out[metric::kTeacherEntropy] = static_cast<R>(count_ == 0 ? 0 : std::log(z) - moment / z);
    out[metric::kAgreement] = static_cast<R>(count_ != 0 && logit_[best] == max_s);
  }

 private:
  int64_t column_at(int64_t k) const { return teacher_.indices[row_ * teacher_.entries + k]; }
  double logprob_at(int64_t k) const {
    return static_cast<const R*>(teacher_.logprobs)[row_ * teacher_.entries + k];
  }

  void find_classes() {
    const bool bucket = teacher_.tail == Tail::kBucket;
    const int64_t rest = count_;
    double rest_p = 0, rest_q = 0;  // probability masses
    if (teacher_.has_rest) {
      double mass_p = 0, mass_q = 0;
      for (int64_t i = 0; i < count_; ++i) {
        mass_p += std::exp(log_p_[i]);
        mass_q += std::exp(log_q_[i]);
      }
      rest_p = rest_of(mass_p);
      rest_q = rest_of(mass_q);
      log_p_[rest] = bucket ? std::log(rest_p) : kLowest<double>;
      log_q_[rest] = std::log(rest_q);
      ++classes_;
    }
    // The dense kernel in solve() normalises the classes.
    for (int64_t i = 0; i < classes_; ++i) {
      log_p_[i] /= params_.teacher_temperature;
      log_q_[i] /= teacher_.class_temperature;
    }
    solve();
    for (int64_t i = 0; i < classes_; ++i) {
      by_student_[i] /= teacher_.class_temperature;
      by_teacher_[i] /= params_.teacher_temperature;
    }
    if (teacher_.has_rest) coefficient = by_student_[rest] / rest_q;
    if (!bucket) return;
    // The gradient so far is by the logarithm of each class. The entries' logarithms are the teacher's own,
    // and the bucket's mass is 1 less their masses.
    const double by_mass = by_teacher_[rest] / rest_p;
    for (int64_t i = 0; i < count_; ++i) by_teacher_[i] -= std::exp(logprob_at(entry_[i])) * by_mass;
  }

  // Computes the divergence of the classes, which is a dense one of few columns.
  void solve() {
    const double one = 1;
    DenseParams p;
    p.rows = 1;
    p.vocab = classes_;
    p.student = few(log_q_);
    p.teacher = few(log_p_);
    p.grad_student = few(by_student_);
    p.grad_teacher = few(by_teacher_);
    p.loss_scale = p.grad_scale = &one;
    p.row_loss = &value;
    p.wide = true;
    p.divergence = teacher_.divergence;
    p.alpha = params_.alpha;
    p.beta = params_.beta;
    run_double_row(p);
  }

  Rows few(std::vector<double>& x) const {
    Rows rows;
    rows.data = x.data();
    rows.dtype = Dtype::kFloat64;
    rows.columns = classes_;
    return rows;
  }

  // Tail::kDrop: only the entries' terms of the forward KL count, with the teacher's probabilities as
  // weights, not renormalised.
  void find_dropped() {
    for (int64_t i = 0; i < count_; ++i) coefficient += std::exp(log_p_[i]);
    for (int64_t i = 0; i < count_; ++i) {
      const double weight = std::exp(log_p_[i]), ratio = log_p_[i] - log_q_[i];
      value += times(weight, ratio);
      by_student_[i] = coefficient * std::exp(log_q_[i]) - weight;
      by_teacher_[i] = weight * (ratio + 1);
    }
  }

  const DenseParams& params_;
  const SparseTeacher& teacher_;
  int64_t row_ = 0, count_ = 0, classes_ = 0;
  // One element per entry that exists, in their order, and then one for the class of all other columns.
  std::vector<int64_t> entry_;
  std::vector<double> logit_, log_p_, log_q_, by_student_, by_teacher_;
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
