// The copy engine and mbarriers, and stores to other blocks on their way: what happens between the steps of
// the threads.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "clock.h"
#include "shared_memory.h"

namespace emulation {

struct Thread;

// A barrier object in shared memory. A phase completes when all arrivals and all announced bytes are there.
struct Mbarrier {
  Block* block;
  uint32_t offset;
  unsigned component;
  unsigned count;  // arrivals per phase
  unsigned pending = count;
  int64_t bytes = 0;    // announced, less those that have landed
  uint32_t phase = 0;   // that is under way
  Gathering gathering;  // what the arrivals of the phase publish
  Knowledge known;      // by those who wait for the last completed phase
  // Whether other blocks have contributed to the phase under way, and to the last completed one.
  bool from_others = false, was_from_others = false;
  std::vector<Thread*> waiting;

  // The events of the component.
  Event initialisation() const { return {component, 1}; }
  Event fence() const { return {component, 2}; }  // after which the copy engine sees the initialisation
  Event completion() const { return {component, phase + 3}; }  // of the phase under way
};

class AsyncUnit {
 public:
  // mbarriers, named by an address in shared memory. Their methods are called by threads.
  void initialise(uint32_t address, unsigned count);
  void fence_mbarriers(bool for_cluster);
  void arrive(uint32_t address, unsigned count, uint32_t bytes);
  void expect(uint32_t address, uint32_t bytes);
  bool try_wait(uint32_t address, unsigned parity, bool of_cluster);

  void begin_copy(uint32_t to, const char* from, uint32_t bytes, uint32_t mbarrier);
  void begin_store(uint32_t to, const std::vector<uint32_t>& words,
                   uint32_t mbarrier);  // an asynchronous one
  void store(uint32_t to, uint32_t value);

  bool copies() const { return !pieces_.empty(); }
  bool stores() const { return !stores_.empty(); }
  bool has_copy_to(const Block& block) const;
  // Lands a part of a copy. Returns whether there was one.
  bool land_one();
  void apply_one_store();
  void apply_all_stores();
  // Applies the stores that a release with this clock publishes.
  void publish_stores(const Clock& clock);
  std::string describe_mbarriers() const;

 private:
  // A part of a copy, or (without a source) the words of a store.
  struct Piece {
    Mbarrier* mbarrier;
    uint32_t offset;
    const char* from;
    std::vector<uint32_t> words;
    uint32_t bytes;
    bool from_other;  // block
  };
  struct Store {
    Event by;
    Block* block;
    uint32_t offset, value;
  };

  Mbarrier& find(uint32_t address);
  Mbarrier& target_of(uint32_t to, uint32_t mbarrier, SharedAddress* target);
  void check_alive(const Block& block, const char* access);
  void complete_if_due(Mbarrier& mbarrier);
  void apply(const Store& store);

  std::map<std::pair<Block*, uint32_t>, std::unique_ptr<Mbarrier>> mbarriers_;
  std::vector<Piece> pieces_;
  std::vector<Store> stores_;
};

}  // namespace emulation
