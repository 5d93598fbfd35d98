// The divergence of two distributions over a few classes, in float64: a dense divergence of few columns. The
// whole block computes it, each thread its own classes.
#pragma once

#include <new>

#include "sparse_entries.cuh"

namespace fastkd {
namespace cuda {

// D's sums over the classes, as its functor reads them, in shared memory: in registers they would leave none
// for the student's row.
template <class D>
__device__ __forceinline__ Row<double>& class_sums() {
  // Shared memory has no constructors.
  __shared__ double of_row[(sizeof(Row<double>) + sizeof(double) - 1) / sizeof(double)];
  return *reinterpret_cast<Row<double>*>(of_row);
}

// sparse_row() has the logarithms of the first `count` classes, up to a constant for each side. A class that
// is -inf on both sides does not exist.
template <class D>
class ClassDivergence {
 public:
  __device__ __forceinline__ ClassDivergence(const D& functor, const SparseCall& call, int count)
      : functor_(functor), call_(call), count_(count), classes_(sparse_row(call)), sums_(class_sums<D>()) {}

  // Returns the divergence. The caller needs a barrier before, and has one behind it.
  __device__ __forceinline__ double find() {
    find_normalisers();
    if constexpr (D::kSums > 0) find_sums();
    __shared__ double value;
    if (threadIdx.x == 0) value = functor_.value(sums_);
    __syncthreads();
    return value;
  }

  // Return the gradients by the logarithms of class i.
  __device__ __forceinline__ double student(int i) const { return functor_.student(entry(i), sums_); }
  __device__ __forceinline__ double teacher(int i) const { return functor_.teacher(entry(i), sums_); }

 private:
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) const {
    for (int i = threadIdx.x; i < count_; i += blockDim.x) body(i);
  }

  __device__ __forceinline__ Entry<double> raw_entry(int i) const {
    const double s = classes_.log_q[i] - top_q_, t = classes_.log_p[i] - top_p_;
    Entry<double> e;
    e.xs = s * kLog2e;
    e.xt = t * kLog2e;
    e.es = exp2(e.xs);
    e.et = exp2(e.xt);
    e.log_ratio_raw = e.relative = t - s;
    e.base = 0;
    return e;
  }

  __device__ __forceinline__ Entry<double> entry(int i) const {
    Entry<double> e = raw_entry(i);
    e.p = e.et * inverse_z_p_;
    e.q = e.es * inverse_z_q_;
    e.q_minus_p = e.q - e.p;
    e.log_ratio = e.log_ratio_raw + sums_.log_ratio_offset;
    if constexpr (D::kLog) {
      double less_one;
      const double argument = functor_.log_argument(e, less_one);
      e.log = log_one_plus(less_one, argument);
    }
    return e;
  }

  // Finds the largest logarithms, the normalisers and the streams, and sets `sums_` from them.
  __device__ __forceinline__ void find_normalisers() {
    double top[2] = {-INFINITY, -INFINITY};
    each([&](int i) {
      top[0] = fmax(top[0], classes_.log_p[i]);
      top[1] = fmax(top[1], classes_.log_q[i]);
    });
    reduce_block<MaxOfDoubles>(top);
    top_p_ = top[0] == -INFINITY ? 0 : top[0];
    top_q_ = top[1] == -INFINITY ? 0 : top[1];

    double stream[kMaxStreams] = {0, 0, 0}, sum[2 + D::kStreams] = {0, 0};
    each([&](int i) {
      const Entry<double> e = raw_entry(i);
      sum[0] += e.et;
      sum[1] += e.es;
      functor_.stream(e, 0.0, stream);
    });
    for (int k = 0; k < D::kStreams; ++k) sum[2 + k] = stream[k];
    reduce_block<SumOfDoubles>(sum);
    for (int k = 0; k < D::kStreams; ++k) stream[k] = sum[2 + k];
    double cross_shift = 0;
    if constexpr (D::kCross) {
      if (!(stream[0] > 1e-18 && stream[0] < 1e30)) find_distant_cross(stream, cross_shift);
    }
    inverse_z_p_ = 1 / sum[0];
    inverse_z_q_ = 1 / sum[1];
    if (threadIdx.x == 0) normalise(sum[0], sum[1], stream, cross_shift);
    __syncthreads();
  }

  // Computes the streams once more, the first relative to its largest term, for sides so far apart that its
  // terms over- or underflow.
  __device__ __forceinline__ void find_distant_cross(double (&stream)[kMaxStreams], double& cross_shift) {
    double top[1] = {-INFINITY};
    each([&](int i) {
      const Entry<double> e = raw_entry(i);
      if (fmax(e.xs, e.xt) == -INFINITY) return;
      top[0] = fmax(top[0], call_.teacher_power[0] * e.xt + call_.student_power[0] * e.xs);
    });
    reduce_block<MaxOfDoubles>(top);
    // The sides are infinitely far apart, or there is no finite term: the sum is right as it is.
    if (fabs(top[0]) == INFINITY || top[0] == 0) return;
    for (double& sum : stream) sum = 0;
    each([&](int i) { functor_.stream(raw_entry(i), top[0], stream); });
    reduce_block<SumOfDoubles>(stream);
    cross_shift = top[0];
  }

  __device__ __forceinline__ void normalise(double z_p, double z_q, const double (&stream)[kMaxStreams],
                                            double cross_shift) {
    Row<double>& sums = *new (&sums_) Row<double>{};
    // From the quotient of the two sums, so that equal sides have an offset of exactly 0.
    const double between = log2(z_p / z_q), bits_q = log2(z_q);
    sums.log_ratio_offset = -fastkd::kLn2 * between;
    for (int k = 0; k < D::kStreams; ++k) {
      const double a = call_.teacher_power[k], b = call_.student_power[k], by = k == 0 ? cross_shift : 0;
      sums.scale[k] = D::kCross ? exp2(by - (a + b) * bits_q - a * between) : a == 1 ? 1 / z_p : 1 / z_q;
      sums.stream[k] = stream[k] * sums.scale[k];
    }
    if constexpr (D::kCross) {
      sums.cross_shift = cross_shift;
      sums.cross_inverse = stream[0] == 0 ? 0 : 1 / stream[0];
      // The powers add up to 1 for all divergences that use it.
      sums.log_cross = fastkd::kLn2 * (cross_shift + log2(stream[0] / z_q)) +
                       call_.teacher_power[0] * sums.log_ratio_offset;
    }
    if constexpr (D::kDistant) sums.bits_s = bits_q, sums.bits_t = bits_q + between;
  }

  __device__ __forceinline__ void find_sums() {
    double sum[kMaxSums] = {0, 0};
    each([&](int i) { functor_.sums(entry(i), sum); });
    reduce_block<SumOfDoubles>(sum);
    bool distant = false;
    if constexpr (D::kDistant) {
      distant = functor_.is_distant(sum);
      if (distant) find_distant_sums(sum);
    }
    if (threadIdx.x == 0) {
      sums_.distant = distant;
      for (int k = 0; k < kMaxSums; ++k) sums_.sum[k] = sum[k];
    }
    __syncthreads();
  }

  // Replaces the sums of sides that share little probability, see Functor::kDistant.
  __device__ __forceinline__ void find_distant_sums(double (&sum)[kMaxSums]) {
    double top[1] = {-INFINITY};
    each([&](int i) { top[0] = fmax(top[0], functor_.distant_exponent(entry(i), sums_)); });
    reduce_block<MaxOfDoubles>(top);
    sum[0] = sum[1] = 0;
    if (top[0] != -INFINITY) {
      each([&](int i) { functor_.distant_sums(entry(i), sums_, top[0], sum); });
      reduce_block<SumOfDoubles>(sum);
    }
    for (double& one : sum) one = top[0] == -INFINITY ? top[0] : top[0] + log2(one);
  }

  const D& functor_;
  const SparseCall& call_;
  const int count_;
  const SparseRow classes_;
  Row<double>& sums_;
  double top_p_ = 0, top_q_ = 0;              // the largest logarithms
  double inverse_z_p_ = 0, inverse_z_q_ = 0;  // reciprocals of the normalisers, relative to these
};

}  // namespace cuda
}  // namespace fastkd
