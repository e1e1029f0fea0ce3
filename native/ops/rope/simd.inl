// Vector code of rotary positions.

static void widen_simd(float* to, const bf16* from, int64_t n) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = to_float(from[i]);
}

INLINE void turn_pairs(vf& a, vf& b, vf cos, vf sin) {
  const vf turned = a * cos - b * sin;
  b = b * cos + a * sin;
  a = turned;
}

INLINE vf half_turn(vf v) { return lanes_from<W / 2>(v, std::make_integer_sequence<int, W>()); }

static void rotate_simd(float* x, const float* cos, const float* sin, int64_t half, int64_t heads, bool back) {
  const vf sign = splat(back ? -1.f : 1.f);
  if (2 * half == W) {  // a head is a vector
    const vf c = load_tail(cos, half), s = load_tail(sin, half) * sign;
    const vf both = c + half_turn(c), across = half_turn(s) - s;
    for (int64_t h = 0; h < heads; ++h, x += W) {
      const vf v = load(x);
      store(x, v * both + half_turn(v) * across);
    }
    return;
  }
  for (int64_t i = 0; i < half; i += W) {
    const int64_t n = half - i;
    if (n >= W) {
      const vf c = load(cos + i), s = load(sin + i) * sign;
      for (int64_t h = 0; h < heads; ++h) {
        float* at = x + h * 2 * half + i;
        vf a = load(at), b = load(at + half);
        turn_pairs(a, b, c, s);
        store(at, a);
        store(at + half, b);
      }
    } else {
      const vf c = load_tail(cos + i, n), s = load_tail(sin + i, n) * sign;
      for (int64_t h = 0; h < heads; ++h) {
        float* at = x + h * 2 * half + i;
        vf a = load_tail(at, n), b = load_tail(at + half, n);
        turn_pairs(a, b, c, s);
        store_tail(at, a, n);
        store_tail(at + half, b, n);
      }
    }
  }
}

static void fill_rope(Kernels& k) {
  k.widen = widen_simd;
  k.rotate = rotate_simd;
}
