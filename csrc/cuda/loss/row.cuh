// A pair of rows as the kernel's threads use it: groups of columns, their exponentials, entries for the
// divergence.
#pragma once

#include <type_traits>

#include "../../divergences/visit.h"
#include "../memory/any_row.cuh"
#include "../memory/place.cuh"
#include "call.h"
#include "shifts.cuh"

namespace fastkd {
namespace cuda {

// The results of the sweeps that the gradient needs, the same in all threads.
struct RowStatistics {
  float s_shift, t_shift, soft_shift;
  float s_inverse, t_inverse, soft_inverse;  // reciprocal sums of exponentials
  float lse;                                 // log-sum-exp of the student at temperature 1
  float label, others;  // softmax at temperature 1: the label's, and that of all others together
  float columns;        // number of columns of the whole vocabulary
  bool lowered;         // whether the origin is subtracted from the logits
  Row<float> divergence;
};

// The constants that are subtracted from the logits when they are read, for a row whose maxima are far from 0
// or from each other. Few rows need it, so it is kept in shared memory, where it needs no registers.
struct Origin {
  float s, t;
};

__device__ __forceinline__ Origin& origin() {
  __shared__ Origin of_row;
  return of_row;
}

// Both sides have the element type E. It is AnyElement where they differ, and for phases and metrics, which
// most calls do not use. P defines where the sweeps find the logits, and which threads share a row.
template <class D, class E, class P>
struct DenseRow {
  using Div = D;
  using Element = E;
  using Place = P;
  static constexpr bool kHasExtra = std::is_same<E, AnyElement>::value;
  static constexpr bool kSparse = std::is_same<D, OffSupport>::value;
  static constexpr bool kTeacher = !kSparse && !std::is_same<D, NoDivergence>::value;
  static constexpr bool kSplits = D::kSplitsLabel;
  static constexpr int kGroup = RowView<E>::kGroup;

  using View = typename P::template View<E>;

  const DenseArgs& args;
  const D& divergence;
  const P& place;
  View student, teacher;
  int first;       // column of group 0: 0, or negative to put the other groups on 16-byte boundaries
  int begin, end;  // the groups that this block works on
  // The label's column, negative where the call does not use it or where it belongs to another shard. The
  // label is left out of the sum of exponentials at temperature 1: a confident model's loss and gradient
  // depend on the small sum of the others, whose digits 1 - q would lose.
  int hot;
  RowStatistics row;

  __device__ __forceinline__ DenseRow(const DenseArgs& a, const D& d, const P& p, int64_t index)
      : args(a), divergence(d), place(p), student{}, teacher{} {
    const RowView<E> s = row_of<E>(a.student, index, a.inner);
    RowView<E> t{};
    int head = elements_to_boundary(s);
    if constexpr (kTeacher) {
      t = row_of<E>(a.teacher, index, a.inner);
      // The boundary is that of the narrower type, which is the stricter one.
      if (t.element_bytes() < s.element_bytes()) head = elements_to_boundary(t);
    }
    first = head ? head - kGroup : 0;
    place.share((a.vocab - first + kGroup - 1) / kGroup, begin, end);
    hot = -kGroup;
    if (a.needs_label) {
      const int64_t label = a.labels[index];
      if (!kHasExtra || (label >= 0 && label < a.vocab)) hot = static_cast<int>(label);
    }
    place.template open<E, kTeacher>(s, t, first, begin, end, a.vocab, student, teacher);
    row.lowered = false;
  }

  // Returns the label's logit, or -inf where `hot` is negative. It is read from memory, because the copy that
  // the sweeps use may be in another block.
  __device__ __forceinline__ float label_logit(const Rows& rows, int64_t index) const {
    return hot >= 0 ? row_of<E>(rows, index, args.inner)[hot] : -INFINITY;
  }

  // Whether the origin has to be moved, given the row maxima. The answer is the same in all threads.
  __device__ __forceinline__ bool is_far(float s_max, float t_max) const {
    const float s = finite(s_max), t = kTeacher ? finite(t_max) : 0.0f;
    const float at_s = s * args.student_to_log2, at_t = t * args.teacher_to_log2;
    return !(fabsf(at_s) < kFarFromZero && fabsf(s * kLog2E) < kFarFromZero && fabsf(at_t) < kFarFromZero &&
             (!kTeacher || fabsf(at_s - at_t) < kFarApart));
  }

  // Makes the row maxima the origin.
  __device__ __forceinline__ void lower(float s_max, float t_max) {
    if (threadIdx.x == 0) origin() = {finite(s_max), finite(t_max)};
    row.lowered = true;
    __syncthreads();
  }

  // The log-sum-exp of the logits as they are in memory.
  __device__ __forceinline__ float lse() const { return row.lowered ? row.lse + origin().s : row.lse; }

  __device__ __forceinline__ bool has_label(int column) const {
    return static_cast<unsigned>(hot - column) < static_cast<unsigned>(kGroup);
  }

  // Loads a group of columns with at most one read of each side. Columns that do not exist look like masked
  // ones, and so does a label that the divergence treats apart.
  __device__ __forceinline__ void load(int column, float (&s)[kGroup], float (&t)[kGroup]) const {
    const auto of_student = student.read(column, args.vocab);
    if constexpr (kTeacher) teacher.unpack(teacher.read(column, args.vocab), t);
    student.unpack(of_student, s);
    if (row.lowered) {
      // `volatile`: read again for each group, so that it needs no registers in between.
      const volatile Origin& from = origin();
      const float from_s = from.s, from_t = from.t;
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        s[k] -= from_s;
        if constexpr (kTeacher) t[k] -= from_t;
      }
    }
    if constexpr (kSplits) {
      if (has_label(column)) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          if (column + k == hot) s[k] = t[k] = -INFINITY;
        }
      }
    }
  }

  // Computes soft_exponential() for a group of columns, with one decision for all of them. `soft` must not be
  // kNone.
  __device__ __forceinline__ void soft_exponentials(const float (&s)[kGroup], const float (&e)[kGroup],
                                                    float shift, float (&soft)[kGroup]) const {
    if (args.soft == Soft::kSquare) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) soft[k] = e[k] * e[k];
    } else if (args.soft == Soft::kSeparate) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) soft[k] = exp2_fast(fmaf(s[k], kLog2E, -shift));
    } else {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) soft[k] = e[k];
    }
  }

  // Returns the student's exponential at temperature 1, from its logit and its exponential at the
  // divergence's temperature.
  __device__ __forceinline__ float soft_exponential(float s, float e, float shift) const {
    if (args.soft == Soft::kSeparate) return exp2_fast(fmaf(s, kLog2E, -shift));
    return args.soft == Soft::kSquare ? e * e : e;
  }

  __device__ __forceinline__ float soft_shift_of(float s_max, float s_shift) const {
    if (args.soft == Soft::kSeparate) return shift_of(s_max, kLog2E);
    return args.soft == Soft::kSquare ? 2 * s_shift : s_shift;
  }

  // Returns the factor at temperature 1 that corresponds to the factor of the student's exponentials.
  __device__ __forceinline__ float soft_factor(float max, float s_factor, float from, float to) const {
    if (args.soft == Soft::kSeparate) return exp2_fast(change_of(max, from, to));
    return args.soft == Soft::kSquare ? s_factor * s_factor : s_factor;
  }

  __device__ __forceinline__ void choose_shifts(float s_max, float t_max) {
    row.s_shift = shift_of(s_max, args.student_to_log2);
    row.t_shift = shift_of(t_max, args.teacher_to_log2);
    if (kTeacher && args.equal_temperatures && fabsf(row.s_shift - row.t_shift) <= kSharedShiftRange) {
      row.s_shift = row.t_shift = fmaxf(row.s_shift, row.t_shift);
    }
    row.soft_shift = soft_shift_of(s_max, row.s_shift);
  }

  // Returns log p - log q without the row's offset. It is computed from the logits' difference, because the
  // rounding of two logarithms would drown a small ratio.
  __device__ __forceinline__ float raw_log_ratio(float s, float t) const {
    return fmaf(t, args.temperature_ratio, -s) * args.inverse_temperature;
  }

  // Returns the fields of an entry that are known before the sums.
  __device__ __forceinline__ Entry<float> raw_entry(float s, float t, float s_shift, float t_shift) const {
    Entry<float> e;
    e.xs = fmaf(s, args.student_to_log2, -s_shift);
    e.xt = fmaf(t, args.teacher_to_log2, -t_shift);
    e.es = exp2_fast(e.xs);
    e.et = exp2_fast(e.xt);
    e.log_ratio_raw = raw_log_ratio(s, t);
    e.relative = fmaf(kLn2, s_shift - t_shift, e.log_ratio_raw);
    e.base = 0;
    return e;
  }

  __device__ __forceinline__ Entry<float> entry(float s, float t) const {
    Entry<float> e = raw_entry(s, t, row.s_shift, row.t_shift);
    // Rounded before the subtraction (no fused multiply-add), so that equal rows differ by exactly 0.
    e.p = __fmul_rn(e.et, row.t_inverse);
    e.q = __fmul_rn(e.es, row.s_inverse);
    e.q_minus_p = __fadd_rn(e.q, -e.p);
    e.log_ratio = e.log_ratio_raw + row.divergence.log_ratio_offset;
    if constexpr (D::kLog) e.log = divergence.log_of(e);
    return e;
  }

  __device__ __forceinline__ float student_exponential(float s) const {
    return exp2_fast(fmaf(s, args.student_to_log2, -row.s_shift));
  }
};

}  // namespace cuda
}  // namespace fastkd
