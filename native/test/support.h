// What the tests of operators share: every instruction set, random data of every type, comparisons that name their place.
#pragma once
#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "amx_emulator.h"
#include "check.h"
#include "ops/table.h"

namespace pluralign::test {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Those of this processor, and AMX where the rest of it is there: its tiles are then emulated.
inline std::vector<Isa> instruction_sets() {
  std::vector<Isa> sets;
  for (int i = 0; i < kIsas; ++i)
    if (isa_supported(Isa(i)) || (Isa(i) == Isa::amx && isa_supported(Isa::avx512bf16) && emulate_amx())) sets.push_back(Isa(i));
  return sets;
}

struct Machine {
  Machine(Isa isa, int threads) : pool(threads), context(kernels_of(isa), pool) {}
  Pool pool;
  Context context;
};

// Every instruction set that the processor has, on one thread and on three.
template <class Body>
void on_every_machine(Body&& body) {
  for (Isa isa : instruction_sets())
    for (int threads : {1, 3}) {
      Machine machine(isa, threads);
      body(machine.context);
    }
}

inline std::string name_of(const Context& c) { return std::string(isa_name(c.kernels.isa)) + " x " + std::to_string(c.pool.size()); }

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  int64_t below(int64_t n) { return int64_t(engine_() % uint64_t(n)); }
  bool coin() { return engine_() >> 63; }
  uint64_t bits() { return engine_(); }
  double uniform() { return double(engine_() >> 11) * 0x1p-53; }
  float normal(double deviation = 1) { return float(std::normal_distribution<double>(0, deviation)(engine_)); }
  std::vector<float> normals(int64_t n, double deviation = 1) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& x : v) x = normal(deviation);
    return v;
  }
  template <class T>
  const T& of(const std::vector<T>& list) { return list[size_t(below(int64_t(list.size())))]; }

 private:
  std::mt19937_64 engine_;
};

inline std::vector<double> doubles(const std::vector<float>& v) { return {v.begin(), v.end()}; }

// An array of one element type behind a pointer that is aligned for one element only.
struct Typed {
  Typed(DType t, const std::vector<float>& v) : type(t), raw((v.size() + 1) * dtype_size(t)), values(v.size()) {
    for (size_t i = 0; i < v.size(); ++i) {
      if (type == DType::f32) put(i, v[i]);
      else if (type == DType::bf16) put(i, to_bf16(v[i]));
      else put(i, nearest_f16(v[i]));
      values[i] = get(i);
    }
  }
  Typed(int storage, const std::vector<float>& v) : Typed(storage == kF32 ? DType::f32 : DType::bf16, v) {}
  // Left as it is, for results.
  Typed(DType t, size_t n) : Typed(t, std::vector<float>(n, kNaN)) {}
  Typed(int storage, size_t n) : Typed(storage, std::vector<float>(n, kNaN)) {}

  std::byte* data() { return raw.data() + dtype_size(type); }
  const std::byte* data() const { return raw.data() + dtype_size(type); }
  double get(size_t i) const {
    if (type == DType::f32) return take<float>(i);
    return type == DType::bf16 ? to_float(take<bf16>(i)) : to_float(take<f16>(i));
  }
  std::vector<double> now() const {
    std::vector<double> v(values.size());
    for (size_t i = 0; i < v.size(); ++i) v[i] = get(i);
    return v;
  }

  DType type;
  std::vector<std::byte> raw;
  std::vector<double> values;  // as they were at first

 private:
  template <class T>
  void put(size_t i, T x) { std::memcpy(data() + i * sizeof(T), &x, sizeof(T)); }
  template <class T>
  T take(size_t i) const {
    T x;
    std::memcpy(&x, data() + i * sizeof(T), sizeof(T));
    return x;
  }
  static f16 nearest_f16(float v) {  // to within a unit: tests need some f16 near v, not the nearest
    if (std::isnan(v)) return {0x7e00};
    int exponent;
    const double m = std::frexp(std::abs(double(v)), &exponent);
    const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
    if (m == 0 || exponent < -13) return {sign};
    return {uint16_t(sign | ((exponent + 14) << 10) | int(m * 2048 - 1024))};
  }
};

// Every actual[i] within absolute + relative · |expected[i]|; NaN fails unless both are NaN.
template <class A, class E>
bool agree(const char* file, int line, const std::string& where, const std::vector<A>& actual, const std::vector<E>& expected,
           double absolute, double relative) {
  if (actual.size() != expected.size()) return fail(file, line, where + ": the sizes differ");
  size_t worst = actual.size();
  double most = 1;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double a = double(actual[i]), e = double(expected[i]);
    if (a == e || (std::isnan(a) && std::isnan(e))) continue;
    double off = std::abs(a - e) / (absolute + relative * std::abs(e));
    if (!std::isfinite(off)) off = std::numeric_limits<double>::infinity();
    if (off > most) {
      most = off;
      worst = i;
    }
  }
  if (worst == actual.size()) return true;
  char text[160];
  std::snprintf(text, sizeof text, ": element %zu is %.9g, expected %.9g (%.3g times the tolerance)", worst, double(actual[worst]),
                double(expected[worst]), most);
  return fail(file, line, where + text);
}

template <class T>
bool same_bits(const char* file, int line, const std::string& where, const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0)) return true;
  size_t i = 0;
  while (i < std::min(a.size(), b.size()) && std::memcmp(&a[i], &b[i], sizeof(T)) == 0) ++i;
  return fail(file, line, where + ": the bits differ, first at element " + std::to_string(i));
}

// d loss / d x by central differences; the loss is smooth and in float64.
template <class Loss>
std::vector<double> differences(std::vector<double>& x, Loss&& loss, double h = 1e-5) {
  std::vector<double> slope;
  for (double& xi : x) {
    const double value = xi;
    xi = value + h;
    const double up = loss();
    xi = value - h;
    const double down = loss();
    xi = value;
    slope.push_back((up - down) / (2 * h));
  }
  return slope;
}

}  // namespace pluralign::test

// CHECK_CLOSE(where, actual, expected, absolute, relative), CHECK_BITS(where, actual, expected)
#define CHECK_CLOSE(...) ::pluralign::test::agree(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK_BITS(...) ::pluralign::test::same_bits(__FILE__, __LINE__, __VA_ARGS__)
