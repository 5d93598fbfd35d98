// Functions that read labels on a CPU before a kernel runs.
#pragma once

#include <cstdint>

namespace fastkd::cpu {

// Writes the factors of a mean over the tokens that are not ignored: 1 / their number, and 0 for the others.
// `weights` (rows,) holds float, or double if `wide`.
void mean_weights(const int64_t* labels, int64_t rows, int64_t ignore_index, void* weights, bool wide);

}  // namespace fastkd::cpu
