// Operators on typed arrays, as `addon.kernels`. Sizes are checked here, so that no array is left; lib/kernels.ts says it
// more kindly. Nothing is copied: the arrays belong to the job until its promise settles.
#include <map>
#include <memory>
#include <utility>

#include "arrays.h"
#include "jobs.h"
#include "ops/lora/lora.h"
#include "register.h"

namespace pluralign {
namespace {

// Contexts of one environment by instruction set and threads; used by the job thread only.
class Contexts {
 public:
  // Runs `body`, and lets go of scratch memory that only an unusually large call needs.
  template <class Body>
  void with(Executor& executor, Isa isa, int threads, Body&& body) {
    auto& slot = all_[{isa, threads}];
    if (!slot) slot = std::make_unique<Context>(kernels_of(isa), executor.pool(threads));
    body(*slot);
    size_t bytes = slot->packed_a.bytes() + slot->packed_b.bytes() + slot->head.bytes();
    for (const Buffer& b : slot->shared) bytes += b.bytes();
    for (auto& local : slot->local)
      for (const Buffer& b : local.slot) bytes += b.bytes();
    if (bytes > (size_t(64) << 20)) slot.reset();
  }

 private:
  std::map<std::pair<Isa, int>, std::unique_ptr<Context>> all_;
};

using State = std::shared_ptr<Contexts>;
constexpr int64_t kLargest = int64_t(1) << 31;

int64_t size_from(const Napi::Object& o, const char* key, int64_t least) {
  const double v = number(o, key);
  if (!(v >= double(least) && v < double(kLargest)) || v != double(int64_t(v)))
    throw_error("BAD_ARGUMENT", "%s is %g; expected a whole number from %lld", key, v, (long long)least);
  return int64_t(v);
}

int threads_from(const Napi::Object& o) {
  const int64_t n = size_from(o, "threads", 1);
  if (n > 1024) throw_error("BAD_ARGUMENT", "threads is %lld; expected 1 to 1024", (long long)n);
  return int(n);
}

bool there(const Napi::Value& v) { return !v.IsUndefined() && !v.IsNull(); }

float* sized(const Napi::Value& v, const std::string& name, int64_t size) {
  const auto a = array<float>(v, name.c_str());
  if (a.size != size) throw_error("BAD_SHAPE", "%s has %lld elements, expected %lld", name.c_str(), (long long)a.size, (long long)size);
  return a.data;
}
float* floats(const Napi::Object& o, const char* key, int64_t size) { return sized(o.Get(key), key, size); }
float* floats_if_there(const Napi::Object& o, const char* key, int64_t size) { return there(o.Get(key)) ? floats(o, key, size) : nullptr; }

// Array `key` of `o`, or none where it is absent and `optional`.
std::vector<Napi::Value> list(const Napi::Object& o, const char* key, int64_t size, bool optional = false) {
  const Napi::Value v = o.Get(key);
  if (optional && !there(v)) return {};
  if (!v.IsArray()) throw_error("BAD_ARGUMENT", "%s must be an array", key);
  const Napi::Array a = v.As<Napi::Array>();
  if (int64_t(a.Length()) != size) throw_error("BAD_SHAPE", "%s has %u entries, expected %lld", key, a.Length(), (long long)size);
  std::vector<Napi::Value> out;
  for (uint32_t i = 0; i < a.Length(); ++i) out.push_back(a.Get(i));
  return out;
}

std::string entry(const char* key, size_t i) { return std::string(key) + "[" + std::to_string(i) + "]"; }

// What a call over adapters needs while it runs. Ranges point into `modules`.
struct Grouped {
  std::vector<LoraModule> modules;
  std::vector<LoraRange> ranges;
  int64_t in, out, rows, widest = 1;
  float *x, *y, *dx, *h;
  Buffer scratch;
};

std::shared_ptr<Grouped> grouped_from(const Napi::Object& o, bool backward) {
  auto g = std::make_shared<Grouped>();
  g->in = size_from(o, "in", 1);
  g->out = size_from(o, "out", 1);
  const auto x = array<float>(o.Get("x"), "x");
  if (x.size % g->in) throw_error("BAD_SHAPE", "x has %lld elements, no multiple of in, %lld", (long long)x.size, (long long)g->in);
  g->x = x.data;
  g->rows = x.size / g->in;
  g->y = floats(o, backward ? "dy" : "y", g->rows * g->out);
  g->dx = backward ? floats_if_there(o, "dx", g->rows * g->in) : nullptr;

  const auto ranks = array<int32_t>(o.Get("ranks"), "ranks");
  const auto scales = array<double>(o.Get("scales"), "scales");
  if (scales.size != ranks.size) throw_error("BAD_SHAPE", "scales has %lld elements, expected one per rank: %lld", (long long)scales.size, (long long)ranks.size);
  const auto a = list(o, "a", ranks.size), b = list(o, "b", ranks.size), cores = list(o, "cores", ranks.size, true);
  std::vector<Napi::Value> da, db, dcores;
  if (backward) {
    da = list(o, "da", ranks.size, true);
    db = list(o, "db", ranks.size, true);
    dcores = list(o, "dcores", ranks.size, true);
  }
  const auto gradient = [](const std::vector<Napi::Value>& of, const char* key, size_t i, int64_t size) {
    return i < of.size() && there(of[i]) ? sized(of[i], entry(key, i), size) : nullptr;
  };
  for (size_t i = 0; i < a.size(); ++i) {
    const int64_t r = ranks.data[i];
    if (r < 1 || r > (1 << 20)) throw_error("BAD_ARGUMENT", "ranks[%zu] is %lld; expected 1 or more", i, (long long)r);
    LoraModule m{};
    m.r = r;
    m.scale = float(scales.data[i]);
    m.a = sized(a[i], entry("a", i), r * g->in);
    m.b = sized(b[i], entry("b", i), g->out * r);
    if (i < cores.size() && there(cores[i])) {
      m.core_rows = array<float>(cores[i], "cores").size == r ? 1 : r;
      m.core = sized(cores[i], entry("cores", i), m.core_rows * r);
    }
    m.da = gradient(da, "da", i, r * g->in);
    m.db = gradient(db, "db", i, g->out * r);
    m.dcore = gradient(dcores, "dcores", i, m.core_rows * r);
    g->widest = std::max(g->widest, r);
    g->modules.push_back(m);
  }

  const auto segments = array<int32_t>(o.Get("segments"), "segments"), adapters = array<int32_t>(o.Get("adapters"), "adapters");
  if (segments.size != 2 * adapters.size)
    throw_error("BAD_SHAPE", "segments has %lld elements, expected a start and an end for each of %lld adapters", (long long)segments.size, (long long)adapters.size);
  int64_t before = 0;
  for (int64_t s = 0; s < adapters.size; ++s) {
    const int64_t start = segments.data[2 * s], end = segments.data[2 * s + 1], adapter = adapters.data[s];
    if (start < before || end < start || end > g->rows)
      throw_error("BAD_SHAPE", "segment %lld is rows [%lld, %lld); expected a range that follows the last inside %lld rows", (long long)s, (long long)start,
                  (long long)end, (long long)g->rows);
    if (adapter < -1 || adapter >= ranks.size)
      throw_error("BAD_ARGUMENT", "adapters[%lld] is %lld; there are %lld adapters", (long long)s, (long long)adapter, (long long)ranks.size);
    before = end;
    if (adapter >= 0 && end > start) g->ranges.push_back({start, end - start, &g->modules[size_t(adapter)], 0});
  }
  g->h = floats_if_there(o, "h", g->rows * g->widest);
  return g;
}

Napi::Value grouped_lora(const Napi::CallbackInfo& info, const State& state, bool backward) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object o = object(info[0], "call");
    auto job = std::make_unique<Job>(info.Env());
    job->keep(o);
    const auto g = grouped_from(o, backward);
    const int threads = threads_from(o);
    const Isa isa = choose_isa();
    if (there(o.Get("abort"))) job->abort_flag = array<int32_t>(o.Get("abort"), "abort").data;
    Executor& executor = Executor::of(info.Env());
    job->work = [=, &executor](const Cancel&) {
      state->with(executor, isa, threads, [&](Context& context) {
        float* h = g->h ? g->h : g->scratch.as<float>(g->rows * g->widest);
        const LoraCall call{g->ranges, g->in, g->out, kF32, g->x, h, g->widest, nullptr};
        if (!backward) return lora_forward(context, call, g->y, g->out, true);
        if (!g->h)
          for (const LoraRange& r : g->ranges)
            gemm(context, {r.rows, r.module->r, g->in, matrix(g->x + r.row * g->in, DType::f32, g->in), transposed(r.module->a, DType::f32, g->in),
                           h + r.row * g->widest, DType::f32, g->widest});
        lora_backward(context, call, g->y, g->out, g->dx);
      });
    };
    return executor.submit(std::move(job));
  });
}

Napi::Value matmul(const Napi::CallbackInfo& info, const State& state) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object o = object(info[0], "call");
    auto job = std::make_unique<Job>(info.Env());
    job->keep(o);
    const int64_t m = size_from(o, "m", 0), n = size_from(o, "n", 0), k = size_from(o, "k", 0);
    const float *a = floats(o, "a", m * k), *b = floats(o, "b", k * n), *bias = floats_if_there(o, "bias", n);
    Gemm g{m, n, k, boolean(o, "transposeA") ? transposed(a, DType::f32, m) : matrix(a, DType::f32, k),
           boolean(o, "transposeB") ? transposed(b, DType::f32, k) : matrix(b, DType::f32, n), floats(o, "c", m * n), DType::f32, n};
    g.alpha = float(number(o, "alpha"));
    g.bias = bias;
    g.accumulate = boolean(o, "accumulate");
    const int threads = threads_from(o);
    const Isa isa = choose_isa();
    if (there(o.Get("abort"))) job->abort_flag = array<int32_t>(o.Get("abort"), "abort").data;
    Executor& executor = Executor::of(info.Env());
    job->work = [=, &executor](const Cancel&) {
      state->with(executor, isa, threads, [&](Context& context) { gemm(context, g); });
    };
    return executor.submit(std::move(job));
  });
}

}  // namespace

void register_kernels(Napi::Env env, Napi::Object exports) {
  const State state = std::make_shared<Contexts>();
  Napi::Object out = Napi::Object::New(env);
  out.Set("groupedLoraForward", Napi::Function::New(env, [state](const Napi::CallbackInfo& info) { return grouped_lora(info, state, false); }));
  out.Set("groupedLoraBackward", Napi::Function::New(env, [state](const Napi::CallbackInfo& info) { return grouped_lora(info, state, true); }));
  out.Set("matmul", Napi::Function::New(env, [state](const Napi::CallbackInfo& info) { return matmul(info, state); }));
  exports.Set("kernels", out);
}

}  // namespace pluralign
