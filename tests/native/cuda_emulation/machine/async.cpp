#include "async.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cluster.h"
#include "global_memory.h"

namespace emulation {

namespace {

constexpr int64_t kMostBytes = (1 << 20) - 1;
constexpr unsigned kMostArrivals = (1 << 20) - 1;
constexpr uint32_t kMostVectorsPerPiece = 32;
constexpr double kTimeoutRate = 0.2;

}  // namespace

Mbarrier& AsyncUnit::find(uint32_t address) {
  const SharedAddress at = locate(address);
  const auto found = mbarriers_.find({at.block, at.offset});
  if (found == mbarriers_.end()) fail("an mbarrier is used that nobody has initialised");
  if (!self->clock.knows(found->second->initialisation())) {
    fail("an mbarrier is used by a thread that is not ordered after its initialisation");
  }
  return *found->second;
}

void AsyncUnit::initialise(uint32_t address, unsigned count) {
  const SharedAddress at = locate(address);
  if (at.block != self->block) fail("mbarrier.init of another block's mbarrier");
  if (at.offset % 8) fail("an mbarrier that is not aligned to 8 bytes");
  if (count < 1 || count > kMostArrivals) fail("mbarrier.init with a count that is out of range");
  auto& mbarrier = mbarriers_[{at.block, at.offset}];
  if (mbarrier) fail("mbarrier.init of an mbarrier that is in use");
  mbarrier = std::make_unique<Mbarrier>(Mbarrier{at.block, at.offset, cluster->new_component(), count});
  self->clock.learn(mbarrier->initialisation());
}

void AsyncUnit::fence_mbarriers(bool for_cluster) {
  for (const auto& [address, mbarrier] : mbarriers_) {
    if (address.first != self->block || !self->clock.knows(mbarrier->initialisation())) continue;
    self->clock.learn(mbarrier->fence());
    if (for_cluster) self->fenced_mbarriers.push_back(mbarrier->fence());
  }
}

void AsyncUnit::complete_if_due(Mbarrier& mbarrier) {
  if (mbarrier.pending > 0 || mbarrier.bytes != 0) return;
  if (mbarrier.known) mbarrier.gathering.add(mbarrier.known);
  mbarrier.gathering.add(mbarrier.completion());
  mbarrier.known = mbarrier.gathering.close();
  mbarrier.was_from_others = std::exchange(mbarrier.from_others, false);
  ++mbarrier.phase;
  mbarrier.pending = mbarrier.count;
  for (Thread* thread : std::exchange(mbarrier.waiting, {})) cluster->make_ready(*thread);
}

void AsyncUnit::expect(uint32_t address, uint32_t bytes) {
  Mbarrier& mbarrier = find(address);
  if (mbarrier.block != self->block) fail("expect_tx of another block's mbarrier");
  mbarrier.bytes += bytes;
  if (mbarrier.bytes > kMostBytes) fail("an mbarrier expects more than 2^20 - 1 bytes");
}

void AsyncUnit::arrive(uint32_t address, unsigned count, uint32_t bytes) {
  Mbarrier& mbarrier = find(address);
  check_alive(*mbarrier.block, "an arrival at an mbarrier of");
  if (bytes) expect(address, bytes);
  if (count > mbarrier.pending) fail("more arrivals at an mbarrier than the phase has");
  if (mbarrier.block != self->block) {
    publish_stores(self->clock);
    mbarrier.from_others = true;
    mbarrier.block->incoming.push_back(self->clock.now());
  }
  mbarrier.gathering.add(self->clock);
  self->clock.advance();
  mbarrier.pending -= count;
  complete_if_due(mbarrier);
  cluster->pause_sometimes();
}

bool AsyncUnit::try_wait(uint32_t address, unsigned parity, bool of_cluster) {
  Mbarrier& mbarrier = find(address);
  if (mbarrier.block != self->block) fail("a wait at another block's mbarrier");
  cluster->pause_sometimes();
  if (mbarrier.phase % 2 == parity) {
    // It may give up before the phase completes.
    if (cluster->happens(kTimeoutRate)) cluster->pause_sometimes();
    if (mbarrier.phase % 2 == parity) {
      mbarrier.waiting.push_back(self);
      wait_at(Thread::At::kMbarrier);
    }
  }
  if (mbarrier.phase % 2 == parity) return false;
  if (mbarrier.was_from_others && !of_cluster)
    fail("a wait of the block's scope for what other blocks have sent");
  if (mbarrier.known) self->clock.learn(mbarrier.known);
  return true;
}

// A block that has not started has no shared memory yet, and one that has exited has none any more.
void AsyncUnit::check_alive(const Block& block, const char* access) {
  if (&block == self->block) return;
  const std::string name = std::string(access) + " a block that ";
  if (!self->clock.knows(cluster->start_of(block))) fail(name + "may not have started");
  if (block.has_exited()) fail(name + "has exited");
}

Mbarrier& AsyncUnit::target_of(uint32_t to, uint32_t mbarrier, SharedAddress* target) {
  Mbarrier& signal = find(mbarrier);
  *target = locate(to);
  if (target->block != signal.block) fail("a copy whose mbarrier is not in the block that it writes to");
  if (!self->clock.knows(signal.fence())) {
    fail("a copy with an mbarrier whose initialisation no fence has shown to the copy engine");
  }
  check_alive(*target->block, "a copy into");
  return signal;
}

void AsyncUnit::begin_copy(uint32_t to, const char* from, uint32_t bytes, uint32_t mbarrier) {
  SharedAddress target;
  Mbarrier& signal = target_of(to, mbarrier, &target);
  if (bytes == 0 || (reinterpret_cast<uintptr_t>(from) | target.offset | bytes) % kVector) {
    fail("a bulk copy with an address or a size that is no multiple of 16");
  }
  if (!target.block->memory.is_dynamic(target.offset, bytes)) {
    fail("a bulk copy beyond the dynamic shared memory that the launch requested");
  }
  check_global(from, bytes, false);
  target.block->memory.begin_landing(target.offset, bytes, true);
  for (uint32_t done = 0; done < bytes;) {
    const auto vectors = static_cast<uint32_t>(1 + cluster->rng() % kMostVectorsPerPiece);
    const uint32_t size = std::min(bytes - done, vectors * kVector);
    pieces_.push_back({&signal, target.offset + done, from + done, {}, size, target.block != self->block});
    done += size;
  }
  cluster->pause_sometimes();
}

void AsyncUnit::begin_store(uint32_t to, const std::vector<uint32_t>& words, uint32_t mbarrier) {
  SharedAddress target;
  Mbarrier& signal = target_of(to, mbarrier, &target);
  const auto bytes = static_cast<uint32_t>(words.size() * sizeof(uint32_t));
  if (target.offset % bytes) fail("an asynchronous store that is not aligned");
  target.block->memory.begin_landing(target.offset, bytes, false);
  pieces_.push_back({&signal, target.offset, nullptr, words, bytes, target.block != self->block});
  cluster->pause_sometimes();
}

void AsyncUnit::store(uint32_t to, uint32_t value) {
  const SharedAddress target = locate(to);
  check_alive(*target.block, "a remote store into");
  if (target.offset % sizeof value) fail("a remote store that is not aligned");
  target.block->memory.write(target.offset);
  if (target.block != self->block) target.block->incoming.push_back(self->clock.now());
  stores_.push_back({self->clock.now(), target.block, target.offset, value});
  cluster->pause_sometimes();
}

bool AsyncUnit::has_copy_to(const Block& block) const {
  return std::any_of(pieces_.begin(), pieces_.end(),
                     [&](const Piece& piece) { return piece.mbarrier->block == &block; });
}

bool AsyncUnit::land_one() {
  if (pieces_.empty()) return false;
  std::swap(pieces_[cluster->rng() % pieces_.size()], pieces_.back());
  const Piece piece = pieces_.back();
  pieces_.pop_back();
  Mbarrier& mbarrier = *piece.mbarrier;
  const char* const from = piece.from ? piece.from : reinterpret_cast<const char*>(piece.words.data());
  mbarrier.block->memory.land(piece.offset, from, piece.bytes, mbarrier.completion());
  std::vector<Event>& incoming = mbarrier.block->incoming;
  if (incoming.empty() || incoming.back() != mbarrier.completion()) incoming.push_back(mbarrier.completion());
  mbarrier.bytes -= piece.bytes;
  mbarrier.from_others |= piece.from_other;
  complete_if_due(mbarrier);
  return true;
}

void AsyncUnit::apply(const Store& store) {
  if (store.block->has_exited()) fail("a remote store takes effect in a block that has exited");
  std::memcpy(store.block->memory.at(store.offset), &store.value, sizeof store.value);
}

// Stores to one address take effect in their order: of those, the first one is chosen.
void AsyncUnit::apply_one_store() {
  const Store& chosen = stores_[cluster->rng() % stores_.size()];
  const auto first = std::find_if(stores_.begin(), stores_.end(), [&](const Store& other) {
    return other.block == chosen.block && other.offset == chosen.offset;
  });
  const Store store = *first;
  stores_.erase(first);
  apply(store);
}

void AsyncUnit::apply_all_stores() {
  for (const Store& store : std::exchange(stores_, {})) apply(store);
}

void AsyncUnit::publish_stores(const Clock& clock) {
  std::vector<Store> rest;
  for (const Store& store : std::exchange(stores_, {})) {
    if (clock.knows(store.by)) {
      apply(store);
    } else {
      rest.push_back(store);
    }
  }
  stores_ = std::move(rest);
}

std::string AsyncUnit::describe_mbarriers() const {
  std::string out;
  for (const auto& [address, mbarrier] : mbarriers_) {
    if (mbarrier->waiting.empty()) continue;
    out += " an mbarrier of block " + std::to_string(mbarrier->block->rank) + ", waited for in phase " +
           std::to_string(mbarrier->phase) + ", lacks " + std::to_string(mbarrier->pending) +
           " arrivals and " + std::to_string(mbarrier->bytes) + " bytes;";
  }
  return out;
}

}  // namespace emulation
