#include "emulator.h"

#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>

namespace emulator {

Thread* current = nullptr;
uint3 block_index{};
dim3 block_size, grid_size;
Order order = Order::forward;
const void* cublaslt = nullptr;

// ---- fibers: a stack and a saved stack pointer each

namespace {

constexpr size_t kStack = 256 * 1024;
constexpr unsigned kWarp = 32;

#if defined(__x86_64__)
extern "C" void pluralign_switch(void** save, void* to);
asm(R"(
.text
.type pluralign_switch,@function
pluralign_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pluralign_switch,.-pluralign_switch
)");
#endif

struct Exchange {
  unsigned mask = 0, arrived = 0;
  uint64_t done = 0;  // exchanges that all lanes have reached
  alignas(64) unsigned char slot[2][kWarp][64];
};

struct CopyQueue {
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
  };
  std::vector<std::vector<Copy>> groups{1};  // the last is open
  size_t first = 0;
};

}  // namespace

struct Fiber {
  Thread thread;
  const uint64_t* waits_on = nullptr;
  uint64_t until = 0;
  bool finished = false;
  CopyQueue copies;
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  unsigned char* stack = nullptr;

  bool runnable() const { return !finished && (!waits_on || *waits_on >= until); }
};

namespace {

struct Block {
  std::vector<Fiber> fibers;
  std::vector<std::vector<Exchange>> warps;
  uint64_t barriers = 0;
  unsigned at_barrier = 0, alive = 0;
  std::vector<unsigned char> shared;
  size_t shared_size = 0;
  const std::function<void()>* body = nullptr;
  std::string error;
#if defined(__x86_64__)
  void* scheduler = nullptr;
#else
  ucontext_t scheduler;
#endif
};

Block block;
std::mutex one_launch;
constexpr size_t kGuard = 256;
constexpr unsigned char kCanary = 0xa5;

void leave(Fiber& f) {
#if defined(__x86_64__)
  pluralign_switch(&f.stack_pointer, block.scheduler);
#else
  swapcontext(&f.context, &block.scheduler);
#endif
}

void release_barrier_where_complete() {
  if (block.at_barrier > 0 && block.at_barrier == block.alive) {
    block.at_barrier = 0;
    ++block.barriers;
  }
}

void run_body() {
  Fiber& f = *current->fiber;
  try {
    (*block.body)();
  } catch (const std::exception& e) {
    if (block.error.empty()) block.error = e.what();
  }
  f.finished = true;
  --block.alive;
  release_barrier_where_complete();
  leave(f);
}

void prepare(Fiber& f) {
  if (!f.stack) {
    void* at = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::runtime_error("the emulator has no memory for a stack");
    f.stack = static_cast<unsigned char*>(at);
    mprotect(f.stack, 4096, PROT_NONE);
  }
#if defined(__x86_64__)
  // As pluralign_switch leaves it: six registers and a return address; the stack is 16-byte aligned at a function's call.
  auto* top = reinterpret_cast<void**>(f.stack + kStack - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&run_body);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  f.stack_pointer = top;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack;
  f.context.uc_stack.ss_size = kStack;
  f.context.uc_link = nullptr;
  makecontext(&f.context, &run_body, 0);
#endif
  f.finished = false;
  f.waits_on = nullptr;
  f.copies = CopyQueue{};
}

void resume(Fiber& f) {
  current = &f.thread;
  f.waits_on = nullptr;
#if defined(__x86_64__)
  pluralign_switch(&block.scheduler, f.stack_pointer);
#else
  swapcontext(&block.scheduler, &f.context);
#endif
}

void wait_until(const uint64_t* counter, uint64_t value) {
  Fiber& f = *current->fiber;
  Thread* const self = current;
  while (*counter < value) {
    f.waits_on = counter;
    f.until = value;
    leave(f);
  }
  current = self;
}

void run_block(const char* name, const std::vector<unsigned>& turns) {
  const size_t n = block.fibers.size();
  std::memset(block.shared.data(), 0xff, block.shared_size);
  std::memset(block.shared.data() + block.shared_size, kCanary, kGuard);
  for (auto& warp : block.warps) warp.clear();
  block.barriers = block.at_barrier = 0;
  block.alive = unsigned(n);
  for (Fiber& f : block.fibers) prepare(f);
  while (block.alive > 0) {
    bool moved = false;
    for (unsigned i : turns)
      if (block.fibers[i].runnable()) {
        resume(block.fibers[i]);
        moved = true;
      }
    if (!moved) {
      if (!block.error.empty()) throw std::runtime_error(std::string(name) + ": " + block.error);  // the others wait for who left
      unsigned where = 0;
      while (block.fibers[where].finished) ++where;
      const Fiber& f = block.fibers[where];
      throw std::runtime_error(std::string(name) + ": block " + std::to_string(block_index.x) + "," + std::to_string(block_index.y) + "," +
                               std::to_string(block_index.z) + " is stuck: thread " + std::to_string(where) + " waits at " +
                               (f.waits_on == &block.barriers ? "a barrier" : "an exchange of its warp") + ", " + std::to_string(block.at_barrier) + " of " +
                               std::to_string(block.alive) + " living threads are at a barrier");
    }
  }
  if (!block.error.empty()) throw std::runtime_error(std::string(name) + ": " + block.error);
  for (size_t i = 0; i < kGuard; ++i)
    if (block.shared[block.shared_size + i] != kCanary) throw std::runtime_error(std::string(name) + ": wrote beyond its shared memory, byte " + std::to_string(i));
}

}  // namespace

void launch(const char* name, dim3 grid, dim3 size, size_t shared, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const size_t threads = size_t(size.x) * size.y * size.z;
  if (threads == 0 || threads > 1024) throw std::runtime_error(std::string(name) + ": a block of " + std::to_string(threads) + " threads");
  block.error.clear();
  block.body = &body;
  block_size = size;
  grid_size = grid;
  if (block.fibers.size() < threads) {
    std::vector<Fiber> more(threads);
    for (size_t i = 0; i < block.fibers.size(); ++i) more[i].stack = block.fibers[i].stack;
    block.fibers = std::move(more);
  }
  for (size_t i = threads; i < block.fibers.size(); ++i) munmap(block.fibers[i].stack, kStack);
  block.fibers.resize(threads);
  block.warps.resize((threads + kWarp - 1) / kWarp);
  block.shared_size = shared;
  block.shared.resize(shared + kGuard + 128);
  std::vector<unsigned> turns(threads);
  for (unsigned i = 0; i < threads; ++i) {
    turns[i] = i;
    Fiber& f = block.fibers[i];
    f.thread = {{unsigned(i % size.x), unsigned(i / size.x % size.y), unsigned(i / size.x / size.y)}, i % kWarp, i / kWarp, &f};
  }
  if (order == Order::backward) std::reverse(turns.begin(), turns.end());
  if (order == Order::shuffled) {
    static std::mt19937 random(7);
    std::shuffle(turns.begin(), turns.end(), random);
  }
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = {x, y, z};
        run_block(name, turns);
      }
}

void* shared_bytes() { return block.shared.data(); }

void barrier() {
  const uint64_t mine = block.barriers + 1;
  ++block.at_barrier;
  release_barrier_where_complete();
  wait_until(&block.barriers, mine);
}

const unsigned char* exchange(unsigned mask, const void* in, size_t bytes) {
  Thread* const self = current;
  if (!(mask >> self->lane & 1)) throw std::runtime_error("a lane outside the mask takes part in an exchange");
  auto& list = block.warps[self->warp];
  if (list.empty()) list.reserve(64);  // references stay good
  Exchange* e = nullptr;
  for (Exchange& other : list)
    if (other.mask == mask) e = &other;
  if (!e) {
    if (list.size() == list.capacity()) throw std::runtime_error("too many different masks in one warp");
    e = &list.emplace_back();
    e->mask = mask;
  }
  const uint64_t round = e->done;
  unsigned char(*slot)[64] = e->slot[round & 1];
  std::memcpy(slot[self->lane], in, bytes);
  e->arrived |= 1u << self->lane;
  if (e->arrived == mask) {
    e->arrived = 0;
    ++e->done;
  }
  wait_until(&e->done, round + 1);
  return slot[0];
}

// ---- asynchronous copies

namespace {
void check_aligned(const void* at, const char* what) {
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0) throw std::runtime_error(std::string(what) + " at an address that is no multiple of 16");
}
}  // namespace

void queue_copy(void* to, const void* from, size_t bytes) {
  check_aligned(to, "a copy into shared memory");
  check_aligned(from, "a copy from memory");
  current->fiber->copies.groups.back().push_back({to, from, bytes});
}
void commit_copies() { current->fiber->copies.groups.emplace_back(); }
void wait_copies(int pending) {
  CopyQueue& q = current->fiber->copies;
  const size_t committed = q.groups.size() - 1;
  for (; q.first + size_t(pending) < committed; ++q.first) {
    for (const CopyQueue::Copy& c : q.groups[q.first]) {
      if (c.from) std::memcpy(c.to, c.from, c.bytes);
      else std::memset(c.to, 0, c.bytes);
    }
    q.groups[q.first].clear();
  }
}

// ---- matrix products

namespace {
float half_of(uint32_t pair, int which) {
  const uint32_t bits = (which ? pair >> 16 : pair & 0xffff) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
}  // namespace

void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragment {
    uint32_t a[4], b[2];
  } mine, all[kWarp];
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  const unsigned char* slots = exchange(0xffffffffu, &mine, sizeof mine);
  for (unsigned l = 0; l < kWarp; ++l) std::memcpy(&all[l], slots + 64 * l, sizeof mine);
  // Lane l holds rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next; registers of A: (row, k), (row + 8, k), (row, k + 8),
  // (row + 8, k + 8); of B: (k, column l / 4), (k + 8, …).
  const unsigned row = current->lane / 4, column = current->lane % 4 * 2;
  for (int i = 0; i < 4; ++i) {
    const unsigned m = row + (i >= 2 ? 8 : 0), n = column + unsigned(i & 1);
    float sum = c[i];
    for (unsigned k = 0; k < 16; ++k) {
      const Fragment &fa = all[m % 8 * 4 + k % 8 / 2], &fb = all[n * 4 + k % 8 / 2];
      sum += half_of(fa.a[(m >= 8 ? 1 : 0) + (k >= 8 ? 2 : 0)], int(k & 1)) * half_of(fb.b[k >= 8 ? 1 : 0], int(k & 1));
    }
    c[i] = sum;
  }
}

void load_matrices(uint32_t (&r)[4], const void* row, bool transposed) {
  check_aligned(row, "a row of a matrix");
  struct Row {
    uint16_t at[8];
  } mine;
  std::memcpy(&mine, row, sizeof mine);
  const unsigned char* slots = exchange(0xffffffffu, &mine, sizeof mine);
  const auto element = [&](unsigned matrix, unsigned i, unsigned j) {
    uint16_t bits;
    std::memcpy(&bits, slots + 64 * (matrix * 8 + i) + 2 * j, 2);
    return uint32_t(bits);
  };
  const unsigned i = current->lane / 4, j = current->lane % 4 * 2;
  for (unsigned m = 0; m < 4; ++m)
    r[m] = transposed ? element(m, j, i) | element(m, j + 1, i) << 16 : element(m, i, j) | element(m, i, j + 1) << 16;
}

}  // namespace emulator
