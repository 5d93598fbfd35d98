// Coefficients that the SIMD variants share, highest power first.
#pragma once

#include "../math/entry.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// 2^f on [0, 1) and on [-1/2, 1/2]: minimax with the constant held at 1, relative error 2.1e-9. One degree
// less has 8.3e-8, not random but the same for all like arguments: it showed in divergences at high
// temperatures.
constexpr int kExp2Terms = 7;
constexpr float kExp2[kExp2Terms] = {
    0.000216129212f, 0.00124678448f, 0.00967545173f, 0.0554852805f, 0.240229306f, 0.693147044f, 1.0f};

constexpr float kExp2Centered[kExp2Terms] = {
    0.000153533620f, 0.00133988739f, 0.00961843692f, 0.0555033237f, 0.240226477f, 0.693147182f, 1.0f};

// (log(1 + f) - f) / f^2 on [-1/4, 1/2): minimax, relative error of the logarithm 2.8e-8.
constexpr int kLogTerms = 8;
constexpr float kLog[kLogTerms] = {0.0541324914f, -0.120673686f, 0.149839163f, -0.168228120f,
                                   0.199770778f,  -0.249934420f, 0.333335489f, -0.500000596f};

}  // namespace FASTKD_ISA
}  // namespace fastkd
