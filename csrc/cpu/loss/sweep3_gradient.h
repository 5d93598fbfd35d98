// The last sweep: the gradients. It runs from the last block to the first, so that it finds in the caches
// what was read or written most recently.
#pragma once

#include "sparse_teacher.h"
#include "sweep2_sums.h"
#include "value.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class V, class Div>
class RowGradient {
  using R = typename V::Real;
  using Setup = RowSetup<V, Div>;
  static constexpr int kW = V::kWidth;

 public:
  RowGradient(const Setup& setup, const RowState<R>& state, RowBlocks<V, Div>& blocks,
              const Row<double>& found, R scale, double lse)
      : setup_(setup),
        state_(state),
        blocks_(blocks),
        found_(found),
        row_(widened<V>(found)),
        scale_(scale),
        lse_(lse) {
    const DenseParams& params = setup.params;
    by_student_ = params.kd_weight / params.temperature * scale;
    by_teacher_ = params.kd_weight / params.teacher_temperature * scale;
    const double ce = setup.cross_entropy ? params.ce_weight : 0;
    by_softmax_ = (params.z_loss != 0 ? ce + 2 * params.z_loss * (lse + params.lse_less) : ce) * scale;
    level_ = by_softmax_;
    if (level_ != 0) level_ *= Setup::kSplits ? std::exp2(state.shift.one - lse * kLog2e) : 1 / state.z_1;
    spread_ = -ce * params.label_smoothing / state.columns * scale;
    hot_ = ce * (1 - params.label_smoothing) * scale;
  }

  // Writes both gradients. `coefficient`: the factor of q in the gradient of a sparse teacher's divergence.
  void write(const RowPointer& grad_s, const RowPointer& grad_t, double coefficient) {
    EntryScales<V> c = scales_of(setup_, state_, found_.log_ratio_offset);
    const bool both = Setup::kTeacher && grad_t.data != nullptr;
    const bool after_sums = setup_.params.phase == Phase::kAll;
    const bool left = after_sums && (Div::kStudentReads == Fields::kStudentLog || blocks_.keeps);
    const bool all = both || found_.distant || Div::kStudentReads == Fields::kAll ||
                     (Div::kStudentReads != Fields::kProbabilities && !left);
    const bool separate = by_softmax_ != 0 && setup_.power != 1 && setup_.power != 2;
    const bool directly = grad_s.data != nullptr && !both && (!all || Div::kStudentReads == Fields::kAll);
    const double labels = Setup::kSplits ? double(state_.label_s) + state_.label_t : 0;
    const bool nan = std::isnan(state_.z_s + state_.z_t + labels + scale_ + coefficient);
    for (int64_t start = blocks_.last(); start >= 0; start -= kBlock) {
      const Block<R> b =
          with_exponentials(setup_, state_, blocks_, start, all || (separate && setup_.power == 0), -kBlock);
      if (blocks_.keeps) adapt(setup_.div, c, state_, blocks_.shift(b));
      if constexpr (Div::kLog) {
        // In a call of one phase the middle sweep has already computed them.
        if (!after_sums) logarithms(setup_.div, c, b, blocks_.e1);
      }
      if (separate) exponentials_at_one(setup_, state_, blocks_, b, blocks_.e1);
      const R* const one = separate ? blocks_.e1 : b.es;
      if (directly && put(b, grad_s, nan, [&](auto to) {
            differentiate<Div::kStudentReads, false>(c, b, one, coefficient, to);
          }))
        continue;
      const ToNumbers<V, false> to{blocks_.out_s};
      if (both) {
        differentiate<Fields::kAll, true>(c, b, one, coefficient, to);
      } else if (all) {
        differentiate<Fields::kAll, false>(c, b, one, coefficient, to);
      } else {
        differentiate<Div::kStudentReads, false>(c, b, one, coefficient, to);
      }
      add_label(b);
      if (grad_s.data != nullptr) store_block<V>(blocks_.out_s, b.n, grad_s, start, setup_.streamed, nan);
      if (grad_t.data != nullptr) store_block<V>(blocks_.out_t, b.n, grad_t, start, setup_.streamed, nan);
    }
  }

  // Writes the student's gradient at a sparse teacher's entries again, now complete, so that each is rounded
  // once.
  void write_entries(const SparseRow<R>& sparse, const RowPointer& grad_s) const {
    sparse.visit([&](int64_t column, double logit, double by_student) {
      double grad = by_student_ * by_student + spread_;
      if (by_softmax_ != 0) grad += by_softmax_ * std::exp(logit - lse_);
      if (column == state_.label) grad -= hot_;
      store_one(static_cast<R>(grad), grad_s.at(column), grad_s.dtype);
    });
  }

 private:
  // Calls differentiate(to) with a `to` that stores the student's gradient directly in memory. Returns false,
  // without calling it, where the gradient needs a buffer first.
  template <class Body>
  bool put(const Block<R>& b, const RowPointer& grad, bool nan, const Body& differentiate) const {
    if constexpr (V::kSimd) {
      constexpr int64_t kVector = kW * sizeof(R);
      if (!grad.dense() || b.n % (2 * kW) != 0 || (Setup::kSplits && b.holds(state_.label))) return false;
      if (setup_.streamed && reinterpret_cast<uintptr_t>(grad.at(b.start)) % kVector != 0) return false;
      R* const numbers = reinterpret_cast<R*>(grad.at(b.start));
      uint16_t* const halves = reinterpret_cast<uint16_t*>(grad.at(b.start));
      if (grad.dtype == Dtype::kFloat32) {
        if (setup_.streamed) return differentiate(ToNumbers<V, true>{numbers}), true;
        return differentiate(ToNumbers<V, false>{numbers}), true;
      }
      if (nan) return false;
      if (grad.dtype == Dtype::kBFloat16) {
        if (setup_.streamed) return differentiate(ToHalves<V, true, true>{halves}), true;
        return differentiate(ToHalves<V, false, true>{halves}), true;
      }
      if (grad.dtype == Dtype::kFloat16) {
        if (setup_.streamed) return differentiate(ToHalves<V, true, false>{halves}), true;
        return differentiate(ToHalves<V, false, false>{halves}), true;
      }
    }
    return false;
  }

  // `one`: the exponentials at temperature 1, or those of which they are the squares.
  template <Fields kFields, bool kBothSides, class To>
  void differentiate(const EntryScales<V>& c, const Block<R>& b, const R* one, double coefficient, To to) {
    double slope = 0, level = level_;
    if (c.factor != 1) level *= std::pow(c.factor, setup_.power);
    if (setup_.power == 2) std::swap(slope, level);
    if (level == 0 && spread_ == 0) {
      return differentiate<kFields, kBothSides, true>(c, b, one, slope, level, coefficient, to);
    }
    differentiate<kFields, kBothSides, false>(c, b, one, slope, level, coefficient, to);
  }

  // `kSquares`: whether the softmax's gradient consists of the term with `slope` only, and there is no label
  // smoothing.
  template <Fields kFields, bool kBothSides, bool kSquares, class To>
  void differentiate(const EntryScales<V>& c, const Block<R>& b, const R* one, double slope, double level,
                     double coefficient, To to) {
    constexpr bool kLinear = Div::kLinear && kFields == Fields::kProbabilities;
    const V to_s(by_student_), to_t(by_teacher_), spread(spread_), by_square(slope), by_one(level);
    const V to_q(Setup::kSparse ? by_student_ * coefficient / state_.z_s * c.factor : 0);
    const V scaled_s = c.r_s * to_s, scaled_t = c.r_t * to_s;
    const auto gradient = [&](int64_t i, auto s, auto t) {
      const V x1 = V::load(one + i);
      const V soft = kSquares ? x1 * by_square : fma(x1, by_square, by_one);
      if constexpr (!Setup::kTeacher) {
        const V grad = kSquares ? soft * x1 : fma(soft, x1, spread);
        return Setup::kSparse ? fma(to_q, V::load(b.es + i), grad) : grad;
      } else if constexpr (kLinear) {
        const V hard = setup_.div.student(shares(b, i, scaled_s, scaled_t), row_);
        return fma(soft, x1, kSquares ? hard : hard + spread);
      } else {
        const Entry<V> x = entry_as<kFields, Div>(c, b, i, s, t);
        if constexpr (kBothSides) (to_t * setup_.div.teacher(x, row_)).store(blocks_.out_t + i);
        V hard;
        if constexpr (kFields == Fields::kTerm) {
          hard = setup_.div.student(x, V::load(b.left + i) * c.factor_term, row_);
        } else if constexpr (kFields == Fields::kStudentLog) {
          hard = setup_.div.student(x, V::load(b.left + i), row_);
        } else {
          hard = setup_.div.student(x, row_);
        }
        return fma(to_s, hard, kSquares ? soft * x1 : fma(soft, x1, spread));
      }
    };
    constexpr int64_t kStep = To::kVectors * kW;
    const int64_t label = !Setup::kSplits && b.holds(state_.label) ? state_.label - b.start : -1;
    const auto put = [&](int64_t i, const auto& vector_at) {
      if constexpr (To::kVectors == 2) {
        to.put(i, vector_at(i), vector_at(i + kW));
      } else {
        to.put(i, vector_at(i));
      }
    };
    with_logits<kFields>(blocks_, b, [&](auto s, auto t) {
      int64_t i = (b.n - 1) / kStep * kStep;
      for (int64_t stop = label < 0 ? 0 : label / kStep * kStep + kStep;; stop = 0) {
        for (; i >= stop; i -= kStep) put(i, [&](int64_t k) { return gradient(k, s, t); });
        if (i < 0) break;
        // The vector with the label: subtract the label's part before the gradient is rounded, once.
        R part[kStep];
        for (int64_t k = 0; k < kStep; k += kW) gradient(i + k, s, t).store(part + k);
        part[label - i] -= static_cast<R>(hot_);
        put(i, [&](int64_t k) { return V::load(part + k - i); });
        i -= kStep;
      }
    });
  }

  // For a divergence that treats the label apart: the label's gradient, in full precision before the one
  // rounding.
  void add_label(const Block<R>& b) {
    if (!Setup::kSplits || !b.holds(state_.label)) return;
    const int64_t place = state_.label - b.start;
    const double soft = by_softmax_ != 0 ? by_softmax_ * std::exp(state_.label_s - lse_) : 0;
    blocks_.out_s[place] =
        static_cast<R>(by_student_ * setup_.div.label_student(found_) + soft + spread_ - hot_);
    blocks_.out_t[place] = static_cast<R>(by_teacher_ * setup_.div.label_teacher(found_));
  }

  const Setup& setup_;
  const RowState<R>& state_;
  RowBlocks<V, Div>& blocks_;
  const Row<double>& found_;
  const Row<V> row_;
  const double scale_, lse_;
  double by_student_, by_teacher_, by_softmax_, spread_, hot_;
  double level_;  // factor from the row's exponentials at temperature 1 to the softmax's gradient
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
