// What the host hands to the dense kernel, with all that does not depend on the row worked out.
#pragma once

#include <cuda_runtime.h>

#include "../divergences/entry.h"
#include "../params.h"

namespace fastkd {
namespace cuda {

// Where the exponentials at temperature 1 (cross-entropy, z-loss) come from.
enum class Soft : int { kNone, kReuse, kSquare, kSeparate };

struct DenseArgs {
  int64_t rows, inner;
  int vocab;
  int cluster;  // see params.h
  Rows student, teacher, grad_student, grad_teacher;
  const int64_t* labels;
  int64_t ignore_index;
  const float* loss_scale;
  const float* grad_scale;
  float* row_loss;

  // For the kernels with extras only
  Phase phase;
  double* record;
  float* metrics;
  const float* coefficient;
  bool sharded;
  float kd_metric;
  float label_smoothing;

  bool needs_label;  // whether the label's logit has a part in anything
  bool sum_logits;
  bool equal_temperatures;
  float student_to_log2, teacher_to_log2;  // log2(e) / temperature
  float raise_margin;                      // how far a logit may lie above what exponentials are relative to
  float inverse_temperature;               // of the student
  float temperature_ratio;                 // student's / teacher's
  float kd_weight, kd_by_student, kd_by_teacher;  // the value's weight, and each side's gradient's
  float teacher_power[kMaxStreams];               // of the divergence's streams
  float total_power[kMaxStreams];                 // the teacher's and the student's together

  Soft soft;
  bool soft_gradient;    // whether the terms at temperature 1 have a gradient
  float hard_weight;     // of the label's negative log-probability
  float uniform_weight;  // of the mean negative log-probability, label smoothing
  float z_loss;
};

// Whether a call needs the kernel that has phases and metrics: without these it is the leaner.
inline bool has_extras(const DenseArgs& args) { return args.phase != Phase::kAll || args.metrics != nullptr; }

// Instantiated once for each divergence, in a file of its own.
template <class D>
cudaError_t launch_dense(const DenseArgs& args, const D& divergence, cudaStream_t stream);

}  // namespace cuda
}  // namespace fastkd
