// The gated activation against float64 formulas and central differences.
#include "ops/swiglu/swiglu.h"

#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

const std::vector<int64_t> kWidths{1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 100};

std::vector<double> forward(const std::vector<double>& gate_up, int64_t rows, int64_t width) {
  std::vector<double> a;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i) {
      const double gate = gate_up[size_t(r * 2 * width + i)];
      a.push_back(gate / (1 + std::exp(-gate)) * gate_up[size_t(r * 2 * width + width + i)]);
    }
  return a;
}

std::vector<double> backward(const std::vector<double>& gate_up, const std::vector<float>& da, int64_t rows, int64_t width) {
  std::vector<double> d(gate_up.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i) {
      const size_t at = size_t(r * 2 * width + i);
      const double gate = gate_up[at], s = 1 / (1 + std::exp(-gate)), g = da[size_t(r * width + i)];
      d[at] = g * gate_up[at + size_t(width)] * (s + gate * s * (1 - s));
      d[at + size_t(width)] = g * gate * s;
    }
  return d;
}

}  // namespace

TEST(swiglu_matches_the_formula) {
  on_every_machine([](Context& context) {
    for (int64_t rows : {0, 1, 3, 40})
      for (int64_t width : kWidths)
        for (int storage : {kF32, kBf16}) {
          Random random(unsigned(rows * 1000 + width));
          const Typed x(storage, random.normals(rows * 2 * width, 4));
          const std::vector<float> da = random.normals(rows * width);
          Typed a(storage, size_t(rows * width));
          std::vector<float> d(x.values.size(), kNaN);
          swiglu(context, storage, a.data(), x.data(), rows, width);
          swiglu_backward(context, storage, d.data(), da.data(), x.data(), rows, width);
          const std::string where = name_of(context) + " " + std::to_string(rows) + " x " + std::to_string(width);
          CHECK_CLOSE(where, a.now(), forward(x.values, rows, width), 1e-6, storage == kF32 ? 2e-6 : 0.0041);
          CHECK_CLOSE(where + " backward", d, backward(x.values, da, rows, width), storage == kF32 ? 5e-6 : 4e-5, storage == kF32 ? 2e-6 : 1e-5);
        }
  });
}

TEST(swiglu_backward_formula_matches_central_differences) {
  Random random(2);
  const int64_t rows = 2, width = 9;
  std::vector<double> x = doubles(random.normals(rows * 2 * width, 3));
  const std::vector<float> da = random.normals(rows * width);
  const auto loss = [&] {
    double total = 0;
    const std::vector<double> a = forward(x, rows, width);
    for (size_t i = 0; i < a.size(); ++i) total += a[i] * da[i];
    return total;
  };
  CHECK_CLOSE("swiglu", backward(x, da, rows, width), differences(x, loss), 1e-8, 1e-8);
}

TEST(swiglu_far_from_zero) {
  on_every_machine([](Context& context) {
    for (int64_t width : {1, 21}) {
      for (float gate : {-200.f, -89.f, -87.4f, -30.f, -0.f, 0.f, 30.f, 89.f, 200.f, 1e30f}) {
        std::vector<float> x(size_t(2 * width), gate), a(size_t(width), kNaN), d(size_t(2 * width), kNaN), da(size_t(width), 1.f);
        std::fill(x.begin() + width, x.end(), 1.f);
        swiglu(context, kF32, a.data(), x.data(), 1, width);
        swiglu_backward(context, kF32, d.data(), da.data(), x.data(), 1, width);
        const double s = 1 / (1 + std::exp(-double(gate))), slope = gate < -80 ? 0 : gate > 80 ? 1 : s + gate * s * (1 - s);
        CHECK_NEAR(a[size_t(width - 1)], gate * s, 1e-30 + 2e-6 * std::abs(gate * s));
        CHECK_NEAR(d[size_t(width - 1)], slope, 1e-6);
      }
      std::vector<float> x(size_t(2 * width), 1.f), a(size_t(width), 0.f);
      x[0] = kNaN;
      swiglu(context, kF32, a.data(), x.data(), 1, width);
      for (int64_t i = 0; i < width; ++i) CHECK(std::isnan(a[size_t(i)]) == (i == 0));
    }
  });
}

TEST(swiglu_rows_stand_alone) {
  for (Isa isa : instruction_sets()) {
    Machine one(isa, 1), three(isa, 3);
    const int64_t rows = 50, width = 19;
    Random random(3);
    for (int storage : {kF32, kBf16}) {
      const int64_t size = storage == kF32 ? 4 : 2;
      const Typed x(storage, random.normals(rows * 2 * width));
      const std::vector<float> da = random.normals(rows * width);
      Typed whole(storage, size_t(rows * width)), apart = whole;
      std::vector<float> d(x.values.size()), d_apart = d;
      swiglu(three.context, storage, whole.data(), x.data(), rows, width);
      swiglu_backward(three.context, storage, d.data(), da.data(), x.data(), rows, width);
      for (int64_t r = 0; r < rows; ++r) {
        swiglu(one.context, storage, apart.data() + r * width * size, x.data() + r * 2 * width * size, 1, width);
        swiglu_backward(one.context, storage, &d_apart[size_t(r * 2 * width)], &da[size_t(r * width)], x.data() + r * 2 * width * size, 1, width);
      }
      CHECK_BITS(isa_name(isa), whole.raw, apart.raw);
      CHECK_BITS(isa_name(isa), d, d_apart);
    }
  }
}
