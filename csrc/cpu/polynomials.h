// Coefficients that the SIMD variants share, highest power first.
#pragma once

#include "../math/entry.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// 2^f on [0, 1): minimax with the constant held at 1, relative error 2.1e-9. One degree less has 8.3e-8,
// not random but the same for all like arguments: it showed in divergences at high temperatures.
constexpr int kExp2Terms = 7;
constexpr float kExp2[kExp2Terms] = {
    0.000216129212f, 0.00124678448f, 0.00967545173f, 0.0554852805f, 0.240229306f, 0.693147044f, 1.0f};

// log((1 + s) / (1 - s)) - 2 s over s^3, in s^2, for |s| < 0.2: 2/9, 2/7, 2/5, 2/3.
constexpr float kLog[4] = {0.22222222f, 0.28571429f, 0.4f, 0.66666667f};

}  // namespace FASTKD_ISA
}  // namespace fastkd
