// The CPU backend's interface for the bindings.
#pragma once

#include <string>
#include <vector>

#include "../params.h"

namespace fastkd::cpu {

// Returns the instruction sets that this machine can run, best first. The last is always "baseline".
std::vector<std::string> isas();

// Advises the system to map fresh memory in huge pages. That takes a fraction of the time of mapping small
// ones, which for a gradient would take as long as the kernel. The system may ignore the advice; nothing
// depends on it.
void advise_huge_pages(void* data, int64_t bytes);

// Returns the index of the first label that is neither in [0, total) nor ignored, or -1.
int64_t first_bad_label(const int64_t* labels, int64_t rows, int64_t total, int64_t ignore_index);

// `isa` is one of isas(). `threads` is the exact number of threads, the caller's included.
void dense_rows(const DenseParams& params, const std::string& isa, int threads);
void scale_rows(const ScaleParams& params, const std::string& isa, int threads);

}  // namespace fastkd::cpu
