// Sweep 3: the gradients. It runs from the last block to the first, so that it finds in the caches what was
// read or written most recently.
#pragma once

#include "sparse_teacher.h"
#include "sweep2_sums.h"
#include "value.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class V, class Div>
class GradientSweep {
  using R = typename V::Real;
  using Context = RowContext<V, Div>;
  static constexpr int kW = V::kWidth;

 public:
  // `scale`: the factor of the row's gradients; `lse`: the student's log-sum-exp at temperature 1.
  GradientSweep(Context& row, R scale, double lse)
      : row_(row),
        call_(row.call),
        statistics_(row.statistics),
        scratch_(row.scratch),
        constants_(widened<V>(row.normalised)),
        scale_(scale),
        lse_(lse) {
    const DenseParams& params = call_.params;
    by_student_ = params.kd_weight / params.temperature * scale;
    by_teacher_ = params.kd_weight / params.teacher_temperature * scale;
    const double ce = call_.cross_entropy ? params.ce_weight : 0;
    by_ce_softmax_ = (params.z_loss != 0 ? ce + 2 * params.z_loss * (lse + params.lse_less) : ce) * scale;
    level_ = by_ce_softmax_;
    if (level_ != 0) {
      level_ *= Context::kSplits ? std::exp2(statistics_.shift.ce - lse * kLog2e) : 1 / statistics_.z_ce;
    }
    smoothing_weight_ = ce * params.label_smoothing / statistics_.columns * scale;
    label_weight_ = ce * (1 - params.label_smoothing) * scale;
  }

  // Writes both gradients. `coefficient`: the factor of q in the gradient of a sparse teacher's divergence.
  void run(const RowPointer& grad_s, const RowPointer& grad_t, double coefficient) {
    EntryScales<V> c = scales_of(row_);
    const bool one_launch = call_.params.phase == Phase::kAll;
    // Whether the teacher's gradient is wanted, too. Both gradients are then computed from the same entry.
    const bool both = Context::kTeacher && grad_t.data != nullptr;
    // Whether an earlier sweep has kept what student() reads beside the probabilities (Div::kStudentReads):
    // sweep 1 keeps the terms only together with the exponentials.
    const bool kept = one_launch && (kKeepsStored<Div> || scratch_.keeps);
    // Whether the entries need all fields, and so the logits.
    const bool all = both || row_.normalised.distant || Div::kStudentReads == Fields::kAll ||
                     (Div::kStudentReads != Fields::kProbabilities && !kept);
    // Whether the exponentials at temperature 1 have to be computed: they are neither the divergence's nor
    // their squares.
    const bool separate = by_ce_softmax_ != 0 && call_.ce_power != 1 && call_.ce_power != 2;
    // Whether the student's gradient may be stored straight to memory: without the teacher's, and by the
    // loop that is compiled for Div::kStudentReads.
    const bool directly = grad_s.data != nullptr && !both && (!all || Div::kStudentReads == Fields::kAll);
    const double labels = Context::kSplits ? double(statistics_.label_s) + statistics_.label_t : 0;
    const bool nan = std::isnan(statistics_.z_s + statistics_.z_t + labels + scale_ + coefficient);
    for (int64_t start = row_.last_block(); start >= 0; start -= kBlock) {
      const Block<R> b = with_exponentials(row_, start, all || (separate && call_.ce_power == 0), -kBlock);
      if (scratch_.keeps) adapt(row_, c, scratch_.shift(b));
      if constexpr (Div::kLog) {
        if (all) logarithms(call_.div, c, b, scratch_.e1);
      }
      if (separate) ce_exponentials(row_, b, scratch_.e1);
      const R* const ce = separate ? scratch_.e1 : b.es;
      if (directly && put(b, grad_s, nan, [&](auto to) {
            differentiate<Div::kStudentReads, false>(c, b, ce, coefficient, to);
          }))
        continue;
      const ToNumbers<V, false> to{scratch_.out_s};
      if (both) {
        differentiate<Fields::kAll, true>(c, b, ce, coefficient, to);
      } else if (all) {
        differentiate<Fields::kAll, false>(c, b, ce, coefficient, to);
      } else {
        differentiate<Div::kStudentReads, false>(c, b, ce, coefficient, to);
      }
      add_label(b);
      if (grad_s.data != nullptr) store_block<V>(scratch_.out_s, b.n, grad_s, start, call_.streamed, nan);
      if (grad_t.data != nullptr) store_block<V>(scratch_.out_t, b.n, grad_t, start, call_.streamed, nan);
    }
  }

  // Writes the student's gradient at a sparse teacher's entries again, now complete, so that each is rounded
  // once.
  void write_entries(const SparseRow<R>& sparse, const RowPointer& grad_s) const {
    sparse.visit([&](int64_t column, double logit, double by_student) {
      double grad = by_student_ * by_student - smoothing_weight_;
      if (by_ce_softmax_ != 0) grad += by_ce_softmax_ * std::exp(logit - lse_);
      if (column == row_.label_column) grad -= label_weight_;
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
      if (!grad.dense() || b.n % (2 * kW) != 0 || (Context::kSplits && b.holds(row_.label_column)))
        return false;
      if (call_.streamed && reinterpret_cast<uintptr_t>(grad.at(b.start)) % kVector != 0) return false;
      R* const numbers = reinterpret_cast<R*>(grad.at(b.start));
      uint16_t* const halves = reinterpret_cast<uint16_t*>(grad.at(b.start));
      if (grad.dtype == Dtype::kFloat32) {
        if (call_.streamed) return differentiate(ToNumbers<V, true>{numbers}), true;
        return differentiate(ToNumbers<V, false>{numbers}), true;
      }
      if (nan) return false;
      if (grad.dtype == Dtype::kBFloat16) {
        if (call_.streamed) return differentiate(ToHalves<V, true, true>{halves}), true;
        return differentiate(ToHalves<V, false, true>{halves}), true;
      }
      if (grad.dtype == Dtype::kFloat16) {
        if (call_.streamed) return differentiate(ToHalves<V, true, false>{halves}), true;
        return differentiate(ToHalves<V, false, false>{halves}), true;
      }
    }
    return false;
  }

  // `ce`: the exponentials at temperature 1, or those of which they are the squares.
  template <Fields kFields, bool kBothSides, class To>
  void differentiate(const EntryScales<V>& c, const Block<R>& b, const R* ce, double coefficient, To to) {
    double slope = 0, level = level_;
    if (c.factor != 1) level *= std::pow(c.factor, call_.ce_power);
    if (call_.ce_power == 2) std::swap(slope, level);
    if (level == 0 && smoothing_weight_ == 0) {
      return differentiate<kFields, kBothSides, true>(c, b, ce, slope, level, coefficient, to);
    }
    differentiate<kFields, kBothSides, false>(c, b, ce, slope, level, coefficient, to);
  }

  // `kSquares`: whether the softmax's gradient consists of the term with `slope` only, and there is no label
  // smoothing.
  template <Fields kFields, bool kBothSides, bool kSquares, class To>
  void differentiate(const EntryScales<V>& c, const Block<R>& b, const R* ce, double slope, double level,
                     double coefficient, To to) {
    constexpr bool kLinear = Div::kLinear && kFields == Fields::kProbabilities;
    const Div div = call_.div;  // a copy: the compiler knows that the stores below do not change it
    const V to_s(by_student_), to_t(by_teacher_), smoothing(-smoothing_weight_), by_square(slope),
        by_ce(level);
    const V to_q(Div::kSparseTeacher ? by_student_ * coefficient / statistics_.z_s * c.factor : 0);
    const V scaled_s = c.r_s * to_s, scaled_t = c.r_t * to_s;
    const auto gradient = [&](int64_t i, auto s, auto t) {
      const V x1 = V::load(ce + i);
      const V soft = kSquares ? x1 * by_square : mul_add(x1, by_square, by_ce);
      if constexpr (!Context::kTeacher) {
        const V grad = kSquares ? soft * x1 : mul_add(soft, x1, smoothing);
        return Div::kSparseTeacher ? mul_add(to_q, V::load(b.es + i), grad) : grad;
      } else if constexpr (kLinear) {
        const V hard = div.student(shares(b, i, scaled_s, scaled_t), constants_);
        return mul_add(soft, x1, kSquares ? hard : hard + smoothing);
      } else {
        const Entry<V> x = entry_as<kFields, Div>(c, b, i, s, t);
        if constexpr (kBothSides) (to_t * div.teacher(x, constants_)).store(scratch_.out_t + i);
        V hard;
        if constexpr (kFields == Fields::kTerms) {
          V own = x.es;
          if constexpr (Div::kOwnPower) own = V::load(b.own + i) * c.factor_own;
          hard = div.student(x, Terms<V>{V::load(b.kept + i) * c.factor_cross, own}, constants_);
        } else if constexpr (kFields == Fields::kStored) {
          hard = div.student(x, V::load(b.kept + i), constants_);
        } else {
          hard = div.student(x, constants_);
        }
        return mul_add(to_s, hard, kSquares ? soft * x1 : mul_add(soft, x1, smoothing));
      }
    };
    constexpr int64_t kStep = To::kVectors * kW;
    const int64_t label = !Context::kSplits && b.holds(row_.label_column) ? row_.label_column - b.start : -1;
    const auto put = [&](int64_t i, const auto& vector_at) {
      if constexpr (To::kVectors == 2) {
        to.put(i, vector_at(i), vector_at(i + kW));
      } else {
        to.put(i, vector_at(i));
      }
    };
    with_logits<kFields>(row_, b, [&](auto s, auto t) {
      int64_t i = (b.n - 1) / kStep * kStep;
      for (int64_t stop = label < 0 ? 0 : label / kStep * kStep + kStep;; stop = 0) {
        for (; i >= stop; i -= kStep) put(i, [&](int64_t k) { return gradient(k, s, t); });
        if (i < 0) break;
        // The vector with the label: subtract the label's part before the gradient is rounded, once.
        R part[kStep];
        for (int64_t k = 0; k < kStep; k += kW) gradient(i + k, s, t).store(part + k);
        part[label - i] -= static_cast<R>(label_weight_);
        put(i, [&](int64_t k) { return V::load(part + k - i); });
        i -= kStep;
      }
    });
  }

  // For a divergence that treats the label apart: the label's gradient, in full precision before the one
  // rounding.
  void add_label(const Block<R>& b) {
    if (!Context::kSplits || !b.holds(row_.label_column)) return;
    const int64_t place = row_.label_column - b.start;
    const double soft = by_ce_softmax_ != 0 ? by_ce_softmax_ * std::exp(statistics_.label_s - lse_) : 0;
    scratch_.out_s[place] = static_cast<R>(by_student_ * call_.div.label_student(row_.normalised) + soft -
                                           smoothing_weight_ - label_weight_);
    scratch_.out_t[place] = static_cast<R>(by_teacher_ * call_.div.label_teacher(row_.normalised));
  }

  Context& row_;
  const Call<V, Div>& call_;
  const Statistics<R>& statistics_;
  Scratch<V, Div>& scratch_;
  const Row<V> constants_;  // row_.normalised in every lane
  const double scale_, lse_;
  double by_student_, by_teacher_, by_ce_softmax_;
  double label_weight_, smoothing_weight_;  // of the label's NLL and of the smoothing term
  double level_;  // factor from the row's exponentials at temperature 1 to the softmax's gradient
};

// Writes both gradients, and once more those of a sparse teacher's entries, if there are any (`sparse`).
template <class V, class Div>
inline void write_gradients(RowContext<V, Div>& row, const RowPointer& grad_s, const RowPointer& grad_t,
                            typename V::Real scale, double lse, double coefficient,
                            const SparseRow<typename V::Real>* sparse) {
  GradientSweep<V, Div> sweep(row, scale, lse);
  sweep.run(grad_s, grad_t, coefficient);
  if (sparse != nullptr) sweep.write_entries(*sparse, grad_s);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
