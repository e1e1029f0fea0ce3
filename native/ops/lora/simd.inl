// Narrow products of low-rank factors, straight from rows in memory. Every sum has one order, whatever the tile around it.

template <class T>
INLINE void add_lanes(T* to, vf v, int64_t n) {
  if (n >= W) store(to, load(to) + v);
  else store_tail(to, load_tail(to, n) + v, n);
}

// A product that is rounded before it is added to: where the compiler may choose, tiles of other heights would differ.
INLINE vf rounded(vf v) {
#if defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// Lanes of a and of b in turn, of their lower halves; the upper half in the place of the lower; sums of neighbours.
template <int... L>
INLINE vf in_turn(vf a, vf b, std::integer_sequence<int, L...>) { return __builtin_shufflevector(a, b, (L / 2 + L % 2 * W)...); }
template <int... L>
INLINE vf upper_half(vf v, std::integer_sequence<int, L...>) { return __builtin_shufflevector(v, v, (L % (W / 2) + W / 2)...); }
template <int... L>
INLINE vf add_pairs(vf v, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(v, v, (L % (W / 2) * 2)...) + __builtin_shufflevector(v, v, (L % (W / 2) * 2 + 1)...);
}
// Half a vector at a and at b, in turn.
template <int... L>
INLINE vf halves_in_turn(const float* a, const float* b, std::integer_sequence<int, L...>) {
  typedef float Half __attribute__((vector_size(W * 2)));
  Half low, high;
  __builtin_memcpy(&low, a, sizeof low);
  __builtin_memcpy(&high, b, sizeof high);
  return __builtin_shufflevector(low, high, (L / 2 + L % 2 * (W / 2))...);
}

// Floats from what is read of a factor, or of its gradient, to what is asked for.
constexpr int64_t kFactorAhead = 512;

// c(i, j) += alpha · acc for R rows of P vectors, n elements of them there.
template <int R, int P, bool Whole>
INLINE void add_tile(const vf (&acc)[R][P], int64_t n, float* c, int64_t ldc, float alpha) {
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < P; ++j) {
      const vf v = rounded(acc[i][j] * splat(alpha));
      if (Whole) store(c + i * ldc + j * W, load(c + i * ldc + j * W) + v);
      else add_lanes(c + i * ldc + j * W, v, n - j * W);
    }
}

#include "ops/lora/outer.inl"

// R rows of a, P vectors of b; rows `ahead` in a are asked for meanwhile. Of one vector even and odd steps of k are summed apart:
// else few rows would be a chain of additions that leaves the multipliers idle.
template <int R, int P, bool Whole>
[[gnu::noinline]] static void direct_tile(int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n, float* c, int64_t ldc, float alpha, bool accumulate, int64_t ahead) {
  constexpr int S = P == 1 ? 2 : 1, V = P == 1 ? 2 : P;
  vf acc[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) acc[i][j] = vf{};
  int64_t p = 0;
  while (p + S <= k) {
    if (ahead > 0)
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) __builtin_prefetch(a + i * lda + ahead + p);
    for (const int64_t last = k - p < 16 ? k - S + 1 : p + 16; p < last; p += S, b += S * ldb) {
      vf bv[V];
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) {
        const float* from = b + j * (P == 1 ? ldb : W);
        bv[j] = Whole ? load(from) : load_tail(from, n);
        __builtin_prefetch(from + kFactorAhead);
      }
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) acc[i][j] += splat(a[i * lda + p + (P == 1 ? j : 0)]) * bv[j];
    }
  }
  if (p < k) {
    const vf v0 = Whole ? load(b) : load_tail(b, n);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) acc[i][0] += splat(a[i * lda + p]) * v0;
  }
  vf sums[R][P];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < P; ++j) sums[i][j] = P == 1 ? acc[i][0] + acc[i][1] : acc[i][j];
  if (accumulate) return add_tile<R, P, Whole>(sums, n, c, ldc, alpha);
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < P; ++j) {
      const vf v = sums[i][j] * splat(alpha);
      if (Whole) store(c + i * ldc + j * W, v);
      else store_tail(c + i * ldc, v, n);
    }
}

// Of b less than half a vector: two steps of k beside each other, lane by lane, and two such pairs summed apart.
template <int R>
[[gnu::noinline]] static void direct_pairs(int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n, float* c, int64_t ldc, float alpha, bool accumulate, int64_t ahead) {
  typedef double Pairs __attribute__((vector_size(W * 4)));
  const std::make_integer_sequence<int, W> lanes;
  const auto pairs = [&](const float* from) { return n == W / 2 ? halves_in_turn(from, from + ldb, lanes) : in_turn(load_tail(from, n), load_tail(from + ldb, n), lanes); };
  const auto both = [](const float* from) {
    double pair;
    __builtin_memcpy(&pair, from, sizeof pair);
    return (vf)(pair - Pairs{});
  };
  vf acc[R][2];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) acc[i][0] = acc[i][1] = vf{};
  int64_t p = 0;
  while (p + 4 <= k) {
    if (ahead > 0)
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) __builtin_prefetch(a + i * lda + ahead + p);
    for (const int64_t last = k - p < 16 ? k - 3 : p + 16; p < last; p += 4, b += 4 * ldb) {
      const vf v0 = pairs(b), v1 = pairs(b + 2 * ldb);
      __builtin_prefetch(b + kFactorAhead);
      __builtin_prefetch(b + 2 * ldb + kFactorAhead);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        acc[i][0] += both(a + i * lda + p) * v0;
        acc[i][1] += both(a + i * lda + p + 2) * v1;
      }
    }
  }
  for (; p < k; ++p, b += ldb) {
    const vf v0 = in_turn(load_tail(b, n), vf{}, lanes);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) acc[i][0] += splat(a[i * lda + p]) * v0;
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    const vf v = rounded(add_pairs(acc[i][0] + acc[i][1], lanes) * splat(alpha));
    store_tail(c + i * ldc, accumulate ? load_tail(c + i * ldc, n) + v : v, n);
  }
}

template <int P, bool Whole>
INLINE void direct_columns(int64_t m, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n, float* c, int64_t ldc, float alpha, bool accumulate, bool cold) {
  constexpr int R = MR < 8 ? 4 : 8;
  int64_t i = 0;
  for (; i + R <= m; i += R) direct_tile<R, P, Whole>(k, a + i * lda, lda, b, ldb, n, c + i * ldc, ldc, alpha, accumulate, cold && i + R < m ? R * lda : 0);
  if constexpr (R > 4)
    for (; i + 4 <= m; i += 4) direct_tile<4, P, Whole>(k, a + i * lda, lda, b, ldb, n, c + i * ldc, ldc, alpha, accumulate, 0);
  for (; i < m; ++i) direct_tile<1, P, Whole>(k, a + i * lda, lda, b, ldb, n, c + i * ldc, ldc, alpha, accumulate, 0);
}

static void direct_any(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, float alpha, bool accumulate) {
  int64_t j = 0;
  // Few rows take more of b at a time, so that it passes by once.
  if (m < 16 && MR >= 8)
    for (; j + 4 * W <= n; j += 4 * W) {
      int64_t i = 0;
      for (; i + 4 <= m; i += 4) direct_tile<4, 4, true>(k, a + i * lda, lda, b + j, ldb, 4 * W, c + i * ldc + j, ldc, alpha, accumulate, i + 8 <= m ? 4 * lda : 0);
      for (; i < m; ++i) direct_tile<1, 4, true>(k, a + i * lda, lda, b + j, ldb, 4 * W, c + i * ldc + j, ldc, alpha, accumulate, 0);
    }
  for (; j + 2 * W <= n; j += 2 * W) direct_columns<2, true>(m, k, a, lda, b + j, ldb, 2 * W, c + j, ldc, alpha, accumulate, j == 0);
  for (; j + W <= n; j += W) direct_columns<1, true>(m, k, a, lda, b + j, ldb, W, c + j, ldc, alpha, accumulate, j == 0);
  if (W > 4 && n - j > 0 && n - j <= W / 2) {
    constexpr int R = MR >= 8 ? 8 : 4;
    int64_t i = 0;
    for (; i + R <= m; i += R) direct_pairs<R>(k, a + i * lda, lda, b + j, ldb, n - j, c + i * ldc + j, ldc, alpha, accumulate, j == 0 && i + R < m ? R * lda : 0);
    if constexpr (R > 4)
      for (; i + 4 <= m; i += 4) direct_pairs<4>(k, a + i * lda, lda, b + j, ldb, n - j, c + i * ldc + j, ldc, alpha, accumulate, 0);
    for (; i < m; ++i) direct_pairs<1>(k, a + i * lda, lda, b + j, ldb, n - j, c + i * ldc + j, ldc, alpha, accumulate, 0);
  } else if (j < n) {
    direct_columns<1, false>(m, k, a, lda, b + j, ldb, n - j, c + j, ldc, alpha, accumulate, j == 0);
  }
}

// One row of a through four of b, on from what c holds: a chain of additions for every element, as in the tiles.
template <int R>
INLINE void pass_rows(int64_t n, const float* a, const float* b, int64_t ldb, float* c) {
  int64_t j = 0;
  for (; j + W <= n; j += W) {
    vf v = load(c + j);
    for (int p = 0; p < R; ++p) v += splat(a[p]) * load(b + p * ldb + j);
    store(c + j, v);
  }
  if (j == n) return;
  vf v = load_tail(c + j, n - j);
  for (int p = 0; p < R; ++p) v += splat(a[p]) * load_tail(b + p * ldb + j, n - j);
  store_tail(c + j, v, n - j);
}

static void pass_any(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
  int64_t p = 0;
  for (; p + 4 <= k; p += 4)
    for (int64_t i = 0; i < m; ++i) pass_rows<4>(n, a + i * lda + p, b + p * ldb, ldb, c + i * ldc);
  for (; p < k; ++p)
    for (int64_t i = 0; i < m; ++i) pass_rows<1>(n, a + i * lda + p, b + p * ldb, ldb, c + i * ldc);
}

// Sums over the lanes of W vectors, each as sum() adds them: halves of two vectors beside each other, then halves of those.
template <int S, int... L>
INLINE vf add_halves(vf a, vf b, std::integer_sequence<int, L...>) {
  // Lanes without the bit S, of a and then of b; and the lanes S behind them.
  const vf low = __builtin_shufflevector(a, b, (L / S * 2 * S + L % S)...);
  const vf high = __builtin_shufflevector(a, b, (L / S * 2 * S + L % S + S)...);
  return low + high;
}
template <int N, int S = W / 2>
INLINE vf sums(const vf* v) {
  vf out[N / 2];
  for (int i = 0; i < N / 2; ++i) out[i] = add_halves<S>(v[2 * i], v[2 * i + 1], std::make_integer_sequence<int, W>());
  if constexpr (N > 2) return sums<N / 2, S / 2>(out);
  else return out[0];
}

// R rows of a, Q rows of b: sums over lanes come last. Memory at `a_ahead` and `b_ahead` behind what is read is asked for.
template <int R, int Q, bool Ahead, class T>
INLINE void dots_tile(int64_t k, const T* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, bool add, int64_t a_ahead = 0, int64_t b_ahead = 0) {
  vf acc[R * Q];
#pragma GCC unroll 16
  for (int i = 0; i < R * Q; ++i) acc[i] = vf{};
  int64_t p = 0;
  for (; p + W <= k; p += W) {
    vf av[R];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      av[i] = load(a + i * lda + p);
      if (Ahead) __builtin_prefetch(a + i * lda + p + a_ahead);
    }
    for (int j = 0; j < Q; ++j) {
      const vf bv = load(b + j * ldb + p);
      if (Ahead) __builtin_prefetch(b + j * ldb + p + b_ahead);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) acc[i * Q + j] += av[i] * bv;
    }
  }
  if (p < k)
    for (int j = 0; j < Q; ++j) {
      const vf bv = load_tail(b + j * ldb + p, k - p);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) acc[i * Q + j] += load_tail(a + i * lda + p, k - p) * bv;
    }
  float out[R * Q];
  if constexpr (R * Q % W == 0)
    for (int g = 0; g < R * Q; g += W) store(out + g, sums<W>(acc + g));
  else
#pragma GCC unroll 16
    for (int i = 0; i < R * Q; ++i) out[i] = sum(acc[i]);
  typedef float Some __attribute__((vector_size(Q * 4)));
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    Some before, now;
    __builtin_memcpy(&now, out + i * Q, sizeof now);
    if (add) {
      __builtin_memcpy(&before, c + i * ldc, sizeof before);
      now += before;
    }
    __builtin_memcpy(c + i * ldc, &now, sizeof now);
  }
}

// R rows of a by R rows, all of them by Q rows of b.
template <int R, int Q, class T>
INLINE int64_t dots_down(int64_t m, int64_t k, const T* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, bool add, int64_t a_ahead, int64_t b_ahead) {
  int64_t i = 0;
  for (; i + R <= m; i += R, b_ahead = 0)
    if (a_ahead + b_ahead > 0) dots_tile<R, Q, true>(k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add, a_ahead, b_ahead);
    else dots_tile<R, Q, false>(k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add);
  return i;
}

// So many columns and rows at a time that rows of a stay in the first-level cache while b passes by, and b in the second.
constexpr int64_t kDotsK = 1024;

template <class T>
static void dots_typed(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
  constexpr int R = MR >= 8 ? 4 : 2, Q = 4, G = 2 * R;
  int64_t p = 0;
  do {
    const int64_t some = k - p < kDotsK ? k - p : kDotsK;
    for (int64_t first = 0; first < m; first += G) {
      const int64_t rows = m - first < G ? m - first : G;
      const T* ai = a + first * lda + p;
      float* ci = c + first * ldc;
      int64_t j = 0;
      for (; j + Q <= n; j += Q) {
        const int64_t a_ahead = j == 0 && first + 2 * G <= m ? G * lda : 0, b_ahead = first == 0 && j + 2 * Q <= n ? Q * ldb : 0;
        int64_t i = dots_down<R, Q>(rows, some, ai, lda, b + j * ldb + p, ldb, ci + j, ldc, p > 0, a_ahead, b_ahead);
        i += dots_down<2, Q>(rows - i, some, ai + i * lda, lda, b + j * ldb + p, ldb, ci + i * ldc + j, ldc, p > 0, 0, i == 0 ? b_ahead : 0);
        dots_down<1, Q>(rows - i, some, ai + i * lda, lda, b + j * ldb + p, ldb, ci + i * ldc + j, ldc, p > 0, 0, i == 0 ? b_ahead : 0);
      }
      for (; j < n; ++j) dots_down<1, 1>(rows, some, ai, lda, b + j * ldb + p, ldb, ci + j, ldc, p > 0, 0, 0);
    }
    p += some;
  } while (p < k);
}

static void dots_any(int64_t m, int64_t n, int64_t k, const void* a, DType a_type, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
  if (a_type == DType::f32) dots_typed(m, n, k, static_cast<const float*>(a), lda, b, ldb, c, ldc);
  else dots_typed(m, n, k, static_cast<const bf16*>(a), lda, b, ldb, c, ldc);
}

// R rows of h through panels of B (Kernels::pack_b): y (+)= alpha · h Bᵀ. `ahead`: of y, to what is asked for meanwhile.
template <int R, bool Accumulate, class T>
[[gnu::noinline]] static void up_rows(int64_t n, int64_t r, const float* h, int64_t ldh, const float* b, T* y, int64_t ldy, float alpha, int64_t ahead) {
  for (int64_t j = 0; j < n; j += NR) {
    vf acc[R][NV];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      __builtin_prefetch(y + i * ldy + j + ahead);
      if (NV * W * sizeof(T) > 64) __builtin_prefetch(y + i * ldy + j + ahead + W);
      for (int v = 0; v < NV; ++v) acc[i][v] = vf{};
    }
    for (int64_t p = 0; p < r; ++p, b += NR) {
      vf bv[NV];
      for (int v = 0; v < NV; ++v) bv[v] = load(b + v * W);
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const vf hv = splat(h[i * ldh + p]);
        for (int v = 0; v < NV; ++v) acc[i][v] += hv * bv[v];
      }
    }
    if (n - j >= NR) {
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i)
        for (int v = 0; v < NV; ++v) {
          T* to = y + i * ldy + j + v * W;
          store(to, Accumulate ? rounded(acc[i][v] * splat(alpha)) + load(to) : acc[i][v] * splat(alpha));
        }
      continue;
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
      for (int v = 0; v < NV; ++v) {
        const int64_t left = n - j - v * W;
        T* to = y + i * ldy + j + v * W;
        if (left >= W) store(to, Accumulate ? rounded(acc[i][v] * splat(alpha)) + load(to) : acc[i][v] * splat(alpha));
        else if (left > 0) store_tail(to, Accumulate ? rounded(acc[i][v] * splat(alpha)) + load_tail(to, left) : acc[i][v] * splat(alpha), left);
      }
  }
}

constexpr int64_t kAhead = 4 * NR;
template <bool Accumulate, class T>
static void up_typed(int64_t m, int64_t n, int64_t r, const float* h, int64_t ldh, const float* b, T* y, int64_t ldy, float alpha) {
  constexpr int R = MR >= 8 ? 8 : 4;
  int64_t i = 0;
  for (; i + R <= m; i += R) up_rows<R, Accumulate>(n, r, h + i * ldh, ldh, b, y + i * ldy, ldy, alpha, i + 2 * R <= m ? R * ldy : kAhead);
  if constexpr (R > 4)
    for (; i + 4 <= m; i += 4) up_rows<4, Accumulate>(n, r, h + i * ldh, ldh, b, y + i * ldy, ldy, alpha, kAhead);
  for (; i + 2 <= m; i += 2) up_rows<2, Accumulate>(n, r, h + i * ldh, ldh, b, y + i * ldy, ldy, alpha, kAhead);
  if (i < m) up_rows<1, Accumulate>(n, r, h + i * ldh, ldh, b, y + i * ldy, ldy, alpha, kAhead);
}

static void up_any(int64_t m, int64_t n, int64_t r, const float* h, int64_t ldh, const float* b, void* y, DType type, int64_t ldy, float alpha, bool accumulate) {
  if (type == DType::f32 && accumulate) up_typed<true>(m, n, r, h, ldh, b, static_cast<float*>(y), ldy, alpha);
  else if (type == DType::f32) up_typed<false>(m, n, r, h, ldh, b, static_cast<float*>(y), ldy, alpha);
  else if (accumulate) up_typed<true>(m, n, r, h, ldh, b, static_cast<bf16*>(y), ldy, alpha);
  else up_typed<false>(m, n, r, h, ldh, b, static_cast<bf16*>(y), ldy, alpha);
}

static void fill_lora(Kernels& k) {
  k.up = up_any;
  k.outer = outer_any;
  k.direct = direct_any;
  k.pass = pass_any;
  k.dots = dots_any;
}
