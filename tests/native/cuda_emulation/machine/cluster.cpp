#include "cluster.h"

#include <algorithm>
#include <cstdlib>

#include "fiber.h"

namespace emulation {

Cluster* cluster = nullptr;
Thread* self = nullptr;
Schedule schedule;
int clusters_at_once = 2;

namespace {

constexpr double kRates[] = {0, 0.002, 0.05, 0.5, 1};
constexpr double kPauseRate = 0.15;  // of a thread at an instruction that others may notice

std::vector<std::unique_ptr<Fiber>> fibers;  // by the number of the thread; launches reuse them
std::string pending_fault;

const char* name_of(Thread::At at) {
  static const char* const kNames[] = {"running",     "a shuffle", "__syncthreads", "barrier.cluster.wait",
                                       "an mbarrier", "exit"};
  return kNames[static_cast<int>(at)];
}

}  // namespace

void fail(const std::string& fault) {
  std::string message = "schedule " + std::to_string(schedule.seed) + ": " + fault;
  if (!self) throw Fault(message);
  message += " (thread " + std::to_string(self->index) + " of block " + std::to_string(self->block->rank) +
             " in a cluster of " + std::to_string(cluster->blocks.size()) + ")";
  pending_fault = message;
  fibers[self->id]->pause();
  std::abort();  // nobody resumes a thread after a fault
}

void wait_at(Thread::At at) {
  self->at = at;
  fibers[self->id]->pause();
}

bool on_own_stack(const void* address) { return fibers[self->id]->owns(address); }

Cluster::Cluster(Kernel& kernel, const Shape& shape, unsigned first_block, unsigned y)
    : kernel(kernel), rng(schedule.seed * 0x9e3779b97f4a7c15u + first_block * 31 + y), schedule_(schedule) {
  const unsigned per_block = shape.block.x, count = per_block * shape.cluster;
  if (schedule_.is_random()) land_rate_ = kRates[rng() % 5], store_rate_ = kRates[rng() % 5];
  components_ = count + shape.cluster;
  for (unsigned rank = 0; rank < shape.cluster; ++rank) {
    blocks.push_back(
        std::make_unique<Block>(rank, dim3(first_block + rank, y), per_block, shape.dynamic_bytes));
    Block& block = *blocks.back();
    auto known = std::make_shared<Times>(components_);
    (*known)[count + rank] = 1;
    const Knowledge of_block = known;
    for (unsigned i = 0; i < per_block; ++i) {
      const unsigned id = rank * per_block + i;
      threads.push_back(std::make_unique<Thread>(Thread{&block, i, id, Clock(id, of_block)}));
      block.threads.push_back(threads.back().get());
    }
    block_priority_.push_back(static_cast<uint16_t>(rng()));
    for (size_t i = 0; i < block.warps.size(); ++i) warp_priority_.push_back(static_cast<uint16_t>(rng()));
  }
  while (fibers.size() < count) fibers.push_back(std::make_unique<Fiber>());
}

Cluster::~Cluster() {
  for (const auto& thread : threads) fibers[thread->id]->abandon();
  cluster = nullptr;
  self = nullptr;
}

uint64_t Cluster::priority_of(const Thread& thread) {
  switch (schedule_.order) {
    case Schedule::Order::kInOrder:
      return ~uint64_t{thread.id};
    case Schedule::Order::kRandom:
      return rng();
    case Schedule::Order::kPriorities:
      break;
  }
  uint16_t& of_block = block_priority_[thread.block->rank];
  const size_t warp = thread.block->rank * thread.block->warps.size() + thread.index / kLanes;
  const uint64_t random = rng();
  if (random % 1024 == 0) of_block = static_cast<uint16_t>(rng());
  if (random % 256 == 1) warp_priority_[warp] = static_cast<uint16_t>(rng());
  return uint64_t{of_block} << 48 | uint64_t{warp_priority_[warp]} << 32 | random >> 32;
}

void Cluster::make_ready(Thread& thread) {
  thread.at = Thread::At::kReady;
  ready_.emplace_back(priority_of(thread), &thread);
  std::push_heap(ready_.begin(), ready_.end());
}

void Cluster::run_thread() { (*cluster->body_)(); }

void Cluster::run(const std::function<void()>& body) {
  cluster = this;
  body_ = &body;
  for (const auto& thread : threads) make_ready(*thread);
  while (exits_ < threads.size()) {
    if (ready_.empty() && !async.land_one()) fail("deadlock:" + positions());
    if (ready_.empty()) continue;
    std::pop_heap(ready_.begin(), ready_.end());
    Thread& next = *ready_.back().second;
    ready_.pop_back();
    step(next);
    if (async.copies() && happens(land_rate_)) async.land_one();
    if (async.stores() && happens(store_rate_)) async.apply_one_store();
  }
  async.apply_all_stores();
  for (const auto& block : blocks) block->memory.check_guard();
}

void Cluster::step(Thread& thread) {
  self = &thread;
  threadIdx.x = thread.index;
  blockIdx = thread.block->index;
  // A thread that returns from the kernel is still marked as ready; one that pauses says where.
  Fiber& fiber = *fibers[thread.id];
  const bool returned = fiber.resume(run_thread);
  if (!pending_fault.empty()) {
    const std::string message = std::exchange(pending_fault, {});
    self = nullptr;
    throw Fault(message);
  }
  self = nullptr;
  if (returned) exit_thread(thread);
}

void Cluster::exit_thread(Thread& thread) {
  Block& block = *thread.block;
  thread.at = Thread::At::kExit;
  ++exits_, ++block.exits;
  if (thread.cluster_arrivals != thread.cluster_waits) {
    fail("a thread exits between barrier.cluster.arrive and barrier.cluster.wait");
  }
  block.known_at_exit.add(thread.clock);
  if (block.has_exited()) check_exit(block);
  complete_cluster_barrier();
}

void Cluster::check_exit(Block& block) {
  if (async.has_copy_to(block)) fail("a block exits while a copy into it is in flight");
  for (const Event& event : block.incoming) {
    if (block.known_at_exit.knows(event)) continue;
    fail(event.component < threads.size()
             ? "a block can exit before a remote store or arrival, which no barrier orders before the exit"
             : "a block can exit before a copy into it lands, which none of its threads has waited for");
  }
}

void Cluster::pause_sometimes() {
  if (!schedule_.is_random() || !happens(kPauseRate)) return;
  Thread& thread = *self;
  make_ready(thread);
  wait_at(Thread::At::kReady);
}

void Cluster::sync_block() {
  Block& block = *self->block;
  if (++block.at_barrier < block.threads.size()) return wait_at(Thread::At::kBlockBarrier);
  block.at_barrier = 0;
  Gathering all;
  for (Thread* thread : block.threads) all.add(thread->clock);
  const Knowledge known = all.close();
  for (Thread* thread : block.threads) {
    thread->clock.learn(known);
    thread->clock.advance();
    make_ready(*thread);
  }
  wait_at(Thread::At::kReady);
}

// A shuffle orders no accesses to memory.
uint32_t Cluster::shuffle(uint32_t value, unsigned lane_mask) {
  Block& block = *self->block;
  const unsigned warp_index = self->index / kLanes, lane = self->index % kLanes;
  Warp& warp = block.warps[warp_index];
  const unsigned turn = self->shuffles++ % 2;
  warp.given[turn][lane] = value;
  if (++warp.shuffling < kLanes) {
    wait_at(Thread::At::kShuffle);
  } else {
    warp.shuffling = 0;
    for (unsigned i = 0; i < kLanes; ++i) make_ready(*block.threads[warp_index * kLanes + i]);
    wait_at(Thread::At::kReady);
  }
  return warp.given[turn][lane ^ lane_mask];
}

void Cluster::arrive(bool release) {
  if (self->cluster_arrivals != self->cluster_waits) fail("barrier.cluster.arrive twice, without a wait");
  if (release) {
    async.publish_stores(self->clock);
    arrived_.add(self->clock);
    self->clock.advance();
  }
  // Every arrival shows that the block runs, and publishes fenced mbarriers.
  arrived_.add(start_of(*self->block));
  for (const Event& mbarrier : self->fenced_mbarriers) arrived_.add(mbarrier);
  ++self->cluster_arrivals, ++arrivals_;
  complete_cluster_barrier();
  pause_sometimes();
}

void Cluster::complete_cluster_barrier() {
  if (arrivals_ == 0 || arrivals_ + exits_ < threads.size()) return;
  arrivals_ = 0, ++completed_;
  arrived_knowledge_ = arrived_.close();
  for (Thread* thread : std::exchange(at_cluster_barrier_, {})) make_ready(*thread);
}

void Cluster::wait() {
  if (self->cluster_arrivals == self->cluster_waits) fail("barrier.cluster.wait without an arrive");
  if (completed_ <= self->cluster_waits) {
    at_cluster_barrier_.push_back(self);
    wait_at(Thread::At::kClusterBarrier);
  }
  ++self->cluster_waits;
  self->clock.learn(arrived_knowledge_);
}

std::string Cluster::positions() const {
  std::string out;
  for (const auto& block : blocks) {
    std::map<Thread::At, unsigned> count;
    for (const Thread* thread : block->threads) ++count[thread->at];
    out += " block " + std::to_string(block->rank) + " has";
    for (const auto& [at, threads_there] : count) {
      out += " " + std::to_string(threads_there) + " threads at " + name_of(at) + ",";
    }
  }
  out.back() = ';';
  return out + async.describe_mbarriers();
}

}  // namespace emulation
