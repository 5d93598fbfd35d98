// How a thread adds a group's terms to the divergence's streams. A term is the product of an exponential and
// a ratio, which is infinite where a side is masked, and then does not count if its exponential is 0
// (times()). A comparison for each term would cost as much as the products, so a group is added up without
// one, and once more with them where the result is not finite. The factor of all ratios comes in at the end.
#pragma once

#include "partial.cuh"

namespace fastkd {
namespace cuda {

// A number whose products have no guard.
struct Unguarded {
  float x;
};
__device__ __forceinline__ Unguarded times_add(Unguarded weight, Unguarded x, Unguarded sum) {
  return {fmaf(weight.x, x.x, sum.x)};
}

template <class Context,
          bool kRatios = Context::kTeacher && (Context::Div::kStreams > 0) && !Context::Div::kCross>
class Streams {
 public:
  __device__ __forceinline__ explicit Streams(const Partial& part) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) sum_[k].x = part.stream[k];
  }

  __device__ __forceinline__ void add(const Context& row, const Entry<float>& e, float s, float t) {
    Entry<Unguarded> unguarded;
    unguarded.es.x = e.es, unguarded.et.x = e.et;
    unguarded.log_ratio_raw.x = row.difference(s, t);
    row.functor.stream(unguarded, Unguarded{0}, sum_);
  }

  __device__ __forceinline__ void finish(const Context& row, const float (&s)[Context::kGroup],
                                         const float (&t)[Context::kGroup], Partial& part) const {
    bool finite = true;
#pragma unroll
    for (int k = 0; k < kCount; ++k) finite = finite && fabsf(sum_[k].x) < INFINITY;
    if (finite) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) part.stream[k] = sum_[k].x;
      return;
    }
#pragma unroll
    for (int k = 0; k < Context::kGroup; ++k) {
      Entry<float> e = row.raw_entry(s[k], t[k], part.shift_s, part.shift_t);
      e.log_ratio_raw = row.difference(s[k], t[k]);
      row.functor.stream(e, 0.0f, part.stream);
    }
  }

  // Divides the ratios by the student's temperature.
  static __device__ __forceinline__ void scale(const Context& row, Partial& part) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) part.stream[k] *= row.call.inverse_temperature;
  }

 private:
  static constexpr int kCount = Context::Div::kStreams;
  Unguarded sum_[kMaxStreams];
};

// Powers of ratios, whose terms have guards of their own.
template <class Context>
class Streams<Context, false> {
 public:
  __device__ __forceinline__ explicit Streams(Partial& part) : part_(part) {}
  __device__ __forceinline__ void add(const Context& row, const Entry<float>& e, float, float) {
    row.functor.stream(e, 0.0f, part_.stream);
  }
  __device__ __forceinline__ void finish(const Context&, const float (&)[Context::kGroup],
                                         const float (&)[Context::kGroup], Partial&) const {}
  static __device__ __forceinline__ void scale(const Context&, Partial&) {}

 private:
  Partial& part_;
};

}  // namespace cuda
}  // namespace fastkd
