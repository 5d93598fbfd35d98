// Base class of the divergences that are functions of C = sum p^a q^(1 - a). With w = p^a q^(1 - a) / C,
// which is a distribution, d log C / d(s / T) = (1 - a) (w - q) and d log C / d(t / T_t) = a (w - p).
#pragma once

#include "functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct Power : Functor {
  static constexpr int kStreams = 1;
  static constexpr bool kCross = true;
  static constexpr Fields kStudentReads = Fields::kTerms;

  double a;
  explicit Power(double power) : a(power) {}

  double teacher_power(int) const { return a; }
  double student_power(int) const { return 1 - a; }

  template <class F>
  FASTKD_HD Terms<F> terms(const Entry<F>& e, F shift) const {
    return {cross_term(e, e.es, a, 1 - a, shift), e.es};
  }

  template <class F>
  FASTKD_HD void add_terms(const Entry<F>&, const Terms<F>& terms, F* sum) const {
    sum[0] = sum[0] + terms.cross;
  }

  template <class F>
  FASTKD_HD void stream(const Entry<F>& e, F shift, F* sum) const {
    add_terms(e, terms(e, shift), sum);
  }

  // value() sets constant[0] and constant[1], the factors of the student's and the teacher's gradient.
  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    return student(e, terms(e, row.cross_shift), row);
  }
  // The same, given the entry's Terms, which sweep 1 has stored on the CPU.
  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Terms<F>& terms, const Row<F>& row) const {
    return row.constant[0] * (e.q - terms.cross * row.cross_inverse);
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    return row.constant[1] * (e.p - terms(e, row.cross_shift).cross * row.cross_inverse);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
