// The vocabulary of the divergence functors. Each functor is written once over a number type F: a SIMD
// vector on the CPU, a float in a CUDA thread. F offers + - * /, log1p(F) and times(F, F).
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

// One vocabulary entry of one token: p of the teacher, q of the student.
template <class F>
struct Entry {
  F p, q;
  F q_minus_p;  // formed so that it is exact for equal rows
  F log_ratio;  // log p - log q
};

// What the sweeps have found for the row, in nats.
template <class F>
struct Row {
  F kl_pq;   // sum p (log p - log q), where the functor asks for it
  F kl_qp;   // sum q (log q - log p), likewise
  F sum[2];  // the functor's own sums
};

// weight * x with 0 * anything = 0. Subnormal weights count as 0, so that a ratio to them cannot overflow.
template <class R>
FASTKD_HD R times_scalar(R weight, R x) {
  return weight < std::numeric_limits<R>::min() ? R(0) : weight * x;
}
FASTKD_HD float times(float weight, float x) { return times_scalar(weight, x); }
FASTKD_HD double times(double weight, double x) { return times_scalar(weight, x); }
FASTKD_HD float log1p(float x) { return ::log1pf(x); }
FASTKD_HD double log1p(double x) { return ::log1p(x); }

}  // namespace FASTKD_ISA
}  // namespace fastkd
