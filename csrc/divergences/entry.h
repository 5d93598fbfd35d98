// The vocabulary of the divergence functors. Each functor is written once over a number type F: a SIMD vector
// on the CPU, a float in a CUDA thread. F offers + - * /, exp2_any(F), abs(F), times(F, F),
// times_add(F, F, F) and where_le(F, F, F, F), a vector also min and max, which give the second of two
// numbers one of which is NaN.
#pragma once

#include <cmath>
#include <limits>

#if defined(__CUDACC__)
#define FASTKD_HD __host__ __device__ __forceinline__
#else
#define FASTKD_HD inline
#endif

// Each CPU instruction set compiles these headers with its own flags. A namespace per set keeps the linker
// from serving one set's code to another.
#if !defined(FASTKD_ISA)
#define FASTKD_ISA portable
#endif

namespace fastkd {
inline namespace FASTKD_ISA {

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

constexpr int kMaxStreams = 3;
constexpr int kMaxSums = 2;
constexpr int kMaxConstants = 6;

// One vocabulary entry of one token. The first sweep knows the upper half.
template <class F>
struct Entry {
  F xs, xt;  // exponents of 2: logit * log2(e) / temperature - shift of the row
  F es, et;  // 2^xs, 2^xt
  F ratio;   // t / T_t - s / T, less a number of the row
  // These two serve divergences with a cross stream: ln(et / es) without the rounding of either, less `base`,
  // which is in powers of 2, of the row, and 0 for rows near each other.
  F relative, base;

  F p, q;       // of the teacher, of the student
  F q_minus_p;  // formed so that it is exact for equal rows
  F log_ratio;  // log p - log q = ratio + Row::offset
  F log;  // of a functor with kLog, log_of(entry); on the CPU the log of log_argument(entry, rest), plus rest
};

// What the sweeps have found for the row, in nats.
template <class F>
struct Row {
  F offset;                   // log p - log q = ratio + offset
  F stream[kMaxStreams];      // the functor's streams, normalised: see below
  F scale[kMaxStreams];       // the factors that did it, which also normalise a single term
  F sum[kMaxSums];            // the functor's sums
  F constant[kMaxConstants];  // what its value() leaves for the gradients

  // Of a divergence with a cross stream, the sum of p^a q^b:
  F log_cross;      // its logarithm
  F cross_shift;    // what its terms' exponents of 2 were reduced by, 0 but for very distant rows
  F cross_inverse;  // 1 / (sum of the terms)

  // These fields are set for divergences with distant rows only:
  bool distant = false;  // whether `sum` holds what distant_sums() makes, as logarithms to base 2
  F bits_s, bits_t;      // log2 of the sums of 2^xs and 2^xt

  // Of a divergence that treats the label apart: p and q above are normalised without it.
  F p_label, q_label, p_others, q_others;
  F label_ratio, others_ratio;  // log p - log q of the two-way split
};

// A divergence is a functor with
//   kStreams     sums of the first sweep, over unnormalised exponentials: stream(entry, cross_shift, sums)
//                adds an entry's terms. But for a cross stream they are linear in the entry's ratio. Where
//                the exponentials shrink by factors f_t and f_s, stream k shrinks by f_t^teacher_power(k)
//                f_s^student_power(k), and by these powers it is normalised.
//   kCross       whether stream 0 is a sum of powers of both sides, cross_term() below.
//   kSums        sums that need both log-sum-exps first, hence one more sweep: sums(entry, sums).
//   kLog         whether sums() and the gradients want Entry::log; a CUDA thread takes it from log_of(entry).
//   kDistant     whether rows that share little probability take one more sweep, for sums of small numbers in
//                place of those that lose them: is_distant(sums) says which rows, distant_exponent(entry,
//                row) an entry's exponent of 2, distant_sums(entry, row, top, sums) adds its terms over
//                2^top.
//   kSplitsLabel whether the label is left out of all sums and treated apart.
//   kLinear      whether student() is linear in p and q and looks at nothing else of the entry.
//   value(row)   D, from what the sweeps found; fills row.constant.
//   student, teacher(entry, row)   dD / d(s / T) and dD / d(t / T_t) of one entry.
struct Functor {
  static constexpr int kStreams = 0, kSums = 0;
  static constexpr bool kCross = false, kLog = false, kDistant = false, kSplitsLabel = false, kLinear = false;

  static double teacher_power(int) { return 0; }
  static double student_power(int) { return 0; }
  template <class F>
  FASTKD_HD void stream(const Entry<F>&, F, F*) const {}
  template <class F>
  FASTKD_HD F log_argument(const Entry<F>&, F&) const {
    return F(1);
  }
  template <class F>
  FASTKD_HD void sums(const Entry<F>&, F*) const {}
  // In place of student() and teacher() at the label, where that is treated apart.
  template <class R>
  FASTKD_HD R label_student(const Row<R>&) const {
    return R(0);
  }
  template <class R>
  FASTKD_HD R label_teacher(const Row<R>&) const {
    return R(0);
  }
};

// weight * x with 0 * anything = 0. Subnormal weights count as 0, so that a ratio to them cannot overflow.
template <class R>
FASTKD_HD R times_scalar(R weight, R x) {
  return weight < std::numeric_limits<R>::min() ? R(0) : weight * x;
}
FASTKD_HD float times(float weight, float x) { return times_scalar(weight, x); }
FASTKD_HD double times(double weight, double x) { return times_scalar(weight, x); }
FASTKD_HD float times_add(float weight, float x, float sum) {
#if defined(__CUDA_ARCH__)
  return weight < std::numeric_limits<float>::min() ? sum : ::fmaf(weight, x, sum);
#else
  return sum + times(weight, x);
#endif
}
// A quotient of numbers no larger than 1, to a few ulp
FASTKD_HD float divide(float x, float y) {
#if defined(__CUDA_ARCH__)
  return ::__fdividef(x, y);
#else
  return x / y;
#endif
}
template <class F>
FASTKD_HD F divide(const F& x, const F& y) {
  return x / y;
}
FASTKD_HD float abs(float x) { return ::fabsf(x); }
FASTKD_HD float where_le(float a, float b, float yes, float no) { return a <= b ? yes : no; }
// 2^x over the whole range. Subnormal results may be 0.
FASTKD_HD float exp2_any(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::exp2f(x);
#endif
}

// (et 2^-base)^a es^b 2^-shift, given power = es^(a + b). Where the two sides are near each other the ratio's
// power is a factor, exactly 1 for equal logits: what then differs between p^a q^b and q^(a + b) is no
// rounding error.
template <class F>
FASTKD_HD F cross_term(const Entry<F>& e, F power, double a, double b, F shift) {
  const F by = F(a * kLog2e) * e.relative;
  const F near = where_le(abs(by), F(20), where_le(abs(shift), F(0), F(1), F(0)), F(0));
  const F far = F(a) * (e.xt - e.base) + F(b) * e.xs - shift;
  const F term = exp2_any(where_le(F(1), near, by, far));
  const F product = where_le(F(1), near, power * term, term);
  // Entries that are -inf on both sides do not exist.
  return where_le(where_le(e.xs, e.xt, e.xt, e.xs), F(-std::numeric_limits<double>::infinity()), F(0),
                  product);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
