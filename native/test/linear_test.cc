// Linear layers with adapters against plain loops, fused or not, and what a row must not depend on.
#include "ops/linear/linear.h"

#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

struct Module {
  int64_t r, core_rows;
};

// Three linears of one input; the first and the last range have the same adapter, the third a core.
struct Problem {
  static constexpr int64_t rows = 117, in = 70, count = 3, stride = 24, ldy = 70, ldh = rows * stride;
  const int64_t outs[count] = {24, 9, 37};
  const Module kinds[3] = {{3, 0}, {16, 0}, {20, 1}};

  explicit Problem(int storage, unsigned seed) : random(seed), storage(storage), x(storage, random.normals(rows * in)) {
    for (int64_t out : outs) {
      weights.emplace_back(storage, random.normals(out * in, 0.2));
      biases.push_back(random.normals(out));
      for (const Module& k : kinds) {
        a.push_back(random.normals(k.r * in, 0.3));
        b.push_back(random.normals(out * k.r, 0.3));
        core.push_back(random.normals(k.r));
        da.emplace_back(a.back().size(), 0.5f);
        db.emplace_back(b.back().size(), 0.5f);
        dcore.emplace_back(core.back().size(), 0.5f);
      }
    }
    for (size_t i = 0; i < a.size(); ++i) {
      const Module& k = kinds[i % 3];
      modules.push_back({a[i].data(), b[i].data(), k.core_rows ? core[i].data() : nullptr, da[i].data(), db[i].data(), k.core_rows ? dcore[i].data() : nullptr,
                         k.r, k.core_rows, 0.7f, 0.f});
    }
    y = random.normals(rows * ldy);
    dy = random.normals(rows * ldy);
    h.assign(size_t(count * ldh), kNaN);
  }

  // Ranges: rows and adapter.
  struct Range { int64_t row, rows; int adapter; };
  std::vector<Range> ranges{{0, 20, 0}, {20, 33, 1}, {55, 21, 2}, {80, 37, 0}};

  std::vector<LinearPart> parts(void* out, bool residual) {
    std::vector<LinearPart> result;
    int64_t column = 0;
    lists.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      lists[size_t(i)].clear();
      for (const Range& r : ranges) lists[size_t(i)].push_back({r.row, r.rows, &modules[size_t(i * 3 + r.adapter)], 0});
      LinearPart p{outs[i], matrix(weights[size_t(i)].data(), weights[size_t(i)].type, in), nullptr, biases[size_t(i)].data(), &lists[size_t(i)], h.data() + i * ldh};
      p.y = static_cast<char*>(out) + column * (residual || storage == kF32 ? 4 : 2);
      p.dy = dy.data() + column;
      p.ldy = ldy;
      column += outs[i];
      result.push_back(p);
    }
    return result;
  }
  LinearCall call(const std::vector<LinearPart>& p) const { return {rows, in, storage, x.data(), p.data(), count, stride, nullptr}; }

  Random random;
  int storage;
  Typed x;
  std::vector<Typed> weights;
  std::vector<std::vector<float>> biases, a, b, core, da, db, dcore;
  std::vector<LoraModule> modules;
  std::vector<std::vector<LoraRange>> lists;
  std::vector<float> y, dy, h;
};

struct Exact {
  std::vector<double> y, dx;
  std::vector<std::vector<double>> da, db, dcore;
};

Exact exact(const Problem& p, bool residual) {
  Exact e;
  e.y.assign(size_t(p.rows * p.ldy), 0);
  e.dx.assign(size_t(p.rows * p.in), 0);
  for (size_t i = 0; i < p.a.size(); ++i) {
    e.da.emplace_back(p.a[i].size(), 0.5);
    e.db.emplace_back(p.b[i].size(), 0.5);
    e.dcore.emplace_back(p.core[i].size(), 0.5);
  }
  int64_t column = 0;
  for (int64_t i = 0; i < p.count; column += p.outs[i++])
    for (int64_t row = 0; row < p.rows; ++row) {
      const double* x = p.x.values.data() + row * p.in;
      double* dx = e.dx.data() + row * p.in;
      const auto dy = [&](int64_t o) { return double(p.dy[size_t(row * p.ldy + column + o)]); };
      const auto add = [&](int64_t o, double v) { e.y[size_t(row * p.ldy + column + o)] += v; };
      for (int64_t o = 0; o < p.outs[i]; ++o) {
        add(o, p.biases[size_t(i)][size_t(o)] + (residual ? p.y[size_t(row * p.ldy + column + o)] : 0.f));
        for (int64_t c = 0; c < p.in; ++c) {
          const double w = p.weights[size_t(i)].values[size_t(o * p.in + c)];
          add(o, w * x[c]);
          dx[c] += w * dy(o);
        }
      }
      for (const Problem::Range& range : p.ranges) {
        if (row < range.row || row >= range.row + range.rows) continue;
        const size_t m = size_t(i * 3 + range.adapter);
        const LoraModule& module = p.modules[m];
        for (int64_t q = 0; q < module.r; ++q) {
          double low = 0, d = 0;
          const double core = module.core ? module.core[q] : 1;
          for (int64_t c = 0; c < p.in; ++c) low += module.a[q * p.in + c] * x[c];
          for (int64_t o = 0; o < p.outs[i]; ++o) {
            add(o, 0.7 * low * core * module.b[o * module.r + q]);
            d += 0.7 * dy(o) * module.b[o * module.r + q];
            e.db[m][size_t(o * module.r + q)] += 0.7 * dy(o) * low * core;
          }
          e.dcore[m][size_t(q)] += d * low;
          for (int64_t c = 0; c < p.in; ++c) {
            dx[c] += d * core * module.a[q * p.in + c];
            e.da[m][size_t(q * p.in + c)] += d * core * x[c];
          }
        }
      }
    }
  return e;
}

}  // namespace

TEST(linear_matches_plain_loops) {
  for (int storage : {kF32, kBf16})
    for (bool residual : {false, true}) {
      Problem p(storage, 3);
      const Exact e = exact(p, residual);
      on_every_machine([&](Context& context) {
        const std::string where = name_of(context) + (storage == kF32 ? " float32" : " bfloat16") + (residual ? " residual" : "");
        const bool rounds = storage == kBf16;
        const double absolute = rounds ? 0.06 : 2e-5, relative = rounds ? 0.02 : 1e-5;
        Typed y(residual ? kF32 : storage, p.y);
        const std::vector<LinearPart> parts = p.parts(y.data(), residual);
        linear_forward(context, p.call(parts), residual);
        CHECK_CLOSE(where + " y", y.now(), e.y, absolute, relative);
        for (auto* list : {&p.da, &p.db, &p.dcore})
          for (auto& g : *list) std::fill(g.begin(), g.end(), 0.5f);
        std::vector<float> dx(size_t(p.rows * p.in), kNaN);
        linear_backward(context, p.call(parts), dx.data());
        CHECK_CLOSE(where + " dx", dx, e.dx, absolute, relative);
        for (size_t m = 0; m < p.modules.size(); ++m) {
          CHECK_CLOSE(where + " da " + std::to_string(m), p.da[m], e.da[m], 4 * absolute, relative);
          CHECK_CLOSE(where + " db " + std::to_string(m), p.db[m], e.db[m], 4 * absolute, relative);
          if (p.modules[m].core) CHECK_CLOSE(where + " dcore " + std::to_string(m), p.dcore[m], e.dcore[m], 4 * absolute, relative);
        }
        const auto before = p.da;
        for (auto* list : {&p.da, &p.db, &p.dcore})
          for (auto& g : *list) std::fill(g.begin(), g.end(), 0.5f);
        linear_backward(context, p.call(parts), nullptr);
        for (size_t m = 0; m < p.modules.size(); ++m) CHECK_BITS(where + " without dx", p.da[m], before[m]);
      });
    }
}

TEST(linear_rows_do_not_depend_on_company_threads_or_packing) {
  for (Isa isa : instruction_sets())
    for (int storage : {kF32, kBf16}) {
      Machine one(isa, 1), three(isa, 3);
      Problem p(storage, 4);
      Typed together(storage, p.y), again = together;
      std::vector<float> dx(size_t(p.rows * p.in)), dx_again = dx;
      std::vector<LinearPart> parts = p.parts(together.data(), false);
      linear_forward(one.context, p.call(parts), false);
      linear_backward(one.context, p.call(parts), dx.data());
      const auto factors = p.db;
      for (auto* list : {&p.da, &p.db, &p.dcore})
        for (auto& g : *list) std::fill(g.begin(), g.end(), 0.5f);
      parts = p.parts(again.data(), false);
      std::vector<PackedOperand> packed(size_t(p.count));
      for (size_t i = 0; i < packed.size(); ++i) {
        const Typed& w = p.weights[i];
        pack_right(three.context.kernels, packed[i], transposed(w.data(), w.type, p.in), p.outs[i], p.in, runs_in_bf16(three.context.kernels, w.type, w.type, storage == kBf16));
        parts[i].packed = &packed[i];
      }
      linear_forward(three.context, p.call(parts), false);
      linear_backward(three.context, p.call(parts), dx_again.data());
      CHECK_BITS(isa_name(isa), again.raw, together.raw);
      CHECK_BITS(isa_name(isa), dx_again, dx);
      for (size_t m = 0; m < factors.size(); ++m) CHECK_BITS(isa_name(isa), p.db[m], factors[m]);
      // Every range alone, in a batch of its own rows.
      for (const Problem::Range r : {Problem::Range{0, 20, 0}, Problem::Range{20, 33, 1}, Problem::Range{55, 21, 2}, Problem::Range{80, 37, 0}}) {
        Typed alone(storage, p.y);
        p.ranges = {{0, r.rows, r.adapter}};
        parts = p.parts(alone.data(), false);
        std::vector<float> dx_alone(size_t(r.rows * p.in));
        for (LinearPart& part : parts) part.dy += r.row * p.ldy;
        LinearCall c = p.call(parts);
        c.rows = r.rows;
        c.x = p.x.data() + r.row * p.in * (storage == kF32 ? 4 : 2);
        linear_forward(three.context, c, false);
        linear_backward(three.context, c, dx_alone.data());
        const auto all = alone.now(), expected = together.now();
        for (int64_t i = 0; i < r.rows; ++i)
          if (!CHECK(std::equal(all.begin() + i * p.ldy, all.begin() + (i + 1) * p.ldy, expected.begin() + (r.row + i) * p.ldy))) break;
        CHECK_BITS(isa_name(isa), dx_alone, std::vector<float>(dx.begin() + r.row * p.in, dx.begin() + (r.row + r.rows) * p.in));
      }
      p.ranges = {{0, 20, 0}, {20, 33, 1}, {55, 21, 2}, {80, 37, 0}};
    }
}
