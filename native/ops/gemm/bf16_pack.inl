// Panels of bfloat16 for Bf16Block. A block of 16 rows × 32 k is 16 × 16 pairs of neighbouring k: A keeps a row's pairs
// together, B the 16 rows' (its columns') pairs. Whichever way the source lies it is read along, then turned if need be.

// 32 neighbours, zero where the mask is.
INLINE __m512i load_pairs(const bf16* p, __mmask32 mask, float) { return _mm512_maskz_loadu_epi16(mask, p); }
INLINE __m512i load_pairs(const float* p, __mmask32 mask, float scale) {
  const __m512 s = _mm512_set1_ps(scale);
  const __m512 low = _mm512_maskz_loadu_ps(__mmask16(mask), p) * s, high = _mm512_maskz_loadu_ps(__mmask16(mask >> 16), p + 16) * s;
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
INLINE __m512i load_pairs(const f16* p, __mmask32 mask, float scale) {
  const __m512i halves = _mm512_maskz_loadu_epi16(mask, p);
  const __m512 s = _mm512_set1_ps(scale);
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)) * s, _mm512_cvtph_ps(_mm512_castsi512_si256(halves)) * s);
}

// Two rows of 16, one behind the other.
INLINE __m512i load_rows(const bf16* even, const bf16* odd, __mmask16 first, __mmask16 second, float) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_maskz_loadu_epi16(first, even)), _mm256_maskz_loadu_epi16(second, odd), 1);
}
INLINE __m512i load_rows(const float* even, const float* odd, __mmask16 first, __mmask16 second, float scale) {
  const __m512 s = _mm512_set1_ps(scale);
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(second, odd) * s, _mm512_maskz_loadu_ps(first, even) * s);
}
INLINE __m512i load_rows(const f16* even, const f16* odd, __mmask16 first, __mmask16 second, float scale) {
  const __m512 s = _mm512_set1_ps(scale);
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(second, odd)) * s, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first, even)) * s);
}

// Swaps the off-diagonal S × S blocks of every 2S × 2S block of pairs, block size by block size: a transpose; from S = 4 on of
// each half by itself.
template <int S = 8, int N = 16>
INLINE void turn(__m512i (&v)[N]) {
  constexpr auto lane = [](int l, bool high) { return high ? (l & S ? 16 + l : l + S) : (l & S ? 16 + l - S : l); };
#define PLURALIGN_LANES(high)                                                                                            \
  _mm512_setr_epi32(lane(0, high), lane(1, high), lane(2, high), lane(3, high), lane(4, high), lane(5, high), lane(6, high), \
                    lane(7, high), lane(8, high), lane(9, high), lane(10, high), lane(11, high), lane(12, high),          \
                    lane(13, high), lane(14, high), lane(15, high))
  const __m512i low_lanes = PLURALIGN_LANES(false), high_lanes = PLURALIGN_LANES(true);
#undef PLURALIGN_LANES
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    if (i & S) continue;
    const __m512i low = _mm512_permutex2var_epi32(v[i], low_lanes, v[i + S]);
    v[i + S] = _mm512_permutex2var_epi32(v[i], high_lanes, v[i + S]);
    v[i] = low;
  }
  if constexpr (S > 1) turn<S / 2>(v);
}

// One block: rows [0, rows) of up to 16, k [0, k) of up to 32, from `src`.
template <bool B, class T>
INLINE void pack_block(bf16* dst, const T* src, int64_t rows, int64_t k, int64_t row_stride, int64_t k_stride, float scale) {
  __m512i v[16];
  bool by_row;
  if (k_stride == 1) {
    const __mmask32 mask = k >= 32 ? ~__mmask32(0) : (__mmask32(1) << k) - 1;
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) v[i] = load_pairs(src + (i < rows ? i * row_stride : 0), i < rows ? mask : 0, scale);
    by_row = true;
  } else {
    alignas(64) static constexpr uint16_t woven[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i weave = _mm512_load_si512(woven);
    const __mmask16 mask = rows >= 16 ? __mmask16(0xffff) : __mmask16((1u << rows) - 1);
#pragma GCC unroll 16
    for (int q = 0; q < 16; ++q) {
      const T* even = src + (2 * q < k ? 2 * q * k_stride : 0);
      const bool odd = 2 * q + 1 < k;
      v[q] = _mm512_permutexvar_epi16(weave, load_rows(even, odd ? even + k_stride : src, 2 * q < k ? mask : 0, odd ? mask : 0, scale));
    }
    by_row = false;
  }
  if (by_row == B) turn(v);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(dst + i * 32, v[i]);
}

template <bool B, class T>
static void pack_panels(bf16* dst, const T* src, int64_t rows, int64_t k, int64_t row_stride, int64_t k_stride, float scale) {
  for (int64_t i = 0; i < rows; i += 16)
    for (int64_t p = 0; p < k; p += 32, dst += 512)
      pack_block<B>(dst, src + i * row_stride + p * k_stride, rows - i < 16 ? rows - i : 16, k - p < 32 ? k - p : 32, row_stride, k_stride, scale);
}

template <bool B>
static void pack_bf16(bf16* dst, const void* src, DType type, int64_t rows, int64_t k, int64_t row_stride, int64_t k_stride, float scale) {
  if (type == DType::f32) pack_panels<B>(dst, static_cast<const float*>(src), rows, k, row_stride, k_stride, scale);
  else if (type == DType::bf16) pack_panels<B>(dst, static_cast<const bf16*>(src), rows, k, row_stride, k_stride, scale);
  else pack_panels<B>(dst, static_cast<const f16*>(src), rows, k, row_stride, k_stride, scale);
}

// 32 columns of a packed right operand (two panels; `second` null where there is none) from half a block of its k on → one
// block of the panel that has those k as its 16 columns.
INLINE void turn_block(bf16* dst, const bf16* first, const bf16* second) {
  alignas(64) static constexpr uint16_t woven[2][32] = {
      {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
      {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
  __m512i v[16];
#pragma GCC unroll 8
  for (int q = 0; q < 8; ++q) {
    v[q] = _mm512_loadu_si512(first + q * 32);
    v[8 + q] = second ? _mm512_loadu_si512(second + q * 32) : _mm512_setzero_si512();
  }
  turn(v);  // v[o]: pairs of k, of column o in the low half and of column 16 + o in the high one
#pragma GCC unroll 2
  for (int p = 0; p < 2; ++p) {
    const __m512i weave = _mm512_load_si512(woven[p]);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) _mm512_storeu_si512(dst + (8 * p + j) * 32, _mm512_permutex2var_epi16(v[2 * j], weave, v[2 * j + 1]));
  }
}

static void turn_bf16(bf16* dst, const bf16* src, int64_t columns, int64_t k, int64_t first, int64_t last) {
  const int64_t panel = (k + 31) / 32 * 512;
  for (int64_t i = first; i < last; ++i) {
    const bf16* from = src + i / 2 * 512 + i % 2 * 256;
    for (int64_t o = 0; o < columns; o += 32, from += 2 * panel, dst += 512) turn_block(dst, from, columns - o > 16 ? from + panel : nullptr);
  }
}

static void fill_bf16_pack(Kernels& k) {
  k.turn_bf16 = turn_bf16;
  k.pack_bf16[0] = pack_bf16<false>;
  k.pack_bf16[1] = pack_bf16<true>;
}
