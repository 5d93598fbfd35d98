// Functors that have exactly the members of the contract (csrc/divergences/functor.h) and none of those that
// only make a functor faster on the CPU. With MISSING defined, a functor lacks one member. See
// test_functor_contract.py.
#define FASTKD_ISA isa_contract
#include "cpu/simd/vec_baseline.h"
// after VecOf
#include "cpu/loss/kernel.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct Plain : Functor {
  template <class R>
  FASTKD_HD R value(Row<R>&) const {
    return R(0);
  }
  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>&) const {
    return e.q;
  }
#if !defined(MISSING_TEACHER)
  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>&) const {
    return e.p;
  }
#endif
};

struct Streamed : Plain {
  static constexpr int kStreams = 1;
#if !defined(MISSING_POWERS)
  static double student_power(int) { return 1; }
#endif
#if !defined(MISSING_STREAM)
  template <class F>
  FASTKD_HD void stream(const Entry<F>& e, F, F* sum) const {
    sum[0] = times_add(e.es, e.log_ratio_raw, sum[0]);
  }
#endif
};

struct Crossed : Plain {
  static constexpr int kStreams = 2;
  static constexpr bool kCross = true;
  double teacher_power(int) const { return 2; }
  double student_power(int) const { return -1; }
#if !defined(MISSING_TERMS)
  template <class F>
  FASTKD_HD Terms<F> terms(const Entry<F>& e, F shift) const {
    return {cross_term(e, e.es, 2, -1, shift), e.es};
  }
#endif
  template <class F>
  FASTKD_HD void add_terms(const Entry<F>& e, const Terms<F>& terms, F* sum) const {
    sum[0] = sum[0] + terms.cross;
    sum[1] = sum[1] + e.es;
  }
  template <class F>
  FASTKD_HD void stream(const Entry<F>& e, F shift, F* sum) const {
    add_terms(e, {cross_term(e, e.es, 2, -1, shift), e.es}, sum);
  }
};

struct Everything : Streamed {
  static constexpr bool kLog = true, kDistant = true, kSplitsLabel = true;
  static constexpr int kSums = 1;
#if !defined(MISSING_SUMS)
  template <class F>
  FASTKD_HD void sums(const Entry<F>& e, F* sum) const {
    sum[0] = sum[0] + e.q * e.log;
  }
#endif
#if !defined(MISSING_LOG)
  FASTKD_HD float log_of(const Entry<float>& e) const { return e.log_ratio; }
#endif
  template <class F>
  FASTKD_HD F log_argument(const Entry<F>& e, F& lost) const {
    lost = F(0);
    return e.p + e.q;
  }
  template <class R>
  FASTKD_HD bool is_distant(const R* sum) const {
    return sum[0] > R(1);
  }
  template <class F>
  FASTKD_HD F distant_exponent(const Entry<F>& e, const Row<F>& row) const {
    return e.xs - row.bits_s;
  }
  template <class F>
  FASTKD_HD void distant_sums(const Entry<F>& e, const Row<F>& row, F top, F* sum) const {
    sum[0] = sum[0] + exp2_any(distant_exponent(e, row) - top);
  }
#if !defined(MISSING_LABEL)
  template <class R>
  FASTKD_HD R label_student(const Row<R>&) const {
    return R(1);
  }
#endif
  template <class R>
  FASTKD_HD R label_teacher(const Row<R>&) const {
    return R(1);
  }
};

template <class D>
void run(const DenseParams& params) {
  check_functor<D>();
#if !defined(MISSING)
  RowKernel<VecOf<float>, D>(params, D(), false).run_all(nullptr, nullptr);
#endif
}

void run_all(const DenseParams& params) {
  run<Plain>(params);
  run<Streamed>(params);
  run<Crossed>(params);
  run<Everything>(params);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
