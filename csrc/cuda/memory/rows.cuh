// Rows of logits in memory: groups of neighbouring columns, read and written by vector accesses where
// possible.
#pragma once

#include "../../params.h"
#include "elements.cuh"

namespace fastkd {
namespace cuda {

__device__ __forceinline__ bool exists(int column, int columns) {
  return static_cast<unsigned>(column) < static_cast<unsigned>(columns);
}

// Reads elements from `column` on, as many as the words hold. Those outside [0, columns) are not read and
// become `absent`. A vector access is written as uint4, because the compiler splits the copy of a struct of
// small elements into as many small accesses.
template <int kWords, class Bits>
__device__ __forceinline__ void read_words(const Bits* row, int64_t stride, unsigned vector_end, int column,
                                           int columns, Bits absent, uint32_t* words) {
  constexpr int kPerWord = sizeof(uint32_t) / sizeof(Bits), kBits = 8 * sizeof(Bits);
  if (static_cast<unsigned>(column) < vector_end) {
    const auto* vectors = reinterpret_cast<const uint4*>(row + column);
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 four = vectors[i / 4];
      words[i] = four.x, words[i + 1] = four.y, words[i + 2] = four.z, words[i + 3] = four.w;
    }
  } else {
    const Bits* next = row + column * stride;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      words[i] = 0;
#pragma unroll
      for (int k = 0; k < kPerWord; ++k, next += stride) {
        const Bits bits = exists(column + i * kPerWord + k, columns) ? *next : absent;
        words[i] |= static_cast<uint32_t>(bits) << (k * kBits);
      }
    }
  }
}

// The counterpart of read_words(). It does not write outside [0, columns).
template <int kWords, class Bits>
__device__ __forceinline__ void write_words(Bits* row, int64_t stride, unsigned vector_end, int column,
                                            int columns, const uint32_t* words) {
  constexpr int kPerWord = sizeof(uint32_t) / sizeof(Bits), kBits = 8 * sizeof(Bits);
  if (static_cast<unsigned>(column) < vector_end) {
    auto* vectors = reinterpret_cast<uint4*>(row + column);
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      // Stored such that the cache evicts it first: the kernels do not read it again, and other rows' logits
      // are worth more there.
      __stcs(vectors + i / 4, make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]));
    }
  } else {
    Bits* next = row + column * stride;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
#pragma unroll
      for (int k = 0; k < kPerWord; ++k, next += stride) {
        if (exists(column + i * kPerWord + k, columns)) *next = static_cast<Bits>(words[i] >> (k * kBits));
      }
    }
  }
}

template <class E, int kGroup>
__device__ __forceinline__ void unpack_words(const uint32_t* words, float (&x)[kGroup]) {
#pragma unroll
  for (int i = 0; i < kGroup / E::kPerWord; ++i) E::unpack(words[i], x + i * E::kPerWord);
}

template <class E, int kGroup>
__device__ __forceinline__ void pack_words(const float (&x)[kGroup], uint32_t* words) {
#pragma unroll
  for (int i = 0; i < kGroup / E::kPerWord; ++i) words[i] = E::pack(x + i * E::kPerWord);
}

// One row of a tensor. Groups that begin in columns [0, vector_end) use vector accesses. Reading is separate
// from unpacking, so that a thread can start the reads of both sides before it waits for one.
template <class E>
struct RowView {
  using Bits = typename E::Bits;
  static constexpr int kGroup = kGroupSize<E>, kWords = kGroup / E::kPerWord;
  struct Words {
    uint32_t word[kWords];
  };

  Bits* data;
  int64_t stride;
  unsigned vector_end;

  static __device__ __forceinline__ RowView of(const Rows& rows, int64_t offset) {
    return {static_cast<Bits*>(rows.data) + offset, rows.column_stride, 0};
  }

  __device__ __forceinline__ unsigned element_bytes() const { return sizeof(Bits); }

  // The address of a column of a row without gaps.
  __device__ __forceinline__ const void* at(int column) const { return data + column; }

  __device__ __forceinline__ RowView from(int64_t column) const {
    return {data + column * stride, stride, vector_end};
  }

  __device__ __forceinline__ float operator[](int64_t column) const {
    float x[E::kPerWord];
    E::unpack(data[column * stride], x);
    return x[0];
  }

  __device__ __forceinline__ Words read(int column, int columns) const {
    Words words;
    read_words<kWords, Bits>(data, stride, vector_end, column, columns, E::kMinusInfinity, words.word);
    return words;
  }

  __device__ __forceinline__ void unpack(const Words& words, float (&x)[kGroup]) const {
    unpack_words<E>(words.word, x);
  }

  // Rounds each value once.
  __device__ __forceinline__ void write(int column, int columns, const float (&x)[kGroup]) const {
    Words words;
    pack_words<E>(x, words.word);
    write_words<kWords>(data, stride, vector_end, column, columns, words.word);
  }
};

// A row's number, and its indices in tensors with two dimensions of rows: one division serves all of a call.
struct RowIndex {
  unsigned row, outer, inner;

  static __device__ __forceinline__ RowIndex of(unsigned row, int64_t inner) {
    const unsigned size = static_cast<unsigned>(inner), outer = row / size;
    return {row, outer, row - outer * size};
  }
};

template <class E>
__device__ __forceinline__ RowView<E> row_of(const Rows& rows, RowIndex index) {
  return RowView<E>::of(rows, index.outer * rows.outer_stride + index.inner * rows.inner_stride);
}

// Both sides of a token's row.
template <class E>
struct RowPair {
  RowView<E> student, teacher;
  int first;  // column of group 0: 0, or negative to put the other groups on 16-byte boundaries

  __device__ __forceinline__ int groups(int columns) const {
    return (columns - first + RowView<E>::kGroup - 1) / RowView<E>::kGroup;
  }
};

// The largest number of groups of a row: it may begin anywhere in its first one.
constexpr int most_groups(int columns, int group) { return (columns + 2 * group - 2) / group; }

// Returns the number of elements before the row's first 16-byte boundary.
template <class E>
__device__ __forceinline__ int elements_to_boundary(const RowView<E>& row) {
  const auto past = static_cast<unsigned>(reinterpret_cast<uintptr_t>(row.data) % kVectorBytes);
  return static_cast<int>((kVectorBytes - past) % kVectorBytes / row.element_bytes());
}

// Returns RowView::vector_end if `columns` columns exist and groups begin at `first`: 0 unless the groups are
// on 16-byte boundaries, without gaps.
template <class E>
__device__ __forceinline__ unsigned vector_end_of(const RowView<E>& row, int first, int columns) {
  const auto address = reinterpret_cast<uintptr_t>(row.data) + int64_t{first} * row.element_bytes();
  const bool possible = row.stride == 1 && address % kVectorBytes == 0 && columns >= RowView<E>::kGroup;
  return possible ? columns - RowView<E>::kGroup + 1 : 0;
}

// Returns x. The compiler computes it here, and not again in each turn of a later loop, as it would do to
// save a register.
__device__ __forceinline__ unsigned computed_here(unsigned x) {
#ifdef __CUDA_ARCH__
  unsigned y;
  asm volatile("mov.u32 %0, %1;" : "=r"(y) : "r"(x));
  return y;
#else
  return x;
#endif
}

// The whole block writes `value` to columns [begin, end).
template <class E>
__device__ __forceinline__ void fill_row(const RowView<E>& whole, int begin, int end, float value) {
  constexpr int kGroup = RowView<E>::kGroup;
  float x[kGroup];
#pragma unroll
  for (int k = 0; k < kGroup; ++k) x[k] = value;
  RowView<E> row = whole.from(begin);
  const int head = elements_to_boundary(row), columns = end - begin;
  const int first = head ? head - kGroup : 0;
  row.vector_end = vector_end_of(row, first, columns);
  for (int column = first + static_cast<int>(threadIdx.x) * kGroup; column < columns;
       column += blockDim.x * kGroup) {
    row.write(column, columns, x);
  }
}

}  // namespace cuda
}  // namespace fastkd
