// Functions that read labels on a CPU before a kernel runs.
#pragma once

#include "../params.h"

namespace fastkd::cpu {

// Writes the weights of the tokens. There are no 16-bit numbers among the params' inputs.
void row_weights(const WeightParams& params);

}  // namespace fastkd::cpu
