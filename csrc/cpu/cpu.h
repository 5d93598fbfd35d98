// The CPU backend as the bindings see it.
#pragma once

#include <string>
#include <vector>

#include "../params.h"

namespace fastkd::cpu {

// Instruction sets this machine can run, best first; the last is always "baseline".
std::vector<std::string> isas();

// `isa` is one of isas(); `threads` is the exact number of threads, the caller's included.
void dense_rows(const DenseParams& params, const std::string& isa, int threads);
void scale_rows(const ScaleParams& params, const std::string& isa, int threads);

}  // namespace fastkd::cpu
