// Sweep 2, for divergences whose sums need both log-sum-exps first, and the additional sweep for rows that
// share little probability. The logarithms of a divergence with kLog have loops of their own, as the
// exponentials do.
#pragma once

#include "../simd/exp2.h"
#include "exponentials.h"
#include "lanes.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// series_logarithms() computes the logarithms if the larger of the two weights is at most 1 - kLeastShare,
// and in one piece if it is at most kEven. Without a mixture the weights are NaN, which is neither.
constexpr double kEven = 0.6, kLeastShare = 0.08;

// Sets b.logs to log(m / larger), where `larger` is the larger of p and q. With w the weight of the smaller
// one, m = larger - w gap, and the logarithm is -2 atanh(z) with
//   z = w gap / (2 larger - w gap) <= w / (2 - w):
// small enough for a plain series, which keeps all digits where the models agree. With kPieces, where m is
// small compared with `larger`, it is instead compared with a fifth of `larger`.
template <bool kPieces, class V>
inline void series_logarithms(double share, const EntryScales<V>& c, const Block<typename V::Real>& b,
                              typename V::Real* pieces) {
  constexpr double kPiece = 0.2, kFrom = 0.4;
  const V of_teacher(share), of_student(share - 1);
  for (int64_t i = 0; i < b.n; i += V::kWidth) {
    const V p = V::load(b.et + i) * c.r_t, q = V::load(b.es + i) * c.r_s;
    const V d = q - p, larger = max(p, q), lost = max(of_teacher * d, of_student * d);
    if constexpr (kPieces) {
      const V least = V(kFrom) * larger, m = larger - lost;
      const V less = where_le(least, m, V(0), V(1 - kPiece));
      where_le(least, m, V(0), V(-1.6094379124341003)).store(pieces + i);  // log(kPiece)
      ((lost - less * larger) / ((V(2) - less) * larger - lost)).store(b.logs + i);
    } else {
      (lost / (V(2) * larger - lost)).store(b.logs + i);
    }
  }
  for (int64_t i = 0; i < b.n; i += V::kWidth) {
    const V z = V::load(b.logs + i), square = z * z;
    V y(kAtanh[0]);
    for (int k = 1; k < kAtanhTerms; ++k) y = mul_add(y, square, V(kAtanh[k]));
    (kPieces ? mul_add(z, y, V::load(pieces + i)) : z * y).store(b.logs + i);
  }
}

// Fills b.logs with the logarithms. `less_one`: a scratch buffer.
template <class V, class Div>
inline void logarithms(const Div& div, const EntryScales<V>& c, const Block<typename V::Real>& b,
                       typename V::Real* less_one) {
  using R = typename V::Real;
  const double share = div.teacher_share(), larger_share = share < 0.5 ? 1 - share : share;
  if (sizeof(R) == sizeof(float) && larger_share <= kEven) {
    return series_logarithms<false>(share, c, b, less_one);
  }
  if (sizeof(R) == sizeof(float) && larger_share <= 1 - kLeastShare) {
    return series_logarithms<true>(share, c, b, less_one);
  }
  for (int64_t i = 0; i < b.n; i += V::kWidth) {
    V y;
    div.log_argument(probabilities<V, Div>(c, b, i), y).store(b.logs + i);
    y.store(less_one + i);
  }
  for (int64_t i = 0; i < b.n; i += V::kWidth) {
    log_one_plus(V::load(less_one + i), V::load(b.logs + i)).store(b.logs + i);
  }
}

// Sets row.normalised.sum.
template <class V, class Div>
inline void find_sums(RowContext<V, Div>& row) {
  const Div div = row.call.div;  // a copy: the compiler knows that the stores below do not change it
  double* const sums = row.normalised.sum;
  EntryScales<V> c = scales_of(row);
  for (int k = 0; k < kMaxSums; ++k) sums[k] = 0;
  for (int64_t start = 0; start < row.call.params.vocab; start += kBlock) {
    const auto b = with_exponentials(row, start, Div::kSumsRead == Fields::kAll, kBlock);
    if (row.scratch.keeps) adapt(row, c, row.scratch.shift(b));
    if constexpr (Div::kLog) logarithms(div, c, b, row.scratch.e1);
    V sum[kMaxSums] = {V(0), V(0)};
    with_logits<Div::kSumsRead>(row, b, [&](auto s, auto t) {
      for (int64_t i = 0; i < b.n; i += V::kWidth) {
        const Entry<V> e = entry_as<Div::kSumsRead, Div>(c, b, i, s, t);
        div.sums(e, sum);
        if constexpr (Div::kStudentReads == Fields::kStored) {
          if (b.kept != nullptr) div.stored(e).store(b.kept + i);
        }
      }
    });
    for (int k = 0; k < Div::kSums; ++k) sums[k] += horizontal_sum(sum[k]);
  }
}

// The additional sweep for rows that share little probability, see Functor::kDistant. It replaces
// row.normalised.sum. Few rows need it, so every block is loaded as numbers and takes no fast path.
template <class V, class Div>
inline void find_distant_sums(RowContext<V, Div>& row) {
  using R = typename V::Real;
  const Div& div = row.call.div;
  const EntryScales<V> c = scales_of(row);
  const Row<V> constants = widened<V>(row.normalised);
  const auto each = [&](const auto& body) {
    for (int64_t start = 0; start < row.call.params.vocab; start += kBlock) {
      const Block<R> b = row.load(start);
      for (int64_t i = 0; i < b.n; i += V::kWidth) {
        Entry<V> e;
        add_logits(c, b, i, e);
        e.log_ratio = e.log_ratio_raw + c.log_ratio_offset;
        body(e);
      }
    }
  };
  V tops(kLowest<R>);
  each([&](const Entry<V>& e) { tops = max(div.distant_exponent(e, constants), tops); });
  const R top = horizontal_max(tops);
  row.normalised.distant = true;
  row.normalised.sum[0] = row.normalised.sum[1] = top;
  if (top == kLowest<R>) return;
  V sum[kMaxSums] = {V(0), V(0)};
  each([&](const Entry<V>& e) { div.distant_sums(e, constants, V(top), sum); });
  for (int k = 0; k < kMaxSums; ++k) row.normalised.sum[k] += std::log2(double(horizontal_sum(sum[k])));
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
