// The approximate arithmetic of a GPU, with errors as large as the documentation allows. An error is a hash
// of the operands, so that equal operands have equal results.
#pragma once

#include <cstdint>

namespace emulation {

float ex2_approx_ftz(float x);          // 2 ulp
float lg2_approx_ftz(float x);          // 2^-22, absolute for x from 0.5 to 2, else relative
float divide_approx(float x, float y);  // 2 ulp

}  // namespace emulation
