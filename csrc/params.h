// What crosses from the bindings to the kernels: plain numbers and addresses, no framework.
#pragma once

#include <cstdint>

#include "divergences/list.h"

namespace fastkd {

enum class Dtype : int { kFloat32, kBFloat16, kFloat16, kFloat64 };

// kNoDivergence: cross-entropy alone, the teacher is not read. kOffSupport: a sparse teacher's divergence, of
// which the sweeps see the student's side alone.
enum class Divergence : int {
#define FASTKD_ENUMERATOR(name, Functor, arguments) k##Functor,
  FASTKD_DIVERGENCES(FASTKD_ENUMERATOR)
#undef FASTKD_ENUMERATOR
};

// A call does all of a row's sweeps, or one of the parts between which somebody else adds up the rows'
// records: over the shards of a vocabulary, or with what a sparse teacher holds.
enum class Phase : int { kAll, kStatistics, kSums, kDistant, kFinish };

// A row's record, as doubles. Its sums are relative to the row's largest logits: z_s is the sum of
// exp((s - max_s) / T), and so on; 0 where all logits are -inf, with max -inf. However large the logits are,
// the records of shards then add up without a loss of digits.
// Without metrics, which ask for the largest, max_s may be a logit that others exceed by a little.
namespace record {
enum Column : int {
  kMaxS,     // largest logit of the student
  kMaxT,     // of the teacher
  kZS,       // sum of the student's exponentials at its temperature
  kZT,       // of the teacher's
  kZOne,     // of the student's at temperature 1 (without the label where the divergence splits it off, as
             // all sums here)
  kStream0,  // the divergence's streams, of ratios (t - max_t) / T_t - (s - max_s) / T
  kStream1,
  kStream2,
  kCrossShift,  // exponent of 2 that stream 0 was divided by where it is a cross stream; mostly 0
  kLogitSum,    // sum of the student's logits, less `columns` times max_s; here the label is in it
  kLabelS,      // the label's logit of the student, -inf where the label lies in another shard
  kLabelT,      // of the teacher
  kMomentS,     // sum of the student's exponentials times s - max_s (for the entropy)
  kMomentT,
  kArgS,  // column of the student's largest logit
  kArgT,
  kColumns,  // how many columns exist
  kSum0,     // the divergence's sums, written by Phase::kSums; of a distant row, by Phase::kDistant
  kSum1,
  kCount
};
}  // namespace record

// What a row's metrics are, in this order.
namespace metric {
enum Column : int { kKd, kCe, kStudentEntropy, kTeacherEntropy, kAgreement, kCount };
}  // namespace metric

// Rows of logits or of their gradient. Row r lies at outer_stride * (r / inner) + inner_stride * (r % inner),
// with `inner` of the call; strides count elements.
struct Rows {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t outer_stride = 0;
  int64_t inner_stride = 0;
  int64_t column_stride = 1;
  int64_t columns = 0;
};

// What a sparse teacher says of the columns that it does not name, see fastkd.SparseTeacher.
enum class Tail : int { kRenormalize, kBucket, kDrop };

// A sparse teacher's entries, `entries` to a row; one whose log-probability is -inf does not exist. In a row
// that is read each names another column of the vocabulary.
struct SparseTeacher {
  const int64_t* indices = nullptr;
  const void* logprobs = nullptr;  // float, or double where the call is wide
  void* grad = nullptr;            // like logprobs, or none
  int64_t entries = 0;
  Tail tail = Tail::kRenormalize;
  Divergence divergence = Divergence::kForwardKL;
  bool has_rest = true;  // whether the student's other columns are a class of their own
  // With kBucket the student's classes are formed at temperature 1 (that of the call), and their logarithms
  // are then divided by this temperature.
  double class_temperature = 1.0;
};

struct DenseParams {
  int64_t rows = 0;
  int64_t inner = 1;
  int64_t vocab = 0;  // columns that exist; the rest of a gradient row is zero
  Rows student, teacher, grad_student, grad_teacher;  // a gradient with no data is not wanted
  const int64_t* labels = nullptr;
  // float, or double where `wide`
  const void* loss_scale = nullptr;
  const void* grad_scale = nullptr;
  void* row_loss = nullptr;
  void* metrics = nullptr;  // metric::kCount per row, or none
  // Of kOffSupport: where a call is of one phase, one per row; where it is of all, which the CPU alone can
  // do, the teacher.
  const void* coefficient = nullptr;
  SparseTeacher sparse;
  bool wide = false;

  Phase phase = Phase::kAll;
  double* record = nullptr;  // record::kCount per row; not needed for Phase::kAll
  bool sharded = false;      // a label outside [0, vocab) lies in another shard

  // Of a GPU that has them: how many blocks take a row, out of their shared memory; 0 for the kernel that
  // streams rows, kChoose, or kCluster for a number that is chosen or an error.
  static constexpr int kChoose = -1, kCluster = -2;
  int cluster = kChoose;

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
  double lse_less = 0.0;  // what the logits are less than those of which the z-loss is
  int64_t ignore_index = -100;
};

// out[r, :] = grad[r, :] * factor[r * factor_stride]
struct ScaleParams {
  int64_t rows = 0;
  int64_t columns = 0;
  const void* grad = nullptr;
  void* out = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t grad_stride = 0;
  int64_t out_stride = 0;
  const void* factor = nullptr;  // float, or double where `wide`
  int64_t factor_stride = 0;
  bool wide = false;
};

}  // namespace fastkd
