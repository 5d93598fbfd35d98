// Coefficients that the SIMD variants share, highest power first.
#pragma once

#include "../math/entry.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// 2^f on [0, 1): minimax with the constant held at 1, relative error 8.3e-8.
constexpr float kExp2[6] = {0.0018671307f, 0.00901702896f, 0.0557999141f, 0.24016445f, 0.693151312f, 1.0f};

// log((1 + s) / (1 - s)) - 2 s over s^3, in s^2, for |s| < 0.2: 2/9, 2/7, 2/5, 2/3.
constexpr float kLog[4] = {0.22222222f, 0.28571429f, 0.4f, 0.66666667f};

}  // namespace FASTKD_ISA
}  // namespace fastkd
