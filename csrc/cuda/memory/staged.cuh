// A cluster of blocks per row: each block fetches its groups of both sides into shared memory, once, and
// every sweep reads them there. The blocks send each other the row's statistics through shared memory.
#pragma once

#include "cluster.cuh"
#include "place.cuh"
#include "staged_view.cuh"

namespace fastkd {
namespace cuda {

constexpr int kMaxCluster = 16;
constexpr int kStages = 4;   // parts of a fetch: the first sweep begins when the first part has arrived
constexpr int kBuffers = 2;  // of packets

// Returns n for 2^n. A cluster's size is a power of 2, so that shifts divide by it.
__device__ __forceinline__ int exponent_of(unsigned power) { return 31 - __clz(static_cast<int>(power)); }

// `kPacket`: the vectors of a row's largest packet.
template <int kPacket>
class Cluster {
 public:
  template <class E>
  using View = StagedView<E>;
  static constexpr bool kKeeps = true;

  __device__ __forceinline__ Cluster()
      : rank_(cluster_rank()), size_(cluster_size()), shift_(exponent_of(size_)) {}

  __device__ __forceinline__ bool leads() const { return rank_ == 0; }
  __device__ __forceinline__ unsigned row_of(unsigned block) const { return block >> shift_; }

  __device__ __forceinline__ void share_columns(int& begin, int& end) const {
    const int each = each_block(end - begin);
    begin = min(begin + static_cast<int>(rank_) * each, end);
    end = min(begin + each, end);
  }

  __device__ __forceinline__ void share(int groups, int& begin, int& end) const {
    const int each = each_block(groups);
    begin = min(static_cast<int>(rank_) * each, groups);
    end = min(begin + each, groups);
  }

  template <class E, bool kTeacher>
  __device__ __forceinline__ void open(const RowView<E>& s, const RowView<E>& t, int first, int begin,
                                       int end, int vocab, StagedView<E>& student,
                                       StagedView<E>& teacher) const {
    constexpr int kGroup = RowView<E>::kGroup;
    // Each stage is a whole number of turns of all threads.
    const int threads = static_cast<int>(blockDim.x);
    per_stage_ = (end - begin + threads * kStages - 1) / (threads * kStages) * threads;
    const int of_s = kGroup * s.element_bytes(), of_t = kGroup * t.element_bytes();  // bytes of a group
    char* const shared = reinterpret_cast<char*>(packets_of(kBuffers));
    const int side = (end - begin) * of_s;
    student = StagedView<E>::of(s, shared, first + begin * kGroup);
    teacher = StagedView<E>::of(t, shared + side, student.origin);
    Arrival* const arrivals = arrivals_of_block();
    if (threadIdx.x == 0) {
      begin_arrivals(arrivals, kStages + kBuffers);
      // Copies whole groups only: the copy must not touch memory before or behind the row.
      const int whole_begin = begin == 0 && first < 0 ? 1 : begin;
      const int whole_end = min(end, (vocab - first) / kGroup);
      for (int stage = 0; stage < kStages; ++stage) {
        const int from = max(stage_end(stage - 1, begin, end), whole_begin);
        const int to = min(stage_end(stage, begin, end), whole_end);
        const int groups = from < to ? to - from : 0;
        expect_bytes(arrivals + stage, groups * (kTeacher ? of_s + of_t : of_s));
        if (groups == 0) continue;
        const int before = from - begin, column = first + from * kGroup;
        bulk_copy(shared + before * of_s, s.at(column), groups * of_s, arrivals + stage);
        if constexpr (kTeacher) {
          bulk_copy(shared + side + before * of_t, t.at(column), groups * of_t, arrivals + stage);
        }
      }
    }
    // The group that contains the row's first column and the one that contains its last, where these are not
    // whole.
    const int edge = static_cast<int>(threadIdx.x) / kGroup, k = static_cast<int>(threadIdx.x) % kGroup;
    const int group = edge == 0 ? 0 : (vocab - first) / kGroup;
    const bool part = edge == 0 ? first < 0 : edge == 1 && (vocab - first) % kGroup != 0;
    if (part && group >= begin && group < end && !(edge == 1 && group == 0 && first < 0)) {
      const int column = first + group * kGroup + k;
      student.fetch(s, column, vocab);
      if constexpr (kTeacher) teacher.fetch(t, column, vocab);
    }
    __syncthreads();           // the arrivals have begun, and the edges are written
    cluster_arrive_relaxed();  // this block runs: others may now send to it
  }

  __device__ __forceinline__ int stages() const { return kStages; }

  __device__ __forceinline__ int await(int stage, int begin, int end) const {
    await_copies(arrivals_of_block() + stage);
    return stage_end(stage, begin, end);
  }

  template <int kVectors>
  __device__ __forceinline__ Packets exchange(const uint4 (&mine)[kVectors]) const {
    // All blocks run, and have begun their arrivals.
    if (exchanges_ == 0) cluster_wait();
    // Each buffer is used once. Few rows need more exchanges; before those everybody has read all packets.
    if (exchanges_ >= kBuffers) cluster_arrive(), cluster_wait();
    const unsigned buffer = exchanges_ % kBuffers, phase = exchanges_ / kBuffers;
    const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    const Packets packets = Packets::at(packets_of(buffer), size_ * warps);
    Arrival* const arrival = arrivals_of_block() + kStages + buffer;
    if (threadIdx.x == 0) expect_bytes(arrival, packets.count * kVectors * kVectorBytes);
    if (lane < size_) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        send(packets_of(buffer) + (rank_ * warps + warp) * kVectors + i, lane, mine[i], arrival);
      }
    }
    await_sent(arrival, phase);
    ++exchanges_;
    return packets;
  }

 private:
  // Returns the largest number of `count` that a block gets.
  __device__ __forceinline__ int each_block(int count) const {
    return (count + static_cast<int>(size_) - 1) >> shift_;
  }

  // Returns the end of a stage's groups.
  __device__ __forceinline__ int stage_end(int stage, int begin, int end) const {
    return min(begin + (stage + 1) * per_stage_, end);
  }

  // The buffers of packets are followed by the row.
  __device__ __forceinline__ uint4* packets_of(unsigned buffer) const {
    return reinterpret_cast<uint4*>(dynamic_shared()) + buffer * (blockDim.x / kWarp * kPacket << shift_);
  }

  static __device__ __forceinline__ Arrival* arrivals_of_block() {
    __shared__ Arrival arrivals[kStages + kBuffers];
    return arrivals;
  }

  unsigned rank_, size_;
  int shift_;                  // the size is 1 << shift_
  mutable int per_stage_ = 0;  // groups
  mutable unsigned exchanges_ = 0;
};

}  // namespace cuda
}  // namespace fastkd
