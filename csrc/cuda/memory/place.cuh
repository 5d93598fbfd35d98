// A place defines where a row's logits are during the sweeps and which blocks share the row. It offers
//   View<E>              the type with which the sweeps read a side
//   share(groups, ...)   the groups of columns that this block works on
//   share_columns(...)   the same for columns that are filled with a value
//   open(...)            the views of a row
//   stages(), await()    the first sweep may proceed up to the group that await() returns
//   kKeeps               whether sweeps can keep numbers in the place of logits
//   exchange(packet)     the packets (packets.cuh) of all warps that share the row, given each warp's own
//   leads()              whether this block writes the results that exist once per row
#pragma once

#include "packets.cuh"
#include "rows.cuh"

namespace fastkd {
namespace cuda {

// One block per row, which streams it from memory in each sweep: any row fits.
class OneBlock {
 public:
  template <class E>
  using View = RowView<E>;

  static constexpr bool kKeeps = false;

  __device__ __forceinline__ bool leads() const { return true; }

  __device__ __forceinline__ void share(int groups, int& begin, int& end) const { begin = 0, end = groups; }

  __device__ __forceinline__ void share_columns(int&, int&) const {}

  template <class E, bool kTeacher>
  __device__ __forceinline__ void open(const RowView<E>& s, const RowView<E>& t, int first, int, int,
                                       int vocab, RowView<E>& student, RowView<E>& teacher) const {
    student = s;
    student.vector_end = vector_end_of(s, first, vocab);
    if constexpr (kTeacher) {
      teacher = t;
      teacher.vector_end = vector_end_of(t, first, vocab);
    }
  }

  __device__ __forceinline__ int stages() const { return 1; }
  __device__ __forceinline__ int await(int, int, int end) const { return end; }

  template <int kVectors>
  __device__ __forceinline__ Packets exchange(const uint4 (&mine)[kVectors]) const {
    // Two buffers in turn: when all warps have written the next packets, they have read these.
    __shared__ uint4 slots[2][kMaxWarps][kVectors];
    auto& buffer = slots[exchanges_++ % 2];
    if (threadIdx.x % kWarp == 0) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) buffer[threadIdx.x / kWarp][i] = mine[i];
    }
    __syncthreads();
    return Packets::at(buffer[0], blockDim.x / kWarp);
  }

 private:
  mutable unsigned exchanges_ = 0;
};

}  // namespace cuda
}  // namespace fastkd
