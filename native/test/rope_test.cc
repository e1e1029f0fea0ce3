// Rotary positions, with and without the norm of each head, against float64 formulas and central differences.
#include "ops/rope/rope.h"

#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

constexpr float kEps = 1e-6f;

struct Data {
  Data(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t rows, bool normed, unsigned seed)
      : random(seed), heads(heads), kv_heads(kv_heads), head_dim(head_dim), rows(rows), normed(normed), width((heads + 2 * kv_heads) * head_dim),
        raw(random.normals(rows * width)), q_norm(random.normals(head_dim)), k_norm(random.normals(head_dim)), dout(random.normals(rows * width)) {
    for (int64_t i = 0; i < head_dim / 2; ++i) frequencies.push_back(std::pow(1e4, -2.0 * double(i) / double(head_dim)));
    for (int64_t r = 0; r < rows; ++r) positions.push_back(int32_t(random.below(60)));
    table.reserve(60, frequencies.data(), head_dim / 2, 1.25);
  }
  RopeShape shape() const { return {heads, kv_heads, head_dim, normed ? q_norm.data() : nullptr, normed ? k_norm.data() : nullptr, kEps}; }

  // The specification; `x`, `q`, `k`: raw values and norm weights.
  std::vector<double> forward(const std::vector<double>& x, const std::vector<double>& q, const std::vector<double>& k) const {
    std::vector<double> y = x;
    const int64_t half = head_dim / 2;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t h = 0; h < heads + kv_heads; ++h) {
        double* v = &y[size_t(r * width + h * head_dim)];
        if (normed) {
          double squares = 0;
          for (int64_t i = 0; i < head_dim; ++i) squares += v[i] * v[i];
          for (int64_t i = 0; i < head_dim; ++i) v[i] *= (h < heads ? q : k)[size_t(i)] / std::sqrt(squares / double(head_dim) + double(kEps));
        }
        for (int64_t i = 0; i < half; ++i) {
          const double angle = double(float(frequencies[size_t(i)]) * float(positions[size_t(r)]));
          const double c = 1.25 * std::cos(angle), s = 1.25 * std::sin(angle), a = v[i], b = v[half + i];
          v[i] = a * c - b * s;
          v[half + i] = b * c + a * s;
        }
      }
    return y;
  }

  Random random;
  int64_t heads, kv_heads, head_dim, rows;
  bool normed;
  int64_t width;
  std::vector<float> raw, q_norm, k_norm, dout;
  std::vector<double> frequencies;
  std::vector<int32_t> positions;
  RopeTable table;
};

}  // namespace

TEST(rope_matches_the_formula) {
  on_every_machine([](Context& context) {
    for (int64_t head_dim : {2, 6, 8, 64, 80})
      for (int64_t rows : {0, 1, 5, 40})
        for (bool normed : {false, true})
          for (int storage : {kF32, kBf16}) {
            const Data d(3, 1, head_dim, rows, normed, unsigned(head_dim + rows));
            const Typed raw(storage, d.raw);
            std::vector<float> out(d.raw.size(), kNaN);
            rope(context, d.shape(), d.table, storage, out.data(), raw.data(), d.positions.data(), rows);
            CHECK_CLOSE(name_of(context), out, d.forward(raw.values, doubles(d.q_norm), doubles(d.k_norm)), 2e-6, 1e-6);
            for (int64_t r = 0; r < rows; ++r)  // values are copied
              for (int64_t i = 4 * head_dim; i < d.width; ++i) CHECK(out[size_t(r * d.width + i)] == float(raw.values[size_t(r * d.width + i)]));
          }
  });
}

TEST(rope_backward_matches_central_differences) {
  for (bool normed : {false, true})
    for (int64_t head_dim : {4, 10}) {
      const Data d(4, 2, head_dim, 3, normed, unsigned(head_dim));
      for (int storage : {kF32, kBf16}) {
        const Typed raw(storage, d.raw);
        std::vector<double> x = raw.values, q = doubles(d.q_norm), k = doubles(d.k_norm);
        const auto loss = [&] {
          double total = 0;
          const std::vector<double> y = d.forward(x, q, k);
          for (size_t i = 0; i < y.size(); ++i) total += y[i] * d.dout[i];
          return total;
        };
        const std::vector<double> dx = differences(x, loss);
        std::vector<double> dq = differences(q, loss), dk = differences(k, loss);
        for (auto* v : {&dq, &dk})
          for (double& e : *v) e += 0.25;
        on_every_machine([&](Context& context) {
          std::vector<float> actual = d.dout, q_weight(q.size(), 0.25f), k_weight(k.size(), 0.25f);
          rope_backward(context, d.shape(), d.table, storage, actual.data(), raw.data(), d.positions.data(), d.rows, normed ? q_weight.data() : nullptr,
                        normed ? k_weight.data() : nullptr);
          CHECK_CLOSE(name_of(context), actual, dx, 5e-6, 1e-5);
          if (!normed) return;
          CHECK_CLOSE(name_of(context) + " q norm", q_weight, dq, 5e-6, 1e-5);
          CHECK_CLOSE(name_of(context) + " k norm", k_weight, dk, 5e-6, 1e-5);
          // One of the two alone, and none: the rest is the same.
          std::vector<float> again = d.dout, k_alone(k.size(), 0.25f);
          rope_backward(context, d.shape(), d.table, storage, again.data(), raw.data(), d.positions.data(), d.rows, nullptr, k_alone.data());
          CHECK_BITS(name_of(context), again, actual);
          CHECK_BITS(name_of(context), k_alone, k_weight);
        });
      }
    }
}

TEST(rope_rows_stand_alone) {
  const Data d(4, 2, 16, 70, true, 5);
  Machine one(Isa::generic, 1), three(Isa::generic, 3);
  std::vector<float> whole(d.raw.size()), apart = whole, back = d.dout, back_apart = d.dout;
  rope(three.context, d.shape(), d.table, kF32, whole.data(), d.raw.data(), d.positions.data(), d.rows);
  rope_backward(three.context, d.shape(), d.table, kF32, back.data(), d.raw.data(), d.positions.data(), d.rows, nullptr, nullptr);
  for (int64_t r = 0; r < d.rows; ++r) {
    const int64_t at = r * d.width;
    rope(one.context, d.shape(), d.table, kF32, &apart[size_t(at)], &d.raw[size_t(at)], &d.positions[size_t(r)], 1);
    rope_backward(one.context, d.shape(), d.table, kF32, &back_apart[size_t(at)], &d.raw[size_t(at)], &d.positions[size_t(r)], 1, nullptr, nullptr);
  }
  CHECK_BITS("rows", whole, apart);
  CHECK_BITS("rows, backward", back, back_apart);
}

TEST(rope_table_keeps_its_values_as_it_grows) {
  const std::vector<double> frequencies{1, 0.1, 0.003};
  RopeTable small, grown;
  small.reserve(5, frequencies.data(), 3, 2);
  grown.reserve(5, frequencies.data(), 3, 2);
  grown.reserve(300, frequencies.data(), 3, 2);
  grown.reserve(7, frequencies.data(), 3, 2);
  for (int64_t p = 0; p < 5; ++p) CHECK(std::memcmp(small.cos(p), grown.cos(p), 6 * sizeof(float)) == 0);
  for (int64_t p : {0, 4, 299})
    for (int64_t i = 0; i < 3; ++i) {
      const double angle = double(float(frequencies[size_t(i)]) * float(p));
      CHECK_NEAR(grown.cos(p)[i], 2 * std::cos(angle), 1e-6);
      CHECK_NEAR(grown.sin(p)[i], 2 * std::sin(angle), 1e-6);
    }
}
