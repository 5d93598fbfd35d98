// The parameters that the bindings pass to the kernels: plain numbers and addresses, no types of a framework.
//
// Shapes below are those of the arrays that the pointers address; an array without strides of its own is
// contiguous, row by row. All arrays of a call are in the memory of the device that runs it.
#pragma once

#include <cstdint>
#include <limits>

#include "divergences/list.h"

namespace fastkd {

enum class Dtype : int { kFloat32, kBFloat16, kFloat16, kFloat64 };

constexpr int element_bytes(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// kNoDivergence: cross-entropy alone; the kernel does not read a teacher.
// kOffSupport: the divergence to a sparse teacher, of which the sweeps compute the student's side alone.
enum class Divergence : int {
#define FASTKD_ENUMERATOR(name, Functor, arguments) k##Functor,
  FASTKD_DIVERGENCES(FASTKD_ENUMERATOR)
#undef FASTKD_ENUMERATOR
};

// The sweeps that a call runs. kAll runs all of a row's sweeps. The other phases run one part each and keep a
// row's record in between, where the caller combines the records: with those of the other shards of the
// vocabulary, or with the entries of a sparse teacher.
//   kStatistics  sweep 1; writes the record
//   kSums        the divergence's sums; reads the record and writes kSum0 and kSum1
//   kDistant     replaces kSum0 and kSum1 of distant rows (Functor::kDistant) by logarithms to base 2
//   kFinish      the loss, the metrics and the gradients; reads the record
enum class Phase : int { kAll, kStatistics, kSums, kDistant, kFinish };

// The columns of a row's record, each a double, as X(enumerator, its name in fastkd/backends/record.py). Sums
// are relative to the row maxima: z_s is the sum of exp((s - max_s) / T), and so on. However large the logits
// are, the records of shards can therefore be added without losing digits. Where all logits are -inf, the
// maximum is -inf and these sums are 0. Without metrics, max_s and max_t are lower bounds only: the true row
// maximum may exceed them slightly. Where the divergence treats the label apart, no sum but logit_sum
// includes it.
#define FASTKD_RECORD_COLUMNS(X)                                                                          \
  X(kMaxS, max_s)       /* largest logit of the student */                                                \
  X(kMaxT, max_t)       /* largest logit of the teacher */                                                \
  X(kZS, z_s)           /* sum of the student's exponentials at its temperature */                        \
  X(kZT, z_t)           /* sum of the teacher's exponentials at its temperature */                        \
  X(kZCe, z_ce)         /* sum of the student's exponentials at temperature 1 */                          \
  X(kStream0, stream_0) /* the divergence's streams, for log-ratios */                                    \
  X(kStream1, stream_1) /* (t - max_t) / T_t - (s - max_s) / T */                                         \
  X(kStream2, stream_2)                                                                                   \
  X(kCrossShift, cross_shift) /* exponent of 2 that a cross stream (stream 0) was divided by; mostly 0 */ \
  X(kLogitSum, logit_sum)     /* sum of the student's logits, less `columns` times max_s */               \
  X(kLabelS, label_s)         /* the student's logit of the label, -inf if another shard has the label */ \
  X(kLabelT, label_t)         /* the teacher's logit of the label */                                      \
  X(kMomentS, moment_s)       /* sum of the student's exponentials times s - max_s (for the entropy) */   \
  X(kMomentT, moment_t)       /* the same for the teacher */                                              \
  X(kArgS, arg_s)             /* column of the student's largest logit */                                 \
  X(kArgT, arg_t)             /* column of the teacher's largest logit */                                 \
  X(kColumns, columns)        /* number of columns that exist */                                          \
  X(kSum0, sum_0) /* the divergence's sums, from Phase::kSums; of a distant row, from kDistant */         \
  X(kSum1, sum_1)

// The columns of a row's metrics.
#define FASTKD_METRIC_COLUMNS(X)      \
  X(kKd, kd)                          \
  X(kCe, ce)                          \
  X(kStudentEntropy, student_entropy) \
  X(kTeacherEntropy, teacher_entropy) \
  X(kAgreement, agreement)

#define FASTKD_ENUMERATOR(enumerator, name) enumerator,
namespace record {
enum Column : int { FASTKD_RECORD_COLUMNS(FASTKD_ENUMERATOR) kCount };
}  // namespace record
namespace metric {
enum Column : int { FASTKD_METRIC_COLUMNS(FASTKD_ENUMERATOR) kCount };
}  // namespace metric
#undef FASTKD_ENUMERATOR

// Strided (rows, columns) logits, or their gradient. Row r begins at element
// outer_stride * (r / inner) + inner_stride * (r % inner), where `inner` is DenseParams::inner. Strides count
// elements.
struct Rows {
  void* data = nullptr;  // null where the call has no such rows
  Dtype dtype = Dtype::kFloat32;
  int64_t outer_stride = 0;
  int64_t inner_stride = 0;
  int64_t column_stride = 1;
  int64_t columns = 0;
};

// How the columns that a sparse teacher does not name are treated, see fastkd.SparseTeacher.
enum class Tail : int { kRenormalize, kBucket, kDrop };

// The entries of a sparse teacher. An entry whose log-probability is -inf does not exist. On a CPU, no two
// existing entries of a row that the kernel reads name the same column, and none one outside the vocabulary.
// On a GPU the kernel itself looks for such rows, and for those of too large a mass: all their results are
// NaN.
struct SparseTeacher {
  // A launch on a GPU takes at most this many entries per row, because they are in a block's shared memory.
  static constexpr int kMaxEntriesOnGpu = 1024;

  const int64_t* indices = nullptr;  // (rows, entries), columns of the vocabulary
  const void* logprobs = nullptr;    // (rows, entries), float, or double if DenseParams::wide
  void* grad = nullptr;  // (rows, entries), dtype of logprobs: their gradient; null if it is not wanted
  int64_t entries = 0;   // per row
  Tail tail = Tail::kRenormalize;
  Divergence divergence = Divergence::kForwardKL;
  bool has_rest = true;  // whether the student's other columns form a class of their own
  // With kBucket the student's classes are formed at the call's temperature, which is then 1, and their
  // logarithms are divided by this temperature.
  double class_temperature = 1.0;
  // The largest sum of a row's probabilities that counts as at most 1; infinite where the sum does not
  // matter.
  double most_mass = std::numeric_limits<double>::infinity();
};

struct DenseParams {
  int64_t rows = 0;
  int64_t inner = 1;  // the size of the logits' second dimension, see Rows
  int64_t vocab = 0;  // number of columns that exist; the kernel writes zeros to the rest of a gradient row
  // (rows, columns), each with its own dtype, strides and number of columns. Logits in columns from `vocab`
  // on are not read. A gradient whose `data` is null is not computed.
  Rows student, teacher, grad_student, grad_teacher;
  const int64_t* labels = nullptr;  // (rows,), or null without labels
  // The arrays of real numbers hold float, or double if `wide`.
  const void* loss_scale = nullptr;  // (rows,), factor of the row's loss
  const void* grad_scale = nullptr;  // (rows,), factor of the row's gradients
  void* row_loss = nullptr;          // (rows,), output
  void* metrics = nullptr;           // (rows, metric::kCount), output; null if they are not wanted
  // (rows,), for kOffSupport in Phase::kFinish: the factor of q in the student's gradient. In Phase::kAll the
  // kernel computes it from `sparse`.
  const void* coefficient = nullptr;
  SparseTeacher sparse;
  bool wide = false;  // whether the kernel computes in float64

  Phase phase = Phase::kAll;
  double* record = nullptr;  // (rows, record::kCount); not needed for Phase::kAll
  bool sharded = false;      // a label outside [0, vocab) belongs to another shard

  // On a GPU with clusters of blocks: the number of blocks that run a row out of their shared memory, or
  //   0         the kernel that streams rows from memory
  //   kChoose   the launch chooses between the two kernels
  //   kCluster  a cluster whose size the launch chooses
  // A cluster that cannot hold the row is an error, except with kChoose. Calls with a phase always stream.
  static constexpr int kChoose = -1, kCluster = -2;
  int cluster = kChoose;
  int cluster_rows = 0;  // that a cluster takes one after the other, at most 16; 0: the launch chooses

  Divergence divergence = Divergence::kForwardKL;
  double alpha = 0.5;
  double beta = 0.5;
  double temperature = 1.0;
  double teacher_temperature = 1.0;
  double kd_weight = 1.0;
  double kd_metric = 1.0;  // the divergence's factor in the metrics
  double ce_weight = 0.0;
  double label_smoothing = 0.0;
  double z_loss = 0.0;
  double lse_less = 0.0;  // what was subtracted from the student's logits; the z-loss adds it to their
                          // log-sum-exp
  int64_t ignore_index = -100;
};

// out[r, :] = grad[r, :] * factor[r * factor_stride]
struct ScaleParams {
  int64_t rows = 0;
  int64_t inner = 1;  // the size of the gradients' second dimension, see Rows
  Rows grad, out;     // (rows, columns) of one dtype, whose columns are contiguous; `out` may be `grad`
  const void* factor = nullptr;  // (rows,), float, or double if `wide`
  int64_t factor_stride = 0;     // 0 where all rows share one factor
  bool wide = false;
};

// Types of the numbers that a caller gives for each token, or for a call.
enum class Scalar : int { kFloat32, kFloat64, kBFloat16, kFloat16, kInt64, kInt32, kBool };

struct Numbers {
  const void* data = nullptr;  // null where the caller has given none
  Scalar type = Scalar::kFloat32;
};

// How a reduction weighs the tokens: weights[r] = w[r] * factor, where w[r] is 0 if the token's label is
// ignored, and otherwise its number in token_weights (1 without them).
struct WeightParams {
  // kFactor: `factor`. kSum: one over the sum of w. kItems: one over the single number in `items`. One over
  // 0 counts as 0.
  enum class Divisor : int { kFactor, kSum, kItems };

  int64_t rows = 0;
  const int64_t* labels = nullptr;  // (rows,), or null
  int64_t ignore_index = -100;
  Numbers token_weights;  // (rows,)
  Divisor divisor = Divisor::kFactor;
  double factor = 1.0;
  Numbers items;            // ()
  void* weights = nullptr;  // (rows,), output: float, or double if `wide`
  bool wide = false;
};

// The sum of the rows' losses, and the means of their metrics over the rows whose weight is not 0. All
// numbers are float, or double if `wide`.
struct TotalsParams {
  int64_t rows = 0;
  const void* row_loss = nullptr;    // (rows,), read with `loss`
  const void* metrics = nullptr;     // (rows, metric::kCount), 0 in rows of weight 0; read with `means`
  const void* loss_scale = nullptr;  // (rows,), the weights; read with `means`
  void* loss = nullptr;              // (), output, or null
  void* means = nullptr;             // (metric::kCount + 1,), output, or null; the last is the number of rows
  bool wide = false;
};

}  // namespace fastkd
