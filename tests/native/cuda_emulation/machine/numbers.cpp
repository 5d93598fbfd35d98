#include "numbers.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace emulation {

namespace {

constexpr int kUlps = 2;
constexpr double kShare = 0.75;  // of the error of a logarithm; its rounding adds up to a quarter

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The finaliser of MurmurHash3.
uint32_t hash(uint32_t x) {
  x = (x ^ x >> 16) * 0x85ebca6bu;
  x = (x ^ x >> 13) * 0xc2b2ae35u;
  return x ^ x >> 16;
}

float flushed(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

float perturbed(double exact, uint32_t hashed) {
  float x = static_cast<float>(exact);
  if (!std::isfinite(x) || x == 0) return x;
  const int ulps = static_cast<int>(hashed % (2 * kUlps + 1)) - kUlps;
  for (int i = 0; i < std::abs(ulps); ++i)
    x = std::nextafter(x, ulps < 0 ? 0.0f : std::copysign(INFINITY, x));
  return x;
}

}  // namespace

float ex2_approx_ftz(float x) {
  const float operand = flushed(x);
  if (operand == 0) return 1;  // exactly, as documented
  return flushed(perturbed(std::exp2(double{operand}), hash(bits_of(operand))));
}

float lg2_approx_ftz(float x) {
  const float operand = flushed(x);
  const double exact = std::log2(double{operand});
  if (!std::isfinite(exact)) return static_cast<float>(exact);
  const double share = hash(bits_of(operand)) / 4294967295.0 * 2 - 1;
  const double unit = operand > 0.5f && operand < 2 ? 1 : std::fabs(exact);
  return flushed(static_cast<float>(exact + share * kShare * 0x1p-22 * unit));
}

float divide_approx(float x, float y) {
  if (std::fabs(y) > 0x1p126f && std::isfinite(y)) return std::isinf(x) ? NAN : x * 0.0f;
  return perturbed(double{x} / double{y}, hash(bits_of(x) ^ hash(bits_of(y))));
}

}  // namespace emulation
