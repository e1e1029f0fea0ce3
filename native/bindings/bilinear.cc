// Low-rank rewards over votes, as `addon.bilinear`: calls of milliseconds that return when they are done. Sizes and indices
// are checked here; lib/native/bilinear.ts states them. Arrays are float32 or float64, all of one call alike.
#include "ops/bilinear/bilinear.h"

#include <map>
#include <memory>

#include "arrays.h"
#include "jobs.h"
#include "register.h"

namespace pluralign {
namespace {

// Contexts of one environment by threads, for its main thread.
class Contexts {
 public:
  Context& of(const Napi::Object& o) {
    const Isa isa = choose_isa();
    const int threads = int(integer(o, "threads", 1, 1024));
    auto& slot = all_[{isa, threads}];
    if (!slot) slot = std::make_unique<Slot>(isa, threads);
    return slot->context;
  }

 private:
  struct Slot {
    Slot(Isa isa, int threads) : pool(threads), context(kernels_of(isa), pool) {}
    Pool pool;
    Context context;
  };
  std::map<std::pair<Isa, int>, std::unique_ptr<Slot>> all_;
};
using State = std::shared_ptr<Contexts>;

bool there(const Napi::Value& v) { return !v.IsUndefined() && !v.IsNull(); }

template <class T>
T* sized(const Napi::Object& o, const char* key, int64_t size, bool optional = false) {
  const Napi::Value v = o.Get(key);
  if (optional && !there(v)) return nullptr;
  const auto a = array<T>(v, key);
  if (a.size != size) throw_error("BAD_SHAPE", "%s has %lld elements, expected %lld", key, (long long)a.size, (long long)size);
  return a.data;
}

bool is_double(const Napi::Object& o, const char* key) {
  const Napi::Value v = o.Get(key);
  return v.IsTypedArray() && v.As<Napi::TypedArray>().TypedArrayType() == napi_float64_array;
}

template <class T>
int64_t stride_of(const Napi::Object& o, int64_t k) {
  const int64_t stride = integer(o, "stride", 1);
  if (stride != bilinear_stride<T>(k)) throw_error("BAD_SHAPE", "stride is %lld, expected %lld for %lld columns", (long long)stride, (long long)bilinear_stride<T>(k), (long long)k);
  return stride;
}

// Rows of x that a call is about; all of them where `rows` is not given.
struct Rows {
  const float* x;
  const int32_t* rows;
  int64_t count, d;
};

Rows rows_of(const Napi::Object& o) {
  const auto x = array<float>(o.Get("x"), "x");
  const int64_t d = integer(o, "d", 1);
  if (x.size % d) throw_error("BAD_SHAPE", "x has %lld elements, no multiple of d, %lld", (long long)x.size, (long long)d);
  const int64_t n = x.size / d;
  if (!there(o.Get("rows"))) return {x.data, nullptr, n, d};
  const auto rows = array<int32_t>(o.Get("rows"), "rows");
  for (int64_t i = 0; i < rows.size; ++i)
    if (rows.data[i] < 0 || rows.data[i] >= n) throw_error("BAD_ARGUMENT", "rows[%lld] is %d; x has %lld rows", (long long)i, rows.data[i], (long long)n);
  return {x.data, rows.data, rows.size, d};
}

template <class T>
void project_of(Context& context, const Napi::Object& o, bool back) {
  const Rows r = rows_of(o);
  const int64_t k = integer(o, "k", 1), stride = stride_of<T>(o, k);
  T* v = sized<T>(o, "v", k * r.d);
  T* p = sized<T>(o, "points", r.count * stride);
  if (back) bilinear_project_back<T>(context, r.x, r.rows, r.count, r.d, p, stride, k, v);
  else bilinear_project<T>(context, r.x, r.rows, r.count, r.d, v, k, p, stride);
}

// Offsets that start at 0, never fall, and end at `end`.
int64_t check_offsets(const Span<int32_t>& a, const char* name, int64_t end) {
  if (a.size < 1 || a.data[0] != 0 || a.data[a.size - 1] != end)
    throw_error("BAD_SHAPE", "%s must run from 0 to %lld", name, (long long)end);
  for (int64_t i = 1; i < a.size; ++i)
    if (a.data[i] < a.data[i - 1]) throw_error("BAD_SHAPE", "%s falls at %lld", name, (long long)i);
  return a.size - 1;
}

Ballots ballots_of(const Napi::Object& call, int64_t n) {
  const Napi::Object o = object(call.Get("ballots"), "ballots");
  Ballots b;
  const auto places = array<int32_t>(o.Get("places"), "places");
  for (int64_t i = 0; i < places.size; ++i)
    if (places.data[i] < 0 || places.data[i] >= n)
      throw_error("BAD_ARGUMENT", "places[%lld] is %d; there are %lld items", (long long)i, places.data[i], (long long)n);
  b.places = places.data;
  if (there(o.Get("voteStart"))) {
    const auto starts = array<int32_t>(o.Get("voteStart"), "voteStart");
    b.votes = check_offsets(starts, "voteStart", places.size);
    b.vote_start = starts.data;
  } else {
    if (places.size % 2) throw_error("BAD_SHAPE", "places has %lld elements, expected two for each pair", (long long)places.size);
    b.votes = places.size / 2;
  }
  const auto voters = array<int32_t>(o.Get("voterStart"), "voterStart");
  b.voters = check_offsets(voters, "voterStart", b.votes);
  b.voter_start = voters.data;
  b.stages = sized<int32_t>(o, "stages", b.votes, true);
  b.weights = sized<double>(o, "weights", b.votes, true);
  b.margins = sized<double>(o, "margins", b.votes, true);
  b.tie = number(o, "tie");
  for (int64_t v = 0; b.stages && v < b.votes; ++v) {
    const int64_t n_places = b.vote_start ? b.vote_start[v + 1] - b.vote_start[v] : 2;
    if (b.stages[v] < 0 || b.stages[v] > n_places) throw_error("BAD_ARGUMENT", "stages[%lld] is %d of %lld places", (long long)v, b.stages[v], (long long)n_places);
  }
  return b;
}

template <class T>
struct Points {
  int64_t n, stride;
  T* data;
};
template <class T>
Points<T> points_of(const Napi::Object& o) {
  const int64_t stride = integer(o, "stride", 1);
  if (stride % bilinear_stride<T>(1)) throw_error("BAD_SHAPE", "stride is %lld, no multiple of a cache line", (long long)stride);
  const auto points = array<T>(o.Get("points"), "points");
  if (points.size % stride) throw_error("BAD_SHAPE", "points has %lld elements, no multiple of the stride %lld", (long long)points.size, (long long)stride);
  return {points.size / stride, stride, points.data};
}

template <class T>
double loss_of(Context& context, const Napi::Object& o) {
  const Points<T> p = points_of<T>(o);
  Ballots b = ballots_of(o, p.n);
  const auto given = array<T>(o.Get("users"), "users");
  T* users = given.data;
  b.voter_rows = sized<int32_t>(o, "voterRows", b.voters, true);
  if (!b.voter_rows) sized<T>(o, "users", b.voters * p.stride);
  for (int64_t u = 0; b.voter_rows && u < b.voters; ++u)
    if (b.voter_rows[u] < 0 || (b.voter_rows[u] + 1) * p.stride > given.size)
      throw_error("BAD_ARGUMENT", "voterRows[%lld] is %d; there are %lld users", (long long)u, b.voter_rows[u], (long long)(given.size / p.stride));
  T* d_points = sized<T>(o, "dPoints", p.n * p.stride, true);
  T* d_users = sized<T>(o, "dUsers", b.voters * p.stride, d_points == nullptr);
  return bilinear_loss<T>(context, b, p.n, p.data, users, p.stride, d_points, d_users);
}

double newton_of(Context& context, const Napi::Object& o) {
  const Points<double> p = points_of<double>(o);
  const Ballots b = ballots_of(o, p.n);
  const int64_t free = integer(o, "free", 0, p.stride);
  double* users = sized<double>(o, "users", b.voters * p.stride);
  double* factors = sized<double>(o, "factors", b.voters * free * free, true);
  const int steps = bilinear_newton(context, b, p.data, users, p.stride, free, {number(o, "l2"), number(o, "tolerance"), 100}, factors);
  if (steps < 0) throw_error("NON_FINITE", "the votes leave some direction open; give features.l2 above 0");
  return steps;
}

void adam_of(Context& context, const Napi::Object& o) {
  AdamRows a{};
  a.stride = integer(o, "stride", 1);
  a.free = integer(o, "free", 0, a.stride);
  const auto parameters = array<float>(o.Get("parameters"), "parameters");
  const int64_t n = parameters.size / a.stride;
  a.parameters = parameters.data;
  a.m = sized<float>(o, "m", n * a.stride);
  a.v = sized<float>(o, "v", n * a.stride);
  a.steps = sized<int32_t>(o, "steps", n);
  const auto rows = array<int32_t>(o.Get("rows"), "rows");
  for (int64_t i = 0; i < rows.size; ++i)
    if (rows.data[i] < 0 || rows.data[i] >= n) throw_error("BAD_ARGUMENT", "rows[%lld] is %d; there are %lld rows", (long long)i, rows.data[i], (long long)n);
  a.rows = rows.data;
  a.count = rows.size;
  a.gradient = sized<float>(o, "gradient", a.count * a.stride);
  a.share = sized<float>(o, "share", a.count, true);
  a.l2 = float(number(o, "l2"));
  a.gradient_scale = float(number(o, "gradientScale"));
  a.learning_rate = number(o, "learningRate");
  a.beta1 = number(o, "beta1");
  a.beta2 = number(o, "beta2");
  a.eps = number(o, "eps");
  bilinear_adam(context, a);
}

}  // namespace

void register_bilinear(Napi::Env env, Napi::Object exports) {
  const State state = std::make_shared<Contexts>();
  Napi::Object out = Napi::Object::New(env);
  const auto add = [&](const char* name, auto body) {
    out.Set(name, Napi::Function::New(env, [state, body](const Napi::CallbackInfo& info) {
      return guarded(info.Env(), [&]() -> Napi::Value {
        const Napi::Object o = object(info[0], "call");
        return Napi::Number::New(info.Env(), body(state->of(o), o));
      });
    }));
  };
  add("project", [](Context& c, const Napi::Object& o) { return is_double(o, "v") ? project_of<double>(c, o, false) : project_of<float>(c, o, false), 0.0; });
  add("projectBack", [](Context& c, const Napi::Object& o) { return is_double(o, "v") ? project_of<double>(c, o, true) : project_of<float>(c, o, true), 0.0; });
  add("loss", [](Context& c, const Napi::Object& o) { return is_double(o, "points") ? loss_of<double>(c, o) : loss_of<float>(c, o); });
  add("newton", newton_of);
  add("adam", [](Context& c, const Napi::Object& o) { return adam_of(c, o), 0.0; });
  // Sum of squares of x: what reading it takes, for shares of the memory's rate.
  add("read", [](Context& c, const Napi::Object& o) {
    const auto x = array<float>(o.Get("x"), "x");
    std::vector<double> sums(size_t(c.pool.size()) * 8);
    c.pool.ranges(x.size, 1 << 16, [&](int64_t from, int64_t to, int thread) { sums[size_t(thread) * 8] += c.kernels.squared_norm(x.data + from, to - from); });
    double total = 0;
    for (double s : sums) total += s;
    return total;
  });
  exports.Set("bilinear", out);
}

}  // namespace pluralign
