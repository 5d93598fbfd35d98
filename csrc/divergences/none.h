// What takes a divergence's place where the kernel reads no teacher.
#pragma once

#include "entry.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Cross-entropy alone.
struct NoDivergence : Functor {};

// A sparse teacher's divergence, worked out elsewhere from a few columns. At all others its gradient is q
// times a coefficient of the row.
struct OffSupport : Functor {};

}  // namespace FASTKD_ISA
}  // namespace fastkd
