// The emulator of AMX against plain loops, through instructions of every addressing form. On a processor with AMX the same
// loops check the processor.
#include "amx_emulator.h"

#include "support.h"

#if defined(__x86_64__) && defined(__linux__)
using namespace pluralign;
using namespace pluralign::test;

namespace {

struct alignas(64) Layout {
  uint8_t bytes[64] = {};
  Layout() { bytes[0] = 1; }
  void tile(int t, int rows, int row_bytes) {
    bytes[16 + 2 * t] = uint8_t(row_bytes);
    bytes[48 + t] = uint8_t(rows);
  }
};

bool runs_here() { return isa_supported(Isa::amx) || (isa_supported(Isa::avx512bf16) && emulate_amx()); }

}  // namespace

TEST(amx_dot_is_the_plain_loop) {
  if (!runs_here()) return;
  Random random(31);
  struct Shape { int m, n, k; };
  for (Shape s : {Shape{16, 16, 32}, Shape{1, 16, 32}, Shape{16, 1, 32}, Shape{5, 7, 6}, Shape{16, 16, 2}}) {
    const Typed a(DType::bf16, random.normals(s.m * s.k)), b(DType::bf16, random.normals(s.k * s.n));
    const std::vector<float> c = random.normals(s.m * s.n);
    // Pairs of k side by side in B.
    std::vector<uint16_t> woven(size_t(s.k * s.n));
    for (int k = 0; k < s.k; ++k)
      for (int n = 0; n < s.n; ++n) std::memcpy(&woven[size_t((k / 2 * s.n + n) * 2 + k % 2)], b.data() + (k * s.n + n) * 2, 2);
    std::vector<float> out(c.size() + 1, kNaN);
    Layout layout;
    layout.tile(0, s.m, s.n * 4);
    layout.tile(3, s.m, s.k * 2);
    layout.tile(7, s.k / 2, s.n * 4);
    Layout read_back;
    __asm__ volatile(
        "ldtilecfg %[layout]\n"
        "sttilecfg %[back]\n"
        "tileloadd (%[c],%[cs]), %%tmm0\n"
        "tileloaddt1 -24(%[a],%[as]), %%tmm3\n"       // a displacement of one byte
        "tileloadd 4096(%[b],%[bs],2), %%tmm7\n"      // of four, and a scale
        "tdpbf16ps %%tmm7, %%tmm3, %%tmm0\n"
        "tilestored %%tmm0, (%[out],%[cs])\n"
        "tilerelease\n"
        : [back] "=m"(read_back)
        : [layout] "m"(layout), [c] "r"(c.data()), [cs] "r"(int64_t(s.n * 4)), [a] "r"(a.data() + 24), [as] "r"(int64_t(s.k * 2)),
          [b] "r"(reinterpret_cast<const char*>(woven.data()) - 4096), [bs] "r"(int64_t(s.n * 2)), [out] "r"(out.data())
        : "memory");
    std::vector<double> expected(c.begin(), c.end());
    for (int i = 0; i < s.m; ++i)
      for (int j = 0; j < s.n; ++j)
        for (int k = 0; k < s.k; ++k) expected[size_t(i * s.n + j)] += a.values[size_t(i * s.k + k)] * b.values[size_t(k * s.n + j)];
    const std::vector<float> inside(out.begin(), out.end() - 1);
    CHECK_CLOSE("dot", inside, expected, 1e-5, 1e-6);
    CHECK(std::isnan(out.back()));
    CHECK(std::memcmp(&layout, &read_back, 64) == 0);
  }
}

TEST(amx_takes_high_registers_and_zeroes) {
  if (!runs_here()) return;
  alignas(64) float data[16 * 16], out[16 * 16];
  for (int i = 0; i < 256; ++i) data[i] = float(i);
  Layout layout;
  for (int t = 0; t < 8; ++t) layout.tile(t, 16, 64);
  __asm__ volatile(
      "mov %[data], %%r13\n mov $16, %%r12\n mov %[out], %%r9\n mov $32, %%r15\n"
      "ldtilecfg %[layout]\n"
      "tileloadd (%%r13,%%r12,4), %%tmm5\n"
      "tilestored %%tmm5, (%%r9,%%r15,2)\n"
      :
      : [data] "r"(data), [out] "r"(out), [layout] "m"(layout)
      : "memory", "r9", "r12", "r13", "r15");
  CHECK(std::memcmp(data, out, sizeof data) == 0);
  __asm__ volatile("tilezero %%tmm5\n tilestored %%tmm5, (%[out],%[stride])\n tilerelease\n" : : [out] "r"(out), [stride] "r"(int64_t(64)) : "memory");
  for (float x : out) CHECK(x == 0);
}

TEST(amx_flushes_subnormals) {
  if (!runs_here()) return;
  alignas(64) uint16_t a[512] = {}, b[512] = {};
  alignas(64) float out[256];
  Layout layout;
  for (int t = 0; t < 8; ++t) layout.tile(t, 16, 64);
  a[0] = 0x0001;              // subnormal
  a[32] = 0x0080;             // the least normal number
  b[0] = b[1] = 0x7e80;       // 2^126
  __asm__ volatile(
      "ldtilecfg %[layout]\n tilezero %%tmm0\n tileloadd (%[a],%[s]), %%tmm1\n tileloadd (%[b],%[s]), %%tmm2\n"
      "tdpbf16ps %%tmm2, %%tmm1, %%tmm0\n tilestored %%tmm0, (%[out],%[s])\n tilerelease\n"
      :
      : [layout] "m"(layout), [a] "r"(a), [b] "r"(b), [out] "r"(out), [s] "r"(int64_t(64))
      : "memory");
  CHECK(out[0] == 0);
  CHECK(out[16] == 1);
}
#endif
