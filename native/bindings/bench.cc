// Timings of operators on random data, as `addon.bench`: what `pluralign bench ops` prints. Every function resolves to the
// seconds of one call, one number per run.
#include <algorithm>
#include <array>
#include <chrono>
#include <string>

#include "arrays.h"
#include "jobs.h"
#include "ops/lora/lora.h"
#include "register.h"

namespace pluralign {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Uniform in [-1, 1): zeros would flatter the clock rate.
void randomise(void* data, DType type, int64_t n, uint64_t seed) {
  uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
  for (int64_t i = 0; i < n; ++i) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    const float v = float(int32_t(state >> 32)) * (1.f / 2147483648.f);
    if (type == DType::f32) static_cast<float*>(data)[i] = v;
    else static_cast<bf16*>(data)[i] = to_bf16(v);
  }
}

void* random_buffer(Buffer& buffer, DType type, int64_t n, uint64_t seed) {
  void* data = buffer.get(size_t(std::max<int64_t>(1, n)) * dtype_size(type));
  randomise(data, type, n, seed);
  return data;
}

struct Plan {
  int64_t runs, threads;
  double seconds;  // least time of one run; shorter calls are repeated
  bool cold;       // caches are overwritten before every call
  Isa isa;
  const int32_t* abort = nullptr;
};

Plan plan_from(const Napi::Object& o) {
  Plan p{integer(o, "runs"), integer(o, "threads"), number(o, "seconds"), boolean(o, "cold"), choose_isa()};
  if (p.runs < 1 || p.runs > 10000 || p.threads < 1 || p.threads > 1024) throw_error("BAD_ARGUMENT", "runs and threads must be positive");
  const Napi::Value abort = o.Get("abort");
  if (!abort.IsUndefined()) p.abort = array<int32_t>(abort, "abort").data;
  return p;
}

template <class Body>
std::vector<double> measure(const Plan& plan, const Cancel& cancel, Body&& body) {
  Buffer wipe;
  constexpr int64_t kWipe = int64_t(64) << 20;
  if (plan.cold) wipe.get(size_t(kWipe));
  double start = now();
  body();
  int64_t repeats = 1;
  if (!plan.cold) {  // the first call warmed up; the second says how many make a run
    start = now();
    body();
    repeats = std::max<int64_t>(1, int64_t(plan.seconds / std::max(1e-9, now() - start)));
  }
  std::vector<double> seconds;
  for (int64_t run = 0; run < plan.runs; ++run) {
    cancel.check();
    if (plan.cold) {
      volatile char* bytes = static_cast<volatile char*>(wipe.data());
      for (int64_t i = 0; i < kWipe; i += 64) bytes[i] = char(run);
    }
    start = now();
    for (int64_t i = 0; i < repeats; ++i) body();
    seconds.push_back((now() - start) / double(repeats));
  }
  return seconds;
}

// A job that times `body(context, cancel)`.
template <class Body>
Napi::Value timed(const Napi::CallbackInfo& info, const Plan& plan, Body body) {
  auto job = std::make_unique<Job>(info.Env());
  job->keep(info[0]);
  job->abort_flag = plan.abort;
  auto seconds = std::make_shared<std::vector<double>>();
  Executor& executor = Executor::of(info.Env());
  job->work = [=, &executor](const Cancel& cancel) {
    Context context(kernels_of(plan.isa), executor.pool(int(plan.threads)));
    *seconds = body(context, cancel);
  };
  job->result = [seconds](Napi::Env env) -> Napi::Value {
    auto out = Napi::Float64Array::New(env, seconds->size());
    std::copy(seconds->begin(), seconds->end(), out.Data());
    return out;
  };
  return executor.submit(std::move(job));
}

int64_t positive(const Napi::Object& o, const char* key) {
  const int64_t n = integer(o, key);
  if (n < 1 || n > (int64_t(1) << 24)) throw_error("BAD_ARGUMENT", "%s must be positive", key);
  return n;
}

DType type_from(const Napi::Object& o) { return std::string(o.Get("dtype").ToString()) == "bfloat16" ? DType::bf16 : DType::f32; }

// Floating-point operations a second, by multiply-adds that stay in registers, all threads together.
Napi::Value peak(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Plan plan = plan_from(object(info[0], "options"));
    return timed(info, plan, [plan](Context& context, const Cancel& cancel) {
      std::vector<double> operations(size_t(context.pool.size()));
      int64_t n = 1 << 16;
      const auto round = [&] {
        context.pool.run(context.pool.size(), [&](int64_t i, int) {
          volatile float sink = 0.5f;
          operations[size_t(i)] = context.kernels.multiply_adds(n, &sink);
        });
      };
      round();
      const double start = now();
      round();
      n = std::max<int64_t>(n, int64_t(double(n) * plan.seconds / std::max(1e-9, now() - start)));
      std::vector<double> rates;
      for (int64_t run = 0; run < plan.runs; ++run) {
        cancel.check();
        const double begin = now();
        round();
        double total = 0;
        for (double f : operations) total += f;
        rates.push_back(total / (now() - begin));
      }
      return rates;
    });
  });
}

// C[m × n] = A Wᵀ as a linear layer runs it: W [n × k] frozen and packed beforehand, or packed in every call.
Napi::Value time_gemm(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object o = object(info[0], "options");
    const Plan plan = plan_from(o);
    const int64_t m = positive(o, "m"), n = positive(o, "n"), k = positive(o, "k");
    const DType type = type_from(o);
    const bool packed = boolean(o, "packed");
    return timed(info, plan, [=](Context& context, const Cancel& cancel) {
      Buffer a, w, c;
      Gemm g{m, n, k, matrix(random_buffer(a, type, m * k, 1), type, k), transposed(random_buffer(w, type, n * k, 2), type, k),
             random_buffer(c, type, m * n, 3), type, n};
      PackedOperand panels;
      if (packed) {
        pack_right(context.kernels, panels, g.b, n, k, runs_in_bf16(context.kernels, type, type, false));
        g.packed = &panels;
      }
      return measure(plan, cancel, [&] { gemm(context, g); });
    });
  });
}

// A grouped low-rank product over `segments` [2 × count] with an adapter each; factors and gradients float32.
Napi::Value time_lora(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object o = object(info[0], "options");
    const Plan plan = plan_from(o);
    const int64_t in = positive(o, "in"), out = positive(o, "out"), r = positive(o, "r"), count = positive(o, "adapterCount");
    const DType type = type_from(o);
    const bool backward = boolean(o, "backward");
    const auto segments = array<int32_t>(o.Get("segments"), "segments"), adapters = array<int32_t>(o.Get("adapters"), "adapters");
    if (segments.size != 2 * adapters.size) throw_error("BAD_ARGUMENT", "segments must be a start and an end per adapter");
    std::vector<std::array<int64_t, 3>> spans;
    int64_t rows = 0;
    for (int64_t s = 0; s < adapters.size; ++s) {
      const int64_t start = segments.data[2 * s], end = segments.data[2 * s + 1];
      if (start < rows || end < start || adapters.data[s] < 0 || adapters.data[s] >= count) throw_error("BAD_ARGUMENT", "segment %lld is no range", (long long)s);
      rows = end;
      spans.push_back({start, end - start, adapters.data[s]});
    }
    return timed(info, plan, [=](Context& context, const Cancel& cancel) {
      Buffer x, y, dx, h, factors, gradients;
      const int64_t each = r * (in + out);
      float* values = static_cast<float*>(random_buffer(factors, DType::f32, count * each, 1));
      float* sums = backward ? static_cast<float*>(random_buffer(gradients, DType::f32, count * each, 2)) : nullptr;
      std::vector<LoraModule> modules;
      for (int64_t i = 0; i < count; ++i) {
        LoraModule m{};
        m.a = values + i * each;
        m.b = m.a + r * in;
        if (backward) {
          m.da = sums + i * each;
          m.db = m.da + r * in;
        }
        m.r = r;
        m.scale = 1e-3f;
        modules.push_back(m);
      }
      std::vector<LoraRange> ranges;
      for (const auto& s : spans) ranges.push_back({s[0], s[1], &modules[size_t(s[2])], 0});
      const LoraCall call{ranges, in, out, type == DType::f32 ? kF32 : kBf16, random_buffer(x, type, rows * in, 3),
                          static_cast<float*>(random_buffer(h, DType::f32, rows * r, 4)), r, nullptr};
      void* ys = random_buffer(y, DType::f32, rows * out, 5);
      float* dxs = backward ? static_cast<float*>(random_buffer(dx, DType::f32, rows * in, 6)) : nullptr;
      return measure(plan, cancel, [&] {
        if (backward) lora_backward(context, call, static_cast<float*>(ys), out, dxs);
        else lora_forward(context, call, ys, out, true);
      });
    });
  });
}

}  // namespace

void register_bench(Napi::Env env, Napi::Object exports) {
  Napi::Object out = Napi::Object::New(env);
  out.Set("peak", Napi::Function::New(env, peak));
  out.Set("gemm", Napi::Function::New(env, time_gemm));
  out.Set("groupedLora", Napi::Function::New(env, time_lora));
  exports.Set("bench", out);
}

}  // namespace pluralign
