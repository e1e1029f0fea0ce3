// Low-rank products of few rows by `vdpbf16ps`, over factors packed to be read from end to end: see StepModule.

constexpr int64_t kStepGroup = 8, kStepAhead = 1024;  // elements of a factor that are asked for ahead

// R rows of x against the G rows of one group of A: lanes are added up last.
template <int G, int R>
INLINE void step_dots(int64_t k, const bf16* x, int64_t ldx, const bf16* a, float* h, int64_t ldh) {
  __m512 sums[R][G];
  for (auto& row : sums)
    for (auto& v : row) v = _mm512_setzero_ps();
  for (int64_t p = 0; p < k; p += 32, a += G * 32) {
    const __mmask32 mask = k - p >= 32 ? ~__mmask32(0) : (__mmask32(1) << (k - p)) - 1;
    __m512bh xv[R];
    for (int i = 0; i < R; ++i) xv[i] = (__m512bh)_mm512_maskz_loadu_epi16(mask, x + i * ldx + p);
#pragma GCC unroll 8
    for (int j = 0; j < G; ++j) {
      __builtin_prefetch(a + j * 32 + kStepAhead);
      const __m512bh av = (__m512bh)_mm512_loadu_si512(a + j * 32);
      for (int i = 0; i < R; ++i) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], xv[i], av);
    }
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < G; ++j) h[i * ldh + j] = _mm512_reduce_add_ps(sums[i][j]);
}

template <int R>
static void step_group(int64_t g, int64_t k, const bf16* x, int64_t ldx, const bf16* a, float* h, int64_t ldh) {
  switch (g) {
    case 1: return step_dots<1, R>(k, x, ldx, a, h, ldh);
    case 2: return step_dots<2, R>(k, x, ldx, a, h, ldh);
    case 3: return step_dots<3, R>(k, x, ldx, a, h, ldh);
    case 4: return step_dots<4, R>(k, x, ldx, a, h, ldh);
    case 5: return step_dots<5, R>(k, x, ldx, a, h, ldh);
    case 6: return step_dots<6, R>(k, x, ldx, a, h, ldh);
    case 7: return step_dots<7, R>(k, x, ldx, a, h, ldh);
    default: return step_dots<8, R>(k, x, ldx, a, h, ldh);
  }
}

static void step_down(int64_t rows, int64_t r, int64_t k, const bf16* x, int64_t ldx, const bf16* a, float* h) {
  const int64_t blocks = (k + 31) / 32;
  for (int64_t j = 0; j < r; j += kStepGroup) {
    const int64_t g = r - j < kStepGroup ? r - j : kStepGroup;
    const bf16* group = a + j * blocks * 32;
    int64_t i = 0;
    for (; i + 2 <= rows; i += 2) step_group<2>(g, k, x + i * ldx, ldx, group, h + i * r + j, r);
    if (i < rows) step_group<1>(g, k, x + i * ldx, ldx, group, h + i * r + j, r);
  }
}

template <int R>
INLINE void step_columns(int64_t n, int64_t pairs, const bf16* h, const bf16* b, float* y, int64_t ldy, bool accumulate) {
  for (int64_t o = 0; o < n; o += 16) {
    const __mmask16 mask = n - o >= 16 ? __mmask16(0xffff) : __mmask16((1u << (n - o)) - 1);
    __m512 sums[R];
    for (int i = 0; i < R; ++i) sums[i] = accumulate ? _mm512_maskz_loadu_ps(mask, y + i * ldy + o) : _mm512_setzero_ps();
    for (int64_t q = 0; q < pairs; ++q, b += 32) {
      __builtin_prefetch(b + kStepAhead);
      const __m512bh bv = (__m512bh)_mm512_loadu_si512(b);
      for (int i = 0; i < R; ++i) {
        int32_t pair;
        __builtin_memcpy(&pair, h + (i * pairs + q) * 2, 4);
        sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)_mm512_set1_epi32(pair), bv);
      }
    }
    for (int i = 0; i < R; ++i) _mm512_mask_storeu_ps(y + i * ldy + o, mask, sums[i]);
  }
}

static void step_up(int64_t rows, int64_t n, int64_t r, const bf16* h, const bf16* b, float* y, int64_t ldy, bool accumulate) {
  const int64_t pairs = (r + 1) / 2;
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) step_columns<4>(n, pairs, h + i * pairs * 2, b, y + i * ldy, ldy, accumulate);
  for (; i < rows; ++i) step_columns<1>(n, pairs, h + i * pairs * 2, b, y + i * ldy, ldy, accumulate);
}

static void step_pack_a(bf16* to, const float* a, int64_t r, int64_t k) {
  for (int64_t j = 0; j < r; j += kStepGroup)
    for (int64_t p = 0; p < k; p += 32)
      for (int64_t i = j; i < r && i < j + kStepGroup; ++i, to += 32) {
        const __mmask32 mask = k - p >= 32 ? ~__mmask32(0) : (__mmask32(1) << (k - p)) - 1;
        _mm512_storeu_si512(to, load_pairs(a + i * k + p, mask, 1.f));
      }
}

static void step_pack_b(bf16* to, const float* b, int64_t n, int64_t r) {
  const __m256i rows = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(int(r)));
  for (int64_t o = 0; o < n; o += 16)
    for (int64_t q = 0; q < r; q += 2, to += 32) {
      const float* from = b + o * r + q;
      if (n - o >= 16 && q + 2 <= r) {
        const __m512 low = (__m512)_mm512_i32gather_pd(rows, from, 4), high = (__m512)_mm512_i32gather_pd(rows, from + 8 * r, 4);
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        continue;
      }
      for (int64_t i = 0; i < 16; ++i)
        for (int64_t l = 0; l < 2; ++l) to[i * 2 + l] = o + i < n && q + l < r ? to_bf16(from[i * r + l]) : bf16{};
    }
}

static void fill_step_bf16(Kernels& k) {
  k.step_down = step_down;
  k.step_up = step_up;
  k.step_pack_a = step_pack_a;
  k.step_pack_b = step_pack_b;
}
