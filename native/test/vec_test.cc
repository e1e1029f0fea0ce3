// The vector primitives that every kernel is built of, on every instruction set.
#include "ops/isa/headers.h"

#include "support.h"

namespace vec_generic {
using namespace pluralign;
#define PLURALIGN_W 4
#include "vec_kernels.inl"
#undef PLURALIGN_W
}  // namespace vec_generic

#if defined(__x86_64__) || defined(_M_X64)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace vec_avx2 {
using namespace pluralign;
#define PLURALIGN_W 8
#include "vec_kernels.inl"
#undef PLURALIGN_W
}  // namespace vec_avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
namespace vec_avx512 {
using namespace pluralign;
#define PLURALIGN_W 16
#include "vec_kernels.inl"
#undef PLURALIGN_W
}  // namespace vec_avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

using namespace pluralign;
using namespace pluralign::test;

namespace {

template <class Body>
void on_every_vector(Body&& body) {
  body(vec_generic::Primitives{}, "generic");
#if defined(__x86_64__) || defined(_M_X64)
  if (isa_supported(Isa::avx2)) body(vec_avx2::Primitives{}, "avx2");
  if (isa_supported(Isa::avx512)) body(vec_avx512::Primitives{}, "avx512");
#endif
}

float from_bits(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

// Bit patterns of every kind, ties and subnormals among them.
std::vector<float> patterns(int64_t n) {
  Random random(3);
  std::vector<float> x;
  for (uint32_t u : {0u, 0x80000000u, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7f800001u, 0xffbfffffu, 0x7f7fffffu, 0x00008000u, 0x3f808000u, 0x3f818000u})
    x.push_back(from_bits(u));
  while (int64_t(x.size()) < n) {
    uint32_t u = uint32_t(random.bits());
    switch (random.below(5)) {
      case 0: u = (u & 0xffff0000u) | 0x8000u; break;
      case 1: u &= 0x807fffffu; break;
      case 2: u |= 0x7f800000u; break;
      default: break;
    }
    x.push_back(from_bits(u));
  }
  return x;
}

}  // namespace

// Measured: 1.17 units without fused multiply-adds, 0.91 with.
TEST(vec_exp_is_within_a_unit_or_so) {
  std::vector<float> x;
  const int n = 400'003;
  for (int i = 0; i < n; ++i) x.push_back(float(-100 + 190.0 * i / (n - 1)));
  for (float edge : {-87.3f, 88.3f, 0.f, -0.f, 1e-30f, -1e-30f, 1e-40f})
    for (float at : {std::nextafter(edge, -kInfinity), edge, std::nextafter(edge, kInfinity)}) x.push_back(at);
  on_every_vector([&](auto p, const char* where) {
    std::vector<float> y(x.size());
    p.exps(x.data(), y.data(), int64_t(x.size()));
    double most = 0;
    int not_zero = 0, over = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      if (x[i] < -87.3f) {
        not_zero += y[i] != 0 || std::signbit(y[i]);
        continue;
      }
      if (x[i] > 88.3f) {  // stays at e^88.3: large, and finite
        over += !(std::abs(double(y[i]) / std::exp(double(88.3f)) - 1) < 1e-6);
        continue;
      }
      const double exact = std::exp(double(x[i]));
      const float rounded = float(exact);
      most = std::max(most, std::abs(double(y[i]) - exact) / (double(std::nextafter(rounded, kInfinity)) - double(rounded)));
    }
    if (!CHECK(most < 1.3)) std::printf("  %s: %.3f units in the last place\n", where, most);
    CHECK(not_zero == 0);
    CHECK(over == 0);
  });
}

TEST(vec_powers_of_two_and_inverses_are_near) {
  on_every_vector([&](auto p, const char* where) {
    std::vector<float> x(size_t(p.width)), y(x.size());
    double power = 0, inverse = 0;
    for (float at = -130.f; at < 126.f; at += 0.37f) {
      for (size_t i = 0; i < x.size(); ++i) x[i] = std::min(126.f, at + float(i) * 0.0231f);
      p.exps_of_two(x.data(), y.data());
      for (size_t i = 0; i < x.size(); ++i) power = std::max(power, std::abs(double(y[i]) / std::exp2(std::max(-126.0, double(x[i]))) - 1));
      for (size_t i = 0; i < x.size(); ++i) x[i] = float(std::exp2(double(x[i]) * 0.96));
      p.inverses(x.data(), y.data());
      for (size_t i = 0; i < x.size(); ++i) inverse = std::max(inverse, std::abs(double(y[i]) * double(x[i]) - 1));
    }
    if (!CHECK(power < 3e-6 && inverse < 1.5e-7)) std::printf("  %s: %.3g and %.3g off\n", where, power, inverse);
    for (float odd : {kNaN, -kInfinity, -1e30f}) {
      std::fill(x.begin(), x.end(), odd);
      p.exps_of_two(x.data(), y.data());
      CHECK(std::isnan(odd) ? std::isnan(y[0]) : y[0] > 0 && y[0] < 2e-38f);
    }
  });
}

TEST(vec_exp_of_what_is_not_finite) {
  on_every_vector([&](auto p, const char*) {
    for (int lane = 0; lane < p.width; ++lane) {
      std::vector<float> x(size_t(p.width), 1.f), y(x.size());
      x[size_t(lane)] = kNaN;
      p.exps(x.data(), y.data(), p.width);
      for (int i = 0; i < p.width; ++i) CHECK(std::isnan(y[size_t(i)]) == (i == lane));
      x[size_t(lane)] = -kInfinity;
      p.exps(x.data(), y.data(), p.width);
      CHECK(y[size_t(lane)] == 0);
    }
  });
}

TEST(vec_bf16_stores_round_as_to_bf16) {
  const std::vector<float> x = patterns(100'000);
  on_every_vector([&](auto p, const char* where) {
    for (int64_t n : {int64_t(x.size()), int64_t(1), int64_t(3), int64_t(p.width - 1), int64_t(p.width + 1), int64_t(2 * p.width - 1)})
      for (int64_t at : {int64_t(0), int64_t(5)}) {
        n = std::min(n, int64_t(x.size()) - at);
        std::vector<bf16> y(size_t(n) + 1, bf16{0x1234});
        std::vector<uint16_t> actual, expected;
        p.convert(x.data() + at, y.data(), n);
        for (int64_t i = 0; i < n; ++i) expected.push_back(to_bf16(x[size_t(at + i)]).bits);
        expected.push_back(0x1234);
        for (bf16 v : y) actual.push_back(v.bits);
        CHECK_BITS(where, actual, expected);
      }
  });
}

TEST(vec_loads_convert_as_to_float) {
  on_every_vector([&](auto p, const char* where) {
    const auto check = [&](auto type) {
      using T = decltype(type);
      std::vector<T> x;
      std::vector<float> expected, y(65536 + 5);
      for (uint32_t i = 0; i < y.size(); ++i) {
        x.push_back(T{uint16_t(i)});
        expected.push_back(to_float(x.back()));
      }
      p.convert(x.data(), y.data(), int64_t(x.size()));
      CHECK_BITS(where, y, expected);
    };
    check(bf16{});
    check(f16{});
  });
}

TEST(vec_tails_sums_and_maxima) {
  Random random(4);
  on_every_vector([&](auto p, const char* where) {
    const int64_t w = p.width;
    for (int round = 0; round < 50; ++round) {
      std::vector<float> x = random.normals(w, 3), y(x.size()), expected(x.size());
      const int64_t n = 1 + random.below(w - 1);
      std::copy(x.begin(), x.begin() + n, expected.begin());
      p.tail(x.data(), y.data(), n);
      CHECK_BITS(where, y, expected);
      double total = 0;
      for (float v : x) total += v;
      CHECK_NEAR(p.total(x.data()), total, 1e-5);
      CHECK(p.top(x.data()) == *std::max_element(x.begin(), x.end()));
      for (float& v : x) v = -std::abs(v) - 1;
      CHECK(p.top(x.data()) == *std::max_element(x.begin(), x.end()));
      const std::vector<float> other = random.normals(w, 3);
      for (size_t i = 0; i < x.size(); ++i) expected[i] = std::max(x[i], other[i]);
      p.larger(x.data(), other.data(), y.data());
      CHECK_BITS(where, y, expected);
    }
  });
}
