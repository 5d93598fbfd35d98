// Loads and stores blocks of a row: between memory of any dtype and the numbers that the kernels compute
// with.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../params.h"
#include "half.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Columns per block: large enough to amortise the overhead per block, small enough for the buffers to stay in
// L1.
constexpr int64_t kBlock = 1024;
// Columns that are summed before they are added to the block's sum. With more, the partial sum would be so
// large that much of the next terms is rounded away: where two rows agree, their sums of exponentials have to
// agree to the last digits.
constexpr int64_t kStretch = kBlock / 4;

inline int64_t size_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

template <class R>
inline R load_one(const char* p, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return static_cast<R>(*reinterpret_cast<const float*>(p));
    case Dtype::kBFloat16:
      return from_bf16(*reinterpret_cast<const uint16_t*>(p));
    case Dtype::kFloat16:
      return from_f16(*reinterpret_cast<const uint16_t*>(p));
    case Dtype::kFloat64:
      return static_cast<R>(*reinterpret_cast<const double*>(p));
  }
  return R(0);
}

template <class R>
inline void store_one(R x, char* p, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      *reinterpret_cast<float*>(p) = static_cast<float>(x);
      return;
    case Dtype::kBFloat16:
      *reinterpret_cast<uint16_t*>(p) = to_bf16(static_cast<float>(x));
      return;
    case Dtype::kFloat16:
      *reinterpret_cast<uint16_t*>(p) = to_f16(static_cast<float>(x));
      return;
    case Dtype::kFloat64:
      *reinterpret_cast<double*>(p) = static_cast<double>(x);
      return;
  }
}

// One row of a Rows.
struct RowPointer {
  char* data;
  Dtype dtype;
  int64_t step;  // bytes from one column to the next

  char* at(int64_t column) const { return data + column * step; }
  bool dense() const { return step == size_of(dtype); }
};

inline RowPointer row_of(const Rows& rows, int64_t inner, int64_t r) {
  const int64_t size = size_of(rows.dtype);
  const int64_t offset = rows.outer_stride * (r / inner) + rows.inner_stride * (r % inner);
  char* base = static_cast<char*>(rows.data);
  return {base == nullptr ? nullptr : base + offset * size, rows.dtype, rows.column_stride * size};
}

// Returns the sum of vector_at(i) for columns 0 to n - 1. It adds four vectors at a time, so that fewer of
// the additions round a large sum.
template <class V, class Body>
inline double sum_of(int64_t n, const Body& vector_at) {
  constexpr int kW = V::kWidth;
  V total(0);
  for (int64_t i = 0; i < n;) {
    V sum(0);
    const int64_t stop = std::min(n, i + kStretch);
    for (; i + 4 * kW <= stop; i += 4 * kW) {
      const V low = vector_at(i) + vector_at(i + kW);
      sum = sum + (low + (vector_at(i + 2 * kW) + vector_at(i + 3 * kW)));
    }
    for (; i < stop; i += kW) sum = sum + vector_at(i);
    total = total + sum;
  }
  return horizontal_sum(total);
}

// Returns the largest of n numbers, which are padded to whole vectors. There are four running maxima because
// each has to wait for its last comparison.
template <class V>
inline typename V::Real largest(const typename V::Real* x, int64_t n) {
  constexpr int kW = V::kWidth;
  V top[4] = {V::load(x), V::load(x), V::load(x), V::load(x)};
  int64_t i = 0;
  for (; i + 4 * kW <= n; i += 4 * kW) {
    for (int k = 0; k < 4; ++k) top[k] = max(top[k], V::load(x + i + k * kW));
  }
  for (; i < n; i += kW) top[0] = max(top[0], V::load(x + i));
  return horizontal_max(max(max(top[0], top[1]), max(top[2], top[3])));
}

// Converts 16-bit numbers to `scratch` as far as whole vectors reach. Returns the number of columns done.
template <bool kBf16, class V>
inline int64_t load_halves(const uint16_t* h, int64_t n, typename V::Real* scratch) {
  int64_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) V::load16(h + i, kBf16).store(scratch + i);
  return i;
}

// Returns columns [start, start + n) as numbers, padded with -inf to a whole number of vectors. The result
// points into the row itself where that is possible, else to `scratch`.
template <class V>
inline const typename V::Real* load_block(const RowPointer& row, int64_t start, int64_t n,
                                          typename V::Real* scratch) {
  using R = typename V::Real;
  const char* p = row.at(start);
  if (row.dense() && n % V::kWidth == 0 && size_of(row.dtype) == sizeof(R)) {
    return reinterpret_cast<const R*>(p);
  }
  int64_t i = 0;
  if constexpr (V::kSimd) {
    const uint16_t* h = reinterpret_cast<const uint16_t*>(p);
    if (row.dense() && row.dtype == Dtype::kFloat32) {
      for (; i + V::kWidth <= n; i += V::kWidth)
        V::load(reinterpret_cast<const R*>(p) + i).store(scratch + i);
    } else if (row.dense() && row.dtype == Dtype::kBFloat16) {
      i = load_halves<true, V>(h, n, scratch);
    } else if (row.dense() && row.dtype == Dtype::kFloat16) {
      i = load_halves<false, V>(h, n, scratch);
    }
  }
  for (; i < n; ++i) scratch[i] = load_one<R>(p + i * row.step, row.dtype);
  for (; i % V::kWidth != 0; ++i) scratch[i] = -std::numeric_limits<R>::infinity();
  return scratch;
}

// Converts `scratch` from column i on to 16-bit numbers, as far as pairs of vectors reach. Returns the number
// of columns done.
template <bool kStreamed, class V>
inline int64_t store_halves(const typename V::Real* scratch, int64_t i, int64_t n, uint16_t* h, bool bf16,
                            bool nan) {
  constexpr int kW = V::kWidth;
  for (; i + 2 * kW <= n; i += 2 * kW) {
    const V low = V::load(scratch + i), high = V::load(scratch + i + kW);
    if constexpr (kStreamed) {
      stream16(low, high, h + i, bf16, nan);
    } else {
      store16(low, high, h + i, bf16, nan);
    }
  }
  return i;
}

template <bool kStreamed, class V>
inline int64_t store_floats(const typename V::Real* scratch, int64_t i, int64_t n, float* p) {
  constexpr int kW = V::kWidth;
  for (; i + kW <= n; i += kW) {
    if constexpr (kStreamed) {
      stream(V::load(scratch + i), p + i);
    } else {
      V::load(scratch + i).store(p + i);
    }
  }
  return i;
}

// Destinations of a loop that computes a gradient. ToNumbers stores one vector at a time in the loop's own
// number type, ToHalves two vectors as 16-bit numbers.
template <class V, bool kStreamed>
struct ToNumbers {
  static constexpr int kVectors = 1;
  typename V::Real* out;

  FASTKD_INLINE void put(int64_t i, V x) const {
    if constexpr (kStreamed) {
      stream(x, out + i);
    } else {
      x.store(out + i);
    }
  }
};

template <class V, bool kStreamed, bool kBf16>
struct ToHalves {
  static constexpr int kVectors = 2;
  uint16_t* out;

  FASTKD_INLINE void put(int64_t i, V low, V high) const {
    if constexpr (kStreamed) {
      stream16(low, high, out + i, kBf16, false);
    } else {
      store16(low, high, out + i, kBf16, false);
    }
  }
};

// Stores the first n numbers of `scratch` to columns [start, start + n). `streamed`: whether the stores
// bypass the caches; `nan`: whether the numbers may contain a NaN that an operand brought along.
template <class V>
inline void store_block(const typename V::Real* scratch, int64_t n, const RowPointer& row, int64_t start,
                        bool streamed, bool nan) {
  char* p = row.at(start);
  int64_t i = 0;
  if constexpr (V::kSimd) {
    if (row.dense() && row.dtype != Dtype::kFloat64) {
      const bool bf16 = row.dtype == Dtype::kBFloat16;
      float* const floats = reinterpret_cast<float*>(p);
      uint16_t* const halves = reinterpret_cast<uint16_t*>(p);
      if (streamed) {
        constexpr int64_t kLine = V::kWidth * sizeof(float);
        const int64_t size = size_of(row.dtype);
        for (; i < n && reinterpret_cast<uintptr_t>(p + i * size) % kLine != 0; ++i) {
          store_one(scratch[i], p + i * size, row.dtype);
        }
        i = row.dtype == Dtype::kFloat32 ? store_floats<true, V>(scratch, i, n, floats)
            : bf16 && !nan               ? store_halves<true, V>(scratch, i, n, halves, true, false)
                                         : store_halves<true, V>(scratch, i, n, halves, bf16, true);
      } else {
        i = row.dtype == Dtype::kFloat32 ? store_floats<false, V>(scratch, i, n, floats)
            : bf16 && !nan               ? store_halves<false, V>(scratch, i, n, halves, true, false)
                                         : store_halves<false, V>(scratch, i, n, halves, bf16, true);
      }
    }
  }
  for (; i < n; ++i) store_one(scratch[i], p + i * row.step, row.dtype);
}

inline void zero_columns(const RowPointer& row, int64_t start, int64_t stop) {
  for (int64_t i = start; i < stop; ++i) store_one(0.0f, row.at(i), row.dtype);
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
