// The arguments of the kernel for a sparse teacher, in addition to those of every kernel.
#pragma once

#include <cstdint>

#include "../../divergences/functor.h"
#include "../../params.h"

namespace fastkd {
namespace cuda {

// The fields are those of SparseTeacher and DenseParams in params.h.
struct SparseCall {
  const int64_t* indices;
  const float* logprobs;
  float* grad;
  int entries;
  Tail tail;
  bool has_rest;
  double temperature, teacher_temperature, class_temperature;
  double most_mass;
  double teacher_power[kMaxStreams], student_power[kMaxStreams];  // powers of the divergence's streams
};

// Whether a divergence can compare a sparse teacher's classes, none of which is a label.
template <class D>
constexpr bool kTakesSparse = D::kReadsTeacher && !D::kSplitsLabel;

}  // namespace cuda
}  // namespace fastkd
