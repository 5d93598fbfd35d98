// One token's loss and gradients, in two sweeps over its two rows (three where a divergence's sums need both
// log-sum-exps first). The first sweep reads the rows from memory, keeping a running maximum from block to
// block; the last goes back to front, so that it finds in the caches what was read most recently.
//
// Exponentials are powers of two: x = logit * log2(e) / T - shift. The shift is the row's maximum. With equal
// temperatures and maxima near each other both rows take the same one: equal logits then give equal
// exponentials, and q - p is right to the last digits however alike the models are.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "../math/visit.h"
#include "../params.h"
#include "blocks.h"

namespace fastkd {
inline namespace FASTKD_ISA {

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

// kSeparate: the cross-entropy's exponential is one of its own, not a power of the divergence's.
template <class V, class Div, bool kSeparate>
class RowKernel {
  using R = typename V::Real;
  static constexpr bool kTeacher = !std::is_same<Div, NoDivergence>::value;
  static constexpr int kW = V::kWidth;

 public:
  RowKernel(const DenseParams& params, Div div, bool streamed)
      : params_(params),
        div_(div),
        streamed_(streamed),
        same_temperature_(params.temperature == params.teacher_temperature),
        softmax_(params.ce_weight != 0 || params.z_loss != 0),
        squared_(!kSeparate && params.temperature == 2),
        cs_(static_cast<R>(kLog2e / params.temperature)),
        ct_(static_cast<R>(kLog2e / params.teacher_temperature)),
        c1_(static_cast<R>(kLog2e)) {}

  template <class NextRow>
  void run_all(const NextRow& next) {
    for (int64_t begin, end; next(&begin, &end);) {
      for (int64_t r = begin; r < end; ++r) run(r);
    }
    if (streamed_) stream_fence();
  }

 private:
  void run(int64_t r) {
    const R loss_scale = static_cast<const R*>(params_.loss_scale)[r];
    const R grad_scale = static_cast<const R*>(params_.grad_scale)[r];
    R& loss = static_cast<R*>(params_.row_loss)[r];
    const RowPointer grad_s = row_of(params_.grad_student, params_.inner, r);
    const RowPointer grad_t = row_of(params_.grad_teacher, params_.inner, r);
    label_ = params_.labels == nullptr ? -1 : params_.labels[r];
    const bool ignored = params_.labels != nullptr && label_ == params_.ignore_index;
    if (ignored || (loss_scale == 0 && grad_scale == 0)) {
      loss = 0;
      if (grad_s.data != nullptr) zero_columns(grad_s, 0, params_.grad_student.columns);
      if (grad_t.data != nullptr) zero_columns(grad_t, 0, params_.grad_teacher.columns);
      return;
    }
    s_ = row_of(params_.student, params_.inner, r);
    t_ = row_of(params_.teacher, params_.inner, r);
    label_logit_ = has_label() ? load_one<R>(s_.at(label_), s_.dtype) : R(0);

    find_partition();
    Row<double> row = divergence_row();
    loss = loss_scale == 0 ? R(0) : static_cast<R>(loss_scale * row_loss(row));
    if (grad_s.data != nullptr || (kTeacher && grad_t.data != nullptr)) {
      write_gradients(row, grad_scale, grad_s, grad_t);
    }
    if (grad_s.data != nullptr) zero_columns(grad_s, params_.vocab, params_.grad_student.columns);
    if (grad_t.data != nullptr)
      zero_columns(grad_t, kTeacher ? params_.vocab : 0, params_.grad_teacher.columns);
  }

  bool has_label() const { return params_.ce_weight != 0 && params_.labels != nullptr; }

  struct Block {
    const R* s;
    const R* t;
    int64_t start, n;
  };

  Block load(int64_t start) {
    Block b{nullptr, nullptr, start, params_.vocab - start < kBlock ? params_.vocab - start : kBlock};
    b.s = load_block<V>(s_, start, b.n, buffer_s_);
    if constexpr (kTeacher) b.t = load_block<V>(t_, start, b.n, buffer_t_);
    return b;
  }

  // Four running maxima, since each waits for its last comparison.
  static R block_max(const R* x, int64_t n) {
    V top[4] = {V::load(x), V::load(x), V::load(x), V::load(x)};
    int64_t i = 0;
    for (; i + 4 * kW <= n; i += 4 * kW) {
      for (int k = 0; k < 4; ++k) top[k] = max(top[k], V::load(x + i + k * kW));
    }
    for (; i < n; i += kW) top[0] = max(top[0], V::load(x + i));
    return horizontal_max(max(max(top[0], top[1]), max(top[2], top[3])));
  }

  // Without the padding of the last vector, which is -inf.
  static double block_sum(const R* x, int64_t n) {
    V total(0);
    int64_t i = 0;
    for (; i + kW <= n; i += kW) total = total + V::load(x + i);
    double sum = horizontal_sum(total);
    for (; i < n; ++i) sum += x[i];
    return sum;
  }

  // A power of the student's exponential where that gives the one at temperature 1.
  V at_one(V es, V s) const {
    if constexpr (kSeparate) return exp2(fma(s, V(c1_), V(-shift_1_)));
    return squared_ ? es * es : es;
  }

  // Sweep 1: sums of exponentials, and of exponentials times the log-ratio, relative to the shifts.
  void find_partition() {
    constexpr R kLowest = -std::numeric_limits<R>::infinity();
    max_s_ = max_t_ = kLowest;
    shift_s_ = shift_t_ = shift_1_ = 0;
    z_s_ = z_t_ = z_1_ = p_ratio_ = q_ratio_ = logit_sum_ = 0;
    for (int64_t start = 0; start < params_.vocab; start += kBlock) {
      const Block b = load(start);
      raise_shifts(block_max(b.s, b.n), kTeacher ? block_max(b.t, b.n) : kLowest);
      add_block(b);
      if (params_.label_smoothing != 0 && has_label()) logit_sum_ += block_sum(b.s, b.n);
    }
  }

  // -inf everywhere so far: any finite shift will do, and keeps -inf - shift from being NaN.
  static R finite(R x) { return x == -std::numeric_limits<R>::infinity() ? R(0) : x; }

  void raise_shifts(R top_s, R top_t) {
    if (!(top_s > max_s_) && !(top_t > max_t_) && z_s_ != 0) return;
    if (top_s > max_s_) max_s_ = top_s;
    if (top_t > max_t_) max_t_ = top_t;
    R to_s = finite(max_s_) * cs_, to_t = finite(max_t_) * ct_;
    if (same_temperature_ && kTeacher && std::fabs(to_s - to_t) < 16) to_s = to_t = to_s > to_t ? to_s : to_t;
    const double by_s = std::exp2(double(shift_s_) - to_s), by_t = std::exp2(double(shift_t_) - to_t);
    if (kTeacher && !same_temperature_) {
      // Here the log-ratio is counted from the shifts.
      const double moved = (double(shift_t_) - to_t) - (double(shift_s_) - to_s);
      if (z_t_ != 0) p_ratio_ += moved * z_t_;
      if (z_s_ != 0) q_ratio_ += moved * z_s_;
    }
    if (z_s_ != 0) z_s_ *= by_s, q_ratio_ *= by_s;
    if (z_t_ != 0) z_t_ *= by_t, p_ratio_ *= by_t;
    shift_s_ = to_s;
    shift_t_ = to_t;
    const R to_1 = kSeparate ? finite(max_s_) * c1_ : squared_ ? 2 * to_s : to_s;
    if (z_1_ != 0) z_1_ *= std::exp2(double(shift_1_) - to_1);
    shift_1_ = to_1;
  }

  V log_ratio(V s, V t, V xs, V xt) const { return same_temperature_ ? (t - s) * V(cs_) : xt - xs; }

  void add_block(const Block& b) {
    const V cs(cs_), ct(ct_), shift_s(-shift_s_), shift_t(-shift_t_);
    // The hardware's prefetcher stops at the page's end, about where the block ends. (A prefetch past the row
    // is harmless.)
    const char* ahead_s = s_.at(b.start + kBlock);
    const char* ahead_t = kTeacher ? t_.at(b.start + kBlock) : nullptr;
    V z_s(0), z_t(0), z_1(0), p_ratio(0), q_ratio(0);
    for (int64_t i = 0; i < b.n; i += kW) {
      const V s = V::load(b.s + i);
      const V xs = fma(s, cs, shift_s);
      V es(0);
      if constexpr (kTeacher || !kSeparate) {
        es = exp2(xs);
        z_s = z_s + es;
      }
      if (softmax_) z_1 = z_1 + at_one(es, s);
      if constexpr (kTeacher) {
        const V t = V::load(b.t + i);
        const V xt = fma(t, ct, shift_t);
        const V et = exp2(xt);
        z_t = z_t + et;
        const V ratio = log_ratio(s, t, xs, xt);
        if constexpr (Div::kNeedsPQ) p_ratio = times_add(et, ratio, p_ratio);
        if constexpr (Div::kNeedsQP) q_ratio = times_add(es, ratio, q_ratio);
        prefetch(ahead_t + i * t_.step);
      }
      prefetch(ahead_s + i * s_.step);
    }
    z_s_ += horizontal_sum(z_s);
    z_1_ += horizontal_sum(z_1);
    if constexpr (kTeacher) {
      z_t_ += horizontal_sum(z_t);
      p_ratio_ += horizontal_sum(p_ratio);
      q_ratio_ += horizontal_sum(q_ratio);
    }
  }

  // log p - log q in nats is kLn2 * (log_ratio(...) + ratio_offset())
  double ratio_offset() const {
    const double partition = std::log2(z_s_) - std::log2(z_t_);
    return same_temperature_ ? partition + (double(shift_s_) - shift_t_) : partition;
  }

  Row<double> divergence_row() {
    Row<double> row{0, 0, {0, 0}};
    if constexpr (kTeacher) {
      row.kl_pq = kLn2 * (p_ratio_ / z_t_ + ratio_offset());
      row.kl_qp = -kLn2 * (q_ratio_ / z_s_ + ratio_offset());
      if constexpr (Div::kSums > 0) {
        const Unit u(*this);
        for (int64_t start = 0; start < params_.vocab; start += kBlock) {
          const Block b = load(start);
          V sum[2] = {V(0), V(0)};
          for (int64_t i = 0; i < b.n; i += kW) {
            const V s = V::load(b.s + i), t = V::load(b.t + i);
            V es;
            div_.sums(entry(u, s, t, es), sum);
          }
          for (int k = 0; k < Div::kSums; ++k) row.sum[k] += horizontal_sum(sum[k]);
        }
      }
    }
    return row;
  }

  // The row's constants, as vectors.
  struct Unit {
    V cs, ct, shift_s, shift_t, r_s, r_t, offset, ln2;
    explicit Unit(const RowKernel& k)
        : cs(k.cs_),
          ct(k.ct_),
          shift_s(-k.shift_s_),
          shift_t(-k.shift_t_),
          r_s(1 / k.z_s_),
          r_t(1 / k.z_t_),
          offset(k.ratio_offset()),
          ln2(kLn2) {}
  };

  Entry<V> entry(const Unit& u, V s, V t, V& es) const {
    const V xs = fma(s, u.cs, u.shift_s), xt = fma(t, u.ct, u.shift_t);
    es = exp2(xs);
    Entry<V> e;
    e.q = es * u.r_s;
    e.p = exp2(xt) * u.r_t;
    e.q_minus_p = e.q - e.p;
    e.log_ratio = (log_ratio(s, t, xs, xt) + u.offset) * u.ln2;
    return e;
  }

  double lse_at_one() const { return kLn2 * (double(shift_1_) + std::log2(z_1_)); }

  double row_loss(const Row<double>& row) const {
    double loss = 0;
    if constexpr (kTeacher) loss += params_.kd_weight * div_.value(row);
    if (has_label()) {
      const double e = params_.label_smoothing;
      double nll = lse_at_one() - label_logit_;
      if (e != 0) nll = (1 - e) * nll + e * (lse_at_one() - logit_sum_ / params_.vocab);
      loss += params_.ce_weight * nll;
    }
    if (params_.z_loss != 0) loss += params_.z_loss * lse_at_one() * lse_at_one();
    return loss;
  }

  // The last sweep, back to front.
  void write_gradients(const Row<double>& found, R scale, const RowPointer& grad_s,
                       const RowPointer& grad_t) {
    const Unit u(*this);
    const Row<V> row{V(found.kl_pq), V(found.kl_qp), {V(found.sum[0]), V(found.sum[1])}};
    const V to_s(params_.kd_weight / params_.temperature * scale);
    const V to_t(params_.kd_weight / params_.teacher_temperature * scale);
    const double ce = has_label() ? params_.ce_weight : 0;
    const double by_softmax = softmax_ ? (ce + 2 * params_.z_loss * lse_at_one()) / z_1_ : 0;
    const V to_1(by_softmax * scale);
    const double e = params_.label_smoothing;
    const V spread(-ce * e / params_.vocab * scale);
    const R hot = static_cast<R>(ce * (1 - e) * scale);
    const int64_t last = (params_.vocab - 1) / kBlock * kBlock;
    for (int64_t start = last; start >= 0; start -= kBlock) {
      const Block b = load(start);
      const char* ahead_s = s_.at(start - kBlock);
      const char* ahead_t = kTeacher ? t_.at(start - kBlock) : nullptr;
      for (int64_t i = 0; i < b.n; i += kW) {
        const V s = V::load(b.s + i);
        V grad = spread, es(0);
        if constexpr (kTeacher) {
          const Entry<V> x = entry(u, s, V::load(b.t + i), es);
          grad = fma(to_s, div_.student(x, row), grad);
          if (grad_t.data != nullptr) (to_t * div_.teacher(x, row)).store(out_t_ + i);
          prefetch(ahead_t + i * t_.step);
        } else if constexpr (!kSeparate) {
          es = exp2(fma(s, u.cs, u.shift_s));
        }
        if (softmax_) grad = fma(to_1, at_one(es, s), grad);
        grad.store(out_s_ + i);
        prefetch(ahead_s + i * s_.step);
      }
      // In full precision, before the one rounding.
      if (ce != 0 && label_ >= start && label_ < start + b.n) out_s_[label_ - start] -= hot;
      if (grad_s.data != nullptr) store_block<V>(out_s_, b.n, grad_s, start, streamed_);
      if (kTeacher && grad_t.data != nullptr) store_block<V>(out_t_, b.n, grad_t, start, streamed_);
    }
  }

  const DenseParams& params_;
  const Div div_;
  const bool streamed_, same_temperature_, softmax_, squared_;
  const R cs_, ct_, c1_;

  RowPointer s_{}, t_{};
  int64_t label_ = -1;
  R label_logit_ = 0;
  R max_s_, max_t_, shift_s_, shift_t_, shift_1_;
  double z_s_, z_t_, z_1_, p_ratio_, q_ratio_, logit_sum_;
  alignas(64) R buffer_s_[kBlock + kW];
  alignas(64) R buffer_t_[kBlock + kW];
  alignas(64) R out_s_[kBlock + kW];
  alignas(64) R out_t_[kBlock + kW];
};

// Rows of a call, one after the other, until `next` gives no more.
template <class V, class NextRow>
inline void dense_rows_with(const DenseParams& params, bool streamed, const NextRow& next) {
  visit_divergence(params.divergence, params.beta, [&](auto div) {
    using Div = decltype(div);
    const bool softmax = params.ce_weight != 0 || params.z_loss != 0;
    if (softmax && params.temperature != 1 && params.temperature != 2) {
      RowKernel<V, Div, true>(params, div, streamed).run_all(next);
    } else {
      RowKernel<V, Div, false>(params, div, streamed).run_all(next);
    }
  });
}

// out = grad * factor for one row
template <class V>
inline void scale_row(const ScaleParams& params, int64_t r) {
  using R = typename V::Real;
  const R factor = static_cast<const R*>(params.factor)[r * params.factor_stride];
  const int64_t size = size_of(params.dtype);
  char* in = static_cast<char*>(const_cast<void*>(params.grad)) + r * params.grad_stride * size;
  char* out = static_cast<char*>(params.out) + r * params.out_stride * size;
  if (factor == 1 && in == out) return;
  const RowPointer from{in, params.dtype, size}, to{out, params.dtype, size};
  alignas(64) R scratch[kBlock + V::kWidth], product[kBlock + V::kWidth];
  for (int64_t start = 0; start < params.columns; start += kBlock) {
    const int64_t n = params.columns - start < kBlock ? params.columns - start : kBlock;
    const R* x = load_block<V>(from, start, n, scratch);
    for (int64_t i = 0; i < n; i += V::kWidth) (V::load(x + i) * V(factor)).store(product + i);
    store_block<V>(product, n, to, start, false);
  }
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
