// The dense kernel: one block takes a row through two sweeps (three for divergences with sums of their own):
// statistics of both rows, the divergence's sums, the gradient. Nothing is kept between sweeps, so any
// vocabulary fits.
#pragma once

#include <cmath>
#include <type_traits>

#include "../math/visit.h"
#include "dense_launch.h"
#include "elements.cuh"
#include "reduce.cuh"

namespace fastkd {
namespace cuda {

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;
// Rows whose maxima are this close (in powers of 2) share one shift: their exponentials are then comparable.
constexpr float kSharedShiftRange = 16.0f;

// A block's threads, and the blocks that a multiprocessor is to hold: together they bound the registers.
// Where logarithms fill the gradient's sweep, fewer threads with more registers each are better than
// spilling.
template <class D>
struct BlockShape {
  static constexpr int kThreads = D::kSums > 0 ? 256 : 512;
  static constexpr int kBlocks = D::kSums > 0 ? 3 : 2;
};
template <>
struct BlockShape<NoDivergence> {
  static constexpr int kThreads = 512, kBlocks = 2;
};

// 2^x to 2 ulp, equal for equal arguments. Subnormal results become 0, as Entry's products take them anyway.
__device__ __forceinline__ float exp2_fast(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);  // host compilers only, see tests/cuda_emulation
#endif
}

// The shift of a row whose largest logit is `max`; 0 where there is none, so that -inf - shift stays -inf.
__device__ __forceinline__ float shift_of(float max, float to_log2) {
  return max == -INFINITY ? 0.0f : __fmul_rn(max, to_log2);
}

// 2^(from - to), to move a sum to another shift; 0 for the sum of a part without finite logits.
__device__ __forceinline__ float rebase(float max, float from, float to) {
  return max == -INFINITY ? 0.0f : exp2_fast(from - to);
}

// One thread's share of a row, relative to the largest logits that it has met.
struct Partial {
  float s_max = -INFINITY, t_max = -INFINITY;
  float s_shift = 0, t_shift = 0;
  float s_sum = 0, t_sum = 0;  // of exponentials at the divergence's temperatures
  float s_soft = 0;            // of the student's exponentials at temperature 1, without the label's
  float pq = 0, qp = 0;        // first moments of the log ratio under p and under q, unnormalised
  float logits = 0;            // plain sum of the student's logits
};

// What the statistics sweep has found, the same in all threads.
struct RowStatistics {
  float s_shift, t_shift, soft_shift;
  float s_inverse, t_inverse, soft_inverse;  // reciprocal sums of exponentials
  float log_ratio_offset;                    // log p - log q = (t / T_t - s / T) + offset
  float lse;                                 // of the student at temperature 1
  float label, others;  // softmax at temperature 1: of the label, and of all others together
  Row<float> divergence;
};

template <class D, class S, class T>
struct DenseRow {
  static constexpr bool kDivergence = !std::is_same<D, NoDivergence>::value;
  // The widest group of which one access per side suffices.
  static constexpr int kGroup = kVectorSize<S> > kVectorSize<T> ? kVectorSize<S> : kVectorSize<T>;

  const DenseArgs& args;
  const D& divergence;
  RowView<S> student;
  RowView<T> teacher;
  int first;  // column of the first group: 0, or negative to put the others on a 16-byte boundary
  // The label's column where cross-entropy is asked for. It stays out of the sum of exponentials at
  // temperature 1: a confident model's loss and gradient come from the small sum of the others, of which 1 -
  // q would lose the digits.
  int hot;
  RowStatistics row;

  __device__ __forceinline__ DenseRow(const DenseArgs& a, const D& d, int64_t index)
      : args(a), divergence(d), student(row_of<S>(a.student, index, a.inner)), teacher{} {
    int head = elements_to_boundary(student);
    if constexpr (kDivergence) {
      teacher = row_of<T>(a.teacher, index, a.inner);
      // The narrower type has the stricter boundary.
      if (kVectorSize<T> > kVectorSize<S>) head = elements_to_boundary(teacher);
    }
    first = head ? head - kGroup : 0;
    hot = a.hard_weight != 0 ? static_cast<int>(a.labels[index]) : -kGroup;
    student.vector = vectorisable(student, first);
    if constexpr (kDivergence) teacher.vector = vectorisable(teacher, first);
  }

  __device__ __forceinline__ int groups() const { return (args.vocab - first + kGroup - 1) / kGroup; }

  // At most one read of each side; columns that do not exist look like masked ones.
  __device__ __forceinline__ void load(int column, float (&s)[kGroup], float (&t)[kGroup]) const {
    load_group<kGroup>(student, column, args.vocab, -INFINITY, s);
    if constexpr (kDivergence) load_group<kGroup>(teacher, column, args.vocab, -INFINITY, t);
  }

  // The student's exponential at temperature 1, from its logit and its exponential at the divergence's.
  __device__ __forceinline__ float soft_exponential(float s, float e, float shift) const {
    if (args.soft == Soft::kSeparate) return exp2_fast(fmaf(s, kLog2E, -shift));
    return args.soft == Soft::kSquare ? e * e : e;
  }

  __device__ __forceinline__ float soft_shift_of(float s_max, float s_shift) const {
    if (args.soft == Soft::kSeparate) return shift_of(s_max, kLog2E);
    return args.soft == Soft::kSquare ? 2 * s_shift : s_shift;
  }

  __device__ __forceinline__ float soft_rebase(float max, float s_factor, float from, float to) const {
    if (args.soft == Soft::kSeparate) return rebase(max, from, to);
    return args.soft == Soft::kSquare ? s_factor * s_factor : s_factor;
  }

  // log p - log q but for the row's offset. From the logits' difference: the rounding of two logarithms would
  // drown a small ratio.
  __device__ __forceinline__ float raw_log_ratio(float s, float t) const {
    return fmaf(t, args.temperature_ratio, -s) * args.inverse_temperature;
  }

  __device__ __forceinline__ void accumulate(int column, Partial& part) const {
    float s[kGroup], t[kGroup];
    load(column, s, t);
    float s_max = part.s_max, t_max = part.t_max;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      s_max = fmaxf(s_max, s[k]);
      if constexpr (kDivergence) t_max = fmaxf(t_max, t[k]);
    }
    if (s_max > part.s_max) {
      const float shift = shift_of(s_max, args.student_to_log2);
      const float factor = rebase(part.s_max, part.s_shift, shift);
      part.s_soft *= soft_rebase(part.s_max, factor, soft_shift_of(part.s_max, part.s_shift),
                                 soft_shift_of(s_max, shift));
      part.s_sum *= factor;
      part.qp = times(factor, part.qp);
      part.s_max = s_max;
      part.s_shift = shift;
    }
    if (t_max > part.t_max) {
      const float shift = shift_of(t_max, args.teacher_to_log2);
      const float factor = rebase(part.t_max, part.t_shift, shift);
      part.t_sum *= factor;
      part.pq = times(factor, part.pq);
      part.t_max = t_max;
      part.t_shift = shift;
    }
    const float soft_shift = soft_shift_of(part.s_max, part.s_shift);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const float e_s = exp2_fast(fmaf(s[k], args.student_to_log2, -part.s_shift));
      part.s_sum += e_s;
      part.s_soft += column + k == hot ? 0.0f : soft_exponential(s[k], e_s, soft_shift);
      if constexpr (kDivergence) {
        const float e_t = exp2_fast(fmaf(t[k], args.teacher_to_log2, -part.t_shift));
        part.t_sum += e_t;
        if constexpr (D::kNeedsPQ) part.pq += times(e_t, raw_log_ratio(s[k], t[k]));
        if constexpr (D::kNeedsQP) part.qp -= times(e_s, raw_log_ratio(s[k], t[k]));
      }
    }
    if (args.uniform_weight != 0) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (exists(column + k, args.vocab)) part.logits += s[k];
      }
    }
  }

  // The threads' shares put together. Returns the loss without the divergence.
  __device__ __forceinline__ float combine(const Partial& part) {
    // Read before the barriers: past them the gradient may overwrite it.
    const float label_logit = hot >= 0 ? S::to_float(student[hot]) : -INFINITY;
    float max[2] = {part.s_max, part.t_max};
    reduce_block<Max>(max);
    row.s_shift = shift_of(max[0], args.student_to_log2);
    row.t_shift = shift_of(max[1], args.teacher_to_log2);
    row.soft_shift = soft_shift_of(max[0], row.s_shift);
    if (kDivergence && args.equal_temperatures && fabsf(row.s_shift - row.t_shift) <= kSharedShiftRange) {
      row.s_shift = row.t_shift = fmaxf(row.s_shift, row.t_shift);
      if (args.soft != Soft::kSeparate) row.soft_shift = soft_shift_of(max[0], row.s_shift);
    }

    const float s_factor = rebase(part.s_max, part.s_shift, row.s_shift);
    const float t_factor = rebase(part.t_max, part.t_shift, row.t_shift);
    const float soft_factor =
        soft_rebase(part.s_max, s_factor, soft_shift_of(part.s_max, part.s_shift), row.soft_shift);
    float sum[6] = {part.s_sum * s_factor,    part.t_sum * t_factor,    part.s_soft * soft_factor,
                    times(t_factor, part.pq), times(s_factor, part.qp), part.logits};
    reduce_block<Sum>(sum);
    row.s_inverse = 1 / sum[0];
    row.t_inverse = 1 / sum[1];
    const float label = soft_exponential(label_logit, student_exponential(label_logit), row.soft_shift);
    row.soft_inverse = 1 / (sum[2] + label);
    row.label = label * row.soft_inverse;
    row.others = sum[2] * row.soft_inverse;
    row.lse = fmaf(row.soft_shift, kLn2, logf(sum[2] + label));
    if constexpr (kDivergence) {
      row.log_ratio_offset = fmaf(row.s_shift - row.t_shift, kLn2, logf(sum[0] / sum[1]));
      row.divergence.kl_pq = sum[3] / sum[1] + row.log_ratio_offset;
      row.divergence.kl_qp = sum[4] / sum[0] - row.log_ratio_offset;
    }

    float loss = 0;
    // A weight of 0 must not meet an infinite term.
    if (args.hard_weight != 0) {
      loss += args.hard_weight * (row.others < row.label ? log1pf(sum[2] / label) : row.lse - label_logit);
    }
    if (args.uniform_weight != 0) loss += args.uniform_weight * (row.lse - sum[5] / args.vocab);
    if (args.z_loss != 0) loss += args.z_loss * row.lse * row.lse;
    return loss;
  }

  __device__ __forceinline__ Entry<float> entry(float s, float t, float e_s) const {
    const float e_t = exp2_fast(fmaf(t, args.teacher_to_log2, -row.t_shift));
    Entry<float> e;
    // Rounded before the difference is taken (no fused multiply-add), so that equal rows differ by exactly 0.
    e.p = __fmul_rn(e_t, row.t_inverse);
    e.q = __fmul_rn(e_s, row.s_inverse);
    e.q_minus_p = __fadd_rn(e.q, -e.p);
    e.log_ratio = raw_log_ratio(s, t) + row.log_ratio_offset;
    return e;
  }

  __device__ __forceinline__ float student_exponential(float s) const {
    return exp2_fast(fmaf(s, args.student_to_log2, -row.s_shift));
  }

  // The sums that need both log-sum-exps first.
  __device__ __forceinline__ void divergence_sums() {
    float sum[2] = {0, 0};
#pragma unroll 1
    for (int g = threadIdx.x; g < groups(); g += blockDim.x) {
      float s[kGroup], t[kGroup];
      load(first + g * kGroup, s, t);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) divergence.sums(entry(s[k], t[k], student_exponential(s[k])), sum);
    }
    reduce_block<Sum>(sum);
    row.divergence.sum[0] = sum[0];
    row.divergence.sum[1] = sum[1];
  }

  // The sweeps before the gradient's. Returns the row's loss.
  __device__ __forceinline__ float statistics() {
    Partial part;
#pragma unroll 1
    for (int g = threadIdx.x; g < groups(); g += blockDim.x) accumulate(first + g * kGroup, part);
    float loss = combine(part);
    if constexpr (kDivergence) {
      if constexpr (D::kSums > 0) divergence_sums();
      loss += args.kd_weight * divergence.value(row.divergence);
    }
    return loss;
  }

  __device__ __forceinline__ void gradient(int64_t index) {
    const bool wants_student = args.grad_student.data, wants_teacher = kDivergence && args.grad_teacher.data;
    if (!wants_student && !wants_teacher) return;
    RowView<S> grad_student = row_of<S>(args.grad_student, index, args.inner);
    RowView<T> grad_teacher = row_of<T>(args.grad_teacher, index, args.inner);
    const float scale = args.grad_scale[index];
    grad_student.vector = vectorisable(grad_student, first);
    grad_teacher.vector = vectorisable(grad_teacher, first);
    const float by_student = scale * args.kd_by_student, by_teacher = scale * args.kd_by_teacher;
    const float cross_entropy = args.hard_weight + args.uniform_weight;
    // A row without the terms at temperature 1 has a weight of exactly 0, whatever its log-sum-exp.
    const float z_weight = args.z_loss != 0 ? 2 * args.z_loss * row.lse : 0.0f;
    const float soft = scale * (cross_entropy + z_weight);
    const float uniform = scale * args.uniform_weight / args.vocab;
    const float hard = scale * args.hard_weight;
    const float soft_at_label = (soft - hard) * row.label - hard * row.others - uniform;

    // Backwards: the end of the row is what the caches still hold.
    const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    int g = thread + (groups() - 1 - thread + threads) / threads * threads;  // the first one past the row
#pragma unroll 1
    while ((g -= threads) >= 0) {
      const int column = first + g * kGroup;
      float s[kGroup], t[kGroup];
      load(column, s, t);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        const float e_s = student_exponential(s[k]);
        float by_s = 0, by_t = 0;
        if (args.soft != Soft::kNone) {
          const float q = soft_exponential(s[k], e_s, row.soft_shift) * row.soft_inverse;
          by_s = column + k == hot ? soft_at_label : soft * q - uniform;
        }
        if constexpr (kDivergence) {
          const Entry<float> e = entry(s[k], t[k], e_s);
          by_s += by_student * divergence.student(e, row.divergence);
          if (wants_teacher) by_t = by_teacher * divergence.teacher(e, row.divergence);
        }
        s[k] = by_s;
        t[k] = by_t;
      }
      if (wants_student) store_group<kGroup>(grad_student, column, args.vocab, s);
      if (wants_teacher) store_group<kGroup>(grad_teacher, column, args.vocab, t);
    }
  }
};

// A gradient row that needs no logits: `value` in the vocabulary, 0 in the padding.
template <class E>
__device__ __forceinline__ void fill_gradient(const DenseArgs& args, const Rows& gradient, int64_t row,
                                              float value) {
  if (!gradient.data) return;
  const RowView<E> view = row_of<E>(gradient, row, args.inner);
  fill_row(view, 0, args.vocab, value);
  fill_row(view, args.vocab, static_cast<int>(gradient.columns), 0.0f);
}

template <class E>
__device__ __forceinline__ void clear_padding(const DenseArgs& args, const Rows& gradient, int64_t row) {
  if (!gradient.data) return;
  fill_row(row_of<E>(gradient, row, args.inner), args.vocab, static_cast<int>(gradient.columns), 0.0f);
}

template <class D, class S, class T>
__global__ void __launch_bounds__(BlockShape<D>::kThreads, BlockShape<D>::kBlocks)
    dense_kernel(const DenseArgs args, const D divergence) {
  for (int64_t index = blockIdx.x; index < args.rows; index += gridDim.x) {
    bool read = args.loss_scale[index] != 0 || args.grad_scale[index] != 0, known = true;
    if (args.labels) {
      const int64_t label = args.labels[index];
      read = read && label != args.ignore_index;
      known = label >= 0 && label < args.vocab;
    }
    if (!read || !known) {
      const float value = read ? NAN : 0.0f;
      if (threadIdx.x == 0) args.row_loss[index] = value;
      fill_gradient<S>(args, args.grad_student, index, value);
      fill_gradient<T>(args, args.grad_teacher, index, DenseRow<D, S, T>::kDivergence ? value : 0.0f);
      continue;
    }

    // What is read once per row is read where it is needed, which keeps registers free during the sweeps.
    DenseRow<D, S, T> row(args, divergence, index);
    const float loss = row.statistics();
    if (threadIdx.x == 0) args.row_loss[index] = args.loss_scale[index] * loss;

    row.gradient(index);
    clear_padding<S>(args, args.grad_student, index);
    if (DenseRow<D, S, T>::kDivergence) {
      clear_padding<T>(args, args.grad_teacher, index);
    } else {
      fill_gradient<T>(args, args.grad_teacher, index, 0.0f);
    }
  }
}

}  // namespace cuda
}  // namespace fastkd
