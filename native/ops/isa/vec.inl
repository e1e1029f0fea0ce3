// Vectors of PLURALIGN_W floats through the compilers' vector extension: one source for SSE2, AVX2, AVX-512 and NEON.
// Included inside the namespace of one instruction set; no include guard on purpose.

constexpr int W = PLURALIGN_W;
typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));

#define INLINE static inline __attribute__((always_inline))

INLINE vf splat(float x) { return x - vf{}; }

INLINE vf load(const float* p) {
  vf v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
INLINE vf load(const bf16* p) {
  vh h;
  __builtin_memcpy(&h, p, sizeof h);
  return (vf)(__builtin_convertvector(h, vu) << 16);
}
INLINE vf load(const f16* p) {
  float buffer[W];
  for (int i = 0; i < W; ++i) buffer[i] = to_float(p[i]);
  return load(buffer);
}
INLINE void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
#ifdef PLURALIGN_BF16
INLINE void store(bf16* p, vf v) {
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);  // subnormals become zero
  __builtin_memcpy(p, &h, sizeof h);
}
#else
INLINE void store(bf16* p, vf v) {
  const vu u = (vu)v;
  const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 64u;
  const vu nan = (vu)((u & 0x7fffffffu) > 0x7f800000u);
  const vh h = __builtin_convertvector((nan & quiet) | (~nan & rounded), vh);
  __builtin_memcpy(p, &h, sizeof h);
}
#endif

// The first n (< W) elements; the rest reads as zero, or is left alone.
template <class T>
INLINE vf load_tail(const T* p, int64_t n) {
  T buffer[W] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}
template <class T>
INLINE void store_tail(T* p, vf v, int64_t n) {
  T buffer[W];
  store(buffer, v);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}

#if PLURALIGN_W == 16
// Overloads of the templates above: masks in place of a loop. Ranks are often less than a vector.
INLINE vf load_tail(const float* p, int64_t n) { return (vf)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
INLINE void store_tail(float* p, vf v, int64_t n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v); }
#endif

INLINE vf select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
#if PLURALIGN_W == 16
INLINE vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }  // as below: b where either is NaN
#else
INLINE vf vmax(vf a, vf b) { return select((vi)(a > b), a, b); }
#endif

// Lane i + S in the place of lane i.
template <int S, int... L>
INLINE vf lanes_from(vf v, std::integer_sequence<int, L...>) { return __builtin_shufflevector(v, v, ((L + S) % W)...); }

// Lanes are added in pairs, always in the same order: halves, then halves of the sum.
template <int S = W / 2>
INLINE float sum(vf v) {
  const vf pairs = v + lanes_from<S>(v, std::make_integer_sequence<int, W>());
  if constexpr (S > 1) return sum<S / 2>(pairs);
  else return pairs[0];
}
template <int S = W / 2>
INLINE float maximum(vf v) {
  const vf pairs = vmax(v, lanes_from<S>(v, std::make_integer_sequence<int, W>()));
  if constexpr (S > 1) return maximum<S / 2>(pairs);
  else return pairs[0];
}

// e^x to about 1 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, a minimax polynomial of e^r (relative error 2e-8), times 2^n.
// Below -87.3 the result is exactly 0, so that a masked score adds nothing.
INLINE vf vexp(vf x) {
  const vf lowest = splat(-87.3f), highest = splat(88.3f);
#if PLURALIGN_W == 16
  const vf c = (vf)_mm512_min_ps((__m512)highest, (__m512)x);  // x where that is NaN
#else
  const vi tiny = (vi)(x < lowest);
  const vf c = select((vi)(x > highest), highest, select(tiny, lowest, x));
#endif
  const vf magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const vf n = (c * splat(1.44269504088896341f) + magic) - magic;
  const vf r = (c - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);
  vf p = splat(0.0013836835f);
  p = p * r + splat(0.008374824f);
  p = p * r + splat(0.041668225f);
  p = p * r + splat(0.1666642f);
  p = p * r + splat(0.4999999f);
  p = p * r + splat(1.f);
  p = p * r + splat(1.f);
#if PLURALIGN_W == 16
  return (vf)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)x, (__m512)lowest, _CMP_NLT_UQ), (__m512)p, (__m512)n);
#else
  const vi power = (__builtin_convertvector(n, vi) + 127) << 23;
  const vf y = p * (vf)power;
  return select((vi)(x != x), x, select(tiny, vf{}, y));
#endif
}

// 2^x, relative error 3e-6 beside that of x: what bfloat16 keeps of it and more. x is at most 126; below -126 it counts as that.
INLINE vf near_exp2(vf x) {
#if PLURALIGN_W == 16
  const __m512 c = _mm512_max_ps(_mm512_set1_ps(-126.f), (__m512)x);  // x where that is NaN
  const vf n = (vf)_mm512_roundscale_ps(c, 0), r = (vf)c - n;
#else
  const vf lowest = splat(-126.f), magic = splat(12582912.f), c = select((vi)(x < lowest), lowest, x);
  const vf n = (c + magic) - magic, r = c - n;
#endif
  vf p = splat(0.009570102f);
  p = p * r + splat(0.05591786f);
  p = p * r + splat(0.24024744f);
  p = p * r + splat(0.6931218f);
  p = p * r + splat(0.9999993f);
#if PLURALIGN_W == 16
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return select((vi)(x != x), x, p * (vf)((__builtin_convertvector(select((vi)(x != x), vf{}, n), vi) + 127) << 23));
#endif
}

// 1 / x to about 1 ulp, for normal x whose inverse is normal.
INLINE vf inverse(vf x) {
#if PLURALIGN_W == 16
  const vf y = (vf)_mm512_rcp14_ps((__m512)x);
  return y + y * (splat(1.f) - x * y);
#else
  return splat(1.f) / x;
#endif
}
