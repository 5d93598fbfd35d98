// Rows whose element type is known at run time only. All threads have the same type, so no branch on it
// diverges.
#pragma once

#include "rows.cuh"

namespace fastkd {
namespace cuda {

struct AnyElement {};

template <>
struct RowView<AnyElement> {
  static constexpr int kGroup = 8;  // one vector access of the narrow types, two of float32
  static constexpr int kNarrow = kGroup / 2, kWide = kGroup, kWords = kWide;
  struct Words {
    uint32_t word[kWide];
  };

  char* data;
  int64_t stride;
  unsigned vector_end;
  Dtype dtype;

  static __device__ __forceinline__ RowView of(const Rows& rows, int64_t offset) {
    RowView row{static_cast<char*>(rows.data), rows.column_stride, 0, rows.dtype};
    row.data += offset * row.element_bytes();
    return row;
  }

  __device__ __forceinline__ bool wide() const { return dtype == Dtype::kFloat32; }
  __device__ __forceinline__ unsigned element_bytes() const { return wide() ? 4 : 2; }
  // That of the narrow types.
  __device__ __forceinline__ uint16_t minus_infinity() const {
    return dtype == Dtype::kBFloat16 ? BFloat16::kMinusInfinity : Float16::kMinusInfinity;
  }
  __device__ __forceinline__ uint32_t* words() const { return reinterpret_cast<uint32_t*>(data); }
  __device__ __forceinline__ uint16_t* halves() const { return reinterpret_cast<uint16_t*>(data); }

  __device__ __forceinline__ const void* at(int column) const {
    return data + column * static_cast<int>(element_bytes());
  }

  __device__ __forceinline__ RowView from(int64_t column) const {
    return {data + column * stride * element_bytes(), stride, vector_end, dtype};
  }

  __device__ __forceinline__ float operator[](int64_t column) const {
    Words one{{wide() ? words()[column * stride] : halves()[column * stride]}};
    float x[kGroup];
    unpack(one, x);
    return x[0];
  }

  __device__ __forceinline__ Words read(int column, int columns) const {
    Words group;
    if (wide()) {
      read_words<kWide>(words(), stride, vector_end, column, columns, Float32::kMinusInfinity, group.word);
    } else {
      read_words<kNarrow>(halves(), stride, vector_end, column, columns, minus_infinity(), group.word);
    }
    return group;
  }

  __device__ __forceinline__ void unpack(const Words& group, float (&x)[kGroup]) const {
    if (wide()) {
      unpack_words<Float32>(group.word, x);
    } else if (dtype == Dtype::kBFloat16) {
      unpack_words<BFloat16>(group.word, x);
    } else {
      unpack_words<Float16>(group.word, x);
    }
  }

  __device__ __forceinline__ void write(int column, int columns, const float (&x)[kGroup]) const {
    Words group;
    if (wide()) {
      pack_words<Float32>(x, group.word);
      write_words<kWide>(words(), stride, vector_end, column, columns, group.word);
      return;
    }
    if (dtype == Dtype::kBFloat16) {
      pack_words<BFloat16>(x, group.word);
    } else {
      pack_words<Float16>(x, group.word);
    }
    write_words<kNarrow>(halves(), stride, vector_end, column, columns, group.word);
  }

  // Writes one column.
  __device__ __forceinline__ void set(int64_t column, float x) const {
    const float two[] = {x, 0.0f};  // a word of the narrow types
    if (wide()) {
      words()[column * stride] = Float32::pack(two);
    } else {
      const uint32_t word = dtype == Dtype::kBFloat16 ? BFloat16::pack(two) : Float16::pack(two);
      halves()[column * stride] = static_cast<uint16_t>(word);
    }
  }
};

}  // namespace cuda
}  // namespace fastkd
