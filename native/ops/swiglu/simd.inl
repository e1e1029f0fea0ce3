// Vector code of the gated activation.

INLINE vf at_most(vf x, float most) {  // x where that is NaN
#if PLURALIGN_W == 16
  return (vf)_mm512_min_ps(_mm512_set1_ps(most), (__m512)x);
#else
  return select((vi)(x > splat(most)), splat(most), x);
#endif
}

// 1 / (1 + e^-x): of values that bfloat16 holds, as well as it deserves.
template <class T>
INLINE vf sigmoid(vf x) {
  if constexpr (sizeof(T) == 2) return inverse(splat(1.f) + near_exp2(at_most(x * splat(-1.44269504088896341f), 126.f)));
  else return inverse(splat(1.f) + vexp(at_most(-x, 87.f)));
}

template <class T>
static void swiglu_rows(void* a, const void* gate_up, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    const T *gate = static_cast<const T*>(gate_up) + r * 2 * width, *up = gate + width;
    T* out = static_cast<T*>(a) + r * width;
    int64_t i = 0;
    for (; i + W <= width; i += W) {
      const vf g = load(gate + i);
      store(out + i, g * sigmoid<T>(g) * load(up + i));
    }
    if (i < width) {
      const vf g = load_tail(gate + i, width - i);
      store_tail(out + i, g * sigmoid<T>(g) * load_tail(up + i, width - i), width - i);
    }
  }
}

template <class T>
static void swiglu_rows_backward(float* d_gate_up, const float* da, const void* gate_up, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    const T *gate = static_cast<const T*>(gate_up) + r * 2 * width, *up = gate + width;
    float *dgate = d_gate_up + r * 2 * width, *dup = dgate + width;
    const float* d = da + r * width;
    for (int64_t i = 0; i < width; i += W) {
      const int64_t n = width - i;
      const bool whole = n >= W;
      const vf g = whole ? load(gate + i) : load_tail(gate + i, n), u = whole ? load(up + i) : load_tail(up + i, n);
      const vf da_i = whole ? load(d + i) : load_tail(d + i, n);
      const vf s = sigmoid<T>(g), one = splat(1.f);
      const vf dg = da_i * u * s * (one + g * (one - s)), du = da_i * g * s;
      if (whole) {
        store(dgate + i, dg);
        store(dup + i, du);
      } else {
        store_tail(dgate + i, dg, n);
        store_tail(dup + i, du, n);
      }
    }
  }
}

static void fill_swiglu(Kernels& k) {
  k.swiglu[kF32] = swiglu_rows<float>;
  k.swiglu[kBf16] = swiglu_rows<bf16>;
  k.swiglu_backward[kF32] = swiglu_rows_backward<float>;
  k.swiglu_backward[kBf16] = swiglu_rows_backward<bf16>;
}
