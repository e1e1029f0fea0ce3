// A fixed set of threads that runs index ranges. The caller takes part, so Pool(1) starts no thread, and nobody waits for a
// thread that has not begun: one that sleeps, or that the system runs elsewhere, costs its share and no more.
#pragma once
#include <atomic>
#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace pluralign {

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  int size() const { return int(workers_.size()) + 1; }

  // Calls body(index, thread) for every index in [0, tasks), in no fixed order, thread in [0, size()). Returns when all
  // are done. The first exception thrown is rethrown here. Not reentrant.
  template <class Body>
  void run(int64_t tasks, Body&& body) {
    if (tasks <= 0) return;
    if (workers_.empty() || tasks == 1) {
      for (int64_t i = 0; i < tasks; ++i) body(i, 0);
      return;
    }
    using Plain = std::remove_reference_t<Body>;
    dispatch(tasks, [](void* context, int64_t i, int thread) { (*static_cast<Plain*>(context))(i, thread); },
             const_cast<void*>(static_cast<const void*>(&body)));
  }

  // Splits [0, n) into ranges of at least `grain` and calls body(begin, end, thread).
  template <class Body>
  void ranges(int64_t n, int64_t grain, Body&& body) {
    if (n <= 0) return;
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(size() * 4, n / std::max<int64_t>(1, grain)));
    if (parts == 1 || size() == 1) {
      body(int64_t(0), n, 0);
      return;
    }
    run(parts, [&](int64_t p, int thread) { body(n * p / parts, n * (p + 1) / parts, thread); });
  }

 private:
  using Call = void (*)(void*, int64_t, int);
  void dispatch(int64_t tasks, Call call, void* context);
  void work(int thread);
  void drain(int thread);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  // The region: its number, whether workers may still enter (kOpen), and in the low bits how many have.
  static constexpr uint64_t kOpen = 1 << 16, kNumber = kOpen << 1;
  static constexpr uint64_t kEnd = ~(kNumber - 1);  // the number of no region: workers return
  alignas(64) std::atomic<uint64_t> region_{0};
  std::atomic<int> sleeping_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  std::atomic<uint64_t> left_{0};  // workers that are done with the region
  int64_t tasks_ = 0;              // this and the next two: of an open region, or of one with workers in it
  Call call_ = nullptr;
  void* context_ = nullptr;
  std::exception_ptr error_;
};

}  // namespace pluralign
