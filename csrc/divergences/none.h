// Functors for calls whose kernel does not read a dense teacher.
#pragma once

#include "functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Cross-entropy alone.
struct NoDivergence : Functor {
  static constexpr bool kReadsTeacher = false;
  static constexpr Fields kStudentReads = Fields::kProbabilities;
};

// The divergence to a sparse teacher, which other code computes from a few columns. At all other columns its
// gradient is q times a coefficient of the row.
struct OffSupport : Functor {
  static constexpr bool kReadsTeacher = false, kSparseTeacher = true;
  static constexpr Fields kStudentReads = Fields::kProbabilities;
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
