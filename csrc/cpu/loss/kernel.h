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
  using Setup = RowSetup<V, Div>;

 public:
  RowKernel(const DenseParams& params, Div div, bool streamed)
      : params_(params), setup_(params, div, streamed), blocks_(params), sparse_(params), extreme_(params) {}

  void run_all(NextRows next, void* state) {
    for (int64_t begin, end; next(state, &begin, &end);) {
      for (int64_t r = begin; r < end; ++r) run(r);
    }
    if (setup_.streamed) stream_fence();
  }

 private:
  void run(int64_t r) {
    const R loss_scale = static_cast<const R*>(params_.loss_scale)[r];
    const R grad_scale = static_cast<const R*>(params_.grad_scale)[r];
    state_ = RowState<R>();
    if (params_.labels != nullptr) state_.label = params_.labels[r];
    const bool ignored = params_.labels != nullptr && state_.label == params_.ignore_index;
    if (ignored || (loss_scale == 0 && grad_scale == 0)) return skip(r);
    if (state_.label >= params_.vocab) state_.label = -1;
    blocks_.s = row_of(params_.student, params_.inner, r);
    blocks_.t = row_of(params_.teacher, params_.inner, r);
    double* const record = params_.record == nullptr ? nullptr : params_.record + r * record::kCount;

    if (params_.phase == Phase::kAll || params_.phase == Phase::kStatistics) {
      if (setup_.needs_label && state_.label >= 0) {
        state_.label_s = load_one<R>(blocks_.s.at(state_.label), blocks_.s.dtype);
        if (Setup::kSplits) state_.label_t = load_one<R>(blocks_.t.at(state_.label), blocks_.t.dtype);
      }
      RowStatistics<V, Div>(setup_, state_, blocks_).find();
    } else {
      read_record(setup_, state_, record);
    }
    if (!params_.wide && is_extreme(setup_, state_)) {
      return extreme_.run(r, blocks_.s, blocks_.t, finite(state_.max_s), finite(state_.max_t));
    }
    if (params_.phase == Phase::kStatistics) return write_record(setup_, state_, record);
    Row<double> row = normalised(setup_, state_);
    const bool sums_known = params_.phase == Phase::kDistant || params_.phase == Phase::kFinish;
    if (sums_known) {
      row.sum[0] = record[record::kSum0];
      row.sum[1] = record[record::kSum1];
    } else if constexpr (Div::kSums > 0) {
      find_sums(setup_, state_, blocks_, params_.grad_teacher.data == nullptr, row);
    }
    if constexpr (Div::kDistant) {
      if (params_.phase == Phase::kFinish) {
        row.distant = row.sum[0] < 0;  // the sum is a logarithm, see Functor::kDistant
      } else if (params_.phase != Phase::kSums && setup_.div.is_distant(row.sum)) {
        find_distant_sums(setup_, state_, blocks_, row);
      }
    }
    if (params_.phase == Phase::kSums || params_.phase == Phase::kDistant) {
      record[record::kSum0] = row.sum[0];
      record[record::kSum1] = row.sum[1];
      return;
    }
    finish(r, row, loss_scale, grad_scale);
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

  void finish(int64_t r, Row<double>& row, R loss_scale, R grad_scale) {
    double divergence = std::numeric_limits<double>::quiet_NaN(), loss = 0;
    if constexpr (Setup::kTeacher) {
      divergence = setup_.div.value(row);
      loss += params_.kd_weight * divergence;
    }
    double coefficient = 0;
    if constexpr (Setup::kSparse) {
      if (sees_sparse()) {
        sparse_.find(r, blocks_.s, kLn2 * (double(state_.shift.s) + std::log2(state_.z_s)));
        sparse_.write_gradient(r, params_.kd_weight * grad_scale);
        loss += params_.kd_weight * sparse_.value;
        coefficient = sparse_.coefficient;
      } else if (params_.coefficient != nullptr) {
        coefficient = static_cast<const R*>(params_.coefficient)[r];
      }
    }
    const double lse = setup_.softmax ? lse_at_one(setup_, state_) : 0;
    const double nll = setup_.needs_label && setup_.softmax ? cross_entropy(setup_, state_, lse) : 0;
    if (setup_.cross_entropy) loss += params_.ce_weight * nll;
    if (params_.z_loss != 0) loss += params_.z_loss * (lse + params_.lse_less) * (lse + params_.lse_less);
    static_cast<R*>(params_.row_loss)[r] = loss_scale == 0 ? R(0) : static_cast<R>(loss_scale * loss);
    if (params_.metrics != nullptr) {
      R* const metrics = static_cast<R*>(params_.metrics) + r * metric::kCount;
      write_metrics(setup_, state_, divergence, nll, metrics);
      if (sees_sparse()) sparse_.write_metrics(state_.max_s, metrics);
    }

    const RowPointer grad_s = row_of(params_.grad_student, params_.inner, r);
    RowPointer grad_t = row_of(params_.grad_teacher, params_.inner, r);
    if (grad_t.data != nullptr)
      zero_columns(grad_t, Setup::kTeacher ? params_.vocab : 0, params_.grad_teacher.columns);
    if (!Setup::kTeacher) grad_t.data = nullptr;
    if (grad_s.data != nullptr || grad_t.data != nullptr) {
      RowGradient<V, Div> gradient(setup_, state_, blocks_, row, grad_scale, lse);
      gradient.write(grad_s, grad_t, coefficient);
      if (sees_sparse()) gradient.write_entries(sparse_, grad_s);
    }
    if (grad_s.data != nullptr) zero_columns(grad_s, params_.vocab, params_.grad_student.columns);
  }

  // Whether the call has the sparse teacher itself, and not the coefficients that were computed from it.
  bool sees_sparse() const { return Setup::kSparse && params_.phase == Phase::kAll; }

  const DenseParams& params_;
  const Setup setup_;
  RowState<R> state_;
  RowBlocks<V, Div> blocks_;
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
