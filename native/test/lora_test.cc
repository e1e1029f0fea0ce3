// Low-rank products against float64, their gradients by central differences, and dropout.
#include "ops/lora/step.h"

#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

// Three adapters: plain; a vector in the middle with the first one's A; a matrix in the middle with the first one's B.
// Rows 0-4, 6-12 and 13 are theirs, row 5 is nobody's, rows 14-16 are the plain one's again.
struct Problem {
  Problem(int64_t in, int64_t out, int64_t r, int storage, float dropout, unsigned seed)
      : random(seed), in(in), out(out), r(r), x(storage, random.normals(rows * in)), y(random.normals(rows * ldy())), dy(random.normals(rows * ldy())),
        values(random.normals(sizes().back(), 0.5)), gradients(values.size(), 0.f) {
    const auto at = [&](int part) { return values.data() + sizes()[size_t(part)]; };
    const auto d = [&](int part) { return gradients.data() + sizes()[size_t(part)]; };
    modules = {{at(0), at(2), nullptr, d(0), d(2), nullptr, r, 0, 0.8f, dropout},
               {at(0), at(3), at(4), d(0), d(3), d(4), r, 1, -1.5f, dropout},
               {at(1), at(2), at(5), d(1), d(2), d(5), r, r, 0.3f, dropout}};
    ranges = {{0, 5, &modules[0], 11}, {6, 7, &modules[1], 11}, {13, 1, &modules[2], 11}, {14, 3, &modules[0], 11}};
    for (int64_t i = 0; i < rows; ++i) keys.push_back(random.bits());
  }
  Problem(const Problem&) = delete;

  // Offsets of A, A', B, B', the vector, the matrix, and the end.
  std::vector<int64_t> sizes() const { return {0, r * in, 2 * r * in, 2 * r * in + out * r, 2 * r * in + 2 * out * r, 2 * r * in + 2 * out * r + r, 2 * r * in + 2 * out * r + r + r * r}; }
  int64_t ldy() const { return out + 3; }
  LoraCall call() { return {ranges, in, out, x.type == DType::f32 ? kF32 : kBf16, x.data(), h.data(), stride, keys.data()}; }

  // y in float64, given x as it enters A (masked by `mask`), every factor, and y before.
  std::vector<double> forward(const std::vector<double>& xs, const std::vector<double>& p, const std::vector<double>& mask = {}) const {
    std::vector<double> result = doubles(y);
    const std::vector<int64_t> at = sizes();
    for (const LoraRange& range : ranges) {
      const int which = int(range.module - modules.data());
      const double* a = &p[size_t(at[which == 2 ? 1 : 0])];
      const double* b = &p[size_t(at[which == 1 ? 3 : 2])];
      for (int64_t row = range.row; row < range.row + range.rows; ++row) {
        std::vector<double> low(static_cast<size_t>(r)), middle(static_cast<size_t>(r));
        for (int64_t j = 0; j < r; ++j)
          for (int64_t i = 0; i < in; ++i) low[size_t(j)] += a[j * in + i] * xs[size_t(row * in + i)] * (mask.empty() ? 1 : mask[size_t(row * in + i)]);
        for (int64_t j = 0; j < r; ++j) {
          if (which == 0) middle[size_t(j)] = low[size_t(j)];
          else if (which == 1) middle[size_t(j)] = low[size_t(j)] * p[size_t(at[4] + j)];
          else
            for (int64_t i = 0; i < r; ++i) middle[size_t(j)] += p[size_t(at[5] + j * r + i)] * low[size_t(i)];
        }
        for (int64_t o = 0; o < out; ++o)
          for (int64_t j = 0; j < r; ++j) result[size_t(row * ldy() + o)] += double(range.module->scale) * b[o * r + j] * middle[size_t(j)];
      }
    }
    return result;
  }

  static constexpr int64_t rows = 17;
  Random random;
  int64_t in, out, r, stride = 12;
  Typed x;
  std::vector<float> y, dy, values, gradients, h = std::vector<float>(size_t(rows * 12), kNaN);
  std::vector<LoraModule> modules;
  std::vector<LoraRange> ranges;
  std::vector<uint64_t> keys;
};

// The mask that a row's dropout draws: through A = B = identity, on ones.
std::vector<float> mask_of(Context& context, const std::vector<uint64_t>& keys, int64_t in, float dropout, uint64_t stream, bool backward) {
  const int64_t rows = int64_t(keys.size());
  std::vector<float> identity(size_t(in * in), 0.f), ones(size_t(rows * in), 1.f), h(ones.size()), y(ones.size(), 0.f), dx = y;
  for (int64_t i = 0; i < in; ++i) identity[size_t(i * in + i)] = 1;
  const LoraModule module{identity.data(), identity.data(), nullptr, nullptr, nullptr, nullptr, in, 0, 1.f, dropout};
  const std::vector<LoraRange> ranges{{0, rows, &module, stream}};
  const LoraCall call{ranges, in, in, kF32, ones.data(), h.data(), in, keys.data()};
  lora_forward(context, call, y.data(), in, true);
  lora_backward(context, call, ones.data(), in, dx.data());
  return backward ? dx : y;
}

}  // namespace

TEST(lora_forward_matches_float64) {
  on_every_machine([](Context& context) {
    for (int64_t in : {1, 7, 40})
      for (int64_t out : {1, 9, 33})
        for (int64_t r : {1, 3, 8})
          for (int storage : {kF32, kBf16})
            for (bool y_f32 : {true, false}) {
              Problem p(in, out, r, storage, 0, unsigned(in * 100 + out * 10 + r));
              Typed y(y_f32 ? kF32 : storage, p.y);
              p.y = std::vector<float>(y.values.begin(), y.values.end());
              lora_forward(context, p.call(), y.data(), p.ldy(), y_f32);
              CHECK_CLOSE(name_of(context) + " " + std::to_string(in) + " -> " + std::to_string(r) + " -> " + std::to_string(out), y.now(),
                          p.forward(p.x.values, doubles(p.values)), 2e-5, y.type == DType::f32 ? 1e-6 : 0.0079);
            }
  });
}

TEST(lora_backward_matches_central_differences) {
  for (int64_t r : {1, 3})
    for (int storage : {kF32, kBf16})
      for (float dropout : {0.f, 0.4f}) {
        const int64_t in = 7, out = 5;
        Problem p(in, out, r, storage, dropout, unsigned(r));
        std::vector<double> x = p.x.values, values = doubles(p.values), mask;
        if (dropout > 0) {
          Machine machine(Isa::reference, 1);
          for (float m : mask_of(machine.context, p.keys, in, dropout, 11, false)) mask.push_back(m);
        }
        const auto loss = [&] {
          double total = 0;
          const std::vector<double> y = p.forward(x, values, mask);
          for (size_t i = 0; i < y.size(); ++i) total += y[i] * p.dy[i];
          return total;
        };
        std::vector<double> d_values = differences(values, loss), dx = differences(x, loss);
        for (double& d : d_values) d += 0.5;
        on_every_machine([&](Context& context) {
          const std::string where = name_of(context) + " rank " + std::to_string(r) + (dropout > 0 ? " dropout" : "");
          Typed y(kF32, p.y);
          std::fill(p.h.begin(), p.h.end(), kNaN);
          lora_forward(context, p.call(), y.data(), p.ldy(), true);
          CHECK_CLOSE(where + " forward", y.now(), p.forward(x, values, mask), 1e-5, 1e-6);
          const std::vector<float> before = p.random.normals(Problem::rows * in);
          std::vector<float> actual = before;
          std::vector<double> expected = dx;
          for (size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
          std::fill(p.gradients.begin(), p.gradients.end(), 0.5f);
          lora_backward(context, p.call(), p.dy.data(), p.ldy(), actual.data());
          CHECK_CLOSE(where + " dx", actual, expected, 2e-5, 1e-5);
          CHECK_CLOSE(where + " factors", p.gradients, d_values, 2e-5, 1e-5);
          const std::vector<float> with_dx = p.gradients;
          std::fill(p.gradients.begin(), p.gradients.end(), 0.5f);
          lora_backward(context, p.call(), p.dy.data(), p.ldy(), nullptr);
          CHECK_BITS(where + " without dx", p.gradients, with_dx);
        });
      }
}

TEST(lora_leaves_frozen_factors_alone) {
  Problem p(7, 5, 3, kF32, 0, 4);
  Machine machine(Isa::generic, 1);
  Typed y(kF32, p.y);
  lora_forward(machine.context, p.call(), y.data(), p.ldy(), true);
  for (LoraModule& m : p.modules) m.da = m.db = m.dcore = nullptr;
  std::vector<float> dx(size_t(Problem::rows * 7), 0.f);
  lora_backward(machine.context, p.call(), p.dy.data(), p.ldy(), dx.data());
  for (float g : p.gradients) CHECK(g == 0);
  for (int64_t i = 0; i < 7; ++i) CHECK(dx[size_t(5 * 7 + i)] == 0);  // row 5 is nobody's
  CHECK(dx[0] != 0 && dx[size_t(16 * 7)] != 0);
}

TEST(lora_dropout_draws_one_mask_for_both_ways) {
  on_every_machine([](Context& context) {
    Random random(5);
    std::vector<uint64_t> keys;
    for (int i = 0; i < 80; ++i) keys.push_back(random.bits());
    for (float dropout : {0.1f, 0.5f, 0.9f}) {
      const int64_t in = 50;
      const std::vector<float> mask = mask_of(context, keys, in, dropout, 3, false);
      CHECK_CLOSE(name_of(context), mask_of(context, keys, in, dropout, 3, true), mask, 0, 0);
      int64_t kept = 0;
      for (float m : mask) {
        kept += m != 0;
        if (m != 0) CHECK_NEAR(m, 1 / (1 - double(dropout)), 1e-5);
      }
      const double n = double(mask.size()), keep = 1 - double(dropout);
      CHECK_NEAR(double(kept), n * keep, 4 * std::sqrt(n * keep * (1 - keep)));
      // A row keeps its mask in other company; another key or stream draws another.
      const auto row = [&](const std::vector<float>& m, int64_t i) { return std::vector<float>(m.begin() + i * in, m.begin() + (i + 1) * in); };
      CHECK_CLOSE(name_of(context), mask_of(context, {keys[7]}, in, dropout, 3, false), row(mask, 7), 0, 0);
      CHECK(row(mask, 7) != row(mask, 8));
      CHECK(mask_of(context, {keys[7]}, in, dropout, 4, false) != row(mask, 7));
    }
  });
}

TEST(lora_drops_nothing_on_stream_zero) {
  on_every_machine([](Context& context) {
    Problem p(7, 5, 3, kF32, 0.5f, 6), q(7, 5, 3, kF32, 0, 6);
    Typed y(kF32, p.y), expected(kF32, q.y);
    for (LoraRange& r : p.ranges) r.stream = 0;
    const LoraCall call = p.call();
    lora_forward(context, call, y.data(), p.ldy(), true);
    lora_forward(context, q.call(), expected.data(), q.ldy(), true);
    CHECK_BITS(name_of(context), y.raw, expected.raw);
    std::vector<float> dx(size_t(Problem::rows * 7), 0.f), dx_expected = dx;
    lora_backward(context, call, p.dy.data(), p.ldy(), dx.data());
    lora_backward(context, q.call(), q.dy.data(), q.ldy(), dx_expected.data());
    CHECK_BITS(name_of(context), dx, dx_expected);
    CHECK_BITS(name_of(context), p.gradients, q.gradients);
  });
}

TEST(lora_rows_do_not_depend_on_company_or_threads) {
  for (Isa isa : instruction_sets()) {
    Machine one(isa, 1), three(isa, 3);
    for (int storage : {kF32, kBf16}) {
      Problem p(40, 33, 8, storage, 0.2f, 7);
      Typed together(storage, p.y), apart = together, parallel = together;
      std::vector<float> dx(size_t(Problem::rows * 40), 0.f), dx_apart = dx, dx_parallel = dx;
      lora_forward(one.context, p.call(), together.data(), p.ldy(), false);
      lora_backward(one.context, p.call(), p.dy.data(), p.ldy(), dx.data());
      const std::vector<float> gradients = p.gradients;
      std::fill(p.gradients.begin(), p.gradients.end(), 0.f);
      lora_forward(three.context, p.call(), parallel.data(), p.ldy(), false);
      lora_backward(three.context, p.call(), p.dy.data(), p.ldy(), dx_parallel.data());
      CHECK_BITS(isa_name(isa), p.gradients, gradients);
      std::vector<LoraRange> rows;
      for (const LoraRange& r : p.ranges)
        for (int64_t i = 0; i < r.rows; ++i) rows.push_back({r.row + i, 1, r.module, r.stream});
      const LoraCall call{rows, 40, 33, storage, p.x.data(), p.h.data(), p.stride, p.keys.data()};
      lora_forward(one.context, call, apart.data(), p.ldy(), false);
      lora_backward(one.context, call, p.dy.data(), p.ldy(), dx_apart.data());
      CHECK_BITS(isa_name(isa), parallel.raw, together.raw);
      CHECK_BITS(isa_name(isa), apart.raw, together.raw);
      CHECK_BITS(isa_name(isa), dx_parallel, dx);
      CHECK_BITS(isa_name(isa), dx_apart, dx);
    }
  }
}

// More rows than the caches hold: what is worked on at a time must not show.
TEST(lora_of_many_rows_matches_float64) {
  constexpr int64_t in = 330, out = 290, r = 5, rows = 545;
  Random random(31);
  const std::vector<float> x = random.normals(rows * in), dy = random.normals(rows * out), a = random.normals(r * in, 0.2), b = random.normals(2 * out * r, 0.2);
  const std::vector<float> y = random.normals(rows * out);
  const auto owner = [](int64_t row) { return row >= 300 && row < 345 ? 1 : 0; };  // adapters share A
  std::vector<double> low(size_t(rows * r)), up = doubles(y), dx(size_t(rows * in)), da(a.size()), db(b.size());
  for (int64_t row = 0; row < rows; ++row) {
    const double scale = owner(row) ? -0.5 : 2;
    const float* own = b.data() + owner(row) * out * r;
    for (int64_t j = 0; j < r; ++j) {
      double sum = 0, back = 0;
      for (int64_t i = 0; i < in; ++i) sum += double(a[size_t(j * in + i)]) * x[size_t(row * in + i)];
      for (int64_t o = 0; o < out; ++o) {
        up[size_t(row * out + o)] += scale * own[o * r + j] * sum;
        back += scale * own[o * r + j] * dy[size_t(row * out + o)];
        db[size_t((owner(row) * out + o) * r + j)] += scale * sum * dy[size_t(row * out + o)];
      }
      for (int64_t i = 0; i < in; ++i) {
        dx[size_t(row * in + i)] += back * a[size_t(j * in + i)];
        da[size_t(j * in + i)] += back * x[size_t(row * in + i)];
      }
    }
  }
  const auto near = [](const std::vector<float>& found, const std::vector<double>& wanted, const std::string& what) {
    for (size_t i = 0; i < found.size(); ++i)
      if (!CHECK(std::abs(double(found[i]) - wanted[i]) <= 2e-3 + 1e-4 * std::abs(wanted[i]))) {
        fail(__FILE__, __LINE__, what + " " + std::to_string(i));
        return;
      }
  };
  on_every_machine([&](Context& context) {
    std::vector<float> h(size_t(rows * r)), y1 = y, dx1(dx.size()), da1(da.size()), db1(db.size());
    const LoraModule modules[2] = {{a.data(), b.data(), nullptr, da1.data(), db1.data(), nullptr, r, 0, 2.f, 0.f},
                                   {a.data(), b.data() + out * r, nullptr, da1.data(), db1.data() + out * r, nullptr, r, 0, -0.5f, 0.f}};
    const std::vector<LoraRange> ranges{{0, 300, &modules[0], 0}, {300, 45, &modules[1], 0}, {345, 200, &modules[0], 0}};
    const LoraCall call{ranges, in, out, kF32, x.data(), h.data(), r, nullptr};
    lora_forward(context, call, y1.data(), out, true);
    lora_backward(context, call, dy.data(), out, dx1.data());
    near(y1, up, "y " + name_of(context));
    near(dx1, dx, "dx " + name_of(context));
    near(da1, da, "da " + name_of(context));
    near(db1, db, "db " + name_of(context));
  });
}

TEST(lora_step_matches_float64) {
  for (const auto& [in, out, r] : {std::tuple<int64_t, int64_t, int64_t>{33, 50, 3}, {1, 1, 1}, {64, 16, 8}, {100, 31, 9}, {31, 97, 12}, {576, 192, 8}})
    for (int storage : {kF32, kBf16})
      on_every_machine([&](Context& context) {
        const Kernels& kr = context.kernels;
        if (!packs_steps(kr, storage)) return;
        Problem p(in, out, r, storage, 0.f, 5);
        // Factors that bfloat16 holds, so that what is left is the rounding of x Aᵀ.
        if (storage == kBf16)
          for (float& v : p.values) v = to_float(to_bf16(v));
        std::vector<Buffer> memory(2 * p.modules.size());
        std::vector<StepModule> modules;
        for (size_t i = 0; i < p.modules.size(); ++i) {
          const LoraModule& m = p.modules[i];
          const int64_t a_bytes = step_a_bytes(storage, r, in);
          void *a = memory[2 * i].get(size_t(a_bytes + 1)), *b = memory[2 * i + 1].get(size_t(step_b_bytes(kr, storage, out, r)));
          if (a_bytes > 0) pack_step_a(kr, a, m.a, r, in);
          pack_step_b(kr, storage, b, m.b, out, r);
          modules.push_back({&m, a_bytes > 0 ? a : m.a, b});
        }
        const auto ranges = [&](float* y) {
          std::vector<StepRange> list;
          for (const LoraRange& range : p.ranges) list.push_back({range.row, range.rows, &modules[size_t(range.module - p.modules.data())], out, y + range.row * p.ldy(), p.ldy()});
          return list;
        };
        std::vector<float> y = p.y;
        const std::vector<StepRange> all = ranges(y.data());
        lora_step(context, storage, p.x.data(), in, all.data(), int64_t(all.size()), true);
        const std::vector<double> expected = p.forward(p.x.values, doubles(p.values));
        const double tolerance = storage == kF32 ? 1e-5 : 2e-3, room = tolerance * (std::sqrt(double(in * r)) + 10);
        for (size_t i = 0; i < y.size(); ++i)
          if (!CHECK_NEAR(y[i], expected[i], room)) return;
        // In place of what was there: no row's bits depend on the rows beside it.
        std::vector<float> together(y.size(), kNaN), apart(y.size(), kNaN);
        const std::vector<StepRange> fresh = ranges(together.data());
        lora_step(context, storage, p.x.data(), in, fresh.data(), int64_t(fresh.size()), false);
        for (const StepRange& range : ranges(apart.data()))
          for (int64_t i = 0; i < range.rows; ++i) {
            const StepRange one{range.row + i, 1, range.module, out, range.y + i * p.ldy(), p.ldy()};
            lora_step(context, storage, p.x.data(), in, &one, 1, false);
          }
        CHECK_BITS(name_of(context), apart, together);
        for (const LoraRange& range : p.ranges)
          for (int64_t i = 0; i < range.rows * out; ++i) {
            const size_t at = size_t((range.row + i / out) * p.ldy() + i % out);
            if (!CHECK_NEAR(double(together[at]) + double(p.y[at]), expected[at], room)) return;
          }
        lora_step(context, storage, nullptr, in, nullptr, 0, true);
      });
}
