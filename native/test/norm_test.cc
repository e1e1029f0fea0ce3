// Root-mean-square norm against float64 formulas and central differences.
#include "ops/norm/norm.h"

#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

constexpr float kEps = 1e-5f;
const std::vector<int64_t> kWidths{1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 101, 256};

double rstd_of(const double* x, int64_t width) {
  double squares = 0;
  for (int64_t i = 0; i < width; ++i) squares += x[i] * x[i];
  return 1 / std::sqrt(squares / double(width) + double(kEps));
}

std::vector<double> forward(const std::vector<double>& x, const std::vector<double>& weight, int64_t rows, int64_t width) {
  std::vector<double> y;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i) y.push_back(x[size_t(r * width + i)] * rstd_of(&x[size_t(r * width)], width) * weight[size_t(i)]);
  return y;
}

struct Data {
  Data(int64_t rows, int64_t width, unsigned seed)
      : random(seed), x(random.normals(rows * width, 2)), weight(random.normals(width)), dy(random.normals(rows * width)), rstd(size_t(rows)) {
    for (int64_t r = 0; r < rows; ++r) rstd[size_t(r)] = float(rstd_of(doubles(x).data() + r * width, width));
  }
  Random random;
  std::vector<float> x, weight, dy, rstd;
};

}  // namespace

TEST(norm_matches_the_formula) {
  on_every_machine([](Context& context) {
    for (int64_t rows : {0, 1, 2, 17, 70})
      for (int64_t width : kWidths)
        for (int storage : {kF32, kBf16}) {
          const Data d(rows, width, unsigned(rows * 1000 + width));
          Typed y(storage, size_t(rows * width));
          std::vector<float> rstd(d.rstd.size(), kNaN);
          rmsnorm(context, storage, y.data(), rstd.data(), d.x.data(), d.weight.data(), rows, width, kEps);
          const std::string where = name_of(context) + " " + std::to_string(rows) + " x " + std::to_string(width);
          CHECK_CLOSE(where + " rstd", rstd, d.rstd, 0, 1e-6);
          CHECK_CLOSE(where, y.now(), forward(doubles(d.x), doubles(d.weight), rows, width), 1e-7, storage == kF32 ? 1e-6 : 0.0040);
        }
  });
}

TEST(norm_backward_matches_central_differences) {
  const int64_t rows = 3;
  for (int64_t width : {1, 5, 16, 37}) {
    Data d(rows, width, unsigned(width));
    std::vector<double> x = doubles(d.x), weight = doubles(d.weight);
    const auto loss = [&] {
      double total = 0;
      const std::vector<double> y = forward(x, weight, rows, width);
      for (size_t i = 0; i < y.size(); ++i) total += y[i] * d.dy[i];
      return total;
    };
    const std::vector<double> dx = differences(x, loss), dweight = differences(weight, loss);
    on_every_machine([&](Context& context) {
      const std::string where = name_of(context) + " width " + std::to_string(width);
      for (bool accumulate : {false, true}) {
        const std::vector<float> before = d.random.normals(rows * width);
        std::vector<float> actual = before;
        std::vector<double> expected = dx;
        if (accumulate)
          for (size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
        rmsnorm_backward(context, actual.data(), d.dy.data(), d.x.data(), d.rstd.data(), d.weight.data(), rows, width, accumulate);
        CHECK_CLOSE(where, actual, expected, 2e-6, 1e-5);
      }
      std::vector<float> actual(size_t(width), 0.5f);
      std::vector<double> expected = dweight;
      for (double& e : expected) e += 0.5;
      rmsnorm_backward_weight(context, actual.data(), d.dy.data(), d.x.data(), d.rstd.data(), rows, width);
      CHECK_CLOSE(where + " weight", actual, expected, 2e-6, 1e-5);
    });
  }
}

TEST(norm_backward_matches_the_reference_over_odd_shapes) {
  Machine specification(Isa::reference, 1);
  on_every_machine([&](Context& context) {
    for (int64_t rows : {0, 1, 2, 19, 70})
      for (int64_t width : kWidths) {
        const Data d(rows, width, unsigned(rows * 999 + width));
        std::vector<float> actual(d.x.size(), kNaN), expected(d.x.size(), kNaN);
        rmsnorm_backward(context, actual.data(), d.dy.data(), d.x.data(), d.rstd.data(), d.weight.data(), rows, width, false);
        rmsnorm_backward(specification.context, expected.data(), d.dy.data(), d.x.data(), d.rstd.data(), d.weight.data(), rows, width, false);
        CHECK_CLOSE(name_of(context) + " " + std::to_string(rows) + " x " + std::to_string(width), actual, expected, 2e-6, 1e-5);
      }
  });
}

TEST(norm_rows_stand_alone) {
  for (Isa isa : instruction_sets()) {
    Machine one(isa, 1), three(isa, 3);
    const int64_t rows = 70, width = 37;
    Data d(rows, width, 3);
    d.x[5 * width + 3] = kNaN;  // spoils its own row only
    for (int storage : {kF32, kBf16}) {
      Typed whole(storage, size_t(rows * width)), apart = whole;
      const int64_t size = storage == kF32 ? 4 : 2;
      std::vector<float> dx(d.x.size()), dx_apart = dx, dweight(size_t(width), 0.f), dweight_one = dweight, rstd(static_cast<size_t>(rows));
      rmsnorm(three.context, storage, whole.data(), rstd.data(), d.x.data(), d.weight.data(), rows, width, kEps);
      rmsnorm_backward(three.context, dx.data(), d.dy.data(), d.x.data(), rstd.data(), d.weight.data(), rows, width, false);
      for (int64_t r = rows - 1; r >= 0; --r) {
        rmsnorm(one.context, storage, apart.data() + r * width * size, &rstd[size_t(r)], &d.x[size_t(r * width)], d.weight.data(), 1, width, kEps);
        rmsnorm_backward(one.context, &dx_apart[size_t(r * width)], &d.dy[size_t(r * width)], &d.x[size_t(r * width)], &rstd[size_t(r)], d.weight.data(), 1, width, false);
      }
      CHECK_BITS(isa_name(isa), whole.raw, apart.raw);
      CHECK_BITS(isa_name(isa), dx, dx_apart);
      for (size_t i = 0; i < dx.size(); ++i) CHECK(std::isnan(dx[i]) == (int64_t(i) / width == 5));
      rmsnorm_backward_weight(three.context, dweight.data(), d.dy.data(), d.x.data(), d.rstd.data(), rows, width);
      rmsnorm_backward_weight(one.context, dweight_one.data(), d.dy.data(), d.x.data(), d.rstd.data(), rows, width);
      CHECK_BITS(isa_name(isa), dweight, dweight_one);
    }
  }
}
