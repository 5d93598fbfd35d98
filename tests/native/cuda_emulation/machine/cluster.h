// The blocks of a cluster, their threads, and the order in which these run.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "async.h"
#include "clock.h"
#include "launch.h"
#include "shared_memory.h"

namespace emulation {

constexpr unsigned kLanes = 32;

struct Thread {
  enum class At { kReady, kShuffle, kBlockBarrier, kClusterBarrier, kMbarrier, kExit };

  Block* block;
  unsigned index;  // in its block
  unsigned id;     // in the cluster
  Clock clock;
  At at = At::kReady;
  unsigned shuffles = 0;
  unsigned cluster_arrivals = 0, cluster_waits = 0;
  std::vector<Event> fenced_mbarriers;  // whose initialisation a relaxed arrival publishes
  std::vector<uint32_t> fences;         // the times of its fences between its writes and copies

  void fence_writes() {
    fences.push_back(clock.now().time);
    clock.advance();
  }
};

struct Warp {
  unsigned shuffling = 0;
  // Two buffers in turn, so that a fast lane does not overwrite what a slow one has yet to read.
  uint32_t given[2][kLanes];
};

struct Block {
  Block(unsigned rank, dim3 index, unsigned threads, size_t dynamic_bytes)
      : rank(rank), index(index), warps((threads + kLanes - 1) / kLanes), memory(dynamic_bytes) {}

  bool has_exited() const { return exits == threads.size(); }

  unsigned rank;
  dim3 index;
  std::vector<Thread*> threads;
  std::vector<Warp> warps;
  unsigned at_barrier = 0, exits = 0;
  Gathering known_at_exit;
  // Events that must precede the block's exit: copies that land, and stores and arrivals of other blocks.
  std::vector<Event> incoming;
  SharedMemory memory;
};

class Cluster {
 public:
  Cluster(Kernel& kernel, const Shape& shape, unsigned first_block, unsigned y);
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  // Runs all threads to their ends.
  void run(const std::function<void()>& body);

  Event start_of(const Block& block) const { return {static_cast<unsigned>(threads.size()) + block.rank, 1}; }
  unsigned new_component() { return components_++; }
  void make_ready(Thread& thread);
  bool happens(double probability) { return rng() < probability * 0x1p64; }

  // Called by threads.
  void sync_block();
  uint32_t shuffle(uint32_t value, unsigned lane_mask);
  void arrive(bool release);
  void wait();
  void pause_sometimes();

  Kernel& kernel;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Thread>> threads;
  AsyncUnit async;
  std::mt19937_64 rng;

 private:
  static void run_thread();
  void step(Thread& thread);
  void exit_thread(Thread& thread);
  void complete_cluster_barrier();
  void check_exit(Block& block);
  uint64_t priority_of(const Thread& thread);
  std::string positions() const;

  Schedule schedule_;
  const std::function<void()>* body_ = nullptr;
  std::vector<std::pair<uint64_t, Thread*>> ready_;  // a heap, the highest priority first
  std::vector<uint16_t> block_priority_, warp_priority_;
  std::vector<Thread*> at_cluster_barrier_;
  Gathering arrived_;
  Knowledge arrived_knowledge_;
  unsigned components_ = 0, arrivals_ = 0, completed_ = 0, exits_ = 0;
  double land_rate_ = 0, store_rate_ = 0;
};

extern Cluster* cluster;  // that runs
extern Thread* self;      // the thread that runs, or null

// Stops the thread until somebody makes it ready.
void wait_at(Thread::At at);
// Ends the launch with a Fault.
[[noreturn]] void fail(const std::string& fault);
bool on_own_stack(const void* address);

}  // namespace emulation
