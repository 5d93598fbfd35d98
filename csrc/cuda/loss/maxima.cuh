// The largest logits that a thread has met in the first sweep, and whether they exceed the anchors by so much
// that its sums have to be rescaled.
#pragma once

#include "partial.cuh"

namespace fastkd {
namespace cuda {

template <class Context, bool kPacked = Context::kPacksMaxima>
class Maxima {
 public:
  // Takes a group of logits, converted and as they are in memory.
  __device__ __forceinline__ void meet(const Context&, const float (&s)[Context::kGroup],
                                       const float (&t)[Context::kGroup], const typename Context::Words&,
                                       Partial& part) {
#pragma unroll
    for (int k = 0; k < Context::kGroup; ++k) {
      part.max_s = fmaxf(part.max_s, s[k]);
      if constexpr (Context::kTeacher) part.max_t = fmaxf(part.max_t, t[k]);
    }
  }

  __device__ __forceinline__ bool exceed(const Context& row, const Partial& part) const {
    return part.max_s > part.anchor_s + row.call.raise_margin ||
           part.max_t > part.anchor_t + row.call.raise_margin;
  }

  // Sets the maxima of `part`.
  __device__ __forceinline__ void settle(const Context&, Partial&) const {}

  // To be called when the anchors of `part` have changed.
  __device__ __forceinline__ void follow(const Context&, const Partial&) {}
};

// Two maxima of 16 bits in a word, by half as many instructions. They are compared with the largest logit of
// their type that does not exceed the anchor by more than the margin. A lowered row has other logits than
// those in memory.
template <class Context>
class Maxima<Context, true> {
  using E = typename Context::Element;
  using Words = typename Context::Words;

 public:
  __device__ __forceinline__ void meet(const Context& row, const float (&s)[Context::kGroup],
                                       const float (&t)[Context::kGroup], const Words& words, Partial& part) {
    if (row.lowered) return converted_.meet(row, s, t, words, part);
#pragma unroll
    for (int i = 0; i < RowView<E>::kWords; ++i) {
      max_s_ = E::max(max_s_, words.student.word[i]);
      if constexpr (Context::kTeacher) max_t_ = E::max(max_t_, words.teacher.word[i]);
    }
  }

  __device__ __forceinline__ bool exceed(const Context& row, const Partial& part) const {
    if (row.lowered) return converted_.exceed(row, part);
    // One branch for both sides.
    return ((E::max(max_s_, limit_s_) ^ limit_s_) | (E::max(max_t_, limit_t_) ^ limit_t_)) != 0;
  }

  __device__ __forceinline__ void settle(const Context& row, Partial& part) const {
    if (row.lowered) return;
    part.max_s = larger(max_s_);
    part.max_t = larger(max_t_);
  }

  __device__ __forceinline__ void follow(const Context& row, const Partial& part) {
    limit_s_ = limit(part.anchor_s, row.call.raise_margin);
    limit_t_ = limit(part.anchor_t, row.call.raise_margin);
  }

 private:
  static constexpr uint32_t kNone = E::kMinusInfinity * 0x10001u;

  static __device__ __forceinline__ float larger(uint32_t word) {
    float x[2];
    E::unpack(word, x);
    return fmaxf(x[0], x[1]);
  }

  static __device__ __forceinline__ uint32_t limit(float anchor, float margin) {
    const float exact[2] = {anchor + margin, anchor + margin}, least[2] = {anchor, anchor};
    const uint32_t rounded = E::pack(exact);
    return larger(rounded) > exact[0] ? E::pack(least) : rounded;
  }

  Maxima<Context, false> converted_;
  uint32_t max_s_ = kNone, max_t_ = kNone, limit_s_ = kNone, limit_t_ = kNone;
};

}  // namespace cuda
}  // namespace fastkd
