// The head's log-probabilities and gradients against float64, and what a row must not depend on.
#include "ops/head/head.h"

#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

struct Problem {
  Problem(int64_t rows, int64_t width, int64_t vocabulary, DType h, DType w, unsigned seed, double spread = 0.5, float scale = 1)
      : random(seed), scale(scale), rows(rows), width(width), vocabulary(vocabulary), hidden(h, random.normals(rows * (width + 2))),
        weight(w, random.normals(vocabulary * width, spread)), dlogps(random.normals(rows)) {
    for (int64_t i = 0; i < rows; ++i) targets.push_back(int32_t(random.below(vocabulary)));
  }
  // Rows [r0, r1); hidden rows stand two elements apart.
  Head head(int64_t r0, int64_t r1) const {
    return {r1 - r0, width, vocabulary, matrix(hidden.data() + r0 * (width + 2) * int64_t(dtype_size(hidden.type)), hidden.type, width + 2),
            weight.data(), weight.type, targets.data() + r0, scale};
  }

  struct Exact {
    std::vector<double> logps, squares, dhidden, dweight;
  };
  Exact exact(const std::vector<double>& h, const std::vector<double>& w) const {
    Exact e;
    e.dhidden.assign(size_t(rows * width), 0);
    e.dweight.assign(w.size(), 0);
    for (int64_t i = 0; i < rows; ++i) {
      std::vector<double> p;
      double top = -1e300, sum = 0, squares = 0;
      for (int64_t v = 0; v < vocabulary; ++v) {
        double dot = 0;
        for (int64_t c = 0; c < width; ++c) dot += h[size_t(i * (width + 2) + c)] * w[size_t(v * width + c)];
        dot *= scale;
        p.push_back(dot);
        top = std::max(top, dot);
      }
      const double target = p[size_t(targets[size_t(i)])];
      for (double& x : p) sum += x = std::exp(x - top);
      for (double& x : p) squares += (x / sum) * (x / sum);
      e.logps.push_back(target - top - std::log(sum));
      e.squares.push_back(squares);
      for (int64_t v = 0; v < vocabulary; ++v) {
        const double d = double(scale) * dlogps[size_t(i)] * ((v == targets[size_t(i)]) - p[size_t(v)] / sum);
        for (int64_t c = 0; c < width; ++c) {
          e.dhidden[size_t(i * width + c)] += d * w[size_t(v * width + c)];
          e.dweight[size_t(v * width + c)] += d * h[size_t(i * (width + 2) + c)];
        }
      }
    }
    return e;
  }

  Random random;
  float scale;
  int64_t rows, width, vocabulary;
  Typed hidden, weight;
  std::vector<float> dlogps;
  std::vector<int32_t> targets;
};

struct Result {
  Result(Context& context, const Problem& p, int64_t r0, int64_t r1, float start = 0)
      : logps(size_t(r1 - r0), kNaN), squares(logps), partition(logps.size()), dhidden(size_t((r1 - r0) * p.width), start),
        dweight(p.weight.values.size(), start) {
    const Head h = p.head(r0, r1);
    head_logps(context, h, logps.data(), partition.data(), squares.data());
    head_backward(context, h, partition.data(), p.dlogps.data() + r0, dhidden.data(), dweight.data());
  }
  std::vector<float> logps, squares;
  std::vector<Partition> partition;
  std::vector<float> dhidden, dweight;
};

}  // namespace

TEST(head_matches_float64) {
  struct Case {
    int64_t rows, width, vocabulary;
  };
  const std::vector<DType> types{DType::f32, DType::bf16, DType::f16};
  Random random(1);
  for (Case c : {Case{0, 4, 7}, Case{1, 1, 1}, Case{1, 16, 2}, Case{5, 37, 511}, Case{5, 16, 512}, Case{7, 15, 513}, Case{33, 20, 1100}, Case{1, 64, 1537}, Case{1030, 3, 30}})
    for (int round = 0; round < 2; ++round) {
      const Problem p(c.rows, c.width, c.vocabulary, round ? random.of(types) : DType::f32, round ? random.of(types) : DType::f32, 2 + unsigned(round), 0.5,
                      round ? 1.6f : 1.f);
      const Problem::Exact exact = p.exact(p.hidden.values, p.weight.values);
      const Problem::Exact rounded = p.exact(p.hidden.values, Typed(DType::bf16, {p.weight.values.begin(), p.weight.values.end()}).values);
      on_every_machine([&](Context& context) {
        // A head of bfloat16 rows runs in bfloat16 where the set has it: the logits' gradients are rounded too.
        const bool rounds = context.kernels.multiply_bf16 && p.hidden.type == DType::bf16;
        const Problem::Exact& e = rounds ? rounded : exact;
        const double absolute = rounds ? 0.03 : 2e-5, relative = rounds ? 0.01 : 1e-5;
        const std::string where = name_of(context) + " " + std::to_string(c.rows) + " x " + std::to_string(c.width) + " of " + std::to_string(c.vocabulary);
        const Result r(context, p, 0, p.rows), added(context, p, 0, p.rows, 1.f);
        CHECK_CLOSE(where, r.logps, e.logps, 5e-6, 1e-6);
        CHECK_CLOSE(where + " squares", r.squares, e.squares, 1e-7, 1e-5);
        CHECK_CLOSE(where + " dhidden", r.dhidden, e.dhidden, absolute, relative);
        CHECK_CLOSE(where + " dweight", r.dweight, e.dweight, absolute, relative);
        std::vector<double> more = e.dhidden;
        for (double& x : more) x += 1;
        CHECK_CLOSE(where + " dhidden added", added.dhidden, more, absolute, relative);
        more = e.dweight;
        for (double& x : more) x += 1;
        CHECK_CLOSE(where + " dweight added", added.dweight, more, absolute, relative);
        // Without the weight's gradient and the squares the rest is the same.
        std::vector<float> logps(r.logps.size()), dhidden(r.dhidden.size(), 0.f);
        std::vector<Partition> partition(logps.size());
        head_logps(context, p.head(0, p.rows), logps.data(), partition.data(), nullptr);
        head_backward(context, p.head(0, p.rows), partition.data(), p.dlogps.data(), dhidden.data(), nullptr);
        CHECK_BITS(where, logps, r.logps);
        CHECK_BITS(where, dhidden, r.dhidden);
      });
    }
}

TEST(head_gradient_formula_matches_central_differences) {
  const Problem p(4, 5, 9, DType::f32, DType::f32, 3, 0.5, 1.6f);
  std::vector<double> h = p.hidden.values, w = p.weight.values;
  const auto loss = [&] {
    double total = 0;
    const auto logps = p.exact(h, w).logps;
    for (size_t i = 0; i < logps.size(); ++i) total += logps[i] * p.dlogps[i];
    return total;
  };
  const Problem::Exact e = p.exact(h, w);
  const std::vector<double> dh = differences(h, loss);
  std::vector<double> rows;
  for (int64_t i = 0; i < p.rows; ++i) rows.insert(rows.end(), dh.begin() + i * (p.width + 2), dh.begin() + i * (p.width + 2) + p.width);
  CHECK_CLOSE("dhidden", e.dhidden, rows, 1e-8, 1e-7);
  CHECK_CLOSE("dweight", e.dweight, differences(w, loss), 1e-8, 1e-7);
}

// Slopes, which come with the log-probabilities of a packed head, against float64 and bit by bit.
TEST(head_slopes_match_float64) {
  struct Case {
    int64_t rows, width, vocabulary;
    double spread;
  };
  for (Case c : {Case{0, 4, 7, 0.5}, Case{1, 1, 1, 1}, Case{5, 37, 511, 0.5}, Case{33, 20, 1100, 0.5}, Case{70, 24, 800, 3}, Case{6, 8, 700, 3000}}) {
    const Problem p(c.rows, c.width, c.vocabulary, DType::bf16, DType::bf16, 9, c.spread, 1.6f);
    const Problem::Exact exact = p.exact(p.hidden.values, p.weight.values);
    for (Isa isa : instruction_sets()) {
      if (!kernels_of(isa).multiply_bf16) continue;
      PackedOperand packed;
      Machine one(isa, 1), three(isa, 3);
      pack_right(kernels_of(isa), packed, transposed(p.weight.data(), DType::bf16, c.width), c.vocabulary, c.width, true);
      struct Slopes {
        Slopes(Context& context, const Problem& p, const PackedOperand& packed, int64_t r0, int64_t r1, bool wanted = true) : logps(size_t(r1 - r0), kNaN), slopes(size_t((r1 - r0) * p.width), kNaN) {
          Head h = p.head(r0, r1);
          h.packed = &packed;
          std::vector<Partition> partition(logps.size());
          CHECK(has_slopes(context, h));
          head_logps(context, h, logps.data(), partition.data(), nullptr, wanted ? slopes.data() : nullptr);
        }
        std::vector<float> logps, slopes;
      };
      const Slopes all(three.context, p, packed, 0, c.rows);
      std::vector<double> gradient;
      for (size_t i = 0; i < all.slopes.size(); ++i) gradient.push_back(double(all.slopes[i]) * p.dlogps[i / size_t(c.width)]);
      const std::string where = std::string(isa_name(isa)) + " " + std::to_string(c.rows) + " of " + std::to_string(c.vocabulary);
      CHECK_CLOSE(where, gradient, exact.dhidden, 0.01 * c.spread, 0.01);
      CHECK_BITS(where + " without slopes", Slopes(one.context, p, packed, 0, c.rows, false).logps, all.logps);
      for (int64_t i = 0; i < c.rows; i += 3) {
        const Slopes row(one.context, p, packed, i, i + 1);
        CHECK_BITS(where + " row", row.slopes, std::vector<float>(all.slopes.begin() + i * c.width, all.slopes.begin() + (i + 1) * c.width));
        CHECK_BITS(where + " row", row.logps, std::vector<float>{all.logps[size_t(i)]});
      }
    }
  }
}

TEST(head_stays_finite_with_large_logits) {
  const Problem p(6, 8, 700, DType::f32, DType::f32, 4, 3000);
  const Problem::Exact e = p.exact(p.hidden.values, p.weight.values);
  on_every_machine([&](Context& context) {
    const Result r(context, p, 0, p.rows);
    CHECK_CLOSE(name_of(context), r.logps, e.logps, 0.02, 1e-6);
    for (const auto* v : {&r.squares, &r.dhidden, &r.dweight})
      for (float x : *v)
        if (!CHECK(std::isfinite(x))) return;
  });
}

TEST(head_rows_do_not_depend_on_other_rows_or_threads) {
  for (Isa isa : instruction_sets()) {
    Machine one(isa, 1), three(isa, 3);
    for (DType type : {DType::f32, DType::bf16}) {
      const Problem p(70, 24, 1100, type, type, 5);
      const Result whole(three.context, p, 0, p.rows), again(one.context, p, 0, p.rows);
      CHECK_BITS(isa_name(isa), again.logps, whole.logps);
      CHECK_BITS(isa_name(isa), again.squares, whole.squares);
      CHECK_BITS(isa_name(isa), again.dhidden, whole.dhidden);
      CHECK_BITS(isa_name(isa), again.dweight, whole.dweight);
      for (int64_t r0 = 0; r0 < p.rows; r0 += 11) {
        const int64_t r1 = std::min(p.rows, r0 + (r0 % 2 ? 11 : 1));
        const Result part(one.context, p, r0, r1);
        const auto rows = [&](const std::vector<float>& v, int64_t width) { return std::vector<float>(v.begin() + r0 * width, v.begin() + r1 * width); };
        CHECK_BITS(isa_name(isa), part.logps, rows(whole.logps, 1));
        CHECK_BITS(isa_name(isa), part.squares, rows(whole.squares, 1));
        CHECK_BITS(isa_name(isa), part.dhidden, rows(whole.dhidden, p.width));
      }
    }
  }
}

TEST(head_is_clean_after_nan) {
  on_every_machine([](Context& context) {
    Problem poison(80, 24, 1100, DType::f32, DType::f32, 6);
    poison.hidden = Typed(DType::f32, std::vector<float>(poison.hidden.values.size(), kNaN));
    const Result spoilt(context, poison, 0, poison.rows);
    CHECK(std::isnan(spoilt.logps[0]) && std::isnan(spoilt.dhidden[0]));
    const Problem p(7, 9, 530, DType::f32, DType::f32, 7);
    Machine fresh(context.kernels.isa, 1);
    const Result a(context, p, 0, p.rows), b(fresh.context, p, 0, p.rows);
    CHECK_BITS(name_of(context), a.logps, b.logps);
    CHECK_BITS(name_of(context), a.dhidden, b.dhidden);
    CHECK_BITS(name_of(context), a.dweight, b.dweight);
  });
}

TEST(head_row_kernels_match_the_reference) {
  const Kernels& specification = kernels_of(Isa::reference);
  for (Isa isa : instruction_sets()) {
    const Kernels& kr = kernels_of(isa);
    Random random(8);
    for (int64_t n : {1, 2, 7, 15, 16, 17, 31, 100})
      for (float before : {-kInfinity, -3.f, 20.f}) {
        std::vector<float> x = random.normals(n, 3), y = x;
        float top = before, top_expected = before;
        const double sum_before = before > -kInfinity ? 1.5 : 0;
        double sum = sum_before, squares = sum, sum_expected = sum, squares_expected = sum;
        kr.logsumexp_row(x.data(), n, &top, &sum, &squares);
        specification.logsumexp_row(x.data(), n, &top_expected, &sum_expected, &squares_expected);
        CHECK(top == top_expected);
        CHECK_NEAR(sum, sum_expected, 1e-6 * sum_expected);
        CHECK_NEAR(squares, squares_expected, 1e-6 * squares_expected);
        kr.head_gradient_row(x.data(), n, top, -0.3f);
        specification.head_gradient_row(y.data(), n, top, -0.3f);
        CHECK_CLOSE(isa_name(isa), x, y, 1e-30, 5e-6);  // of the rounding of x - top
      }
  }
}

// Against rows of the specification: sums, and exponentials in their place among the panels.
TEST(head_rows_in_bf16_match_the_reference) {
  const Kernels& specification = kernels_of(Isa::reference);
  for (Isa isa : instruction_sets()) {
    const Kernels& kr = kernels_of(isa);
    if (!kr.weigh_bf16) continue;
    Random random(14);
    for (int64_t n : {1, 2, 15, 16, 17, 31, 32, 33, 100, 256})
      for (float before : {-kInfinity, -3.f, 20.f}) {
        std::vector<float> x = random.normals(n, 3);
        x.resize(size_t(n + 32), kNaN);  // what comes behind is nobody's business
        const int64_t blocks = (n + 31) / 32;
        std::vector<bf16> left(size_t(blocks * 512), to_bf16(kNaN));
        const double sum_before = before > -kInfinity ? 1.5 : 0;
        float top = before, top_alone = before, top_expected = before;
        double sum = sum_before, squares = sum, sum_alone = sum, squares_alone = sum, sum_expected = sum, squares_expected = sum;
        specification.logsumexp_row(x.data(), n, &top_expected, &sum_expected, &squares_expected);
        kr.weigh_bf16(x.data(), n, &top, &sum, &squares, left.data() + 5 * 32);
        kr.weigh_bf16(x.data(), n, &top_alone, &sum_alone, &squares_alone, nullptr);
        CHECK(top == top_expected);
        CHECK_NEAR(sum, sum_expected, 5e-6 * sum_expected);
        CHECK_NEAR(squares, squares_expected, 1e-5 * squares_expected);
        CHECK(top_alone == top && sum_alone == sum && squares_alone == squares);
        std::vector<double> found, expected;
        for (int64_t i = 0; i < blocks * 32; ++i) {
          found.push_back(to_float(left[size_t(i / 32 * 512 + 5 * 32 + i % 32)]));
          expected.push_back(i < n ? std::exp(double(x[size_t(i)]) - top) : 0);
        }
        CHECK_CLOSE(isa_name(isa), found, expected, 1e-30, 0.0041);
      }
  }
}
