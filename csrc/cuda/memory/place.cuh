// A place defines where a row's logits are during the sweeps and which blocks share the row. It offers
//   View<E>              the type with which the sweeps read a side
//   share(groups, ...)   the groups of columns that this block works on
//   share_columns(...)   the same for columns that are filled with a value
//   open(...)            the views of a row
//   stages(), await()    the first sweep may proceed up to the group that await() returns
//   last_sweep(...)      calls a function for each of this thread's groups, which is not read again
//   close(...)           ends a row without such a sweep
//   kKeeps               whether sweeps can keep numbers in the place of logits
//   kManyRows            whether blocks take one row after the other, and can fetch the next one ahead
//   exchange(packet)     the packets (packets.cuh) of all warps that share the row, given each warp's own
//   release()            all threads of the block have passed a barrier since they read the packets
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

  static constexpr bool kKeeps = false, kManyRows = false;

  __device__ __forceinline__ bool leads() const { return true; }

  __device__ __forceinline__ void share(int groups, int& begin, int& end) const { begin = 0, end = groups; }

  __device__ __forceinline__ void share_columns(int&, int&) const {}

  template <class E, bool kTeacher>
  __device__ __forceinline__ void open(const RowPair<E>& pair, int, int, int vocab, RowView<E>& student,
                                       RowView<E>& teacher) const {
    student = pair.student;
    student.vector_end = vector_end_of(student, pair.first, vocab);
    if constexpr (kTeacher) {
      teacher = pair.teacher;
      teacher.vector_end = vector_end_of(teacher, pair.first, vocab);
    }
  }

  __device__ __forceinline__ int stages() const { return 1; }
  __device__ __forceinline__ int await(int, int, int end) const { return end; }

  // Backwards, because the caches still hold the end of the row.
  template <bool kTeacher, int kGroup, class View, class Work>
  __device__ __forceinline__ void last_sweep(int first, int begin, int end, const View&, const View&,
                                             const Work& work) const {
    const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    // The thread's first group past the row.
    int g = thread + (end - begin - 1 - thread + threads) / threads * threads;
#pragma unroll 1
    while ((g -= threads) >= 0) work(first + (begin + g) * kGroup);
  }

  template <bool kTeacher, class View>
  __device__ __forceinline__ void close(const View&, const View&) const {}

  __device__ __forceinline__ void release() const {}

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
