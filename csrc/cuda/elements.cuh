// Logits in memory and in registers: groups of neighbouring columns, converted to and from float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "../params.h"

namespace fastkd {
namespace cuda {

constexpr int kVectorBytes = 16;  // the widest access of one thread

// An element type: how it is stored, alone and in pairs (converting a pair is one instruction).
struct Float32 {
  using Stored = float;
  using Pair = float2;
  static __device__ __forceinline__ float to_float(float x) { return x; }
  static __device__ __forceinline__ float from_float(float x) { return x; }
  static __device__ __forceinline__ float2 to_floats(float2 x) { return x; }
  static __device__ __forceinline__ float2 from_floats(float x, float y) { return make_float2(x, y); }
};

struct BFloat16 {
  using Stored = __nv_bfloat16;
  using Pair = __nv_bfloat162;
  static __device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __forceinline__ __nv_bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }
  static __device__ __forceinline__ float2 to_floats(__nv_bfloat162 x) { return __bfloat1622float2(x); }
  static __device__ __forceinline__ __nv_bfloat162 from_floats(float x, float y) {
    return __floats2bfloat162_rn(x, y);
  }
};

struct Float16 {
  using Stored = __half;
  using Pair = __half2;
  static __device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
  static __device__ __forceinline__ __half from_float(float x) { return __float2half_rn(x); }
  static __device__ __forceinline__ float2 to_floats(__half2 x) { return __half22float2(x); }
  static __device__ __forceinline__ __half2 from_floats(float x, float y) { return __floats2half2_rn(x, y); }
};

// What one vector access moves.
template <class E>
struct alignas(kVectorBytes) Vector {
  static constexpr int kPairs = kVectorBytes / sizeof(typename E::Pair);
  static constexpr int kSize = 2 * kPairs;
  typename E::Pair pair[kPairs];
};

// One row of a tensor. `vector`: its groups lie on 16-byte boundaries, without gaps.
template <class E>
struct RowView {
  using Stored = typename E::Stored;
  Stored* data;
  int64_t stride;
  bool vector;

  __device__ __forceinline__ Stored& operator[](int64_t column) const { return data[column * stride]; }
};

template <class E>
__device__ __forceinline__ RowView<E> row_of(const Rows& rows, int64_t row, int64_t inner) {
  const int64_t offset = row / inner * rows.outer_stride + row % inner * rows.inner_stride;
  return {static_cast<typename E::Stored*>(rows.data) + offset, rows.column_stride, false};
}

// How many elements lie before the row's first 16-byte boundary.
template <class E>
__device__ __forceinline__ int elements_to_boundary(const RowView<E>& row) {
  const auto past = static_cast<unsigned>(reinterpret_cast<uintptr_t>(row.data) % kVectorBytes);
  return static_cast<int>((kVectorBytes - past) % kVectorBytes / sizeof(typename E::Stored));
}

// Whether vector accesses are possible when groups begin at column `first`.
template <class E>
__device__ __forceinline__ bool vectorisable(const RowView<E>& row, int first) {
  return row.stride == 1 && reinterpret_cast<uintptr_t>(row.data + first) % kVectorBytes == 0;
}

__device__ __forceinline__ bool exists(int column, int columns) {
  return static_cast<unsigned>(column) < static_cast<unsigned>(columns);
}

// Columns [column, column + kGroup) as floats; those outside [0, columns) are not read and come as `fill`.
template <int kGroup, class E>
__device__ __forceinline__ void load_group(const RowView<E>& row, int column, int columns, float fill,
                                           float (&x)[kGroup]) {
  using V = Vector<E>;
  if (row.vector && column >= 0 && column + kGroup <= columns) {
    const auto* vectors = reinterpret_cast<const V*>(row.data + column);
#pragma unroll
    for (int v = 0; v < kGroup / V::kSize; ++v) {
      const V loaded = vectors[v];
#pragma unroll
      for (int k = 0; k < V::kPairs; ++k) {
        const float2 two = E::to_floats(loaded.pair[k]);
        x[v * V::kSize + 2 * k] = two.x;
        x[v * V::kSize + 2 * k + 1] = two.y;
      }
    }
  } else {
    const auto* next = &row[column];
#pragma unroll
    for (int k = 0; k < kGroup; ++k, next += row.stride) {
      x[k] = exists(column + k, columns) ? E::to_float(*next) : fill;
    }
  }
}

// The counterpart of load_group: rounds each value once, leaves what is outside [0, columns) alone.
template <int kGroup, class E>
__device__ __forceinline__ void store_group(const RowView<E>& row, int column, int columns,
                                            const float (&x)[kGroup]) {
  using V = Vector<E>;
  if (row.vector && column >= 0 && column + kGroup <= columns) {
    auto* vectors = reinterpret_cast<V*>(row.data + column);
#pragma unroll
    for (int v = 0; v < kGroup / V::kSize; ++v) {
      V rounded;
#pragma unroll
      for (int k = 0; k < V::kPairs; ++k) {
        rounded.pair[k] = E::from_floats(x[v * V::kSize + 2 * k], x[v * V::kSize + 2 * k + 1]);
      }
      vectors[v] = rounded;
    }
  } else {
    auto* next = &row[column];
#pragma unroll
    for (int k = 0; k < kGroup; ++k, next += row.stride) {
      if (exists(column + k, columns)) *next = E::from_float(x[k]);
    }
  }
}

// The whole block writes `value` to columns [begin, end).
template <class E>
__device__ __forceinline__ void fill_row(RowView<E> row, int begin, int end, float value) {
  constexpr int kGroup = Vector<E>::kSize;
  float x[kGroup];
#pragma unroll
  for (int k = 0; k < kGroup; ++k) x[k] = value;
  row.data += begin * row.stride;
  const int head = elements_to_boundary(row), columns = end - begin;
  const int first = head ? head - kGroup : 0;
  row.vector = vectorisable(row, first);
  for (int column = first + static_cast<int>(threadIdx.x) * kGroup; column < columns;
       column += blockDim.x * kGroup) {
    store_group<kGroup>(row, column, columns, x);
  }
}

}  // namespace cuda
}  // namespace fastkd
