// A cluster of blocks per row: each block fetches its groups of both sides into shared memory, once, and
// every sweep reads them there. The blocks send each other the row's statistics through shared memory.
//
// A cluster takes one row after the other. A row is fetched in stages. As soon as the last sweep over a row
// has read a stage, the same part of the next row is copied into its place.
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

// The row that is fetched next, as far as its copies depend on it. One thread of the block reads and writes
// this. Groups are counted from the block's first one.
struct Fetch {
  bool exists;
  int whole_begin, whole_end;  // the groups that lie within the row: a copy must not touch other memory
  const char* student;         // where the block's first group begins in memory
  const char* teacher;
};

// How many rows a block has opened, and how many exchanges it has made.
struct Progress {
  unsigned rows = 0, exchanges = 0;
};

// Ends a cluster: no block exits before all others have told it what they have read.
__device__ __forceinline__ void finish_cluster(const Progress& progress) {
  if (progress.rows > 0) cluster_arrive(), cluster_wait();
}

// A cluster that takes a row, and then the next one. `kPacket`: the vectors of a row's largest packet.
template <int kPacket>
class Cluster {
 public:
  template <class E>
  using View = StagedView<E>;
  static constexpr bool kKeeps = true, kManyRows = true;

  // `groups`: the most that a row has.
  __device__ __forceinline__ Cluster(int groups, Progress& progress)
      : rank_(cluster_rank()),
        size_(cluster_size()),
        shift_(exponent_of(size_)),
        most_(each_block(groups)),
        progress_(progress) {
    // Each stage is a whole number of turns of all threads, which are a power of 2. Stages are the same for
    // all rows, so that a stage's memory is free for the next row when the last sweep has read it.
    const int turn = exponent_of(blockDim.x), all = turn + exponent_of(kStages);
    per_stage_ = (most_ + (1 << all) - 1) >> all << turn;
  }

  // The number of this cluster, and how many there are.
  static __device__ __forceinline__ unsigned number() { return blockIdx.x >> exponent_of(cluster_size()); }
  static __device__ __forceinline__ unsigned count() { return gridDim.x >> exponent_of(cluster_size()); }

  __device__ __forceinline__ bool leads() const { return rank_ == 0; }

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
  __device__ __forceinline__ void open(const RowPair<E>& pair, int begin, int end, int vocab,
                                       StagedView<E>& student, StagedView<E>& teacher) const {
    constexpr int kGroup = RowView<E>::kGroup;
    char* const shared = reinterpret_cast<char*>(packets_of(kBuffers));
    student = StagedView<E>::of(pair.student, shared, pair.first + begin * kGroup);
    teacher = StagedView<E>::of(pair.teacher, student.group(most_), student.origin);
    // Only the first row is fetched when it is opened.
    if (fetches() && progress_.rows == 0) {
      begin_arrivals();
      plan<E, kTeacher>(pair, vocab);
#pragma unroll 1
      for (int stage = 0; stage < kStages; ++stage) start_copies<kTeacher>(stage, student, teacher);
    }
    // The group that contains the row's first column and the one that contains its last, where these are not
    // whole.
    const int edge = static_cast<int>(threadIdx.x) / kGroup, k = static_cast<int>(threadIdx.x) % kGroup;
    const int first = pair.first, group = edge == 0 ? 0 : (vocab - first) / kGroup;
    const bool part = edge == 0 ? first < 0 : edge == 1 && (vocab - first) % kGroup != 0;
    if (part && group >= begin && group < end && !(edge == 1 && group == 0 && first < 0)) {
      const int column = first + group * kGroup + k;
      student.fetch(pair.student, column, vocab);
      if constexpr (kTeacher) teacher.fetch(pair.teacher, column, vocab);
      show_writes();
    }
    __syncthreads();  // the arrivals have begun, and the edges are written
    // This block runs: others may now send to it.
    if (progress_.rows == 0) cluster_arrive_relaxed();
    ++progress_.rows;
  }

  __device__ __forceinline__ int stages() const { return kStages; }

  __device__ __forceinline__ int await(int stage, int begin, int end) const {
    await_copies(arrivals_of_block() + stage, progress_.rows - 1);
    return stage_end(stage, begin, end);
  }

  // Whether this thread starts the block's copies. It is in the last warp, because the first one has more to
  // do than the others.
  __device__ __forceinline__ bool fetches() const { return threadIdx.x == blockDim.x - kWarp; }

  // Sets the row that is fetched next. To be called by the thread that fetches, before the last sweep.
  template <class E, bool kTeacher>
  __device__ __forceinline__ void plan(const RowPair<E>& pair, int vocab) const {
    constexpr int kGroup = RowView<E>::kGroup;
    int begin, end;
    share(pair.groups(vocab), begin, end);
    const int column = pair.first + begin * kGroup;
    Fetch& next = fetch();
    next.exists = true;
    next.whole_begin = begin == 0 && pair.first < 0 ? 1 : 0;
    next.whole_end = min(end, (vocab - pair.first) / kGroup) - begin;
    next.student = static_cast<const char*>(pair.student.at(column));
    if constexpr (kTeacher) next.teacher = static_cast<const char*>(pair.teacher.at(column));
  }

  // States that there is no row to be fetched next.
  __device__ __forceinline__ void plan_none() const { fetch().exists = false; }

  // To be called by threads that have written into the row, before the next barrier of the block: copies will
  // overwrite it.
  __device__ __forceinline__ void show_writes() const { fence_copies(); }

  // Fetches the next row behind the sweep, stage by stage.
  template <bool kTeacher, int kGroup, class View, class Work>
  __device__ __forceinline__ void last_sweep(int first, int begin, int end, const View& student,
                                             const View& teacher, const Work& work) const {
    const int step = static_cast<int>(blockDim.x) * kGroup;
    int column = first + (begin + static_cast<int>(threadIdx.x)) * kGroup;
#pragma unroll 1
    for (int stage = 0; stage < kStages; ++stage) {
      const int stop = first + stage_end(stage, begin, end) * kGroup;
#pragma unroll 1
      for (; column < stop; column += step) work(column);
      leave<kTeacher>(stage, student, teacher);
    }
  }

  template <bool kTeacher, class View>
  __device__ __forceinline__ void close(const View& student, const View& teacher) const {
#pragma unroll 1
    for (int stage = 0; stage < kStages; ++stage) leave<kTeacher>(stage, student, teacher);
  }

  template <int kVectors>
  __device__ __forceinline__ Packets exchange(const uint4 (&mine)[kVectors]) const {
    // All blocks run, and have begun their arrivals.
    if (progress_.exchanges == 0) cluster_wait();
    const unsigned buffer = progress_.exchanges % kBuffers, phase = progress_.exchanges / kBuffers;
    const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    const Packets packets = Packets::at(packets_of(buffer), size_ * warps);
    Arrival* const arrival = arrivals_of_block() + kStages + buffer;
    // All blocks have read the packets that these replace.
    if (phase > 0) await_cluster(arrival + kBuffers, phase - 1);
    if (threadIdx.x == 0) expect_bytes(arrival, packets.count * kVectors * kVectorBytes);
    if (lane < size_) {
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        send(packets_of(buffer) + (rank_ * warps + warp) * kVectors + i, lane, mine[i], arrival);
      }
    }
    await_cluster(arrival, phase);
    ++progress_.exchanges, ++unread_;
    return packets;
  }

  __device__ __forceinline__ void release() const {
    const unsigned lane = threadIdx.x - (blockDim.x - kWarp);  // of the last warp
#pragma unroll 1
    for (; unread_ != 0; --unread_) {
      const unsigned buffer = (progress_.exchanges - unread_) % kBuffers;
      if (lane < size_) arrive_at(arrivals_of_block() + kStages + kBuffers + buffer, lane);
    }
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

  // The arrivals count each stage's copies, then the packets sent to each buffer, then the blocks that have
  // read each buffer.
  static __device__ __forceinline__ Arrival* arrivals_of_block() {
    __shared__ Arrival arrivals[kStages + 2 * kBuffers];
    return arrivals;
  }

  static __device__ __forceinline__ Fetch& fetch() {
    __shared__ Fetch of_block;
    return of_block;
  }

  __device__ __forceinline__ void begin_arrivals() const {
    Arrival* const arrivals = arrivals_of_block();
    for (int i = 0; i < kStages + kBuffers; ++i) begin_arrival(arrivals + i, 1);
    for (int i = 0; i < kBuffers; ++i) begin_arrival(arrivals + kStages + kBuffers + i, size_);
    show_arrivals();
  }

  // Starts the copies of a stage of the row that is fetched next.
  template <bool kTeacher, class View>
  __device__ __forceinline__ void start_copies(int stage, const View& student, const View& teacher) const {
    const Fetch& next = fetch();
    const int from = max(stage * per_stage_, next.whole_begin);
    const int to = min((stage + 1) * per_stage_, next.whole_end), groups = max(to - from, 0);
    const unsigned of_s = student.group_bytes(), of_t = kTeacher ? teacher.group_bytes() : 0;
    Arrival* const arrival = arrivals_of_block() + stage;
    expect_bytes(arrival, groups * (of_s + of_t));
    if (groups == 0) return;
    bulk_copy(student.group(from), next.student + from * of_s, groups * of_s, arrival);
    if constexpr (kTeacher)
      bulk_copy(teacher.group(from), next.teacher + from * of_t, groups * of_t, arrival);
  }

  // To be called when this thread has read its groups of a stage for the last time.
  template <bool kTeacher, class View>
  __device__ __forceinline__ void leave(int stage, const View& student, const View& teacher) const {
    __syncthreads();
    // `volatile`: not read by the other threads ahead of the comparison.
    if (fetches() && static_cast<volatile Fetch&>(fetch()).exists) {
      start_copies<kTeacher>(stage, student, teacher);
    }
  }

  unsigned rank_, size_;
  int shift_;      // the size is 1 << shift_
  int most_;       // groups of a block, in any row
  int per_stage_;  // groups
  Progress& progress_;
  mutable unsigned unread_ = 0;  // exchanges that have not been released
};

}  // namespace cuda
}  // namespace fastkd
