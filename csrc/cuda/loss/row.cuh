// A pair of rows as the kernel's threads use it: groups of columns, their exponentials, entries for the
// divergence.
#pragma once

#include <type_traits>

#include "../../divergences/functor.h"
#include "../memory/any_row.cuh"
#include "../memory/place.cuh"
#include "call.h"
#include "shifts.cuh"

namespace fastkd {
namespace cuda {

// The constants that are subtracted from the logits when they are read, for a row whose maxima are far from 0
// or from each other. Few rows need them, so they are in shared memory, where they occupy no registers.
struct Origin {
  float s, t;
};

__device__ __forceinline__ Origin& origin() {
  __shared__ Origin of_row;
  return of_row;
}

// The parts of the student's gradient that all columns of a row have in common.
struct GradientFactors {
  float by_student;         // factor of the divergence's gradient by s / T
  float by_teacher;         // factor of the divergence's gradient by t / T_t
  float by_column;          // subtracted from each column, for label smoothing
  float by_ce_exponential;  // factor of the exponentials at temperature 1
  float at_label;           // added to the label's column, in place of its exponential
};

template <class E, bool kTeacher>
__device__ __forceinline__ RowPair<E> pair_of(const Call& call, RowIndex index) {
  RowPair<E> pair{row_of<E>(call.student, index), {}, 0};
  int head = elements_to_boundary(pair.student);
  if constexpr (kTeacher) {
    pair.teacher = row_of<E>(call.teacher, index);
    // The boundary is that of the narrower type, which is the stricter one.
    if (pair.teacher.element_bytes() < pair.student.element_bytes())
      head = elements_to_boundary(pair.teacher);
  }
  pair.first = head ? head - RowView<E>::kGroup : 0;
  return pair;
}

// The numbers of a row that the sweeps' sums define. They are the same in all threads.
struct RowNumbers {
  float shift_s, shift_t, shift_ce;              // subtracted from the exponents of 2
  float inverse_z_s, inverse_z_t, inverse_z_ce;  // reciprocals of the normalisers
  float lse;                                     // student's log-sum-exp at temperature 1, less the origin
  float ce_softmax_label, ce_softmax_others;     // ce_softmax of the label, and of all other columns together
  float columns;                                 // number of columns of the whole vocabulary
  bool lowered = false;                          // whether the origin is subtracted from the logits
  Row<float> divergence;                         // the divergence's sums, as its functor reads them
  GradientFactors factors;
};

// One token's rows during its sweeps. Both sides have the element type E. It is AnyElement where they differ,
// and for phases and metrics, which most calls do not use. P is the place (memory/place.cuh): it defines
// where the sweeps find the logits, and which threads share a row.
template <class D, class E, class P>
struct RowContext : RowNumbers {
  using Div = D;
  using Element = E;
  using Place = P;
  static constexpr bool kHasExtra = std::is_same<E, AnyElement>::value;
  static constexpr bool kTeacher = D::kReadsTeacher;
  static constexpr bool kSparse = D::kSparseTeacher;
  static constexpr bool kSplits = D::kSplitsLabel;
  static constexpr int kGroup = RowView<E>::kGroup;
  static constexpr bool kKeeps =
      P::kKeeps && !kHasExtra && D::kStudentReads == Fields::kStored;  // where Call::keeps_logs says so

  // Whether a cluster's first sweep looks for the largest logits two at a time. The streaming kernel has no
  // registers for that, and a label that the divergence treats apart must not be among them.
  static constexpr bool kPacksMaxima =
      P::kManyRows && !kHasExtra && !kSplits && RowView<E>::kGroup > RowView<E>::kWords;

  using View = typename P::template View<E>;

  // A group of both sides as it is in memory.
  struct Words {
    typename View::Words student, teacher;
  };

  const Call& call;
  const D& functor;
  const P& place;
  View student, teacher;
  int first;       // see RowPair
  int begin, end;  // the groups that this block works on
  // The label's column, negative where the call does not use it or where it belongs to another shard. The
  // label is left out of the sum of exponentials at temperature 1: a confident model's loss and gradient
  // depend on the small sum of the others, whose digits 1 - q would lose.
  int label_column;

  __device__ __forceinline__ RowContext(const Call& a, const D& d, const P& p, RowIndex index)
      : call(a), functor(d), place(p), student{}, teacher{} {
    const RowPair<E> pair = pair_of<E, kTeacher>(a, index);
    first = pair.first;
    place.share(pair.groups(a.vocab), begin, end);
    label_column = -kGroup;
    if (a.needs_label) {
      const int64_t label = a.labels[index.row];
      if (!kHasExtra || (label >= 0 && label < a.vocab)) label_column = static_cast<int>(label);
    }
    place.template open<E, kTeacher>(pair, begin, end, a.vocab, student, teacher);
  }

  // Whether this block works on the label's column, and the call uses the label.
  __device__ __forceinline__ bool has_label_logit() const {
    const int group = (label_column - first) / kGroup;  // `first` is at most 0
    return label_column >= 0 && group >= begin && group < end;
  }

  // Whether the origin has to be moved, given the row maxima. The answer is the same in all threads.
  __device__ __forceinline__ bool is_far(float max_s, float max_t) const {
    const float s = finite(max_s), t = kTeacher ? finite(max_t) : 0.0f;
    const float at_s = s * call.log2_scale_s, at_t = t * call.log2_scale_t;
    return !(fabsf(at_s) < kFarFromZero && fabsf(s * kLog2E) < kFarFromZero && fabsf(at_t) < kFarFromZero &&
             (!kTeacher || fabsf(at_s - at_t) < kFarApart));
  }

  // Makes the row maxima the origin: the logits are read again, less their maximum.
  __device__ __forceinline__ void lower(float max_s, float max_t) {
    if (threadIdx.x == 0) origin() = {finite(max_s), finite(max_t)};
    lowered = true;
    __syncthreads();
  }

  // Returns the log-sum-exp of the logits as they are in memory.
  __device__ __forceinline__ float lse_in_memory() const { return lowered ? lse + origin().s : lse; }

  __device__ __forceinline__ bool has_label(int column) const {
    return static_cast<unsigned>(label_column - column) < static_cast<unsigned>(kGroup);
  }

  // Reads a group of columns, with at most one access to each side. Columns that do not exist look like
  // masked ones.
  template <bool kBoth = kTeacher>
  __device__ __forceinline__ Words read(int column) const {
    Words words;
    words.student = student.read(column, call.vocab);
    if constexpr (kBoth) words.teacher = teacher.read(column, call.vocab);
    return words;
  }

  template <bool kBoth = kTeacher>
  __device__ __forceinline__ void load(int column, float (&s)[kGroup], float (&t)[kGroup]) const {
    convert<kBoth>(read<kBoth>(column), column, s, t);
  }

  // Converts what read() returns. A label that the divergence treats apart looks like a masked column.
  template <bool kBoth = kTeacher>
  __device__ __forceinline__ void convert(const Words& words, int column, float (&s)[kGroup],
                                          float (&t)[kGroup]) const {
    if constexpr (kBoth) teacher.unpack(words.teacher, t);
    student.unpack(words.student, s);
    if (lowered) {
      // `volatile`: read again for each group, so that it needs no registers in between.
      const volatile Origin& from = origin();
      const float from_s = from.s, from_t = from.t;
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        s[k] -= from_s;
        if constexpr (kBoth) t[k] -= from_t;
      }
    }
    if constexpr (kSplits) {
      if (has_label(column)) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          if (column + k == label_column) s[k] = t[k] = -INFINITY;
        }
      }
    }
  }

  // Keeps a number for each column of a group: in the place of the teacher's logits, and those that narrow
  // types leave no room for behind all of them.
  __device__ __forceinline__ void keep(int column, const float (&x)[kGroup]) const {
#pragma unroll
    for (int i = 0; i < kGroup; i += 4) {
      *kept_at(column, i) = make_uint4(__float_as_uint(x[i]), __float_as_uint(x[i + 1]),
                                       __float_as_uint(x[i + 2]), __float_as_uint(x[i + 3]));
    }
  }

  __device__ __forceinline__ void load_kept(int column, float (&x)[kGroup]) const {
#pragma unroll
    for (int i = 0; i < kGroup; i += 4) {
      const uint4 four = *kept_at(column, i);
      x[i] = __uint_as_float(four.x), x[i + 1] = __uint_as_float(four.y);
      x[i + 2] = __uint_as_float(four.z), x[i + 3] = __uint_as_float(four.w);
    }
  }

  __device__ __forceinline__ uint4* kept_at(int column, int i) const {
    const auto side = teacher.data - student.data;
    return reinterpret_cast<uint4*>(reinterpret_cast<char*>(teacher.bits(column)) + i / 4 * side);
  }

  // Computes ce_exponential() for a group of columns, with one decision for all of them.
  // `call.ce_softmax` must not be kNone.
  __device__ __forceinline__ void ce_exponentials(const float (&s)[kGroup], const float (&e)[kGroup],
                                                  float shift, float (&ce)[kGroup]) const {
    if (call.ce_softmax == CeSoftmax::kSquare) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) ce[k] = e[k] * e[k];
    } else if (call.ce_softmax == CeSoftmax::kSeparate) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) ce[k] = exp2_fast(fmaf(s[k], kLog2E, -shift));
    } else {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) ce[k] = e[k];
    }
  }

  // Returns the student's exponential at temperature 1, from its logit and its exponential at the
  // divergence's temperature.
  __device__ __forceinline__ float ce_exponential(float s, float e, float shift) const {
    if (call.ce_softmax == CeSoftmax::kSeparate) return exp2_fast(fmaf(s, kLog2E, -shift));
    return call.ce_softmax == CeSoftmax::kSquare ? e * e : e;
  }

  // Returns the shift at temperature 1 that corresponds to the shift `from_s` of the student's exponentials.
  __device__ __forceinline__ float ce_shift_of(float max_s, float from_s) const {
    if (call.ce_softmax == CeSoftmax::kSeparate) return shift_of(max_s, kLog2E);
    return call.ce_softmax == CeSoftmax::kSquare ? 2 * from_s : from_s;
  }

  // Returns the factor at temperature 1 that corresponds to the factor of the student's exponentials.
  __device__ __forceinline__ float ce_factor(float max, float factor_s, float from, float to) const {
    if (call.ce_softmax == CeSoftmax::kSeparate) return exp2_fast(change_of(max, from, to));
    return call.ce_softmax == CeSoftmax::kSquare ? factor_s * factor_s : factor_s;
  }

  // Sets the row's shifts, given the row maxima. Rows near each other share one, so that equal logits
  // have equal exponentials.
  __device__ __forceinline__ void choose_shifts(float max_s, float max_t) {
    shift_s = shift_of(max_s, call.log2_scale_s);
    shift_t = shift_of(max_t, call.log2_scale_t);
    if (kTeacher && call.equal_temperatures && fabsf(shift_s - shift_t) <= kSharedShiftRange) {
      shift_s = shift_t = fmaxf(shift_s, shift_t);
    }
    shift_ce = ce_shift_of(max_s, shift_s);
  }

  // Returns log p - log q without the row's offset, times the student's temperature. It is computed from the
  // logits' difference, because the rounding of two logarithms would drown a small ratio.
  __device__ __forceinline__ float difference(float s, float t) const {
    return fmaf(t, call.temperature_ratio, -s);
  }

  // The same, divided by the temperature.
  __device__ __forceinline__ float log_ratio_raw(float s, float t) const {
    return difference(s, t) * call.inverse_temperature;
  }

  // Returns an entry with the fields that are known before the normalisers, its exponentials relative to the
  // shifts `from_s` and `from_t`.
  __device__ __forceinline__ Entry<float> raw_entry(float s, float t, float from_s, float from_t) const {
    Entry<float> e;
    e.xs = fmaf(s, call.log2_scale_s, -from_s);
    e.xt = fmaf(t, call.log2_scale_t, -from_t);
    e.es = exp2_fast(e.xs);
    e.et = exp2_fast(e.xt);
    e.log_ratio_raw = log_ratio_raw(s, t);
    e.relative = fmaf(kLn2, from_s - from_t, e.log_ratio_raw);
    e.base = 0;
    return e;
  }

  // Returns an entry with all fields. The normalisers must be known.
  __device__ __forceinline__ Entry<float> entry(float s, float t) const {
    Entry<float> e = raw_entry(s, t, shift_s, shift_t);
    // Rounded before the subtraction (no fused multiply-add), so that equal rows differ by exactly 0.
    e.p = __fmul_rn(e.et, inverse_z_t);
    e.q = __fmul_rn(e.es, inverse_z_s);
    e.q_minus_p = __fadd_rn(e.q, -e.p);
    e.log_ratio = e.log_ratio_raw + divergence.log_ratio_offset;
    if constexpr (D::kLog) e.log = functor.log_of(e);
    return e;
  }

  __device__ __forceinline__ float student_exponential(float s) const {
    return exp2_fast(fmaf(s, call.log2_scale_s, -shift_s));
  }
};

}  // namespace cuda
}  // namespace fastkd
