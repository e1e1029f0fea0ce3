#include "base/dtype.h"

#include <cmath>
#include <limits>
#include <random>

#include "check.h"

using namespace pluralign;

namespace {
float from_bits(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

// The bf16 value nearest to f, ties to even, by double arithmetic alone: 8 significant bits, least exponent -133.
double nearest_bf16(float f) {
  if (!std::isfinite(f) || f == 0) return f;
  int exponent;
  std::frexp(double(f), &exponent);
  const int unit = std::max(exponent - 8, -133);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(double(f), -unit)), unit);
  return std::abs(rounded) >= std::ldexp(1.0, 128) ? std::copysign(std::numeric_limits<double>::infinity(), f) : rounded;
}
}  // namespace

TEST(dtype_sizes) {
  CHECK(dtype_size(DType::f32) == 4 && dtype_size(DType::bf16) == 2 && dtype_size(DType::f16) == 2);
  CHECK(dtype_size(DType::i32) == 4 && dtype_size(DType::i64) == 8 && dtype_size(DType::u8) == 1);
  CHECK(dtype_size(DType::f64) == 8 && dtype_size(DType::other) == 0);
}

TEST(dtype_bf16_rounds_ties_to_even) {
  CHECK(to_bf16(from_bits(0x3f808000)).bits == 0x3f80);  // halfway, even below
  CHECK(to_bf16(from_bits(0x3f818000)).bits == 0x3f82);  // halfway, even above
  CHECK(to_bf16(from_bits(0x3f808001)).bits == 0x3f81);
  CHECK(to_bf16(from_bits(0x3f807fff)).bits == 0x3f80);
  CHECK(to_bf16(from_bits(0x3fffffff)).bits == 0x4000);  // carries into the exponent
  CHECK(to_bf16(from_bits(0x7f7fffff)).bits == 0x7f80);  // the largest float rounds to infinity
  CHECK(to_bf16(from_bits(0x80000000)).bits == 0x8000);  // minus zero
}

TEST(dtype_bf16_keeps_nan_and_infinity) {
  for (uint32_t u : {0x7fc00000u, 0x7f800001u, 0xff800001u, 0xffffffffu, 0x7fbfffffu})
    CHECK(std::isnan(to_float(to_bf16(from_bits(u)))));
  CHECK(std::signbit(to_float(to_bf16(from_bits(0xff800001u)))));
  CHECK(to_bf16(from_bits(0x7f800000)).bits == 0x7f80);
  CHECK(to_bf16(from_bits(0xff800000)).bits == 0xff80);
}

TEST(dtype_bf16_every_value_survives) {
  int wrong = 0;
  for (uint32_t i = 0; i < 65536; ++i) {
    const float f = to_float(bf16{uint16_t(i)});
    if (std::isnan(f)) wrong += !std::isnan(to_float(to_bf16(f)));
    else wrong += to_bf16(f).bits != i;
  }
  CHECK(wrong == 0);
}

TEST(dtype_bf16_rounds_like_double_arithmetic) {
  std::mt19937 random(7);
  int wrong = 0;
  for (int i = 0; i < 200000; ++i) {
    uint32_t u = random();
    if (i % 4 == 0) u = (u & 0xffff0000u) | 0x8000u;  // ties
    if (i % 8 == 1) u &= 0x807fffffu;                 // subnormal
    const float f = from_bits(u);
    if (!std::isnan(f)) wrong += double(to_float(to_bf16(f))) != nearest_bf16(f);
  }
  CHECK(wrong == 0);
}

TEST(dtype_f16_every_value_against_double_arithmetic) {
  int wrong = 0;
  for (uint32_t i = 0; i < 65536; ++i) {
    const int exponent = int(i >> 10) & 31, mantissa = int(i & 1023);
    const double sign = i & 0x8000 ? -1 : 1;
    const float actual = to_float(f16{uint16_t(i)});
    if (exponent == 31) {
      wrong += mantissa ? !std::isnan(actual) : double(actual) != sign * std::numeric_limits<double>::infinity();
      continue;
    }
    const double expected = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
    wrong += double(actual) != sign * expected || std::signbit(actual) != (sign < 0);
  }
  CHECK(wrong == 0);
}
