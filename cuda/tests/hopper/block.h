// What one block of a Hopper kernel has beside its threads: its shared memory, and what is under way there. Part of
// hopper_on_cpu.h.
#pragma once

#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>

#include "../../src/kernels/attention/boxes.h"
#include "../../src/kernels/parts/launch.h"

namespace rope::cuda {

inline constexpr int kWarp = 32, kWarpgroup = 128;

using TensorMap = BoxedTensor;

// What one block has beside its threads: its shared memory, and all that is under way there.
class HopperBlock {
 public:
  static constexpr uint32_t kUnit = 16;  // bytes that are copied and watched together

  void begin(unsigned threads, int shared_bytes) {
    bytes_ = uint32_t(shared_bytes);
    memory_.reset(static_cast<char*>(std::aligned_alloc(1024, (bytes_ + 1023) / 1024 * 1024)));
    std::memset(memory_.get(), 0xff, bytes_);  // NaN
    unfenced_.assign(bytes_ / kUnit, kFenced);
    barriers_.clear();
    loads_.clear();
    groups_.clear();
    threads_.assign(threads, {});
    failure_.clear();
  }

  // All that must hold when the threads are done.
  void end() {
    while (deliver()) {
    }
    for (const auto& [at, barrier] : barriers_)
      if (barrier.bytes) note("mbarrier " + std::to_string(at) + " is left with bytes that did not come");
    for (const auto& [id, group] : groups_)
      if (group.arrived) note("named barrier " + std::to_string(id) + " is left with arrivals");
    for (const Thread& t : threads_)
      if (!t.stores.empty()) note("a thread left before its stores had read shared memory");
  }

  const std::string& failure() const { return failure_; }

  void note(const std::string& text) {
    if (failure_.empty()) failure_ = text;
  }

  // The thread that is at fault stops here, and sooner or later all others.
  void fail(const char* text) {
    note("thread " + std::to_string(thread_index()) + ": " + text);
    fibers.wait([] { return false; }, "for good", 0);
  }

  void check(bool good, const char* text) {
    if (!good) fail(text);
  }

  // ---- shared memory

  char* memory() { return memory_.get(); }
  uint32_t address(const void* p) const { return uint32_t(static_cast<const char*>(p) - memory_.get()); }

  char* at(uint32_t address, uint32_t bytes) {
    check(address + bytes <= bytes_, "outside shared memory");
    return memory_.get() + address;
  }

  // The 128-byte swizzle of TMA and wgmma, on bits of the address.
  static uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

  // 16 bytes, by the thread itself.
  void write(uint32_t to, const void* from) {
    check(to % kUnit == 0, "address is no multiple of 16 bytes");
    std::memcpy(at(to, kUnit), from, kUnit);
    unfenced_[to / kUnit] = int16_t(thread_index());
  }

  void fence() {
    for (int16_t& writer : unfenced_)
      if (writer == int16_t(thread_index())) writer = kFenced;
  }

  // What TMA or wgmma reads or overwrites.
  char* asynchronous(uint32_t address, uint32_t bytes) {
    char* p = at(address, bytes);
    check(unfenced_[address / kUnit] == kFenced, "TMA or wgmma at shared memory that was written without a fence");
    return p;
  }

  // ---- mbarriers

  void init(uint32_t at, int arrivals) {
    check(at % 8 == 0 && !barriers_.count(at), "mbarrier misplaced, or there already");
    barriers_[at] = {arrivals, arrivals, 0, 0, std::vector<int64_t>(threads_.size(), -1)};
  }

  void arrive(uint32_t at, int64_t bytes) {
    Barrier& b = barrier(at);
    check(b.pending > 0, "more arrivals at an mbarrier than its phase has");
    b.bytes += bytes;
    --b.pending;
    settle(b);
  }

  void complete(uint32_t at, int64_t bytes) {
    Barrier& b = barrier(at);
    b.bytes -= bytes;
    settle(b);
  }

  // Phases count from 0. A thread waits for each of them, one after the other, or twice.
  void wait(uint32_t at, uint32_t parity) {
    Barrier& b = barrier(at);
    fibers.wait([&b, parity] { return (b.ended & 1) != int64_t(parity); }, "mbarrier", at);
    int64_t& waited = b.waited[thread_index()];
    check(b.ended - 1 - waited <= 1, "a phase of an mbarrier ended unseen by a thread that waits for each");
    waited = b.ended - 1;
  }

  // ---- named barriers

  void group(int id, int threads, bool waits) {
    Group& g = groups_[id];
    check(id > 0 && id < 16 && threads % kWarp == 0 && (!g.arrived || g.threads == threads),
          "named barrier: number or threads");
    g.threads = threads;
    const unsigned round = g.round;
    if (++g.arrived == threads) {
      g.arrived = 0;
      ++g.round;
    }
    if (waits) fibers.wait([&g, round] { return g.round != round; }, "named barrier", uint32_t(id));
  }

  // ---- copies

  void load(const TensorMap* map, uint32_t to, uint32_t at, const int (&place)[4]) {
    check(to % 128 == 0, "TMA at an address that is no multiple of 128 bytes");
    loads_.push_back({to, at, map, {place[0], place[1], place[2], place[3]}, nullptr, 0});
    if (random_() % 2) deliver();
  }

  // One of the loads that are under way arrives.
  bool deliver() {
    if (loads_.empty()) return false;
    const auto at = loads_.begin() + int64_t(random_() % loads_.size());
    const Copy load = *at;
    loads_.erase(at);
    if (!load.map) {
      for (uint32_t i = 0; i < load.bytes; i += kUnit)
        std::memcpy(asynchronous(load.shared + i, kUnit), load.memory + i, kUnit);
      complete(load.barrier, load.bytes);
      return true;
    }
    copy(load, [this](uint32_t shared, const char* element) {
      char* to = asynchronous(shared, kUnit);
      if (element) {
        std::memcpy(to, element, kUnit);
      } else {
        std::memset(to, 0, kUnit);
      }
    });
    complete(load.barrier, load.map->rows * 128);
    return true;
  }

  void load_bytes(uint32_t to, const void* from, int bytes, uint32_t at) {
    check(to % kUnit == 0 && bytes % kUnit == 0 && reinterpret_cast<uintptr_t>(from) % kUnit == 0,
          "bulk copy that is no multiple of 16 bytes");
    loads_.push_back({to, at, nullptr, {}, static_cast<char*>(const_cast<void*>(from)), uint32_t(bytes)});
    if (random_() % 2) deliver();
  }

  void add_floats(float* to, uint32_t from, int bytes) {
    check(from % kUnit == 0 && bytes % kUnit == 0 && reinterpret_cast<uintptr_t>(to) % kUnit == 0,
          "bulk copy that is no multiple of 16 bytes");
    for (int i = 0; i < bytes; i += int(kUnit)) asynchronous(from + uint32_t(i), kUnit);
    self().stores.push_back({from, 0, nullptr, {}, reinterpret_cast<char*>(to), uint32_t(bytes)});
    self().open = true;
  }

  void store(const TensorMap* map, uint32_t from, const int (&place)[4]) {
    check(from % 128 == 0, "TMA at an address that is no multiple of 128 bytes");
    const Copy store = {from, 0, map, {place[0], place[1], place[2], place[3]}, nullptr, 0};
    copy(store, [this](uint32_t shared, char*) { asynchronous(shared, kUnit); });
    self().stores.push_back(store);
    self().open = true;
  }

  void commit_stores() { self().open = false; }

  void wait_stores_read() {
    check(!self().open, "stores that were not committed are waited for");
    for (const Copy& store : self().stores) {
      float* sums = reinterpret_cast<float*>(store.memory);
      for (uint32_t i = 0; i < store.bytes / 4; ++i)
        sums[i] += *reinterpret_cast<const float*>(at(store.shared + 4 * i, 4));
      if (!store.map) continue;
      copy(store, [this](uint32_t shared, char* element) {
        if (element) std::memcpy(element, at(shared, kUnit), kUnit);
      });
    }
    self().stores.clear();
  }

 private:
  static constexpr int16_t kFenced = -1;

  struct Barrier {
    int expected, pending;
    int64_t bytes;                // announced and not there yet
    int64_t ended;                // phases
    std::vector<int64_t> waited;  // the last phase that each thread has waited for
  };
  struct Group {
    int threads = 0, arrived = 0;
    unsigned round = 0;
  };
  struct Copy {
    uint32_t shared, barrier;
    const TensorMap* map;  // null: `bytes` at `memory`, loaded, or added as floats
    int place[4];
    char* memory;
    uint32_t bytes;
  };
  struct Thread {
    std::vector<Copy> stores;
    bool open = false;  // some are not committed
  };

  Thread& self() { return threads_[thread_index()]; }

  Barrier& barrier(uint32_t at) {
    check(barriers_.count(at), "no mbarrier there");
    return barriers_[at];
  }

  void settle(Barrier& b) {
    if (b.pending) return;
    check(b.bytes >= 0, "more bytes than an mbarrier expects");
    if (b.bytes) return;
    b.pending = b.expected;
    ++b.ended;
  }

  // each(address, element) for every 16 bytes of a box; null where the tensor has ended.
  template <class Each>
  void copy(const Copy& c, Each each) {
    const TensorMap& m = *c.map;
    for (int row = 0; row < m.rows; ++row)
      for (int column = 0; column < 64; column += 8) {
        const int64_t place[4] = {c.place[0] + column, c.place[1] + row, c.place[2], c.place[3]};
        char* element = m.data + place[0] * 2;
        for (int i = 0; i < 4; ++i) {
          if (place[i] < 0 || place[i] >= m.extent[i]) element = nullptr;
          if (i && element) element += place[i] * m.stride[i - 1];
        }
        each(swizzled(c.shared + uint32_t(row * 128 + column * 2)), element);
      }
  }

  struct Free {
    void operator()(char* p) const { std::free(p); }
  };

  std::unique_ptr<char[], Free> memory_;
  uint32_t bytes_ = 0;
  std::vector<int16_t> unfenced_;  // of each unit: the thread that wrote it and has not fenced since, or kFenced
  std::map<uint32_t, Barrier> barriers_;
  std::map<int, Group> groups_;
  std::vector<Copy> loads_;
  std::vector<Thread> threads_;
  std::string failure_;
  std::mt19937 random_{1};
};

inline thread_local HopperBlock hopper;

}  // namespace rope::cuda
