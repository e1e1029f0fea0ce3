#include "base/pool.h"

#include <numeric>
#include <stdexcept>
#include <string>

#include "check.h"

using namespace pluralign;

TEST(pool_runs_every_index_once) {
  for (int threads : {1, 2, 3, 8}) {
    Pool pool(threads);
    CHECK(pool.size() == threads);
    for (int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(tasks));
      std::atomic<int> bad_thread{0};
      pool.run(tasks, [&](int64_t i, int thread) {
        seen[size_t(i)].fetch_add(1);
        if (thread < 0 || thread >= threads) bad_thread.fetch_add(1);
      });
      for (auto& s : seen) CHECK(s.load() == 1);
      CHECK(bad_thread.load() == 0);
    }
  }
}

TEST(pool_regions_follow_each_other) {
  Pool pool(4);
  std::vector<int64_t> sums(4, 0);  // one slot a thread, no atomics: a region must be over when run returns
  int64_t expected = 0;
  for (int round = 0; round < 3000; ++round) {
    pool.run(5, [&](int64_t i, int thread) { sums[size_t(thread)] += i + round; });
    expected += 10 + 5 * int64_t(round);
    if (round % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // let workers fall asleep
    if (!CHECK(std::accumulate(sums.begin(), sums.end(), int64_t(0)) == expected)) return;
  }
}

TEST(pool_rethrows_and_goes_on) {
  for (int threads : {1, 3}) {
    Pool pool(threads);
    for (int round = 0; round < 20; ++round) {
      std::string caught;
      try {
        pool.run(50, [&](int64_t i, int) {
          if (i % 10 == 3) throw std::runtime_error("task failed");
        });
      } catch (const std::runtime_error& e) {
        caught = e.what();
      }
      CHECK(caught == "task failed");
      std::atomic<int> ran{0};
      pool.run(50, [&](int64_t, int) { ran.fetch_add(1); });
      CHECK(ran.load() == 50);
    }
  }
}

TEST(pool_ranges_cover_without_overlap) {
  for (int threads : {1, 2, 5}) {
    Pool pool(threads);
    for (int64_t n : {0, 1, 7, 64, 1001}) {
      for (int64_t grain : {0, 1, 16, 5000}) {
        std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
        std::atomic<int> empty{0};
        pool.ranges(n, grain, [&](int64_t begin, int64_t end, int) {
          if (begin >= end) empty.fetch_add(1);
          for (int64_t i = begin; i < end; ++i) seen[size_t(i)].fetch_add(1);
        });
        int wrong = 0;
        for (auto& s : seen) wrong += s.load() != 1;
        CHECK(wrong == 0 && empty.load() == 0);
      }
    }
  }
}

TEST(pool_takes_a_const_body_and_starts_and_stops_often) {
  for (int i = 0; i < 50; ++i) {
    Pool pool(3);
    std::atomic<int> ran{0};
    const auto body = [&](int64_t, int) { ran.fetch_add(1); };
    if (i % 2) pool.run(9, body);
    CHECK(ran.load() == (i % 2 ? 9 : 0));
  }
}
