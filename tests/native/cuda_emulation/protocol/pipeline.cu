// pipeline MISTAKE FROM TO: a persistent cluster whose mbarriers serve one phase after another, as a test of
// the emulation itself. Warp 0 of each block copies rows into two stages in turn; the other warps add them up
// and send their sums to both blocks by asynchronous stores. With a mistake other than 0 the kernel is wrong
// in one place, which the emulation has to report. Prints and exits like the driver.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "machine/global_memory.h"

namespace {

constexpr int kStages = 2, kBlocks = 2, kConsumerWarps = 2, kRows = 7;
constexpr int kConsumers = 32 * kConsumerWarps, kThreads = 32 + kConsumers, kSums = kBlocks * kConsumerWarps;
constexpr uint32_t kStageBytes = kConsumers * sizeof(uint4);

enum class Mistake {
  kNone,
  kCopiesIntoAStageInUse,
  kSendsIntoSumsInUse,
  kWaitsForOneParity,
  kExpectsFewerArrivals,
  kExitsEarly,
  kPublishesNoMbarriers,
  kLeavesACopy,
  kCount
};

struct Barriers {
  uint64_t full[kStages];   // a row has landed
  uint64_t empty[kStages];  // the consumers have read it
  uint64_t sent[kStages];   // the sums of all warps have landed
  uint64_t taken[kStages];  // the consumers of both blocks have read the sums
};

uint32_t address(const void* x) { return __cvta_generic_to_shared(x); }

uint32_t in_block(uint32_t own, unsigned rank) {
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(own), "r"(rank));
  return mapped;
}

void initialise(uint64_t* barrier, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(barrier)), "r"(count) : "memory");
}

void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(barrier)) : "memory");
}

void arrive_remotely(uint64_t* barrier, unsigned rank) {
  asm volatile(
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(in_block(address(barrier), rank))
      : "memory");
}

void expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(barrier)), "r"(bytes)
               : "memory");
}

void wait(uint64_t* barrier, unsigned parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(address(barrier)),
      "r"(parity)
      : "memory");
}

void copy(char* to, const float* from, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          address(to)),
      "l"(__cvta_generic_to_global(from)), "r"(kStageBytes), "r"(address(barrier))
      : "memory");
}

void send(const void* to, unsigned rank, float value, uint64_t* barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(
                   in_block(address(to), rank)),
               "r"(__float_as_uint(value)), "r"(in_block(address(barrier), rank))
               : "memory");
}

void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

void pipeline(const float* rows, float* sums, Mistake mistake) {
  extern __shared__ uint4 stages[];
  __shared__ Barriers barriers;
  __shared__ float sum[kStages][kSums];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, rank = blockIdx.x;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      initialise(&barriers.full[i], 1);
      initialise(&barriers.empty[i], mistake == Mistake::kExpectsFewerArrivals ? kConsumers - 1 : kConsumers);
      initialise(&barriers.sent[i], 1);
      initialise(&barriers.taken[i], kBlocks * kConsumers);
    }
    if (mistake != Mistake::kPublishesNoMbarriers) {
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
  }
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  if (warp == 0) {
    const int copied = mistake == Mistake::kLeavesACopy ? kRows + 1 : kRows;
    for (int row = 0; lane == 0 && row < copied; ++row) {
      const int stage = row % kStages, turn = row / kStages % 2;
      // The first wait for the parity that precedes the first phase returns at once.
      if (mistake != Mistake::kCopiesIntoAStageInUse) wait(&barriers.empty[stage], turn ^ 1);
      expect(&barriers.full[stage], kStageBytes);
      char* const to = reinterpret_cast<char*>(stages) + stage * kStageBytes;
      copy(to, rows + (row % kRows * kBlocks + rank) * kConsumers * 4, &barriers.full[stage]);
    }
  } else {
    for (int row = 0; row < kRows; ++row) {
      const int stage = row % kStages, turn = row / kStages % 2;
      wait(&barriers.full[stage], mistake == Mistake::kWaitsForOneParity ? 0 : turn);
      const uint4 four = stages[stage * kConsumers + threadIdx.x - 32];
      arrive(&barriers.empty[stage]);
      float total = __uint_as_float(four.x) + __uint_as_float(four.y) + __uint_as_float(four.z) +
                    __uint_as_float(four.w);
      for (int mask = 16; mask > 0; mask /= 2) total += __shfl_xor_sync(0xffffffffu, total, mask);
      if (threadIdx.x == 32) expect(&barriers.sent[stage], kSums * sizeof(float));
      if (lane == 0) {
        if (mistake != Mistake::kSendsIntoSumsInUse) wait(&barriers.taken[stage], turn ^ 1);
        for (unsigned to = 0; to < kBlocks; ++to) {
          send(&sum[stage][rank * kConsumerWarps + warp - 1], to, total, &barriers.sent[stage]);
        }
      }
      wait(&barriers.sent[stage], turn);
      float all = 0;
      for (int i = 0; i < kSums; ++i) all += sum[stage][i];
      for (unsigned to = 0; to < kBlocks; ++to) arrive_remotely(&barriers.taken[stage], to);
      if (threadIdx.x == 32) sums[row * kBlocks + rank] = all;
    }
  }
  if (mistake != Mistake::kExitsEarly) meet_cluster();
}

std::string fault_of(uint64_t seed, Mistake mistake) {
  emulation::schedule = emulation::Schedule::random(seed);
  constexpr int kColumns = kBlocks * kConsumers * 4;
  std::vector<float> rows(kRows * kColumns + 4), sums(kRows * kBlocks);
  float* const first = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(rows.data()) + 15) / 16 * 16);
  for (int i = 0; i < kRows * kColumns; ++i) first[i] = static_cast<float>(i % 13 + i / kColumns);
  emulation::restrict_memory();
  emulation::allow_memory(first, kRows * kColumns * sizeof(float), false);
  cudaLaunchAttribute attribute{cudaLaunchAttributeClusterDimension, {dim3(kBlocks)}};
  const cudaLaunchConfig_t config{dim3(kBlocks), dim3(kThreads), kStages * kStageBytes,
                                  nullptr,       &attribute,     1};
  try {
    if (cudaLaunchKernelEx(&config, pipeline, first, sums.data(), mistake) != cudaSuccess) return "no launch";
  } catch (const emulation::Fault& fault) {
    return fault.what();
  }
  for (int row = 0; row < kRows; ++row) {
    float exact = 0;
    for (int i = 0; i < kColumns; ++i) exact += first[row * kColumns + i];
    for (int rank = 0; rank < kBlocks; ++rank) {
      if (sums[row * kBlocks + rank] != exact) return "the sum of row " + std::to_string(row) + " is wrong";
    }
  }
  return "";
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return std::fprintf(stderr, "usage: pipeline MISTAKE FROM TO\n"), 2;
  const int mistake = std::atoi(arguments[1]);
  if (mistake < 0 || mistake >= static_cast<int>(Mistake::kCount)) return 2;
  const uint64_t from = std::strtoull(arguments[2], nullptr, 10);
  const uint64_t to = std::strtoull(arguments[3], nullptr, 10);
  for (uint64_t seed = from; seed < to; ++seed) {
    const std::string fault = fault_of(seed, static_cast<Mistake>(mistake));
    if (fault.empty()) continue;
    std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), fault.c_str());
    return 3;
  }
  std::printf("%llu schedules, nothing found\n", static_cast<unsigned long long>(to - from));
}
