// The arguments of the dense kernel, with everything precomputed that does not depend on the row.
#pragma once

#include <cuda_runtime.h>

#include "../../divergences/functor.h"
#include "../../params.h"

namespace fastkd {
namespace cuda {

// How the exponentials at temperature 1 (cross-entropy, z-loss) are computed: not at all, as those of the
// divergence, as their squares, or separately.
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

  // For the kernels with extras (phases, metrics) only:
  Phase phase;
  double* record;
  float* metrics;
  const float* coefficient;
  bool sharded;
  float kd_metric;
  float label_smoothing;

  bool needs_label;  // whether any result depends on the label's logit
  bool sum_logits;
  bool equal_temperatures;
  float student_to_log2, teacher_to_log2;  // log2(e) / temperature
  float raise_margin;                      // by how much a logit may exceed what exponentials are relative to
  float inverse_temperature;               // 1 / the student's temperature
  float temperature_ratio;                 // student's / teacher's
  float kd_weight, kd_by_student,
      kd_by_teacher;                 // factors of the divergence's value and of each side's gradient
  float teacher_power[kMaxStreams];  // powers of the divergence's streams
  float total_power[kMaxStreams];    // the teacher's power plus the student's

  Soft soft;
  bool soft_gradient;    // whether terms at temperature 1 contribute to the gradient
  float hard_weight;     // factor of the label's negative log-probability
  float uniform_weight;  // factor of the mean negative log-probability (label smoothing)
  float z_loss;
};

// Whether a call needs the kernel with phases and metrics; the kernel without them is leaner.
inline bool has_extras(const DenseArgs& args) { return args.phase != Phase::kAll || args.metrics != nullptr; }

}  // namespace cuda
}  // namespace fastkd
