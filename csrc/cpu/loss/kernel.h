// Computes one token's loss and gradients in two sweeps over its two rows (three where a divergence's sums
// need both log-sum-exps first), or runs one phase of them.
#pragma once

#include "extreme.h"
#include "metrics.h"
#include "record.h"
#include "sparse_teacher.h"
#include "sweep1_statistics.h"
#include "sweep2_sums.h"
#include "sweep3_gradient.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class V, class Div>
class RowKernel {
  using R = typename V::Real;

 public:
  RowKernel(const DenseParams& params, Div div, bool streamed)
      : params_(params), row_(params, div, streamed), sparse_(params), extreme_(params) {}

  void run_all(NextRows next, void* state) {
    for (int64_t begin, end; next(state, &begin, &end);) {
      for (int64_t r = begin; r < end; ++r) run(r);
    }
    if (row_.call.streamed) stream_fence();
  }

 private:
  void run(int64_t r) {
    const R loss_scale = static_cast<const R*>(params_.loss_scale)[r];
    const R grad_scale = static_cast<const R*>(params_.grad_scale)[r];
    Statistics<R>& statistics = row_.statistics;
    statistics = Statistics<R>();
    row_.label_column = params_.labels == nullptr ? -1 : params_.labels[r];
    const bool ignored = params_.labels != nullptr && row_.label_column == params_.ignore_index;
    if (ignored || (loss_scale == 0 && grad_scale == 0)) return skip(r);
    if (row_.label_column >= params_.vocab) row_.label_column = -1;
    row_.s = row_of(params_.student, params_.inner, r);
    row_.t = row_of(params_.teacher, params_.inner, r);
    double* const record = params_.record == nullptr ? nullptr : params_.record + r * record::kCount;
    const Phase phase = params_.phase;

    if (phase == Phase::kAll || phase == Phase::kStatistics) {
      if (row_.call.needs_label && row_.label_column >= 0) {
        statistics.label_s = load_one<R>(row_.s.at(row_.label_column), row_.s.dtype);
        if (Div::kSplitsLabel) {
          statistics.label_t = load_one<R>(row_.t.at(row_.label_column), row_.t.dtype);
        }
      }
      find_statistics(row_);
    } else {
      read_record(row_, record);
    }
    if (!params_.wide && is_extreme(row_)) {
      return extreme_.run(r, row_.s, row_.t, finite(statistics.max_s), finite(statistics.max_t));
    }
    if (phase == Phase::kStatistics) return write_record(row_, record);
    normalise(row_);
    double* const sums = row_.normalised.sum;
    if (phase == Phase::kDistant || phase == Phase::kFinish) {
      sums[0] = record[record::kSum0];
      sums[1] = record[record::kSum1];
    } else if constexpr (Div::kSums > 0) {
      find_sums(row_);
    }
    if constexpr (Div::kDistant) {
      if (phase == Phase::kFinish) {
        row_.normalised.distant = sums[0] < 0;  // the sum is a logarithm, see Functor::kDistant
      } else if (phase != Phase::kSums && row_.call.div.is_distant(sums)) {
        find_distant_sums(row_);
      }
    }
    if (phase == Phase::kSums || phase == Phase::kDistant) {
      record[record::kSum0] = sums[0];
      record[record::kSum1] = sums[1];
      return;
    }
    finish(r, loss_scale, grad_scale);
  }

  // Writes the results of a row that is not read: zeros.
  void skip(int64_t r) {
    if (params_.phase != Phase::kAll && params_.phase != Phase::kFinish) return;
    const RowPointer grad_s = row_of(params_.grad_student, params_.inner, r);
    const RowPointer grad_t = row_of(params_.grad_teacher, params_.inner, r);
    static_cast<R*>(params_.row_loss)[r] = 0;
    if (sees_sparse()) sparse_.skip(r);
    if (params_.metrics != nullptr) {
      for (int k = 0; k < metric::kCount; ++k) static_cast<R*>(params_.metrics)[r * metric::kCount + k] = 0;
    }
    if (grad_s.data != nullptr) zero_columns(grad_s, 0, params_.grad_student.columns);
    if (grad_t.data != nullptr) zero_columns(grad_t, 0, params_.grad_teacher.columns);
  }

  void finish(int64_t r, R loss_scale, R grad_scale) {
    const Call<V, Div>& call = row_.call;
    double divergence = std::numeric_limits<double>::quiet_NaN(), loss = 0;
    if constexpr (Div::kReadsTeacher) {
      divergence = call.div.value(row_.normalised);
      loss += params_.kd_weight * divergence;
    }
    double coefficient = 0;
    if constexpr (Div::kSparseTeacher) {
      if (sees_sparse()) {
        const Statistics<R>& statistics = row_.statistics;
        sparse_.find(r, row_.s, kLn2 * (double(statistics.shift.s) + std::log2(statistics.z_s)));
        sparse_.write_gradient(r, params_.kd_weight * grad_scale);
        loss += params_.kd_weight * sparse_.value;
        coefficient = sparse_.coefficient;
      } else if (params_.coefficient != nullptr) {
        coefficient = static_cast<const R*>(params_.coefficient)[r];
      }
    }
    const double lse = call.ce_softmax ? ce_log_sum_exp(row_) : 0;
    const double nll = call.needs_label && call.ce_softmax ? cross_entropy(row_, lse) : 0;
    if (call.cross_entropy) loss += params_.ce_weight * nll;
    if (params_.z_loss != 0) loss += params_.z_loss * (lse + params_.lse_less) * (lse + params_.lse_less);
    static_cast<R*>(params_.row_loss)[r] = loss_scale == 0 ? R(0) : static_cast<R>(loss_scale * loss);
    if (params_.metrics != nullptr) {
      R* const metrics = static_cast<R*>(params_.metrics) + r * metric::kCount;
      write_metrics(row_, divergence, nll, metrics);
      if (sees_sparse()) sparse_.write_metrics(row_.statistics.max_s, metrics);
    }

    const RowPointer grad_s = row_of(params_.grad_student, params_.inner, r);
    RowPointer grad_t = row_of(params_.grad_teacher, params_.inner, r);
    if (grad_t.data != nullptr)
      zero_columns(grad_t, Div::kReadsTeacher ? params_.vocab : 0, params_.grad_teacher.columns);
    if (!Div::kReadsTeacher) grad_t.data = nullptr;
    if (grad_s.data != nullptr || grad_t.data != nullptr) {
      write_gradients(row_, grad_s, grad_t, grad_scale, lse, coefficient, sees_sparse() ? &sparse_ : nullptr);
    }
    if (grad_s.data != nullptr) zero_columns(grad_s, params_.vocab, params_.grad_student.columns);
  }

  // Whether the call has the sparse teacher itself, and not the coefficients that were computed from it.
  bool sees_sparse() const { return Div::kSparseTeacher && params_.phase == Phase::kAll; }

  const DenseParams& params_;
  RowContext<V, Div> row_;
  SparseRow<R> sparse_;
  ExtremeRow<R> extreme_;
};

// Runs the rows that `next` hands out, one after the other.
template <class V>
void dense_rows(const DenseParams& params, bool streamed, NextRows next, void* state) {
  visit_divergence(params.divergence, params.alpha, params.beta, [&](auto div) {
    RowKernel<V, decltype(div)>(params, div, streamed).run_all(next, state);
  });
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
