// Attention over forests against its specification, float64 gradients, and what a row must not depend on.
#include "forest.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

// prompt → two children → a grandchild; a root of one row; one longer than a tile of queries.
const std::vector<int> kParents{-1, 0, 0, 2, -1, -1, 5};
const std::vector<int64_t> kLengths{5, 3, 21, 4, 1, 67, 2};

// Groups that do not divide a vector or a tile of queries, or go past one; heads of other widths.
const std::vector<AttentionShape> kOdd{{40, 1, 32, 0.18f, 33}, {66, 2, 24, 0.2f, 5}, {12, 1, 16, 0.25f, 7}, {17, 1, 4, 0.5f, 0}, {5, 1, 10, 0.3f, 0}};

std::vector<AttentionShape> shapes() {
  std::vector<AttentionShape> all = kOdd;
  for (auto [heads, kv] : {std::pair<int64_t, int64_t>{4, 4}, {6, 2}, {4, 1}})
    for (int64_t dim : {8, 12, 16, 64, 80})
      for (int64_t window : {0, 1, 3, 17, 40, 1000})
        if (dim == 12 || window == 0 || window == 17) all.push_back({heads, kv, dim, float(1 / std::sqrt(double(dim))), window});
  return all;
}

std::string name(const Context& c, const AttentionShape& s) {
  return name_of(c) + " heads " + std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " dim " + std::to_string(s.head_dim) + " window " + std::to_string(s.window);
}

}  // namespace

TEST(attention_reference_matches_float64) {
  for (const AttentionShape& shape : shapes()) {
    const Forest f(shape, kParents, kLengths, 1);
    std::vector<float> out(size_t(f.rows * f.out_width()), kNaN);
    attention_reference(shape, f.segments, f.x.data(), f.stride, out.data());
    CHECK_CLOSE("reference", out, f.forward(doubles(f.x)), 1e-7, 1e-6);
  }
}

TEST(attention_matches_the_reference) {
  for (const AttentionShape& shape : shapes()) {
    const Forest f(shape, kParents, kLengths, 1);
    std::vector<float> expected(size_t(f.rows * f.out_width()));
    attention_reference(shape, f.segments, f.x.data(), f.stride, expected.data());
    const Forest r = f.rounded();
    std::vector<float> of_rounded(expected.size());
    attention_reference(shape, r.segments, r.x.data(), r.stride, of_rounded.data());
    on_every_machine([&](Context& context) {
      CHECK_CLOSE(name(context, shape), f.attend(context, kF32).now(), expected, 3e-6, 1e-5);
      // Where products run in bfloat16 probabilities are rounded too.
      CHECK_CLOSE(name(context, shape) + " bf16", r.attend(context, kBf16).now(), of_rounded, context.kernels.multiply_bf16 ? 0.006 : 3e-6, 0.0041);
    });
  }
}

TEST(attention_takes_no_segments_and_large_scores) {
  on_every_machine([](Context& context) {
    const AttentionShape shape{2, 1, 8, 1.f, 0};
    attention(context, shape, {}, nullptr, 32, kF32, nullptr);
    attention_backward(context, shape, {}, {}, nullptr, 32, kF32, nullptr, nullptr);
    attention_backward(context, shape, {}, {}, nullptr, 32, kBf16, nullptr, nullptr);
    Forest f(shape, {-1, 0}, {9, 30}, 2);
    for (float& x : f.x) x *= 30;  // scores in the thousands: one key takes all
    CHECK_CLOSE(name(context, shape), f.attend(context, kF32).now(), f.forward(doubles(f.x)), 0.05, 1e-3);
  });
}

TEST(attention_gradient_formula_matches_central_differences) {
  for (AttentionShape shape : {AttentionShape{3, 1, 2, 0.7f, 0}, AttentionShape{2, 2, 3, 0.5f, 3}, AttentionShape{4, 2, 2, 0.6f, 1}}) {
    const Forest f(shape, {-1, 0, 0, 1, -1}, {3, 2, 4, 2, 1}, 3);
    std::vector<double> x = doubles(f.x);
    const auto loss = [&] {
      double total = 0;
      const std::vector<double> out = f.forward(x);
      for (size_t i = 0; i < out.size(); ++i) total += out[i] * f.dout[i];
      return total;
    };
    CHECK_CLOSE("float64", f.backward(x), differences(x, loss), 1e-8, 1e-7);
  }
}

TEST(attention_backward_matches_float64) {
  for (const AttentionShape& shape : shapes()) {
    const Forest f(shape, kParents, kLengths, 4);
    const std::vector<double> expected = f.backward(doubles(f.x));
    const Forest r = f.rounded();
    const std::vector<double> of_rounded = r.backward(doubles(r.x));
    on_every_machine([&](Context& context) {
      CHECK_CLOSE(name(context, shape), f.attend_back(context), expected, 2e-5, 2e-5);
      const double off = context.kernels.multiply_bf16 ? 0.02 : 2e-5;
      CHECK_CLOSE(name(context, shape) + " bf16", r.attend_back(context, kBf16), of_rounded, off, off);
    });
  }
}

TEST(attention_backward_adds_to_keys_and_writes_queries) {
  on_every_machine([](Context& context) {
    for (const auto& [dim, storage] : {std::pair{12, kF32}, {12, kBf16}, {24, kBf16}}) {
      const Forest f({6, 2, dim, 0.3f, 0}, kParents, kLengths, 5);
      const std::vector<float> once = f.attend_back(context, storage), on_ones = f.attend_back(context, storage, 1.f);
      for (int64_t r = 0; r < f.rows; ++r)
        for (int64_t i = 0; i < f.stride; ++i) {
          const size_t at = size_t(r * f.stride + i);
          if (!CHECK_NEAR(on_ones[at], once[at] + (i < f.out_width() ? 0.f : 1.f), 2e-6 * (1 + std::abs(once[at])))) return;
        }
    }
  });
}

TEST(attention_does_not_depend_on_packing_or_threads) {
  for (Isa isa : instruction_sets()) {
    Machine one(isa, 1), three(isa, 3);
    for (const AttentionShape& shape : shapes()) {
      if (shape.heads == 6 ? shape.head_dim != 12 && shape.head_dim != 16 && shape.head_dim != 80
                           : shape.heads / shape.kv_heads <= 4 ? shape.head_dim != 12 || shape.window != 17 : shape.heads == 66)
        continue;
      const Forest f(shape, kParents, kLengths, 6);
      const std::string where = name(three.context, shape);
      for (int storage : {kF32, kBf16}) {
        const Typed together = f.attend(three.context, storage);
        CHECK_BITS(where + " again", f.attend(three.context, storage).raw, together.raw);
        CHECK_BITS(where + " on one thread", f.attend(one.context, storage).raw, together.raw);
        // Every segment with its path alone, as one stretch without sharing, and as the chain it is.
        for (size_t s = 0; s < f.segments.size(); ++s)
          for (bool whole : {true, false}) {
            const Forest alone = f.alone(s, whole);
            const Typed out = alone.attend(one.context, storage);
            const std::vector<double> a = out.now(), b = together.now();
            const size_t n = size_t(kLengths[s] * f.out_width());
            CHECK_BITS(where + " segment " + std::to_string(s), std::vector<double>(a.end() - int64_t(n), a.end()),
                       std::vector<double>(b.begin() + f.segments[s].row * f.out_width(), b.begin() + f.segments[s].row * f.out_width() + int64_t(n)));
          }
      }
      for (int storage : {kF32, kBf16}) {
        const std::vector<float> back = f.attend_back(three.context, storage);
        CHECK_BITS(where + " backward again", f.attend_back(three.context, storage), back);
        CHECK_BITS(where + " backward on one thread", f.attend_back(one.context, storage), back);
        // Trees do not touch each other's gradients.
        const Forest last = f.alone(4, false);
        const std::vector<float> d = last.attend_back(one.context, storage);
        CHECK_BITS(where + " tree", d, std::vector<float>(back.begin() + f.segments[4].row * f.stride, back.begin() + f.segments[4].row * f.stride + int64_t(d.size())));
      }
    }
  }
}

TEST(attention_query_gradient_does_not_depend_on_packing) {
  for (Isa isa : instruction_sets()) {
    Machine machine(isa, 1);
    for (const auto& [window, storage, dim] : {std::tuple{0, kF32, 12}, {3, kF32, 12}, {17, kF32, 12}, {0, kBf16, 12}, {3, kBf16, 12}, {17, kBf16, 12}, {0, kBf16, 24}, {17, kBf16, 24}}) {
      const Forest f({6, 2, dim, 0.3f, window}, kParents, kLengths, 7);
      const std::vector<float> back = f.attend_back(machine.context, storage);
      for (size_t s = 0; s < f.segments.size(); ++s) {
        const Forest alone = f.alone(s, true);
        const std::vector<float> d = alone.attend_back(machine.context, storage);
        std::vector<float> a, b;
        for (int64_t r = 0; r < kLengths[s]; ++r)
          for (int64_t i = 0; i < f.out_width(); ++i) {
            a.push_back(d[size_t((alone.rows - kLengths[s] + r) * f.stride + i)]);
            b.push_back(back[size_t((f.segments[s].row + r) * f.stride + i)]);
          }
        CHECK_BITS(std::string(isa_name(isa)) + " window " + std::to_string(window) + " segment " + std::to_string(s), a, b);
      }
    }
  }
}

TEST(attention_is_clean_after_nan) {
  on_every_machine([](Context& context) {
    for (AttentionShape shape : {AttentionShape{6, 2, 12, 0.3f, 0}, AttentionShape{4, 4, 16, 0.25f, 17}, AttentionShape{4, 2, 24, 0.25f, 17}}) {
      Forest poison({6, 2, 80, 0.1f, 0}, {-1, 0, -1}, {90, 40, 30}, 8);
      std::fill(poison.x.begin(), poison.x.end(), kNaN);
      std::fill(poison.dout.begin(), poison.dout.end(), kNaN);
      for (int storage : {kF32, kBf16}) {
        poison.attend(context, storage);
        poison.attend_back(context, storage);
      }
      Machine fresh(context.kernels.isa, 1);
      const Forest f(shape, kParents, kLengths, 9);
      CHECK_BITS(name(context, shape), f.attend(context, kF32).raw, f.attend(fresh.context, kF32).raw);
      CHECK_BITS(name(context, shape) + " bf16", f.attend(context, kBf16).raw, f.attend(fresh.context, kBf16).raw);
      for (int storage : {kF32, kBf16}) {
        poison.attend_back(context, storage);
        CHECK_BITS(name(context, shape) + " backward", f.attend_back(context, storage), f.attend_back(fresh.context, storage));
      }
    }
  });
}

TEST(attention_keeps_a_nan_query_in_its_row) {
  on_every_machine([](Context& context) {
    for (const auto& [dim, storage] : {std::pair{8, kF32}, {8, kBf16}, {24, kBf16}}) {
      Forest f({2, 2, dim, 0.3f, 0}, {-1, 0, -1}, {4, 3, 5}, 10);
      f.x[size_t(2 * f.stride)] = kNaN;  // a query of row 2
      const std::vector<double> out = f.attend(context, storage).now();
      for (int64_t r = 0; r < f.rows; ++r) CHECK(std::isnan(out[size_t(r * f.out_width())]) == (r == 2));
    }
  });
}

TEST(attention_softmax_rows_match_the_reference) {
  const Kernels& specification = kernels_of(Isa::reference);
  for (Isa isa : instruction_sets()) {
    const Kernels& kr = kernels_of(isa);
    Random random(11);
    for (int64_t n : {1, 2, 7, 15, 16, 17, 33, 100})
      for (int round = 0; round < 12; ++round) {
        const int64_t lo = round ? random.below(n) : 0, hi = round == 1 ? n : lo + 1 + random.below(n - lo), room = (n + 15) / 16 * 16;
        std::vector<float> p = random.normals(room, 4), dp = random.normals(room);
        std::fill(p.begin() + n, p.end(), kNaN);  // the padding may hold anything
        std::fill(dp.begin() + n, dp.end(), kNaN);
        std::vector<float> p_expected = p, dp_expected = dp;
        const std::string where = std::string(isa_name(isa)) + " [" + std::to_string(lo) + ", " + std::to_string(hi) + ") of " + std::to_string(n);
        kr.softmax_row(p.data(), lo, hi, n, 0.4f);
        specification.softmax_row(p_expected.data(), lo, hi, n, 0.4f);
        const auto head = [&](const std::vector<float>& v) { return std::vector<float>(v.begin(), v.begin() + n); };
        CHECK_CLOSE(where, head(p), head(p_expected), 1e-7, 2e-6);
        kr.softmax_row_backward(p.data(), dp.data(), lo, hi, n, 0.4f);
        specification.softmax_row_backward(p_expected.data(), dp_expected.data(), lo, hi, n, 0.4f);
        CHECK_CLOSE(where + " backward", head(dp), head(dp_expected), 1e-6, 1e-5);
        for (int64_t i = 0; i < n; ++i) CHECK((i >= lo && i < hi) || (p[size_t(i)] == 0 && dp[size_t(i)] == 0));
      }
  }
}

// Panels as the products read them, against rows of the specification.
TEST(attention_softmax_tiles_match_the_rows) {
  const Kernels& specification = kernels_of(Isa::reference);
  for (Isa isa : instruction_sets()) {
    const Kernels& kr = kernels_of(isa);
    if (!kr.softmax_bf16) continue;
    Random random(12);
    for (int64_t rows : {1, 2, 3, 16, 17, 31, 32})
      for (int64_t before : {0, 1, 14, 31, 32, 70})
        for (int64_t window : {0, 1, 20, 40}) {
          const int64_t n = before + rows, blocks = (n + 31) / 32, ld = blocks * 32;
          const float scale = 0.4f;
          std::vector<float> scores = random.normals(rows * ld, 4), grads = random.normals(rows * ld);
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t c = before + i + 1; c < ld; ++c) scores[size_t(i * ld + c)] = grads[size_t(i * ld + c)] = kNaN;  // nobody's business
          std::vector<float> p = scores, ds = grads, inverse(size_t(rows), kNaN);
          for (int64_t i = 0; i < rows; ++i) {
            const int64_t hi = before + i + 1, lo = window > 0 ? std::max<int64_t>(0, hi - window) : 0;
            specification.softmax_row(&p[size_t(i * ld)], lo, hi, n, scale);
            specification.softmax_row_backward(&p[size_t(i * ld)], &ds[size_t(i * ld)], lo, hi, n, scale);
          }
          const bf16 poison = to_bf16(kNaN);
          std::vector<bf16> left(size_t(2 * blocks * 512), poison), ds_left = left, p_right = left, ds_right = left;
          const SoftmaxTile tile{scores.data(), ld, rows, before + 1, window, n, scale};
          kr.softmax_bf16(tile, left.data(), inverse.data());
          kr.softmax_bf16_backward(tile, grads.data(), ds_left.data(), p_right.data(), ds_right.data());
          std::vector<double> a, b, c, d, p_expected, ds_expected;
          for (int64_t i = 0; i < 32; ++i)
            for (int64_t col = 0; col < blocks * 32; ++col) {
              const size_t at = size_t(i / 16 * blocks * 512 + col / 32 * 512 + i % 16 * 32 + col % 32);
              const size_t right = size_t(col / 16 * 512 + i / 2 * 32 + col % 16 * 2 + i % 2);
              const bool there = i < rows && col < n;
              p_expected.push_back(there ? p[size_t(i * ld + col)] : 0);
              ds_expected.push_back(there ? ds[size_t(i * ld + col)] : 0);
              a.push_back(i < rows ? double(to_float(left[at])) * inverse[size_t(i)] : 0);
              b.push_back(i < rows ? to_float(ds_left[at]) : 0);
              c.push_back(to_float(p_right[right]));
              d.push_back(to_float(ds_right[right]));
            }
          const std::string where = std::string(isa_name(isa)) + " " + std::to_string(rows) + " rows behind " + std::to_string(before) + ", window " + std::to_string(window);
          CHECK_CLOSE(where, a, p_expected, 1e-30, 0.0041);
          CHECK_CLOSE(where + " gradients", b, ds_expected, 2e-6, 0.0041);
          CHECK_CLOSE(where + " probabilities as a right operand", c, p_expected, 1e-30, 0.0041);
          CHECK_CLOSE(where + " gradients as a right operand", d, ds_expected, 2e-6, 0.0041);
        }
  }
}

TEST(attention_rounds_rows) {
  for (Isa isa : instruction_sets())
    for (int64_t n : {1, 7, 16, 33}) {
      Random random(13);
      const std::vector<float> from = random.normals(3 * (n + 2)), scale{0.5f, 3.f, -1.f};
      for (const float* s : {static_cast<const float*>(nullptr), scale.data()}) {
        std::vector<bf16> to(size_t(3 * (n + 1)), to_bf16(7.f));
        kernels_of(isa).round_rows(to.data(), n + 1, from.data(), n + 2, 3, n, s);
        for (int64_t i = 0; i < 3; ++i)
          for (int64_t c = 0; c <= n; ++c) {
            const float expected = c == n ? 7.f : to_float(to_bf16(from[size_t(i * (n + 2) + c)] * (s ? s[i] : 1.f)));
            CHECK(to_float(to[size_t(i * (n + 1) + c)]) == expected);
          }
      }
    }
}
