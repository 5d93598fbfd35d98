// Types that the divergence functors are written in, and the contract of a functor (see Functor below).
//
// Each functor is written once, over a number type F: a SIMD vector on the CPU, in a CUDA thread a float, or
// a double for the few classes of a sparse teacher. F offers + - * /, exp2_any(F), abs(F), times(F, F),
// times_add(F, F, F), divide(F, F), log_one_plus(F, F) and where_le(F, F, F, F). times() and times_add() take
// a weight of at least 0 first; any weight below the smallest normal number, a negative one too, counts as 0.
// A vector also offers min and max, which return the second operand where one is NaN. value() runs once per
// row, over a scalar R: a double on the CPU and for a sparse teacher, else a float.
#pragma once

#include "arithmetic.h"

namespace fastkd {
inline namespace FASTKD_ISA {

constexpr int kMaxStreams = 3;
constexpr int kMaxSums = 2;
constexpr int kMaxConstants = 6;

// One column of one token, for F a vector: of as many neighbouring columns as it has lanes. The teacher's
// logit is t, the student's is s. The first sweep sets the fields of the upper half only.
template <class F>
struct Entry {
  F xs, xt;         // exponents of 2, student and teacher: logit * log2(e) / temperature - shift of the row
  F es, et;         // 2^xs, 2^xt
  F log_ratio_raw;  // t / T_t - s / T, less a constant of the row
  // For divergences with a cross stream: ln(et / es) = relative + ln(2) * base, where `relative` is free of
  // the rounding of both exponentials, and `base` is a constant of the row, 0 for rows near each other.
  F relative, base;

  F p, q;       // probabilities of the teacher and of the student
  F q_minus_p;  // computed such that it is exactly 0 for equal rows
  F log_ratio;  // log p - log q = log_ratio_raw + Row::log_ratio_offset
  F log;        // kLog functors only: the logarithm that log_argument() and log_of() define
};

// The row's sums, in nats, as value() and the gradients see them.
template <class F>
struct Row {
  F log_ratio_offset;         // log p - log q = log_ratio_raw + log_ratio_offset
  F stream[kMaxStreams];      // the functor's streams, normalised by the powers that it states
  F scale[kMaxStreams];       // the factors that normalise the streams, or a single term of them
  F sum[kMaxSums];            // the functor's sums
  F constant[kMaxConstants];  // numbers that value() computes for student() and teacher()

  // For a divergence with a cross stream, the sum C of p^a q^b:
  F log_cross;      // log C; right only if a + b = 1
  F cross_shift;    // subtracted from the exponents of 2 of the terms; 0 except for very distant rows
  F cross_inverse;  // 1 / (sum of the terms of stream 0, before normalisation)

  // For a divergence with distant rows:
  bool distant = false;  // whether `sum` holds the sums of distant_sums(), as logarithms to base 2
  F bits_s, bits_t;      // log2 of the sums of 2^xs and of 2^xt

  // For a divergence that treats the label apart; Entry::p and Entry::q are normalised without the label:
  F p_label, q_label, p_others, q_others;  // probabilities of the label and of all other columns together
  F label_ratio, others_ratio;             // log p - log q of these two classes
};

// The fields of an entry that a sweep on the CPU provides. Fewer fields cost less: without the logits the
// sweep need not read the rows again.
enum class Fields {
  kProbabilities,  // es, et, p, q and q_minus_p
  kStored,         // q, and beside the entry the number stored(entry), which sweep 2 has stored
  kTerms,          // q, and beside the entry its Terms, which sweep 1 has stored
  kAll             // every field; `log` only with kLog
};

// One entry's part of a cross stream: p^a q^b, and the power q^(a + b) from which it is computed. Both are of
// exponentials, not normalised.
template <class F>
struct Terms {
  F cross, own;
};

// Base class of the divergence functors, with the defaults of the optional members. A functor is constructed
// from alpha and beta as divergences/list.h states, and its bytes are copied to the GPU. A functor that has
// the members listed here compiles on the CPU and for CUDA; check_functor() (contract.h) reports a missing
// one.
//
// Every divergence D has
//   value(row)
//       returns D from the row's sums. It may set row.constant, for the gradients.
//   student(entry, row), teacher(entry, row)
//       return dD / d(s / T) and dD / d(t / T_t) of one entry. `row` is as value() has left it.
// unless other code computes D:
//   kReadsTeacher
//       whether the kernel reads the logits of a dense teacher. Without it the functor has none of the three
//       functions above.
//   kSparseTeacher
//       whether the teacher is sparse: other code computes the value, and the kernel's gradient is q times a
//       coefficient of the row.
//
// D and its gradients are made of sums over the vocabulary, of two kinds. Streams are sums over unnormalised
// exponentials, which sweep 1 collects:
//   kStreams
//       the number of streams, at most kMaxStreams
//   stream(entry, cross_shift, sums)
//       adds the entry's terms to sums[0] to sums[kStreams - 1]. Of the entry it may read es, et and
//       log_ratio_raw; with kCross everything that the first sweep sets.
//   teacher_power(k), student_power(k)
//       the powers with which stream k scales. If the teacher's exponentials shrink by a factor f_t and the
//       student's by f_s, stream k shrinks by f_t^teacher_power(k) * f_s^student_power(k). The kernel
//       normalises it accordingly. Without kCross one of the powers is 1 and the other 0, and a term is
//       times_add() of that side's exponential and the ratio: such a stream has to be linear in the ratio,
//       because the kernel changes the constant that the ratio is relative to.
//   kCross
//       whether stream 0 is the sum of p^a q^b with a and b the powers of stream 0. No stream may then use
//       the ratio, and the functor has
//       terms(entry, cross_shift)
//           returns the Terms of an entry, by cross_term() and power_of().
//       add_terms(entry, terms, sums)
//           is stream(), given the entry's Terms.
//   kOwnPower (default false), with kCross
//       whether Terms::own is another number than the exponential `es`: whether the powers do not add up
//       to 1.
//
// The functor's other sums are over probabilities. They need both log-sum-exps first, hence one more sweep:
//   kSums
//       the number of these sums, at most kMaxSums
//   sums(entry, sums)
//       adds the entry's terms to sums[0] to sums[kSums - 1].
//
// Members for divergences of a special form:
//   kLog
//       whether sums() and the gradients read Entry::log, a logarithm that the functor defines twice, once
//       for each kind of processor. It needs kSums. A CUDA thread calls log_of(entry) in float32. The CPU,
//       and a CUDA thread in float64, compute log(r) with r = log_argument(entry, less_one), a function
//       that reads p, q and q_minus_p and also sets less_one to r - 1, as log_one_plus() reads them.
//   kDistant
//       whether rows that share little probability take one more sweep. It replaces row.sum, which has then
//       lost its digits, by sums of small numbers. It needs kSums and these functions, which may read xs, xt,
//       log_ratio_raw and log_ratio of the entry, and `row` with log_ratio_offset, bits_s and bits_t:
//       is_distant(sums)
//           returns whether a row with these sums is distant.
//       distant_exponent(entry, row)
//           returns the exponent of 2 of an entry's largest term.
//       distant_sums(entry, row, top, sums)
//           adds the entry's terms divided by 2^top, where `top` is the row's largest distant_exponent().
//       The kernel then sets row.distant, and row.sum to the logarithms to base 2 of the two sums.
//       Phase::kFinish recognises a distant row by sum[0] < 0: the logarithm must be negative, and the sum of
//       other rows must not be.
//   kSplitsLabel
//       whether the label is left out of all sums. At the label, the kernel calls label_student(row) and
//       label_teacher(row) in place of student() and teacher(). A call then needs labels.
//
// Members that make a functor faster on the CPU; each default is right for every functor:
//   kSumsRead (default kAll)
//       kProbabilities if sums() reads no other fields of the entry
//   kStudentReads (default kAll)
//       kProbabilities if student() reads no other fields of the entry. In the two cases between, the CPU
//       computes what else the student's gradient contains in an earlier sweep, and the functor has in
//       addition to student(entry, row):
//       kStored, which needs kSums
//           stored(entry), which sweep 2 stores in the place of the teacher's exponentials (a cluster of
//           blocks on a GPU in that of the teacher's logits), and student(entry, stored, row), which reads
//           nothing of the entry but q.
//       kTerms, which needs kCross
//           student(entry, terms, row), which reads nothing of the entry but q: Terms::cross is stored in the
//           place of the teacher's exponentials, too.
//   kLinear (default false)
//       whether student() is linear in p and q, and reads nothing of the entry but p, q and q_minus_p. It
//       needs kStudentReads = kProbabilities. The CPU then scales p and q in advance instead of scaling the
//       gradient.
//   teacher_share() (default NaN)
//       if Entry::log is log(m / max(p, q)) for a mixture m of p and q, the teacher's weight in m. In
//       float32 the CPU mostly computes a series from it in place of log_argument().
struct Functor {
  static constexpr bool kReadsTeacher = true, kSparseTeacher = false;
  static constexpr int kStreams = 0, kSums = 0;
  static constexpr bool kCross = false, kLog = false, kDistant = false, kSplitsLabel = false, kLinear = false;
  static constexpr bool kOwnPower = false;
  static constexpr Fields kSumsRead = Fields::kAll, kStudentReads = Fields::kAll;

  static double teacher_power(int) { return 0; }
  static double student_power(int) { return 0; }
  static double teacher_share() { return std::numeric_limits<double>::quiet_NaN(); }
  template <class F>
  FASTKD_HD void stream(const Entry<F>&, F, F*) const {}
  template <class F>
  FASTKD_HD void sums(const Entry<F>&, F*) const {}
  template <class R>
  FASTKD_HD R label_student(const Row<R>&) const {
    return R(0);
  }
  template <class R>
  FASTKD_HD R label_teacher(const Row<R>&) const {
    return R(0);
  }
};

// Returns 2^(power * exponent), where `exponent` is that of one side and `other` that of the other. It is 0
// for an entry that is -inf on both sides, which is masked.
template <class F>
FASTKD_HD F power_of(F exponent, F other, double power) {
  return where_le(where_le(exponent, other, other, exponent), F(-std::numeric_limits<double>::infinity()),
                  F(0), exp2_any(F(power) * exponent));
}

// The largest |a * relative| in bits at which cross_term() regards the two sides as near each other.
constexpr double kNearTerms = 20;

// Returns (et 2^-base)^a es^b 2^-shift, given power = es^(a + b). Where the two sides are near each other it
// is computed as `power` times exp(a * relative), a factor that is exactly 1 for equal logits: the difference
// between p^a q^b and q^(a + b) is then not a rounding error.
template <class F>
FASTKD_HD F cross_term(const Entry<F>& e, F power, double a, double b, F shift) {
  const F by = F(a * kLog2e) * e.relative;
  const F near = where_le(abs(by), F(kNearTerms), where_le(abs(shift), F(0), F(1), F(0)), F(0));
  const F far = F(a) * (e.xt - e.base) + F(b) * e.xs - shift;
  const F term = exp2_any(where_le(F(1), near, by, far));
  const F product = where_le(F(1), near, power * term, term);
  // An entry that is -inf on both sides is masked: it adds nothing.
  return where_le(where_le(e.xs, e.xt, e.xt, e.xs), F(-std::numeric_limits<double>::infinity()), F(0),
                  product);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
