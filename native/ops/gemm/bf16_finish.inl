// Sums of a block in float32 → C: alpha, bias, what C holds, one rounding.

INLINE void store_rounded(float* p, __m512 v, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, v); }
INLINE void store_rounded(bf16* p, __m512 v, __mmask16 mask) { _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v)); }
INLINE __m512 load_masked(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
INLINE __m512 load_masked(const bf16* p, __mmask16 mask) {
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16);
}

template <class T>
INLINE void finish_rows(const Bf16Block& g, int64_t row, int64_t col, const float* sums, int64_t stride, int64_t rows, int64_t cols) {
  const __m512 alpha = _mm512_set1_ps(g.alpha);
  for (int64_t i = 0; i < rows; ++i, sums += stride) {
    T* c = static_cast<T*>(g.c) + (row + i) * g.ldc + col;
    for (int64_t j = 0; j < cols; j += 16) {
      const __mmask16 mask = cols - j >= 16 ? __mmask16(0xffff) : __mmask16((1u << (cols - j)) - 1);
      __m512 v = _mm512_loadu_ps(sums + j) * alpha;
      if (g.bias) v += load_masked(g.bias + col + j, mask);
      if (g.addend) v += load_masked(g.addend + (row + i) * g.ldadd + col + j, mask);
      if (g.accumulate) v += load_masked(c + j, mask);
      store_rounded(c + j, v, mask);
    }
  }
}

// rows × cols sums, `stride` apart, are those of C from (row, col).
INLINE void finish(const Bf16Block& g, int64_t row, int64_t col, const float* sums, int64_t stride, int64_t rows, int64_t cols) {
  if (g.c_type == DType::f32) finish_rows<float>(g, row, col, sums, stride, rows, cols);
  else finish_rows<bf16>(g, row, col, sums, stride, rows, cols);
}
