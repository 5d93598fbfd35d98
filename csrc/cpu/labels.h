// Functions that read labels on a CPU before a kernel runs.
#pragma once

#include "../params.h"

namespace fastkd::cpu {

// Writes the weights of the tokens.
void row_weights(const WeightParams& params);

}  // namespace fastkd::cpu
