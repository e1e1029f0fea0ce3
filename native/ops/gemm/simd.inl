// Register-tiled product over packed panels: MR rows × NV vectors of accumulators, one pass over k.

constexpr int MR = PLURALIGN_MR, NV = PLURALIGN_NV, NR = NV * W;

// R rows of one panel pair. The sum over k is one chain of multiply-adds for every element, whatever R. `next` and what lies
// behind it, `stride` bytes a step, is asked for meanwhile.
template <int R>
static void micro(int64_t k, const float* __restrict a, const float* __restrict b, float* __restrict out, const char* next, int64_t stride) {
  vf acc[R][NV];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < NV; ++j) acc[i][j] = vf{};
  for (int64_t p = 0; p < k; ++p, a += MR, b += NR, next += stride) {
    __builtin_prefetch(next, 0, 2);
    vf bv[NV];
    for (int j = 0; j < NV; ++j) bv[j] = load(b + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const vf av = splat(a[i]);
      for (int j = 0; j < NV; ++j) acc[i][j] += av * bv[j];
    }
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < NV; ++j) store(out + i * NR + j * W, acc[i][j]);
}

// As micro, on two panels of b at a time: so few rows are a chain of additions that leaves the multipliers idle.
constexpr int kFewRows = MR >= 14 ? 4 : 2;
// Elsewhere the compiler fuses the sums of the two loops differently, and a row's bits would depend on its company.
#if defined(__x86_64__) || defined(_M_X64)
constexpr bool kTwoPanels = true;
#else
constexpr bool kTwoPanels = false;
#endif
template <int R>
static void micro_few(int64_t k, const float* __restrict a, const float* __restrict b, int64_t b_step, float* __restrict out) {
  vf acc[R][2 * NV];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < 2 * NV; ++j) acc[i][j] = vf{};
  for (int64_t p = 0; p < k; ++p, a += MR, b += NR) {
    vf bv[2 * NV];
    for (int j = 0; j < NV; ++j) {
      bv[j] = load(b + j * W);
      bv[NV + j] = load(b + b_step + j * W);
    }
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      const vf av = splat(a[i]);
      for (int j = 0; j < 2 * NV; ++j) acc[i][j] += av * bv[j];
    }
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < NV; ++j) {
      store(out + i * NR + j * W, acc[i][j]);
      store(out + (R + i) * NR + j * W, acc[i][NV + j]);
    }
}

using Micro = void (*)(int64_t, const float*, const float*, float*, const char*, int64_t);
template <int R>
struct Micros {
  static void fill(Micro* table) {
    table[R] = micro<R>;
    if constexpr (R > 1) Micros<R - 1>::fill(table);
  }
};

[[maybe_unused]] static void few(int64_t m, int64_t k, const float* a, const float* b, int64_t b_step, float* out) {
  if constexpr (kFewRows == 4) {
    if (m == 4) return micro_few<4>(k, a, b, b_step, out);
    if (m == 3) return micro_few<3>(k, a, b, b_step, out);
  }
  if (m == 2) return micro_few<2>(k, a, b, b_step, out);
  micro_few<1>(k, a, b, b_step, out);
}

struct MicroTable {
  Micro run[MR + 1] = {};
  MicroTable() { Micros<MR>::fill(run); }
};

// One copy of it: in two, the compiler may fuse alpha's product with the sum in one only, and bits would differ with the rows.
#if defined(__GNUC__) && !defined(__clang__)
#define PLURALIGN_ONE_COPY __attribute__((noinline, noclone))
#elif defined(__clang__)
#define PLURALIGN_ONE_COPY __attribute__((noinline))
#else
#define PLURALIGN_ONE_COPY
#endif
template <class T>
PLURALIGN_ONE_COPY static void write_tile(T* c, int64_t ldc, const float* tile, int64_t rows, int64_t cols, float alpha, const float* bias, bool accumulate) {
  for (int64_t i = 0; i < rows; ++i) {
    T* row = c + i * ldc;
    for (int64_t j = 0; j < cols; j += W) {
      const int64_t n = cols - j;
      vf v = load(tile + i * NR + j) * splat(alpha);
      if (n >= W) {
        if (bias) v += load(bias + j);
        if (accumulate) v += load(row + j);
        store(row + j, v);
      } else {
        if (bias) v += load_tail(bias + j, n);
        if (accumulate) v += load_tail(row + j, n);
        store_tail(row + j, v, n);
      }
    }
  }
}

static void panels(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_step, const float* b, int64_t b_step, void* c,
                   DType c_type, int64_t ldc, float alpha, const float* bias, bool accumulate) {
  static const MicroTable table;
  alignas(64) float tile[MR * NR];
  static_assert(2 * kFewRows <= MR, "two panels of few rows fit the tile");
  int64_t j = 0;
  const auto write = [&](int64_t i, int64_t rows, int64_t cols, const float* from) {
    const float* bj = bias ? bias + j : nullptr;
    if (c_type == DType::f32) write_tile(static_cast<float*>(c) + i * ldc + j, ldc, from, rows, cols, alpha, bj, accumulate);
    else write_tile(static_cast<bf16*>(c) + i * ldc + j, ldc, from, rows, cols, alpha, bj, accumulate);
  };
  if (kTwoPanels && m > 0 && m <= kFewRows)
    for (; j + NR < n; j += NR, b += 2 * b_step) {
      few(m, k, a, b, b_step, tile);
      write(0, m, NR, tile);
      j += NR;
      write(0, m, n - j < NR ? n - j : NR, tile + m * NR);
    }
  // While the rows pass a panel of B, the next one comes into the second-level cache, and a tile's lines of C while it runs.
  const int64_t size = c_type == DType::f32 ? 4 : 2, stride = (NR * 4 * MR + m - 1) / (m > 0 ? m : 1);
  for (; j < n; j += NR, b += b_step) {
    const int64_t cols = n - j < NR ? n - j : NR;
    const bool more = m > MR && j + NR < n;
    const char* next = reinterpret_cast<const char*>(more ? b + b_step : b);
    const float* ap = a;
    for (int64_t i = 0; i < m; i += MR, ap += a_step) {
      const int64_t rows = m - i < MR ? m - i : MR;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t at = 0; at < cols * size; at += 64) __builtin_prefetch(static_cast<char*>(c) + ((i + r) * ldc + j) * size + at, 1, 3);
      table.run[rows](k, ap, b, tile, next, more ? stride : 0);
      if (more) next += k * stride;
      write(i, rows, cols, tile);
    }
  }
}

// Swaps the off-diagonal S × S blocks of every 2S × 2S block of lanes of two rows that lie S apart.
template <int S, int... L>
INLINE void exchange(vf& a, vf& b, std::integer_sequence<int, L...>) {
  const vf low = __builtin_shufflevector(a, b, ((L & S) ? W + L - S : L)...);
  const vf high = __builtin_shufflevector(a, b, ((L & S) ? W + L : L + S)...);
  a = low;
  b = high;
}

// Transposes a W × W block held as rows, block size by block size; or, of N < W rows, the blocks N × N beside each other.
template <int N, int S = N / 2>
INLINE void transpose(vf (&v)[N]) {
  for (int i = 0; i < N; ++i)
    if (!(i & S)) exchange<S>(v[i], v[i + S], std::make_integer_sequence<int, W>());
  if constexpr (S > 1) transpose<N, S / 2>(v);
}

template <int... L>
INLINE vf beside(vf a, vf b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b, (L < W / 2 ? L : L + W / 2)...);
}
// W rows of W / 2 into W / 2 rows of W; row(i): its numbers, and whatever behind them.
template <class Row>
INLINE void transpose_half(vf (&v)[W / 2], const Row& row) {
  for (int i = 0; i < W / 2; ++i) v[i] = beside(row(i), row(i + W / 2), std::make_integer_sequence<int, W>());
  transpose(v);
}

constexpr int64_t kShortRow = 128;

// Panels of P rows: dst[panel][p][P]. Where rows are contiguous in k, W × W blocks are turned in registers.
template <int P, class T>
static void pack(float* dst, const T* src, int64_t rows, int64_t k, int64_t row_stride, int64_t k_stride) {
  static_assert(P <= W || P % W == 0, "a narrow row may spill only onto the row behind it");
  for (int64_t i = 0; i < rows; i += P, dst += k * P) {
    const int64_t n = rows - i < P ? rows - i : P;
    const T* base = src + i * row_stride;
    if (row_stride == 1) {
      for (int64_t p = 0; p < k; ++p) {
        const T* s = base + p * k_stride;
        float* d = dst + p * P;
        for (int64_t j = 0; j < P; j += 64 / int64_t(sizeof(T))) __builtin_prefetch(s + j + 4 * P);
        int64_t j = 0;
        if (n == P)
          for (; j + W <= P; j += W) store(d + j, load(s + j));
        for (; j < n; ++j) d[j] = to_float(s[j]);
        for (; j < P; ++j) d[j] = 0.f;
      }
      continue;
    }
    for (int64_t j0 = 0; j0 < P; j0 += W) {
      const int64_t width = P - j0 < W ? P - j0 : W, filled = n - j0 < width ? (n - j0 > 0 ? n - j0 : 0) : width;
      int64_t p = 0;
      // A narrow row's surplus lanes fall on the row behind it, which is written next; the last has none behind it.
      const auto put = [&](int64_t row, vf v) {
        if (width == W || row + 1 < k) store(dst + row * P + j0, v);
        else store_tail(dst + row * P + j0, v, width);
      };
      if (k_stride == 1) {
        const T* from = base + j0 * row_stride;
        // Short rows come from end to end, too fast for the processor to ask for them by itself.
        const int64_t ahead = row_stride <= kShortRow ? 2 * P * row_stride : 0;
        for (; p + W <= k; p += W) {
          vf v[W];
          for (int64_t j = 0; j < W; ++j) {
            v[j] = j < filled ? load(from + j * row_stride + p) : vf{};
            __builtin_prefetch(from + j * row_stride + p + ahead);
          }
          transpose(v);
          for (int q = 0; q < W; ++q) put(p + q, v[q]);
        }
        // Half a block of k, as ranks of 8 are: two rows share a vector.
        constexpr int H = W / 2;
        for (; H >= 4 && p < k; p += H) {
          const int64_t some = k - p < H ? k - p : H;
          const auto row = [&](int64_t j) { return j < filled ? load_tail(from + j * row_stride + p, some) : vf{}; };
          for (int64_t j = 0; j < W; j += 2) __builtin_prefetch(from + j * row_stride + p + ahead);
          vf v[H];
          transpose_half(v, row);
          for (int q = 0; q < some; ++q) put(p + q, v[q]);
        }
      }
      for (; p < k; ++p) {
        float* d = dst + p * P + j0;
        for (int64_t j = 0; j < filled; ++j) d[j] = to_float(base[(j0 + j) * row_stride + p * k_stride]);
        for (int64_t j = filled; j < width; ++j) d[j] = 0.f;
      }
    }
  }
}

template <int P>
static void pack_any(float* dst, const void* src, DType type, int64_t rows, int64_t k, int64_t row_stride, int64_t k_stride) {
  if (type == DType::f32) pack<P>(dst, static_cast<const float*>(src), rows, k, row_stride, k_stride);
  else if (type == DType::bf16) pack<P>(dst, static_cast<const bf16*>(src), rows, k, row_stride, k_stride);
  else pack<P>(dst, static_cast<const f16*>(src), rows, k, row_stride, k_stride);
}

static void fill_gemm(Kernels& k) {
  k.mr = MR;
  k.nr = NR;
  k.pack_a = pack_any<MR>;
  k.pack_b = pack_any<NR>;
  k.panels = panels;
}
