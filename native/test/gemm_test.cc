// Products against gemm_reference, and what a row of C must not depend on.
#include "ops/gemm/bf16.h"

#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

struct Shape {
  int64_t m, n, k;
};

struct Options {
  DType a = DType::f32, b = DType::f32, c = DType::f32;
  bool a_transposed = false, b_transposed = false, bias = false, accumulate = false, packed = false, rounds = false;
  float alpha = 1;
  int64_t gap = 0;  // between the rows of each matrix
};

// One product with data of its own.
struct Product {
  Product(Shape s, Options o, unsigned seed)
      : shape(s), options(o), random(seed), a(o.a, random.normals((o.a_transposed ? s.k * lda() : s.m * lda()))),
        b(o.b, random.normals(o.b_transposed ? s.n * ldb() : s.k * ldb())), c(o.c, random.normals(s.m * ldc())), bias(random.normals(s.n)) {}

  int64_t lda() const { return (options.a_transposed ? shape.m : shape.k) + options.gap; }
  int64_t ldb() const { return (options.b_transposed ? shape.k : shape.n) + options.gap; }
  int64_t ldc() const { return shape.n + options.gap; }
  Operand right() const { return options.b_transposed ? transposed(b.data(), b.type, ldb()) : matrix(b.data(), b.type, ldb()); }

  // Rows [r0, r1) of the product, into the same rows of `out`.
  Gemm rows(Typed& out, int64_t r0, int64_t r1) const {
    Operand left = options.a_transposed ? transposed(a.data(), a.type, lda()) : matrix(a.data(), a.type, lda());
    left.data = a.data() + r0 * left.row_stride * int64_t(dtype_size(a.type));
    Gemm g{r1 - r0, shape.n, shape.k, left, right(), out.data() + r0 * ldc() * int64_t(dtype_size(out.type)), out.type, ldc()};
    g.alpha = options.alpha;
    g.bias = options.bias ? bias.data() : nullptr;
    g.accumulate = options.accumulate;
    g.bfloat16 = options.rounds;
    return g;
  }
  bool in_bf16(const Kernels& kernels) const { return runs_in_bf16(kernels, options.a, options.b, options.rounds); }
  Typed run(Context& context, int64_t r0, int64_t r1) const {
    Typed out = c;
    Gemm g = rows(out, r0, r1);
    PackedOperand packed;
    if (options.packed) {
      pack_right(context.kernels, packed, right(), shape.n, shape.k, in_bf16(context.kernels));
      g.b = {nullptr, DType::f32, 0, 0};
      g.packed = &packed;
    }
    gemm(context, g);
    return out;
  }
  Typed run(Context& context) const { return run(context, 0, shape.m); }
  std::string name() const {
    return "[" + std::to_string(shape.m) + " x " + std::to_string(shape.n) + " x " + std::to_string(shape.k) + "] types " +
           std::to_string(int(options.a)) + std::to_string(int(options.b)) + std::to_string(int(options.c)) + (options.a_transposed ? " aT" : "") +
           (options.b_transposed ? " bT" : "") + (options.bias ? " bias" : "") + (options.accumulate ? " +=" : "") + (options.packed ? " packed" : "") + (options.rounds ? " rounds" : "");
  }

  Shape shape;
  Options options;
  Random random;
  Typed a, b, c;
  std::vector<float> bias;
};

Options any_options(Random& random) {
  const std::vector<DType> types{DType::f32, DType::bf16, DType::f16};
  Options o;
  o.a = random.of(types);
  o.b = random.of(types);
  o.c = random.coin() ? DType::f32 : DType::bf16;
  o.a_transposed = random.coin();
  o.b_transposed = random.coin();
  o.bias = random.coin();
  o.accumulate = random.coin();
  o.packed = random.coin();
  o.rounds = random.coin();
  o.alpha = random.coin() ? 1.f : -0.37f;
  o.gap = random.coin() ? 0 : 3;
  return o;
}

Typed rounded(const Typed& x) { return Typed(DType::bf16, {x.values.begin(), x.values.end()}); }

// Of the operands as they are, and of the operands rounded to bfloat16.
struct Expected {
  explicit Expected(const Product& p) : exact(p.c), rounds(p.c) {
    gemm_reference(p.rows(exact, 0, p.shape.m));
    Product q = p;
    q.a = rounded(p.a);
    q.b = rounded(p.b);
    gemm_reference(q.rows(rounds, 0, p.shape.m));
  }
  Typed exact, rounds;
};
Expected reference(const Product& p) { return Expected(p); }

void compare(Context& context, const Product& p, const Expected& both) {
  const Typed actual = p.run(context);
  const Typed& expected = p.in_bf16(context.kernels) ? both.rounds : both.exact;
  // A tie may fall to either side: one unit of bfloat16.
  CHECK_CLOSE(name_of(context) + " " + p.name(), actual.now(), expected.now(), 5e-6 * (1 + std::sqrt(double(p.shape.k))), p.options.c == DType::bf16 ? 0.0079 : 1e-6);
  // Between the rows nothing is written.
  for (int64_t i = 0; i < p.shape.m; ++i)
    for (int64_t j = p.shape.n; j < p.ldc(); ++j)
      if (!CHECK(actual.get(size_t(i * p.ldc() + j)) == p.c.values[size_t(i * p.ldc() + j)])) return;
}

// Small products, and such as are split over threads; k over one block and at its edges; strips of rows, columns in pieces.
const std::vector<Shape> kLarge{{37, 70, 150}, {3, 1000, 101}, {211, 3, 400}, {65, 257, 33}, {9, 40, 1023}, {6, 37, 1024},
                                {5, 43, 1025}, {13, 17, 2500}, {130, 40, 1500}, {1, 900, 300}, {1, 1, 3000}, {64, 64, 64},
                                {1010, 35, 1030}, {30, 4133, 9}};

}  // namespace

TEST(gemm_small_shapes_match_the_reference) {
  on_every_machine([](Context& context) {
    const int64_t mr = context.kernels.mr, nr = context.kernels.nr;
    const std::vector<int64_t> ms{1, 2, 3, 7, 13, mr, mr + 1, std::max<int64_t>(1, mr - 1), 2 * mr + 1}, ns{1, 2, 5, 11, nr, nr + 1, std::max<int64_t>(1, nr - 1), 2 * nr + 1, 3 * nr - 1},
        ks{1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 61};
    Random random(11);
    for (int64_t m : ms)
      for (int64_t n : ns)
        for (int round = 0; round < 3; ++round) {
          const Product p({m, n, random.of(ks)}, any_options(random), unsigned(random.bits()));
          compare(context, p, reference(p));
        }
  });
}

TEST(gemm_large_shapes_match_the_reference) {
  Random random(12);
  for (const Shape& s : kLarge)
    for (int round = 0; round < 3; ++round) {
      const Product p(s, any_options(random), unsigned(random.bits()));
      const Expected expected = reference(p);
      on_every_machine([&](Context& context) { compare(context, p, expected); });
    }
}

TEST(gemm_takes_empty_sides) {
  on_every_machine([](Context& context) {
    for (Shape s : {Shape{0, 5, 7}, Shape{5, 0, 7}, Shape{0, 0, 0}}) CHECK_BITS(name_of(context), Product(s, {}, 1).run(context).raw, Product(s, {}, 1).c.raw);
    for (bool accumulate : {false, true})
      for (bool bias : {false, true})
        for (bool packed : {false, true})
          for (DType type : {DType::f32, DType::bf16}) {
            Options o;
            o.c = type;
            o.accumulate = accumulate;
            o.bias = bias;
            o.packed = packed;
            o.alpha = 3;
            const Product p({5, 19, 0}, o, 2);
            compare(context, p, reference(p));
          }
  });
}

TEST(gemm_rows_do_not_depend_on_other_rows_threads_or_packing) {
  for (Isa isa : instruction_sets()) {
    Machine one(isa, 1), three(isa, 3);
    Random random(13);
    for (const Shape& s : {Shape{37, 70, 150}, Shape{9, 43, 2100}, Shape{50, 400, 40}, Shape{23, 19, 11}, Shape{1013, 19, 1040}})
      for (int round = 0; round < 6; ++round) {
        Product p(s, any_options(random), unsigned(random.bits()));
        const std::string where = std::string(isa_name(isa)) + " " + p.name();
        const Typed whole = p.run(three.context);
        CHECK_BITS(where + " again", p.run(three.context).raw, whole.raw);
        CHECK_BITS(where + " on one thread", p.run(one.context).raw, whole.raw);
        p.options.packed = !p.options.packed;
        CHECK_BITS(where + " packed or not", p.run(three.context).raw, whole.raw);
        Typed parts = p.c;
        for (int64_t r0 = 0; r0 < s.m;) {
          const int64_t r1 = std::min(s.m, r0 + 1 + random.below(9));
          gemm(random.coin() ? one.context : three.context, p.rows(parts, r0, r1));
          r0 = r1;
        }
        CHECK_BITS(where + " in parts", parts.raw, whole.raw);
      }
  }
}

TEST(gemm_rounds_a_bfloat16_result_once) {
  on_every_machine([](Context& context) {
    for (const Shape& s : {Shape{7, 45, 80}, Shape{7, 45, 2100}}) {
      Options o;
      o.b_transposed = true;
      const Typed full = Product(s, o, 5).run(context);
      o.c = DType::bf16;
      const Typed rounded = Product(s, o, 5).run(context);
      std::vector<double> expected = full.now();
      for (double& x : expected) x = to_float(to_bf16(float(x)));
      CHECK_CLOSE(name_of(context), rounded.now(), expected, 0, 0);
    }
  });
}

TEST(gemm_is_clean_after_nan) {
  on_every_machine([](Context& context) {
    for (const Shape& s : {Shape{5, 43, 1500}, Shape{13, 21, 7}})
      for (DType type : {DType::f32, DType::bf16}) {
        Options o;
        o.c = type;
        const Product clean(s, o, 6);
        Machine fresh(context.kernels.isa, 1);
        Product poison({s.m + 20, s.n + 40, s.k + 30}, o, 7);
        std::vector<float> nan(poison.a.values.size(), kNaN);
        poison.a = Typed(DType::f32, nan);
        poison.b = Typed(DType::f32, std::vector<float>(poison.b.values.size(), kNaN));
        poison.run(context);
        CHECK_BITS(name_of(context), clean.run(context).raw, clean.run(fresh.context).raw);
      }
  });
}

TEST(gemm_keeps_nan_in_its_row_and_column) {
  on_every_machine([](Context& context) {
    Product p({19, 37, 23}, {}, 8);
    std::vector<float> a(p.a.values.begin(), p.a.values.end());
    a[4 * 23 + 9] = kNaN;
    p.a = Typed(DType::f32, a);
    const Typed c = p.run(context);
    int wrong = 0;
    for (int64_t i = 0; i < 19; ++i)
      for (int64_t j = 0; j < 37; ++j) wrong += std::isnan(c.get(size_t(i * 37 + j))) != (i == 4);
    CHECK(wrong == 0);
  });
}

TEST(gemm_panels_are_zero_padded) {
  for (Isa isa : instruction_sets()) {
    const Kernels& kr = kernels_of(isa);
    Random random(9);
    for (int side = 0; side < 2; ++side) {
      const int64_t p = side ? kr.nr : kr.mr;
      for (int64_t rows : {int64_t(1), p, p + 1, 2 * p + 3})
        for (int64_t k : {1, 3, 16, 37})
          for (DType type : {DType::f32, DType::bf16, DType::f16})
            for (bool by_row : {true, false}) {
              const Typed x(type, random.normals(rows * k));
              const int64_t row_stride = by_row ? k : 1, k_stride = by_row ? 1 : rows, panels = (rows + p - 1) / p;
              std::vector<float> packed(size_t(panels * p * k), kNaN);
              (side ? kr.pack_b : kr.pack_a)(packed.data(), x.data(), type, rows, k, row_stride, k_stride);
              std::vector<double> expected(packed.size(), 0);
              for (int64_t i = 0; i < rows; ++i)
                for (int64_t q = 0; q < k; ++q) expected[size_t((i / p * k + q) * p + i % p)] = x.values[size_t(i * row_stride + q * k_stride)];
              CHECK_CLOSE(std::string(isa_name(isa)) + " " + std::to_string(rows) + " x " + std::to_string(k), packed, expected, 0, 0);
            }
    }
  }
}

TEST(gemm_panels_of_bfloat16_are_zero_padded) {
  for (Isa isa : instruction_sets()) {
    const Kernels& kr = kernels_of(isa);
    if (!kr.multiply_bf16) continue;
    Random random(10);
    for (int side = 0; side < 2; ++side)
      for (int64_t rows : {1, 15, 16, 17, 35})
        for (int64_t k : {1, 2, 31, 32, 33, 70})
          for (DType type : {DType::f32, DType::bf16, DType::f16})
            for (bool by_row : {true, false}) {
              const Typed x(type, random.normals(rows * k));
              const float scale = type == DType::bf16 ? 1.f : 0.3f;
              const int64_t row_stride = by_row ? k : 1, k_stride = by_row ? 1 : rows, blocks = (k + 31) / 32, panels = (rows + 15) / 16;
              std::vector<uint16_t> packed(size_t(panels * blocks * 512), 0x7fc0);
              kr.pack_bf16[side](reinterpret_cast<bf16*>(packed.data()), x.data(), type, rows, k, row_stride, k_stride, scale);
              std::vector<uint16_t> expected(packed.size(), 0);
              for (int64_t i = 0; i < rows; ++i)
                for (int64_t q = 0; q < k; ++q) {
                  const int64_t at = (i / 16 * blocks + q / 32) * 512, in_a = i % 16 * 32 + q % 32, in_b = q % 32 / 2 * 32 + i % 16 * 2 + q % 2;
                  expected[size_t(at + (side ? in_b : in_a))] = to_bf16(float(x.values[size_t(i * row_stride + q * k_stride)]) * scale).bits;
                }
              CHECK_BITS(std::string(isa_name(isa)) + " side " + std::to_string(side) + " " + std::to_string(rows) + " x " + std::to_string(k), packed, expected);
            }
  }
}

TEST(gemm_turns_packed_operands) {
  for (Isa isa : instruction_sets()) {
    const Kernels& kr = kernels_of(isa);
    if (!kr.multiply_bf16) continue;
    Random random(15);
    for (int64_t n : {1, 15, 16, 17, 32, 50})
      for (int64_t k : {1, 16, 31, 33, 64, 70}) {
        const Typed x(DType::bf16, random.normals(n * k));
        std::vector<bf16> packed(size_t(bf16_panels(n, k))), expected(size_t(bf16_panels(k, n))), turned(expected.size());
        kr.pack_bf16[1](packed.data(), x.data(), DType::bf16, n, k, k, 1, 1.f);
        kr.pack_bf16[1](expected.data(), x.data(), DType::bf16, k, n, 1, k, 1.f);
        const int64_t panels = (k + 15) / 16, some = random.below(panels + 1);
        kr.turn_bf16(turned.data(), packed.data(), n, k, 0, some);
        kr.turn_bf16(turned.data() + some * bf16_panel(n), packed.data(), n, k, some, panels);
        CHECK(std::memcmp(turned.data(), expected.data(), expected.size() * 2) == 0);
      }
  }
}

TEST(gemm_of_bfloat16_adds_terms_over_their_rows) {
  on_every_machine([](Context& context) {
    if (!context.kernels.multiply_bf16) return;
    Random random(14);
    const int64_t m = 101, n = 61;
    struct Part { int64_t k, begin, end; };
    const Part parts[] = {{700, 0, m}, {5, 32, 96}, {40, 0, 64}, {16, 96, m}};
    std::vector<Typed> a, b;
    std::vector<std::vector<bf16>> panels;
    std::vector<Bf16Term> terms;
    std::vector<double> expected(size_t(m * n), 0);
    panels.reserve(8);
    for (const Part& p : parts) {
      const int64_t rows = p.end - p.begin;
      a.emplace_back(DType::bf16, random.normals(rows * p.k));
      b.emplace_back(DType::bf16, random.normals(n * p.k));
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < n; ++j)
          for (int64_t q = 0; q < p.k; ++q) expected[size_t((p.begin + i) * n + j)] += a.back().values[size_t(i * p.k + q)] * b.back().values[size_t(j * p.k + q)];
      bf16* left = panels.emplace_back(size_t(bf16_panels(rows, p.k))).data();
      bf16* right = panels.emplace_back(size_t(bf16_panels(n, p.k))).data();
      const Bf16Packing packings[] = {{left, Side::left, matrix(a.back().data(), DType::bf16, p.k), rows, p.k},
                                      {right, Side::right, transposed(b.back().data(), DType::bf16, p.k), n, p.k}};
      pack_bf16(context, packings, 2);
      terms.push_back({left, right, p.k, p.begin, p.end});
    }
    std::vector<float> c(size_t(m * n), kNaN), d(size_t(m * n), kNaN);
    Bf16Product products[2] = {{m, n, terms.data(), 4, c.data(), DType::f32, n}, {m, n, terms.data(), 4, d.data(), DType::f32, n}};
    multiply_bf16(context, products, 2);
    CHECK_CLOSE(name_of(context), c, expected, 1e-4, 1e-6);
    CHECK_BITS(name_of(context), c, d);
  });
}

TEST(gemm_on_amx_runs_on_tiles) {
  for (Isa isa : instruction_sets()) {
    if (isa != Isa::amx) continue;
    const int64_t before = emulated_instructions();
    Options o;
    o.a = o.b = DType::bf16;
    Machine machine(isa, 1);
    Product({33, 33, 33}, o, 1).run(machine.context);
    // Four blocks of C, two blocks of k: 2 + 4 + 4 + 8 dots among others.
    CHECK(isa_supported(Isa::amx) || emulated_instructions() - before > 18);
  }
}
