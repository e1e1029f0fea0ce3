// A row of logits as the head's products in bfloat16 want it.

static void weigh_bf16(const float* logits, int64_t n, float* top, double* total, double* squares, bf16* left) {
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const auto mask = [n](int64_t i) { return n - i >= 16 ? __mmask16(0xffff) : n > i ? __mmask16((1u << (n - i)) - 1) : __mmask16(0); };
  __m512 most[2] = {_mm512_set1_ps(*top), nothing};
  for (int64_t i = 0; i < n; i += 32) {
    most[0] = _mm512_max_ps(most[0], _mm512_mask_loadu_ps(nothing, mask(i), logits + i));
    most[1] = _mm512_max_ps(most[1], _mm512_mask_loadu_ps(nothing, mask(i + 16), logits + i + 16));
  }
  const float best = maximum((vf)_mm512_max_ps(most[0], most[1]));
  if (best > *top) {
    const double shrink = *top == -std::numeric_limits<float>::infinity() ? 0.0 : std::exp(double(*top) - double(best));
    *total *= shrink;
    *squares *= shrink * shrink;
    *top = best;
  }
  const __m512 shift = _mm512_set1_ps(best), rate = _mm512_set1_ps(1.44269504088896341f);
  __m512 s[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, q[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t i = 0; i < n; i += 32) {
    __m512 e[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __mmask16 there = mask(i + 16 * h);
      e[h] = _mm512_maskz_mov_ps(there, (__m512)near_exp2((vf)((_mm512_maskz_loadu_ps(there, logits + i + 16 * h) - shift) * rate)));
      s[h] += e[h];
      q[h] = _mm512_fmadd_ps(e[h], e[h], q[h]);
    }
    if (left) _mm512_storeu_si512(left + i * 16, (__m512i)_mm512_cvtne2ps_pbh(e[1], e[0]));
  }
  *total += sum((vf)(s[0] + s[1]));
  *squares += sum((vf)(q[0] + q[1]));
}

static void fill_head_bf16(Kernels& k) { k.weigh_bf16 = weigh_bf16; }
