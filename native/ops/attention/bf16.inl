// Scores to probabilities and back, written as panels of the products that come next. Columns are walked in blocks of 32,
// whose place on the path is fixed, so that sums over lanes keep their order.

// Columns [lo, hi) of the 16 from c on.
INLINE __mmask16 columns_seen(int64_t c, int64_t lo, int64_t hi) {
  const auto upto = [c](int64_t n) { return n <= c ? 0u : n >= c + 16 ? 0xffffu : (1u << (n - c)) - 1; };
  return __mmask16(upto(hi) & ~upto(lo));
}

struct SeenColumns {
  SeenColumns(const SoftmaxTile& t, int64_t row) : hi(t.hi + row), lo(t.window > 0 && hi > t.window ? hi - t.window : 0), first(lo / 32), last((hi + 31) / 32) {}
  bool whole(int64_t block) const { return block * 32 >= lo && block * 32 + 32 <= hi; }
  int64_t hi, lo, first, last;  // blocks [first, last) hold some of them
};

INLINE __m512 most_of(const float* scores, const SeenColumns& seen) {
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 a = nothing, b = nothing;
  for (int64_t block = seen.first; block < seen.last; ++block) {
    const float* s = scores + block * 32;
    if (seen.whole(block)) {
      a = _mm512_max_ps(a, _mm512_loadu_ps(s));
      b = _mm512_max_ps(b, _mm512_loadu_ps(s + 16));
    } else {
      a = _mm512_max_ps(a, _mm512_mask_loadu_ps(nothing, columns_seen(block * 32, seen.lo, seen.hi), s));
      b = _mm512_max_ps(b, _mm512_mask_loadu_ps(nothing, columns_seen(block * 32 + 16, seen.lo, seen.hi), s + 16));
    }
  }
  return _mm512_max_ps(a, b);
}

static void softmax_bf16(const SoftmaxTile& t, bf16* left, float* inverse) {
  const int64_t blocks = (t.n + 31) / 32;
  const __m512 rate = _mm512_set1_ps(t.scale * 1.44269504088896341f);
  for (int64_t i = 0; i < t.rows; ++i) {
    const SeenColumns seen(t, i);
    const float* scores = t.scores + i * t.ld;
    bf16* to = left + i / 16 * blocks * 512 + i % 16 * 32;
    const __m512 shift = _mm512_set1_ps(maximum((vf)most_of(scores, seen))) * rate;
    __m512 total = _mm512_setzero_ps(), more = total;
    for (int64_t block = 0; block < blocks; ++block) {
      if (block < seen.first || block >= seen.last) {
        _mm512_storeu_si512(to + block * 512, _mm512_setzero_si512());
        continue;
      }
      const float* s = scores + block * 32;
      __m512 p0 = (__m512)near_exp2((vf)_mm512_fmsub_ps(_mm512_loadu_ps(s), rate, shift)), p1 = (__m512)near_exp2((vf)_mm512_fmsub_ps(_mm512_loadu_ps(s + 16), rate, shift));
      if (!seen.whole(block)) {
        p0 = _mm512_maskz_mov_ps(columns_seen(block * 32, seen.lo, seen.hi), p0);
        p1 = _mm512_maskz_mov_ps(columns_seen(block * 32 + 16, seen.lo, seen.hi), p1);
      }
      total += p0;
      more += p1;
      _mm512_storeu_si512(to + block * 512, (__m512i)_mm512_cvtne2ps_pbh(p1, p0));
    }
    inverse[i] = 1.f / sum((vf)(total + more));
  }
}

// e^(scores - maximum) in the place of the scores; gives 1 / Σ e and Σ e g / Σ e.
INLINE void weigh(float* scores, const float* grads, const SeenColumns& seen, __m512 rate, float& inverse, float& mean) {
  const __m512 shift = _mm512_set1_ps(maximum((vf)most_of(scores, seen))) * rate;
  __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, weighed[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t block = seen.first; block < seen.last; ++block) {
    const bool whole = seen.whole(block);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const int64_t c = block * 32 + h * 16;
      const __mmask16 mask = whole ? __mmask16(0xffff) : columns_seen(c, seen.lo, seen.hi);
      const __m512 e = _mm512_maskz_mov_ps(mask, (__m512)near_exp2((vf)_mm512_fmsub_ps(_mm512_loadu_ps(scores + c), rate, shift)));
      total[h] += e;
      weighed[h] = _mm512_fmadd_ps(e, _mm512_maskz_loadu_ps(mask, grads + c), weighed[h]);
      _mm512_storeu_ps(scores + c, e);
    }
  }
  inverse = 1.f / sum((vf)(total[0] + total[1]));
  mean = sum((vf)(weighed[0] + weighed[1])) * inverse;
}

static void softmax_bf16_backward(const SoftmaxTile& t, const float* grads, bf16* ds_left, bf16* p_right, bf16* ds_right) {
  alignas(64) static constexpr uint16_t woven[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i weave = _mm512_load_si512(woven);
  const int64_t blocks = (t.n + 31) / 32, panel = (t.rows + 31) / 32 * 512;
  const __m512 rate = _mm512_set1_ps(t.scale * 1.44269504088896341f);
  for (int64_t i = 0; i < (t.rows + 31) / 32 * 32; i += 2) {
    const int64_t at = i / 32 * 512 + i % 32 * 16;  // of this pair of rows in a right panel
    if (i >= t.rows) {
      for (int64_t c = 0; c < 2 * blocks; ++c) {
        _mm512_storeu_si512(p_right + c * panel + at, _mm512_setzero_si512());
        _mm512_storeu_si512(ds_right + c * panel + at, _mm512_setzero_si512());
      }
      continue;
    }
    const int rows = i + 1 < t.rows ? 2 : 1;
    const SeenColumns seen[2] = {SeenColumns(t, i), SeenColumns(t, i + rows - 1)};
    float inverse[2] = {}, mean[2] = {};
    for (int r = 0; r < rows; ++r) weigh(t.scores + (i + r) * t.ld, grads + (i + r) * t.ld, seen[r], rate, inverse[r], mean[r]);
    for (int64_t block = 0; block < blocks; ++block) {
      __m512 p[2][2], ds[2][2];  // [half of the block][row]
      for (int r = 0; r < 2; ++r) {
        const bool any = r < rows && block >= seen[r].first && block < seen[r].last;
        const float *e = t.scores + (i + r) * t.ld + block * 32, *g = grads + (i + r) * t.ld + block * 32;
        const __m512 norm = _mm512_set1_ps(inverse[r]), scale = _mm512_set1_ps(t.scale), middle = _mm512_set1_ps(mean[r]);
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          p[h][r] = ds[h][r] = _mm512_setzero_ps();
          if (!any) continue;
          const __mmask16 mask = seen[r].whole(block) ? __mmask16(0xffff) : columns_seen(block * 32 + h * 16, seen[r].lo, seen[r].hi);
          p[h][r] = _mm512_loadu_ps(e + h * 16) * norm;
          ds[h][r] = p[h][r] * scale * (_mm512_maskz_loadu_ps(mask, g + h * 16) - middle);
        }
        if (r < rows) _mm512_storeu_si512(ds_left + (i + r) / 16 * blocks * 512 + block * 512 + (i + r) % 16 * 32, (__m512i)_mm512_cvtne2ps_pbh(ds[1][r], ds[0][r]));
      }
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        _mm512_storeu_si512(p_right + (2 * block + h) * panel + at, _mm512_permutexvar_epi16(weave, (__m512i)_mm512_cvtne2ps_pbh(p[h][1], p[h][0])));
        _mm512_storeu_si512(ds_right + (2 * block + h) * panel + at, _mm512_permutexvar_epi16(weave, (__m512i)_mm512_cvtne2ps_pbh(ds[h][1], ds[h][0])));
      }
    }
  }
}

static void fill_attention_bf16(Kernels& k) {
  k.softmax_bf16 = softmax_bf16;
  k.softmax_bf16_backward = softmax_bf16_backward;
}
