// The CPU backend as the bindings see it.
#pragma once

#include <string>
#include <vector>

#include "../params.h"

namespace fastkd::cpu {

// Instruction sets this machine can run, best first; the last is always "baseline".
std::vector<std::string> isas();

// For fresh memory that the system has yet to map: in huge pages that takes a fraction of the time of small
// ones, which for a gradient would be as long as the kernel. Only advice: nothing is lost where it is not
// taken.
void advise_huge_pages(void* data, int64_t bytes);

// The first label that is neither in [0, total) nor ignored, or -1.
int64_t first_bad_label(const int64_t* labels, int64_t rows, int64_t total, int64_t ignore_index);

// `isa` is one of isas(); `threads` is the exact number of threads, the caller's included.
void dense_rows(const DenseParams& params, const std::string& isa, int threads);
void scale_rows(const ScaleParams& params, const std::string& isa, int threads);

}  // namespace fastkd::cpu
