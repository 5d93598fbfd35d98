// How the sweeps read a side that the blocks of a cluster have fetched into shared memory.
#pragma once

#include "any_row.cuh"

namespace fastkd {
namespace cuda {

// Reads words of a group, as many as are there, at an address in shared memory.
template <int kWords>
__device__ __forceinline__ void read_staged(const char* from, uint32_t* words) {
  const auto* vectors = reinterpret_cast<const uint4*>(from);
#pragma unroll
  for (int i = 0; i < kWords; i += 4) {
    const uint4 four = vectors[i / 4];
    words[i] = four.x, words[i + 1] = four.y, words[i + 2] = four.z, words[i + 3] = four.w;
  }
}

// A side in shared memory. Requires the groups of both sides to begin on 16-byte boundaries together, because
// whole groups are fetched; the host checks this (aligned_alike()).
template <class E>
struct StagedView {
  using Bits = typename E::Bits;
  using Words = typename RowView<E>::Words;
  static_assert(RowView<E>::kWords % 4 == 0, "groups of whole vectors");

  char* data;
  int origin;  // the column that `data` points to

  static __device__ __forceinline__ StagedView of(const RowView<E>&, char* data, int origin) {
    return {data, origin};
  }

  __device__ __forceinline__ unsigned group_bytes() const { return RowView<E>::kGroup * sizeof(Bits); }

  // The place of a group, counted from the first one.
  __device__ __forceinline__ char* group(int number) const { return data + number * group_bytes(); }

  __device__ __forceinline__ Bits* bits(int column) const {
    return reinterpret_cast<Bits*>(data) + (column - origin);
  }

  // Copies a column of the row, -inf where the row does not have it.
  __device__ __forceinline__ void fetch(const RowView<E>& row, int column, int columns) const {
    *bits(column) = exists(column, columns) ? row.data[column] : E::kMinusInfinity;
  }

  __device__ __forceinline__ float operator[](int column) const {
    float x[E::kPerWord];
    E::unpack(*bits(column), x);
    return x[0];
  }

  // Columns that do not exist were fetched as -inf.
  __device__ __forceinline__ Words read(int column, int) const {
    Words words;
    read_staged<RowView<E>::kWords>(data + (column - origin) * sizeof(Bits), words.word);
    return words;
  }

  template <int kGroup>
  __device__ __forceinline__ void unpack(const Words& words, float (&x)[kGroup]) const {
    unpack_words<E>(words.word, x);
  }
};

// A side whose type is known at run time only.
template <>
struct StagedView<AnyElement> {
  using Row = RowView<AnyElement>;
  using Words = Row::Words;

  Row staged;  // its first column is the column `origin`
  int origin;

  static __device__ __forceinline__ StagedView of(const Row& row, char* data, int origin) {
    return {{data, 1, 0, row.dtype}, origin};
  }

  __device__ __forceinline__ unsigned group_bytes() const { return Row::kGroup * staged.element_bytes(); }

  __device__ __forceinline__ char* group(int number) const {
    return static_cast<char*>(staged.data) + number * group_bytes();
  }

  __device__ __forceinline__ void fetch(const Row& row, int column, int columns) const {
    const int at = column - origin;
    const bool there = exists(column, columns);
    if (row.wide()) {
      staged.words()[at] = there ? row.words()[column] : Float32::kMinusInfinity;
    } else {
      staged.halves()[at] = there ? row.halves()[column] : row.minus_infinity();
    }
  }

  __device__ __forceinline__ float operator[](int column) const { return staged[column - origin]; }

  __device__ __forceinline__ Words read(int column, int) const {
    const char* const from = static_cast<const char*>(staged.at(column - origin));
    Words words;
    if (staged.wide()) {
      read_staged<Row::kWide>(from, words.word);
    } else {
      read_staged<Row::kNarrow>(from, words.word);
    }
    return words;
  }

  __device__ __forceinline__ void unpack(const Words& words, float (&x)[Row::kGroup]) const {
    staged.unpack(words, x);
  }
};

}  // namespace cuda
}  // namespace fastkd
