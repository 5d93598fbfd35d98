// The tokens' weights in a reduction, and the sums of what a loss's kernel has found, on a CPU.
#pragma once

#include "../params.h"

namespace fastkd::cpu {

// Writes the weights of the tokens.
void row_weights(const WeightParams& params);

// Writes the sum of the losses and the means of the metrics.
void totals(const TotalsParams& params);

}  // namespace fastkd::cpu
