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
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    generation_.fetch_add(1);
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
  {
    std::lock_guard lock(mutex_);
    tasks_ = tasks;
    call_ = call;
    context_ = context;
    error_ = nullptr;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(int(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  drain(0);
  for (int spin = 0; busy_.load(std::memory_order_acquire) != 0;) {
    if (++spin < kSpins) relax();
    else std::this_thread::yield();
  }
  if (error_) std::rethrow_exception(error_);
}

void Pool::work(int thread) {
  uint64_t seen = 0;
  for (;;) {
    int spin = 0;
    while (generation_.load(std::memory_order_acquire) == seen && ++spin < kSpins) relax();
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
    }
    {
      std::lock_guard lock(mutex_);  // pairs with dispatch: the fields below are complete
      seen = generation_.load(std::memory_order_relaxed);
      if (stop_) return;
    }
    drain(thread);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace pluralign
