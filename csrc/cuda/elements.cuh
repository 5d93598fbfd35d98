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

// An element type: how it is stored, alone and in 32-bit words. A vector access is spelt as uint4: from a
// struct of small elements the compiler makes as many small accesses.
struct Float32 {
  using Stored = float;
  static constexpr int kPerWord = 1;
  static __device__ __forceinline__ float to_float(float x) { return x; }
  static __device__ __forceinline__ float from_float(float x) { return x; }
  static __device__ __forceinline__ void unpack(uint32_t word, float* x) { x[0] = __uint_as_float(word); }
  static __device__ __forceinline__ uint32_t pack(const float* x) { return __float_as_uint(x[0]); }
};

struct BFloat16 {
  using Stored = __nv_bfloat16;
  static constexpr int kPerWord = 2;
  static __device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __forceinline__ __nv_bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }
  static __device__ __forceinline__ void unpack(uint32_t word, float* x) {
    x[0] = __uint_as_float(word << 16);
    x[1] = __uint_as_float(word & 0xffff0000u);
  }
  static __device__ __forceinline__ uint32_t pack(const float* x) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(x[0], x[1]);
    return *reinterpret_cast<const uint32_t*>(&two);
  }
};

struct Float16 {
  using Stored = __half;
  static constexpr int kPerWord = 2;
  static __device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
  static __device__ __forceinline__ __half from_float(float x) { return __float2half_rn(x); }
  static __device__ __forceinline__ void unpack(uint32_t word, float* x) {
    const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&word));
    x[0] = two.x;
    x[1] = two.y;
  }
  static __device__ __forceinline__ uint32_t pack(const float* x) {
    const __half2 two = __floats2half2_rn(x[0], x[1]);
    return *reinterpret_cast<const uint32_t*>(&two);
  }
};

// As many elements as one vector access moves.
template <class E>
constexpr int kVectorSize = kVectorBytes / sizeof(typename E::Stored);

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
  if (row.vector && column >= 0 && column + kGroup <= columns) {
    const auto* vectors = reinterpret_cast<const uint4*>(row.data + column);
#pragma unroll
    for (int v = 0; v < kGroup / kVectorSize<E>; ++v) {
      const uint4 words = vectors[v];
      float* to = x + v * kVectorSize<E>;
      E::unpack(words.x, to);
      E::unpack(words.y, to + E::kPerWord);
      E::unpack(words.z, to + 2 * E::kPerWord);
      E::unpack(words.w, to + 3 * E::kPerWord);
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
  if (row.vector && column >= 0 && column + kGroup <= columns) {
    auto* vectors = reinterpret_cast<uint4*>(row.data + column);
#pragma unroll
    for (int v = 0; v < kGroup / kVectorSize<E>; ++v) {
      const float* from = x + v * kVectorSize<E>;
      // First to leave the cache: the kernels do not read it again, and other rows' logits are worth more
      // there.
      __stcs(vectors + v, make_uint4(E::pack(from), E::pack(from + E::kPerWord),
                                     E::pack(from + 2 * E::kPerWord), E::pack(from + 3 * E::kPerWord)));
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
  constexpr int kGroup = kVectorSize<E>;
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
