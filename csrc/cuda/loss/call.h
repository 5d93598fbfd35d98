// The arguments of the kernels: a call's pointers and shapes, and the numbers that are the same for all of
// its rows. The host computes these once, in double.
#pragma once

#include <cuda_runtime.h>

#include "../../divergences/functor.h"
#include "../../params.h"

namespace fastkd {
namespace cuda {

// How the kernel obtains the exponentials of ce_softmax, the student's softmax at temperature 1
// (cross-entropy, z-loss): not at all, as those of the divergence, as their squares (temperature 2), or
// separately.
enum class CeSoftmax : int { kNone, kReuse, kSquare, kSeparate };

struct Call {
  int64_t rows, inner;
  int vocab;
  int cluster, cluster_rows;  // see params.h
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

  bool keeps_logs;   // whether the second sweep of a cluster keeps logarithms for the third one
  bool needs_label;  // whether any result depends on the label's logit
  bool sum_logits;   // whether sweep 1 sums the student's logits, for label smoothing
  bool equal_temperatures;
  float log2_scale_s, log2_scale_t;  // log2(e) / temperature: from a logit to its exponent of 2
  float raise_margin;                // by how much a logit may exceed the anchor before the sums are rescaled
  float inverse_temperature;         // 1 / the student's temperature
  float temperature_ratio;           // student's / teacher's
  float kd_weight;                   // factor of the divergence's value
  float kd_by_student, kd_by_teacher;  // factors of its gradients
  float teacher_power[kMaxStreams];    // powers of the divergence's streams
  float total_power[kMaxStreams];      // the teacher's power plus the student's

  CeSoftmax ce_softmax;
  bool ce_gradient;        // whether terms at temperature 1 contribute to the gradient
  float label_weight;      // factor of the label's negative log-probability
  float smoothing_weight;  // factor of the mean negative log-probability (label smoothing)
  float z_loss;
};

// Whether a call needs the kernel with phases and metrics; the kernel without them is leaner.
inline bool has_extras(const Call& call) { return call.phase != Phase::kAll || call.metrics != nullptr; }

}  // namespace cuda
}  // namespace fastkd
