// Low-rank rewards in vectors of float or double. Rows that a list names are fetched ahead: the processor cannot guess
// them. Projections keep a block of rows and columns in registers and run along
// the features, so that neither operand has to be packed; votes are taken as many at a time as a vector has lanes.

namespace bl {

using bilinear::margin_of;
using bilinear::pair_terms;
using bilinear::PairTerms;
using bilinear::ranking_loss;
using bilinear::row_of_voter;
using bilinear::vote_range;
using bilinear::VoteRange;
using bilinear::weight_of;

template <class T> struct Lanes;
template <> struct Lanes<float> {
  typedef float V __attribute__((vector_size(W * 4)));
  typedef int32_t I __attribute__((vector_size(W * 4)));
  static constexpr int L = W;
};
template <> struct Lanes<double> {
  typedef double V __attribute__((vector_size(W * 4)));
  typedef int64_t I __attribute__((vector_size(W * 4)));
  typedef float Half __attribute__((vector_size(W * 2)));
  static constexpr int L = W / 2;
};
template <class T> using V = typename Lanes<T>::V;
template <class T> using I = typename Lanes<T>::I;

template <class T> INLINE V<T> all(T x) { return x - V<T>{}; }
template <class T> INLINE V<T> get(const T* p) {
  V<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T> INLINE void put(T* p, V<T> v) { __builtin_memcpy(p, &v, sizeof v); }
template <class T> INLINE V<T> choose(I<T> mask, V<T> a, V<T> b) { return (V<T>)((mask & (I<T>)a) | (~mask & (I<T>)b)); }

// Features, as T.
template <class T> INLINE V<T> features(const float* p) {
  if constexpr (sizeof(T) == 4) {
    return get<float>(p);
  } else {
    typename Lanes<double>::Half h;
    __builtin_memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, V<double>);
  }
}

// Sums of L vectors at once, in the order given: each round adds the two halves of every vector and puts two into one.
template <class T, int B, int... Lane>
INLINE V<T> fold(V<T> a, V<T> b, std::integer_sequence<int, Lane...>) {
  constexpr int L = Lanes<T>::L, H = B / 2;
  // Lane i < L/2 takes from a, the others from b; block i / H, place i % H.
  const V<T> low = __builtin_shufflevector(a, b, ((Lane < L / 2 ? 0 : L) + (Lane % (L / 2)) / H * B + (Lane % (L / 2)) % H)...);
  const V<T> high = __builtin_shufflevector(a, b, ((Lane < L / 2 ? 0 : L) + (Lane % (L / 2)) / H * B + (Lane % (L / 2)) % H + H)...);
  return low + high;
}
template <class T, int B, int N>
INLINE V<T> fold_all(V<T>* v) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    for (int i = 0; i < N / 2; ++i) v[i] = fold<T, B>(v[2 * i], v[2 * i + 1], std::make_integer_sequence<int, Lanes<T>::L>{});
    return fold_all<T, B / 2, N / 2>(v);
  }
}
template <class T> INLINE V<T> sums(V<T>* v) { return fold_all<T, Lanes<T>::L, Lanes<T>::L>(v); }

INLINE const float* row_of(const float* x, const int32_t* rows, int64_t i, int64_t d) { return x + (rows ? int64_t(rows[i]) : i) * d; }

// Rows and columns of a block: accumulators that fit the registers beside what they are made of.
constexpr int BR = W == 16 ? 4 : 2, BC = W == 16 ? 6 : 4;

template <class T, int R, int C>
static void project_block(const float* const* x, const float* const* next, int64_t d, const T* v, T* const* p) {
  constexpr int L = Lanes<T>::L, N = (R * C + L - 1) / L * L;
  V<T> acc[N] = {};
  int64_t j = 0;
  for (; j + L <= d; j += L) {
    V<T> row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      row[r] = features<T>(x[r] + j);
      if (next) __builtin_prefetch(next[r] + j);
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const V<T> w = get<T>(v + c * d + j);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r * C + c] += row[r] * w;
    }
  }
  alignas(64) T out[N];
  for (int i = 0; i < N; i += L) put<T>(out + i, sums<T>(acc + i));
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) {
      T sum = out[r * C + c];
      for (int64_t t = j; t < d; ++t) sum += T(x[r][t]) * v[c * d + t];
      p[r][c] = sum;
    }
}

template <class T, int R>
static void project_columns(int c, const float* const* x, const float* const* next, int64_t d, const T* v, T* const* p) {
  switch (c) {
    case 1: return project_block<T, R, 1>(x, next, d, v, p);
    case 2: return project_block<T, R, 2>(x, next, d, v, p);
    case 3: return project_block<T, R, 3>(x, next, d, v, p);
    case 4: return project_block<T, R, 4>(x, next, d, v, p);
    case 5: return project_block<T, R, 5>(x, next, d, v, p);
    default: return project_block<T, R, 6>(x, next, d, v, p);
  }
}

// Splits n into parts of at most `most`, as even as can be.
INLINE int part_of(int64_t n, int64_t most) {
  const int64_t parts = (n + most - 1) / most;
  return int((n + parts - 1) / parts);
}

template <class T>
static void project(const float* x, const int32_t* rows, int64_t from, int64_t to, int64_t d, const T* v, int64_t k, T* p, int64_t stride) {
  for (int64_t i = from; i < to;) {
    const int r = to - i >= BR ? BR : 1;
    const float *at[BR], *after[BR];
    for (int q = 0; q < r; ++q) {
      at[q] = row_of(x, rows, i + q, d);
      after[q] = row_of(x, rows, i + r + q < to ? i + r + q : i, d);
    }
    for (int64_t c = 0; c < k;) {
      const int n = part_of(k - c, BC);
      T* out[BR];
      for (int q = 0; q < r; ++q) out[q] = p + (i + q) * stride + c;
      const float* const* next = rows && c == 0 ? after : nullptr;
      if (r == BR) project_columns<T, BR>(n, at, next, d, v + c * d, out);
      else project_columns<T, 1>(n, at, next, d, v + c * d, out);
      c += n;
    }
    i += r;
  }
}

constexpr int BV = W == 16 ? 4 : 2;  // vectors of features whose sums stay in registers

template <class T, int C>
static void back_block(const float* const* x, const float* const* next, int64_t count, int64_t j, int64_t d, const T* dp, int64_t stride, T* dv) {
  constexpr int L = Lanes<T>::L;
  V<T> acc[C][BV];
  for (int c = 0; c < C; ++c)
    for (int q = 0; q < BV; ++q) acc[c][q] = get<T>(dv + c * d + j + q * L);
  for (int64_t i = 0; i < count; ++i) {
    V<T> row[BV];
#pragma GCC unroll 8
    for (int q = 0; q < BV; ++q) {
      row[q] = features<T>(x[i] + j + q * L);
      if (next) __builtin_prefetch(next[i] + j + q * L);
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const V<T> g = all<T>(dp[i * stride + c]);
#pragma GCC unroll 8
      for (int q = 0; q < BV; ++q) acc[c][q] += g * row[q];
    }
  }
  for (int c = 0; c < C; ++c)
    for (int q = 0; q < BV; ++q) put<T>(dv + c * d + j + q * L, acc[c][q]);
}

template <class T>
static void back_columns(int c, const float* const* x, const float* const* next, int64_t count, int64_t j, int64_t d, const T* dp, int64_t stride, T* dv) {
  switch (c) {
    case 1: return back_block<T, 1>(x, next, count, j, d, dp, stride, dv);
    case 2: return back_block<T, 2>(x, next, count, j, d, dp, stride, dv);
    case 3: return back_block<T, 3>(x, next, count, j, d, dp, stride, dv);
    case 4: return back_block<T, 4>(x, next, count, j, d, dp, stride, dv);
    case 5: return back_block<T, 5>(x, next, count, j, d, dp, stride, dv);
    default: return back_block<T, 6>(x, next, count, j, d, dp, stride, dv);
  }
}

template <class T>
static void project_back(const float* x, const int32_t* rows, int64_t from, int64_t to, int64_t d, const T* dp, int64_t stride, int64_t k, T* dv) {
  constexpr int L = Lanes<T>::L;
  constexpr int64_t tile = 32;  // rows that stay in the second cache while every column and feature passes over them
  const float *at[tile], *after[tile];
  for (int64_t i = from; i < to; i += tile) {
    const int64_t n = to - i < tile ? to - i : tile;
    for (int64_t q = 0; q < n; ++q) {
      at[q] = row_of(x, rows, i + q, d);
      after[q] = row_of(x, rows, i + tile + q < to ? i + tile + q : i, d);
    }
    int64_t j = 0;
    for (; j + BV * L <= d; j += BV * L)
      for (int64_t c = 0; c < k;) {
        const int part = part_of(k - c, BC);
        back_columns<T>(part, at, rows && c == 0 ? after : nullptr, n, j, d, dp + i * stride + c, stride, dv + c * d);
        c += part;
      }
    for (; j < d; ++j)
      for (int64_t c = 0; c < k; ++c) {
        T sum = dv[c * d + j];
        for (int64_t q = 0; q < n; ++q) sum += dp[(i + q) * stride + c] * T(at[q][j]);
        dv[c * d + j] = sum;
      }
  }
}

// e^-a for a >= 0, to about 1 ulp: as vexp, with enough terms for T.
INLINE V<float> exp_minus(V<float> a) { return vexp(-a); }
INLINE V<double> exp_minus(V<double> a) {
  const V<double> lowest = all<double>(700.0), c = choose<double>((I<double>)(a > lowest), lowest, a);
  const V<double> magic = all<double>(6755399441055744.0);  // 1.5 * 2^52
  const V<double> shifted = c * all<double>(-1.4426950408889634074) + magic, n = shifted - magic;
  const V<double> r = (-c - n * all<double>(0.693147180369123816490)) - n * all<double>(1.90821492927058770002e-10);
  constexpr double inverse[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                                1.0 / 720,        1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
  V<double> p = all<double>(inverse[0]);
  for (int i = 1; i < 14; ++i) p = p * r + all<double>(inverse[i]);
  const I<double> power = ((I<double>)shifted << 52) + (int64_t(1023) << 52);
  const V<double> y = p * (V<double>)power;
  return choose<double>((I<double>)(a > lowest), V<double>{}, y);
}

// log(1 + e) for e in [0, 1]: 2 artanh s, s = e / (2 + e) at most 1/3.
template <class T> INLINE V<T> log1p_part(V<T> e) {
  constexpr int terms = sizeof(T) == 4 ? 8 : 17;
  const V<T> s = e / (e + all<T>(2)), square = s * s;
  V<T> p = all<T>(T(1) / (2 * terms - 1));
#pragma GCC unroll 17
  for (int i = terms - 1; i > 0; --i) p = p * square + all<T>(T(1) / (2 * i - 1));
  return s * p * all<T>(2);
}

template <class T> INLINE T reward_of(const T* point, const T* c, int64_t stride) {
  constexpr int L = Lanes<T>::L;
  V<T> sum{};
  for (int64_t a = 0; a < stride; a += L) sum += get<T>(point + a) * get<T>(c + a);
  T total = 0;
  for (int i = 0; i < L; ++i) total += sum[i];
  return total;
}

template <class T> INLINE void add_scaled(T* y, const T* x, T f, int64_t stride) {
  for (int64_t a = 0; a < stride; a += Lanes<T>::L) put<T>(y + a, get<T>(y + a) + all<T>(f) * get<T>(x + a));
}

// Loss and slopes of one vote of any length; what few data have many of.
template <class T>
struct AnyVote {
  Buffer buffer;
  double *rewards = nullptr, *tails = nullptr, *slopes = nullptr;
  VoteRange range{};
  PairTerms terms{};
  double read(const Ballots& b, int64_t v, const T* points, const T* c, int64_t stride) {
    range = vote_range(b, v);
    rewards = buffer.as<double>(3 * range.places);
    tails = rewards + range.places;
    slopes = tails + range.places;
    for (int64_t s = 0; s < range.places; ++s) rewards[s] = double(reward_of<T>(points + int64_t(b.places[range.start + s]) * stride, c, stride));
    if (range.places != 2) return ranking_loss(rewards, range.places, range.stages, tails, slopes);
    terms = pair_terms(rewards[0] - rewards[1] - margin_of(b, v), b.tie, range.stages == 0);
    slopes[0] = terms.slope;
    slopes[1] = -terms.slope;
    return terms.loss;
  }
};

template <class T>
static double any_votes(const Ballots& b, int64_t from, int64_t to, const T* points, const T* users, int64_t stride, T* d_points, T* d_users) {
  double loss = 0;
  AnyVote<T> vote;
  for (int64_t u = from; u < to; ++u) {
    const T* c = users + row_of_voter(b, u) * stride;
    T* dc = d_users ? d_users + u * stride : nullptr;
    for (int64_t a = 0; dc && a < stride; ++a) dc[a] = 0;
    for (int64_t v = b.voter_start[u]; v < b.voter_start[u + 1]; ++v) {
      const double w = weight_of(b, v);
      loss += w * vote.read(b, v, points, c, stride);
      if (!d_points) continue;
      for (int64_t s = 0; s < vote.range.places; ++s) {
        const int64_t at = int64_t(b.places[vote.range.start + s]) * stride;
        const T g = T(w * vote.slopes[s]);
        add_scaled<T>(dc, points + at, g, stride);
        add_scaled<T>(d_points + at, c, g, stride);
      }
    }
  }
  return loss;
}

// Pairs alone, a vector of them at a time; S vectors a row where S > 0.
template <class T, int S>
static double pairs(const Ballots& b, int64_t from, int64_t to, const T* points, const T* users, int64_t stride, T* d_points, T* d_users) {
  constexpr int L = Lanes<T>::L;
  const int64_t width = S > 0 ? S * L : stride;
  double loss = 0;
  for (int64_t u = from; u < to; ++u) {
    const T* c = users + row_of_voter(b, u) * width;
    T* dc = d_users ? d_users + u * width : nullptr;
    for (int64_t a = 0; dc && a < width; ++a) dc[a] = 0;
    for (int64_t v = b.voter_start[u]; v < b.voter_start[u + 1]; v += L) {
      const int n = b.voter_start[u + 1] - v < L ? int(b.voter_start[u + 1] - v) : L;
      const int32_t* place = b.places + 2 * v;
      V<T> products[L];
      for (int i = 0; i < L; ++i) {
        V<T> sum{};
        if (i < n) {
          const T *p = points + int64_t(place[2 * i]) * width, *q = points + int64_t(place[2 * i + 1]) * width;
          for (int64_t a = 0; a < width; a += L) sum += (get<T>(p + a) - get<T>(q + a)) * get<T>(c + a);
        }
        products[i] = sum;
      }
      V<T> x = sums<T>(products), w = all<T>(1);
      if (b.margins)
        for (int i = 0; i < n; ++i) x[i] -= T(b.margins[v + i]);
      if (b.weights)
        for (int i = 0; i < n; ++i) w[i] = T(b.weights[v + i]);
      for (int i = n; i < L; ++i) w[i] = 0;
      const I<T> negative = (I<T>)(x < V<T>{});
      const V<T> size = choose<T>(negative, -x, x), e = exp_minus(size);
      const V<T> losses = w * (choose<T>(negative, size, V<T>{}) + log1p_part<T>(e));
      double total = 0;
      for (int i = 0; i < L; ++i) total += double(losses[i]);
      loss += total;
      if (!d_points) continue;
      const V<T> g = -w * choose<T>(negative, all<T>(1), e) / (e + all<T>(1));
      for (int i = 0; i < n; ++i) {
        const V<T> slope = all<T>(g[i]);
        const T *p = points + int64_t(place[2 * i]) * width, *q = points + int64_t(place[2 * i + 1]) * width;
        T *dp = d_points + int64_t(place[2 * i]) * width, *dq = d_points + int64_t(place[2 * i + 1]) * width;
        for (int64_t a = 0; a < width; a += L) {
          const V<T> step = slope * get<T>(c + a);
          put<T>(dc + a, get<T>(dc + a) + slope * (get<T>(p + a) - get<T>(q + a)));
          put<T>(dp + a, get<T>(dp + a) + step);
          put<T>(dq + a, get<T>(dq + a) - step);
        }
      }
    }
  }
  return loss;
}

template <class T>
static double votes(const Ballots& b, int64_t from, int64_t to, const T* points, const T* users, int64_t stride, T* d_points, T* d_users) {
  if (b.vote_start || b.stages || b.tie > 0) return any_votes<T>(b, from, to, points, users, stride, d_points, d_users);
  if (stride == Lanes<T>::L) return pairs<T, 1>(b, from, to, points, users, stride, d_points, d_users);
  if (stride == 2 * Lanes<T>::L) return pairs<T, 2>(b, from, to, points, users, stride, d_points, d_users);
  return pairs<T, 0>(b, from, to, points, users, stride, d_points, d_users);
}

// hessian [k × stride] += f δ δᵀ
template <class T> INLINE void add_outer(T* hessian, const T* delta, T f, int64_t k, int64_t stride) {
  for (int64_t a = 0; a < k; ++a) add_scaled<T>(hessian + a * stride, delta, f * delta[a], stride);
}

template <class T>
static double curvature(const Ballots& b, int64_t voter, const T* points, const T* c, int64_t stride, int64_t k, T* gradient, T* hessian) {
  double loss = 0;
  AnyVote<T> vote;
  Buffer scratch;
  T* delta = scratch.as<T>(2 * stride);
  T* mean = delta + stride;
  for (int64_t a = 0; a < stride; ++a) gradient[a] = 0;
  for (int64_t a = 0; a < k * stride; ++a) hessian[a] = 0;
  for (int64_t v = b.voter_start[voter]; v < b.voter_start[voter + 1]; ++v) {
    const double w = weight_of(b, v);
    const VoteRange r = vote_range(b, v);
    if (r.places == 2) {
      const T *p = points + int64_t(b.places[r.start]) * stride, *q = points + int64_t(b.places[r.start + 1]) * stride;
      for (int64_t a = 0; a < stride; a += Lanes<T>::L) put<T>(delta + a, get<T>(p + a) - get<T>(q + a));
      const PairTerms terms = pair_terms(double(reward_of<T>(delta, c, stride)) - margin_of(b, v), b.tie, r.stages == 0);
      loss += w * terms.loss;
      add_scaled<T>(gradient, delta, T(w * terms.slope), stride);
      add_outer<T>(hessian, delta, T(w * terms.curvature), k, stride);
      continue;
    }
    loss += w * vote.read(b, v, points, c, stride);
    const int32_t* place = b.places + r.start;
    for (int64_t s = 0; s < r.places; ++s) add_scaled<T>(gradient, points + int64_t(place[s]) * stride, T(w * vote.slopes[s]), stride);
    // Each stage adds the covariance of the points under its choice probabilities.
    for (int64_t stage = 0; stage < r.stages; ++stage) {
      for (int64_t a = 0; a < stride; ++a) mean[a] = 0;
      for (int64_t s = stage; s < r.places; ++s)
        add_scaled<T>(mean, points + int64_t(place[s]) * stride, T(std::exp(vote.rewards[s] - vote.tails[stage])), stride);
      for (int64_t s = stage; s < r.places; ++s) {
        const T* p = points + int64_t(place[s]) * stride;
        for (int64_t a = 0; a < stride; a += Lanes<T>::L) put<T>(delta + a, get<T>(p + a) - get<T>(mean + a));
        add_outer<T>(hessian, delta, T(w * std::exp(vote.rewards[s] - vote.tails[stage])), k, stride);
      }
    }
  }
  return loss;
}

template <class T>
static BilinearKernels<T> kernels() {
  return {project<T>, project_back<T>, votes<T>, curvature<T>};
}

}  // namespace bl

static void fill_bilinear(Kernels& k) {
  k.bilinear_f32 = bl::kernels<float>();
  k.bilinear_f64 = bl::kernels<double>();
}
