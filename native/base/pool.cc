#include "pool.h"

#include <system_error>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pluralign {
namespace {
// Regions follow each other within microseconds inside a step, so a worker spins this long before it sleeps.
constexpr int kSpins = 4000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}
}  // namespace

Pool::Pool(int threads) {
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (const std::system_error&) {
    // The system gives no more threads: those that run will do, for results do not depend on how many there are.
  }
}

Pool::~Pool() {
  // In the one word that workers decide by: beside a flag of its own, one could take this for a region and wait for the next.
  region_.store(kEnd);
  {
    std::lock_guard lock(mutex_);
  }
  wake_.notify_all();
  for (auto& w : workers_) w.join();
}

void Pool::drain(int thread) {
  for (;;) {
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i >= tasks_) return;
    try {
      call_(context_, i, thread);
    } catch (...) {
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
}

void Pool::dispatch(int64_t tasks, Call call, void* context) {
  tasks_ = tasks;
  call_ = call;
  context_ = context;
  error_ = nullptr;
  next_.store(0, std::memory_order_relaxed);
  left_.store(0, std::memory_order_relaxed);
  // Sequentially consistent, as in work(): of a worker that falls asleep and a caller that opens a region, one sees the other.
  region_.store((region_.load(std::memory_order_relaxed) & ~(kNumber - 1)) + kNumber + kOpen);
  if (sleeping_.load() > 0) {
    {
      std::lock_guard lock(mutex_);
    }
    wake_.notify_all();
  }
  drain(0);
  const uint64_t entered = region_.fetch_and(~kOpen, std::memory_order_acq_rel) & (kOpen - 1);
  for (int spin = 0; left_.load(std::memory_order_acquire) != entered;) {
    if (++spin < kSpins) relax();
    else std::this_thread::yield();
  }
  if (error_) std::rethrow_exception(error_);
}

void Pool::work(int thread) {
  uint64_t seen = 0;
  const auto number = [this] { return region_.load() & ~(kNumber - 1); };
  for (;;) {
    for (int spin = 0; number() == seen && spin < kSpins; ++spin) relax();
    if (number() == seen) {
      std::unique_lock lock(mutex_);
      sleeping_.fetch_add(1);
      wake_.wait(lock, [&] { return number() != seen; });
      sleeping_.fetch_sub(1);
    }
    uint64_t region = region_.load(std::memory_order_acquire);
    while ((region & kOpen) && !region_.compare_exchange_weak(region, region + 1, std::memory_order_acq_rel)) {}
    seen = region & ~(kNumber - 1);
    if (seen == kEnd) return;
    if (!(region & kOpen)) continue;
    drain(thread);
    left_.fetch_add(1, std::memory_order_release);
  }
}

}  // namespace pluralign
