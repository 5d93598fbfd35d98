// No divergence: cross-entropy alone, the teacher is not read.
#pragma once

#include "entry.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct NoDivergence {};

}  // namespace FASTKD_ISA
}  // namespace fastkd
