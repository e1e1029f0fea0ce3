// Attention of heads of up to 16 columns. A lane is a query: scores, softmax and sums of one never meet another's, keys and
// values come by broadcast, and products take as few multiply-adds as they have. Sums run over keys in their order.

INLINE __m512bh narrow_pair(const bf16* at) {
  int32_t pair;
  __builtin_memcpy(&pair, at, 4);
  return (__m512bh)_mm512_set1_epi32(pair);
}
// Halves of 16 in turn.
INLINE __m512i narrow_weave(__m512i halves) {
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), halves);
}
INLINE __m512i narrow_woven(__m512 even, __m512 odd) { return narrow_weave((__m512i)_mm512_cvtne2ps_pbh(odd, even)); }

// T vectors of lanes: as many positions as they hold, each by the heads of the group. What all tiles of a call have in common,
// and the tile in hand.
template <int T>
struct NarrowLanes {
  NarrowLanes(const NarrowAttention& a, int64_t ldo) : columns(__mmask16((1u << a.width) - 1)), positions(16 * T / a.group), call(a) {
    alignas(64) int32_t position[16 * T];
    for (int l = 0, at = 0, head = 0; l < 16 * T; ++l) {
      position[l] = at;
      q_at[l] = at * a.stride + head * a.width;
      out_at[l] = at * ldo + head * a.width;
      if (++head == a.group) {
        head = 0;
        ++at;
      }
    }
    for (int v = 0; v < T; ++v) behind[v] = _mm512_load_si512(position + 16 * v);
  }
  void begin(int64_t query) {
    const int64_t left = call.rows - query, some = left < positions ? left : positions;
    count = int(some * call.group);
    all_to = call.prefix + query + 1;
    last = all_to + some - 1;
    first = call.window > 0 && all_to > call.window ? (all_to - call.window) / 4 * 4 : 0;
    all_from = call.window > 0 && last > call.window ? last - call.window : 0;
    for (int v = 0; v < T; ++v) {
      hi[v] = _mm512_min_epi32(_mm512_set1_epi32(int32_t(last)), _mm512_add_epi32(_mm512_set1_epi32(int32_t(all_to)), behind[v]));
      lo[v] = call.window > 0 ? _mm512_sub_epi32(hi[v], _mm512_set1_epi32(int32_t(call.window))) : _mm512_setzero_si512();
    }
  }
  __mmask16 sees(int v, int64_t key) const {
    const __m512i k = _mm512_set1_epi32(int32_t(key));
    return _mm512_cmpgt_epi32_mask(hi[v], k) & _mm512_cmple_epi32_mask(lo[v], k);
  }
  bool whole(int64_t key) const { return key >= all_from && key + 4 <= all_to; }  // the four keys from there on
  __m512 row(int l, const float* from, const int64_t (&at)[16 * T]) const { return _mm512_maskz_loadu_ps(l < count ? columns : __mmask16(0), from + (l < count ? at[l] : 0)); }

  // Pairs of columns, of all lanes.
  void turned(__m512i (&to)[T][8], const float* from, const int64_t (&at)[16 * T]) const {
#pragma GCC unroll 2
    for (int v = 0; v < T; ++v) {
#pragma GCC unroll 8
      for (int l = 0; l < 8; ++l) to[v][l] = (__m512i)_mm512_cvtne2ps_pbh(row(16 * v + l + 8, from, at), row(16 * v + l, from, at));
      turn<4>(to[v]);
    }
  }
  // Pairs of lanes, of all columns.
  void paired(__m512i (&to)[8 * T], const float* from, const int64_t (&at)[16 * T]) const {
#pragma GCC unroll 16
    for (int l = 0; l < 8 * T; ++l) to[l] = narrow_woven(row(2 * l, from, at), row(2 * l + 1, from, at));
  }

  const __mmask16 columns;
  const int64_t positions;  // of a tile
  int count = 0;            // lanes of the tile that hold a query
  int64_t q_at[16 * T], out_at[16 * T];
  __m512i behind[T], hi[T], lo[T];
  int64_t first = 0, last = 0, all_from = 0, all_to = 0;  // keys that any lane sees, and that all do

 private:
  const NarrowAttention& call;
};

// Keys or values as rows of 16, and as pairs of neighbours on the path; zeros behind the last.
static void narrow_rows(bf16* to, const float* from, const NarrowAttention& a) {
  const __mmask16 columns = __mmask16((1u << a.width) - 1);
  for (int64_t t = 0; t < narrow_room(a.length); ++t)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + t * 16), (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(t < a.length ? columns : __mmask16(0), from + t * a.width)));
}
static void narrow_pairs(bf16* to, const float* from, const NarrowAttention& a) {
  const __mmask16 columns = __mmask16((1u << a.width) - 1);
  const auto row = [&](int64_t t) { return _mm512_maskz_loadu_ps(t < a.length ? columns : __mmask16(0), from + t * a.width); };
  for (int64_t t = 0; t < narrow_room(a.length); t += 2) _mm512_storeu_si512(to + t * 16, narrow_woven(row(t), row(t + 1)));
}

// to[key][lane] = rows[key] · lane for the keys that any lane sees.
template <int T>
INLINE void narrow_products(float* to, const bf16* rows, const __m512i (&lanes)[T][8], const NarrowLanes<T>& l) {
  for (int64_t t = l.first; t < l.last; t += 4) {
    __m512 sum[4][T];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < T; ++v) sum[i][v] = _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int p = 0; p < 8; ++p)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m512bh pair = narrow_pair(rows + (t + i) * 16 + 2 * p);
#pragma GCC unroll 2
        for (int v = 0; v < T; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], (__m512bh)lanes[v][p], pair);
      }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < T; ++v) _mm512_storeu_ps(to + ((t + i) * T + v) * 16, sum[i][v]);
  }
}

// What is taken off the scores of each lane, times `rate`: the most that it sees.
template <int T>
INLINE void narrow_shifts(__m512 (&shift)[T], const float* scores, __m512 rate, const NarrowLanes<T>& l) {
#pragma GCC unroll 2
  for (int v = 0; v < T; ++v) shift[v] = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t t = l.first; t < l.last; t += 4) {
    const bool whole = l.whole(t);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < T; ++v) {
        const __m512 s = _mm512_loadu_ps(scores + ((t + i) * T + v) * 16);
        shift[v] = whole ? _mm512_max_ps(shift[v], s) : _mm512_mask_max_ps(shift[v], l.sees(v, t + i), shift[v], s);
      }
  }
#pragma GCC unroll 2
  for (int v = 0; v < T; ++v) shift[v] = shift[v] * rate;
}

// Four keys of one vector of lanes.
template <int T>
INLINE void narrow_weights(__m512 (&e)[4], const float* scores, __m512 rate, __m512 shift, const NarrowLanes<T>& l, int v, int64_t t) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) e[i] = (__m512)near_exp2((vf)_mm512_fmsub_ps(_mm512_loadu_ps(scores + ((t + i) * T + v) * 16), rate, shift));
  if (l.whole(t)) return;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) e[i] = _mm512_maskz_mov_ps(l.sees(v, t + i), e[i]);
}

// sum[lane][column] = Σ over keys, `weights` [pair of keys][lane][2].
template <int T, int C>
INLINE void narrow_sums(__m512 (&sum)[T][C], const bf16* weights, const bf16* pairs, const NarrowLanes<T>& l) {
#pragma GCC unroll 2
  for (int v = 0; v < T; ++v)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) sum[v][c] = _mm512_setzero_ps();
#pragma GCC unroll 1
  for (int64_t t = l.first; t < l.last; t += 2) {
    __m512bh w[T];
#pragma GCC unroll 2
    for (int v = 0; v < T; ++v) w[v] = (__m512bh)_mm512_loadu_si512(weights + (t * T + 2 * v) * 16);
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      const __m512bh pair = narrow_pair(pairs + t * 16 + 2 * c);
#pragma GCC unroll 2
      for (int v = 0; v < T; ++v) sum[v][c] = _mm512_dpbf16_ps(sum[v][c], w[v], pair);
    }
  }
}
// All 16 columns, as many at a time as registers hold.
template <int T>
INLINE void narrow_all(__m512 (&sum)[T][16], const bf16* weights, const bf16* pairs, const NarrowLanes<T>& l) {
  constexpr int some = 16 / T;
#pragma GCC unroll 2
  for (int first = 0; first < 16; first += some) {
    __m512 part[T][some];
    narrow_sums<T, some>(part, weights, pairs + 2 * first, l);
#pragma GCC unroll 2
    for (int v = 0; v < T; ++v)
#pragma GCC unroll 16
      for (int c = 0; c < some; ++c) sum[v][first + c] = part[v][c];
  }
}

template <int T>
INLINE void attend_tile(const NarrowAttention& a, const NarrowLanes<T>& l, const float* queries, const bf16* keys, const bf16* values, bf16* out) {
  const __m512 rate = _mm512_set1_ps(a.scale * 1.44269504088896341f);
  __m512i q[T][8];
  l.turned(q, queries, l.q_at);
  narrow_products<T>(a.scores, keys, q, l);
  __m512 shift[T], total[T];
  narrow_shifts<T>(shift, a.scores, rate, l);
#pragma GCC unroll 2
  for (int v = 0; v < T; ++v) total[v] = _mm512_setzero_ps();
  auto* weights = reinterpret_cast<bf16*>(a.scores);  // in the place of what they are made of
  for (int64_t t = l.first; t < l.last; t += 4) {
    __m512 e[T][4];
#pragma GCC unroll 2
    for (int v = 0; v < T; ++v) {
      narrow_weights<T>(e[v], a.scores, rate, shift[v], l, v, t);
      total[v] += (e[v][0] + e[v][1]) + (e[v][2] + e[v][3]);
    }
#pragma GCC unroll 2
    for (int v = 0; v < T; ++v)
#pragma GCC unroll 2
      for (int i = 0; i < 4; i += 2) _mm512_storeu_si512(weights + ((t + i) * T + 2 * v) * 16, narrow_woven(e[v][i], e[v][i + 1]));
  }
  __m512 sum[T][16];
  narrow_all<T>(sum, weights, values, l);
#pragma GCC unroll 2
  for (int v = 0; v < T; ++v) {
    const __m512 inverse = _mm512_set1_ps(1.f) / total[v];
    __m512i rows[8];
#pragma GCC unroll 8
    for (int p = 0; p < 8; ++p) rows[p] = narrow_woven(sum[v][2 * p] * inverse, sum[v][2 * p + 1] * inverse);
    turn<4>(rows);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      if (16 * v + i < l.count)
        _mm256_mask_storeu_epi16(out + l.out_at[16 * v + i], l.columns, i < 8 ? _mm512_castsi512_si256(rows[i % 8]) : _mm512_extracti64x4_epi64(rows[i % 8], 1));
  }
}

static void attend_narrow(const NarrowAttention& a, bf16* out, int64_t ldo) {
  bf16 *keys = a.packed, *values = keys + 16 * narrow_room(a.length);
  narrow_rows(keys, a.keys, a);
  narrow_pairs(values, a.values, a);
  NarrowLanes<2> two(a, ldo);
  int64_t query = 0;
  for (; query + two.positions / 2 < a.rows; query += two.positions) {
    two.begin(query);
    attend_tile<2>(a, two, a.q + query * a.stride, keys, values, out + query * ldo);
  }
  NarrowLanes<1> one(a, ldo);
  for (; query < a.rows; query += one.positions) {
    one.begin(query);
    attend_tile<1>(a, one, a.q + query * a.stride, keys, values, out + query * ldo);
  }
}

// to[key] += Σ over lanes of K keys from t on; rows [key][lane].
template <int T, int K>
INLINE void narrow_gather(float* to, const bf16* rows, const __m512i (&lanes)[8 * T], const NarrowAttention& a, __mmask16 columns, int64_t t) {
  __m512 sum[K];
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) sum[i] = _mm512_setzero_ps();
#pragma GCC unroll 16
  for (int p = 0; p < 8 * T; ++p)
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)lanes[p], narrow_pair(rows + (t + i) * T * 16 + 2 * p));
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i)
    if (t + i < a.length) _mm512_mask_storeu_ps(to + (t + i) * a.width, columns, sum[i] + _mm512_maskz_loadu_ps(columns, to + (t + i) * a.width));
}
template <int T>
INLINE void narrow_gather_all(float* to, const bf16* rows, const __m512i (&lanes)[8 * T], const NarrowAttention& a, const NarrowLanes<T>& l) {
  int64_t t = l.first;
  for (; t + 4 < l.last; t += 8) narrow_gather<T, 8>(to, rows, lanes, a, l.columns, t);
  if (t < l.last) narrow_gather<T, 4>(to, rows, lanes, a, l.columns, t);
}

struct NarrowBackward {
  const bf16 *keys, *values, *key_pairs;
  float *dkeys, *dvalues;
};

template <int T>
INLINE void attend_tile_backward(const NarrowAttention& a, const NarrowLanes<T>& l, const float* queries, const float* dout, const NarrowBackward& b, float* dq) {
  const __m512 rate = _mm512_set1_ps(a.scale * 1.44269504088896341f), scale = _mm512_set1_ps(a.scale);
  float *scores = a.scores, *grads = scores + 32 * narrow_room(a.length);
  __m512i lanes[T][8];
  l.turned(lanes, queries, l.q_at);
  narrow_products<T>(scores, b.keys, lanes, l);
  l.turned(lanes, dout, l.out_at);
  narrow_products<T>(grads, b.values, lanes, l);
  __m512 shift[T], total[T], weighed[T];
  narrow_shifts<T>(shift, scores, rate, l);
#pragma GCC unroll 2
  for (int v = 0; v < T; ++v) total[v] = weighed[v] = _mm512_setzero_ps();
  for (int64_t t = l.first; t < l.last; t += 4)
#pragma GCC unroll 2
    for (int v = 0; v < T; ++v) {
      __m512 e[4];
      narrow_weights<T>(e, scores, rate, shift[v], l, v, t);
      total[v] += (e[0] + e[1]) + (e[2] + e[3]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const int64_t at = ((t + i) * T + v) * 16;
        weighed[v] = _mm512_fmadd_ps(e[i], _mm512_loadu_ps(grads + at), weighed[v]);
        _mm512_storeu_ps(scores + at, e[i]);
      }
    }
  // Rows [key][lane], in the place of what they are made of, and pairs of keys.
  auto *p_rows = reinterpret_cast<bf16*>(scores), *ds_rows = reinterpret_cast<bf16*>(grads);
  bf16* ds_pairs = a.packed + 48 * narrow_room(a.length);
  __m512 inverse[T], mean[T];
#pragma GCC unroll 2
  for (int v = 0; v < T; ++v) {
    inverse[v] = _mm512_set1_ps(1.f) / total[v];
    mean[v] = weighed[v] * inverse[v];
  }
  for (int64_t t = l.first; t < (l.last + 3) / 4 * 4; t += 2) {  // keys that nobody sees among them: zeros
    __m512i p[T], ds[T];
#pragma GCC unroll 2
    for (int v = 0; v < T; ++v) {
      const int64_t at = (t * T + v) * 16, next = at + 16 * T;
      const __m512 p0 = _mm512_loadu_ps(scores + at) * inverse[v], p1 = _mm512_loadu_ps(scores + next) * inverse[v];
      p[v] = (__m512i)_mm512_cvtne2ps_pbh(p1, p0);
      ds[v] = (__m512i)_mm512_cvtne2ps_pbh(p1 * scale * (_mm512_loadu_ps(grads + next) - mean[v]), p0 * scale * (_mm512_loadu_ps(grads + at) - mean[v]));
      _mm512_storeu_si512(ds_pairs + (t * T + 2 * v) * 16, narrow_weave(ds[v]));
    }
    // T = 2: lanes of one key stand together.
    const auto store = [&](bf16* to, const __m512i(&v)[T]) {
      if constexpr (T == 1) _mm512_storeu_si512(to, v[0]);
      else {
        _mm512_storeu_si512(to, _mm512_inserti64x4(v[0], _mm512_castsi512_si256(v[T - 1]), 1));
        _mm512_storeu_si512(to + 32, _mm512_shuffle_i64x2(v[0], v[T - 1], 0xee));
      }
    };
    store(p_rows + t * T * 16, p);
    store(ds_rows + t * T * 16, ds);
  }
  __m512 sum[T][16];
  narrow_all<T>(sum, ds_pairs, b.key_pairs, l);
#pragma GCC unroll 2
  for (int v = 0; v < T; ++v) {
    __m512i rows[16];
#pragma GCC unroll 16
    for (int c = 0; c < 16; ++c) rows[c] = (__m512i)sum[v][c];
    turn(rows);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      if (16 * v + i < l.count) _mm512_mask_storeu_ps(dq + l.q_at[16 * v + i], l.columns, (__m512)rows[i]);
  }
  __m512i across[8 * T];
  l.paired(across, queries, l.q_at);
  narrow_gather_all<T>(b.dkeys, ds_rows, across, a, l);
  l.paired(across, dout, l.out_at);
  narrow_gather_all<T>(b.dvalues, p_rows, across, a, l);
}

static void attend_narrow_backward(const NarrowAttention& a, const float* dout, int64_t ldd, float* dq, float* dkeys, float* dvalues) {
  const int64_t room = 16 * narrow_room(a.length);
  bf16 *keys = a.packed, *values = keys + room, *key_pairs = values + room;
  narrow_rows(keys, a.keys, a);
  narrow_rows(values, a.values, a);
  narrow_pairs(key_pairs, a.keys, a);
  const NarrowBackward b{keys, values, key_pairs, dkeys, dvalues};
  NarrowLanes<2> two(a, ldd);
  int64_t query = 0;
  for (; query + two.positions / 2 < a.rows; query += two.positions) {
    two.begin(query);
    attend_tile_backward<2>(a, two, a.q + query * a.stride, dout + query * ldd, b, dq + query * a.stride);
  }
  NarrowLanes<1> one(a, ldd);
  for (; query < a.rows; query += one.positions) {
    one.begin(query);
    attend_tile_backward<1>(a, one, a.q + query * a.stride, dout + query * ldd, b, dq + query * a.stride);
  }
}

static void fill_attention_narrow(Kernels& k) {
  k.attend_narrow = attend_narrow;
  k.attend_narrow_backward = attend_narrow_backward;
}
