// Rows whose largest logits are so large that float32 has few digits left for the differences of the logits,
// or none.
#pragma once

#include <algorithm>
#include <vector>

#include "../isa/kernels.h"
#include "../simd/block_io.h"
#include "row.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Whether the exponent of 2 of a finite logit exceeds 2^13, where its last digit is worth a thousandth. The
// scalar float64 kernel takes ten times as long, so only few rows should be extreme.
template <class R>
inline bool is_extreme(R logit, R log2_scale) {
  return std::isfinite(logit) && !(std::fabs(logit * log2_scale) < R(8192));
}

template <class V, class Div>
inline bool is_extreme(const RowContext<V, Div>& row) {
  using R = typename V::Real;
  const auto& statistics = row.statistics;
  // A log-ratio that has overflowed, and its sum with it, may be finite in float64.
  for (int k = 0; k < (Div::kCross ? 0 : Div::kStreams); ++k) {
    if (std::isinf(statistics.stream[k])) return true;
  }
  const R scale_s = std::max(row.call.log2_scale_s, row.call.log2_scale_ce), scale_t = row.call.log2_scale_t;
  return is_extreme(statistics.max_s, scale_s) || is_extreme(statistics.max_t, scale_t) ||
         (Div::kSplitsLabel &&
          (is_extreme(statistics.label_s, scale_s) || is_extreme(statistics.label_t, scale_t)));
}

// Runs extreme rows in float64; one object per thread, reused for all of its rows. Subtracting a constant
// from a row of logits does not change any loss except the z-loss, which receives the constant (lse_less). An
// extreme row, or the call's phase of it, is therefore computed once more in float64, with its largest logit
// moved to 0.
template <class R>
class ExtremeRow {
 public:
  explicit ExtremeRow(const DenseParams& params) : params_(params) {}

  // Runs row r of the call. `top_s`, `top_t`: its largest finite logits.
  void run(int64_t r, const RowPointer& s, const RowPointer& t, double top_s, double top_t) {
    DenseParams p = params_;
    double loss = 0, coefficient = 0, metrics[metric::kCount], record[record::kCount];
    const double loss_scale = static_cast<const R*>(params_.loss_scale)[r];
    const double grad_scale = static_cast<const R*>(params_.grad_scale)[r];
    p.rows = 1;
    p.wide = true;
    p.loss_scale = &loss_scale;
    p.grad_scale = &grad_scale;
    p.row_loss = &loss;
    p.lse_less = top_s;
    p.student = lowered(s, top_s, student_);
    if (p.teacher.data != nullptr) p.teacher = lowered(t, top_t, teacher_);
    p.grad_student.data = row_of(p.grad_student, p.inner, r).data;
    p.grad_teacher.data = row_of(p.grad_teacher, p.inner, r).data;
    if (p.labels != nullptr) p.labels += r;
    if (p.metrics != nullptr) p.metrics = metrics;
    if (p.sparse.entries != 0) take_sparse(r, p.sparse);
    if (p.coefficient != nullptr) {
      coefficient = static_cast<const R*>(params_.coefficient)[r];
      p.coefficient = &coefficient;
    }
    if (p.record != nullptr) {
      std::copy_n(params_.record + r * record::kCount, record::kCount, record);
      raise_record(record, -top_s, -top_t);
      p.record = record;
    }
    run_double_row(p);
    if (p.record != nullptr) {
      raise_record(record, top_s, top_t);
      std::copy_n(record, record::kCount, params_.record + r * record::kCount);
    }
    if (p.phase != Phase::kAll && p.phase != Phase::kFinish) return;
    static_cast<R*>(params_.row_loss)[r] = static_cast<R>(loss);
    if (p.metrics != nullptr) {
      std::copy_n(metrics, metric::kCount, static_cast<R*>(params_.metrics) + r * metric::kCount);
    }
    if (p.sparse.grad != nullptr) {
      std::copy(by_logprob_.begin(), by_logprob_.end(),
                static_cast<R*>(params_.sparse.grad) + r * p.sparse.entries);
    }
  }

 private:
  // Moves the logits in a record. All its other columns are relative to the row maxima and do not change.
  static void raise_record(double* record, double by_s, double by_t) {
    record[record::kMaxS] += by_s;
    record[record::kMaxT] += by_t;
    record[record::kLabelS] += by_s;
    record[record::kLabelT] += by_t;
  }

  // Copies the row in float64 to `out`, less `by`.
  Rows lowered(const RowPointer& row, double by, std::vector<double>& out) const {
    out.resize(static_cast<size_t>(params_.vocab));
    for (int64_t i = 0; i < params_.vocab; ++i) {
      out[static_cast<size_t>(i)] = load_one<double>(row.at(i), row.dtype) - by;
    }
    Rows rows;
    rows.data = out.data();
    rows.dtype = Dtype::kFloat64;
    rows.columns = params_.vocab;
    return rows;
  }

  void take_sparse(int64_t r, SparseTeacher& sparse) {
    const R* const logprobs = static_cast<const R*>(sparse.logprobs) + r * sparse.entries;
    logprobs_.assign(logprobs, logprobs + sparse.entries);
    by_logprob_.resize(logprobs_.size());
    sparse.indices += r * sparse.entries;
    sparse.logprobs = logprobs_.data();
    if (sparse.grad != nullptr) sparse.grad = by_logprob_.data();
  }

  const DenseParams& params_;
  std::vector<double> student_, teacher_, logprobs_, by_logprob_;
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
