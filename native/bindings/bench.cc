// Timings of operators on random data, as `addon.bench`: what `pluralign bench ops` prints. Every function resolves to the
// seconds of one call, one number per run.
#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>
#include <string>

#include "arrays.h"
#include "jobs.h"
#include "ops/adamw/adamw.h"
#include "ops/attention/attention.h"
#include "ops/head/head.h"
#include "ops/lora/lora.h"
#include "ops/norm/norm.h"
#include "ops/swiglu/swiglu.h"
#include "register.h"

namespace pluralign {
namespace {

// On one thread its processor time, which other programs disturb less than they do the clock; else the clock.
double now(bool one_thread) {
#ifdef CLOCK_THREAD_CPUTIME_ID
  timespec t;
  if (one_thread && clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0) return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
#endif
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

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
  double start = now(plan.threads == 1);
  body();
  int64_t repeats = 1;
  if (!plan.cold) {  // the first call warmed up; the second says how many make a run
    start = now(plan.threads == 1);
    body();
    repeats = std::max<int64_t>(1, int64_t(plan.seconds / std::max(1e-9, now(plan.threads == 1) - start)));
  }
  std::vector<double> seconds;
  for (int64_t run = 0; run < plan.runs; ++run) {
    cancel.check();
    if (plan.cold) {
      volatile char* bytes = static_cast<volatile char*>(wipe.data());
      for (int64_t i = 0; i < kWipe; i += 64) bytes[i] = char(run);
    }
    start = now(plan.threads == 1);
    for (int64_t i = 0; i < repeats; ++i) body();
    seconds.push_back((now(plan.threads == 1) - start) / double(repeats));
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

// Floating-point operations a second, by multiply-adds that stay in registers, all threads together; of bfloat16 where the
// instruction set has such products.
Napi::Value peak(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object o = object(info[0], "options");
    const Plan plan = plan_from(o);
    const bool pairs = type_from(o) == DType::bf16 && kernels_of(plan.isa).multiply_adds_bf16;
    return timed(info, plan, [plan, pairs](Context& context, const Cancel& cancel) {
      std::vector<double> operations(size_t(context.pool.size()));
      int64_t n = 1 << 16;
      const auto round = [&] {
        context.pool.run(context.pool.size(), [&](int64_t i, int) {
          volatile float sink = 0.5f;
          operations[size_t(i)] = (pairs ? context.kernels.multiply_adds_bf16 : context.kernels.multiply_adds)(n, &sink);
        });
      };
      round();
      const double start = now(plan.threads == 1);
      round();
      n = std::max<int64_t>(n, int64_t(double(n) * plan.seconds / std::max(1e-9, now(plan.threads == 1) - start)));
      std::vector<double> rates;
      for (int64_t run = 0; run < plan.runs; ++run) {
        cancel.check();
        const double begin = now(plan.threads == 1);
        round();
        double total = 0;
        for (double f : operations) total += f;
        rates.push_back(total / (now(plan.threads == 1) - begin));
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

// What a library without a grouped product does: dense products for one segment after the other.
void lora_by_segment(Context& context, const LoraCall& c, float* y, float* dx, bool backward) {
  Buffer& low = context.shared[0];
  for (const LoraRange& s : c.ranges) {
    const LoraModule& m = *s.module;
    const Operand x = matrix(static_cast<const char*>(c.x) + s.row * c.in * int64_t(c.storage == kF32 ? 4 : 2), c.storage == kF32 ? DType::f32 : DType::bf16, c.in);
    float *h = c.h + s.row * c.h_stride, *ys = y + s.row * c.out;
    const auto run = [&](Gemm g, float alpha, bool accumulate) {
      g.alpha = alpha;
      g.accumulate = accumulate;
      gemm(context, g);
    };
    if (!backward) {
      run({s.rows, m.r, c.in, x, transposed(m.a, DType::f32, c.in), h, DType::f32, c.h_stride}, 1, false);
      run({s.rows, c.out, m.r, matrix(h, DType::f32, c.h_stride), transposed(m.b, DType::f32, m.r), ys, DType::f32, c.out}, m.scale, true);
      continue;
    }
    float* dh = low.as<float>(s.rows * m.r);
    run({c.out, m.r, s.rows, transposed(ys, DType::f32, c.out), matrix(h, DType::f32, c.h_stride), m.db, DType::f32, m.r}, m.scale, true);
    run({s.rows, m.r, c.out, matrix(ys, DType::f32, c.out), matrix(m.b, DType::f32, m.r), dh, DType::f32, m.r}, m.scale, false);
    run({m.r, c.in, s.rows, transposed(dh, DType::f32, m.r), x, m.da, DType::f32, c.in}, 1, true);
    run({s.rows, c.in, m.r, matrix(dh, DType::f32, m.r), matrix(m.a, DType::f32, c.in), dx + s.row * c.in, DType::f32, c.in}, 1, true);
  }
}

// A copy of the factors (and of their gradients) for every request of `each` rows, so that all products have one shape.
class Gathered {
 public:
  Gathered(const LoraCall& c, int64_t each, bool backward) : call_(c), size_(c.ranges.at(0).module->r * (c.in + c.out)), backward_(backward) {
    for (const LoraRange& s : c.ranges)
      for (int64_t row = s.row; row < s.row + s.rows; row += each) requests_.push_back({row, std::min(each, s.row + s.rows - row), s.module, 0});
    copies_.resize(requests_.size());
  }
  void run(Context& context, float* y, float* dx) {
    float *values = values_.as<float>(size_ * int64_t(requests_.size())), *sums = backward_ ? sums_.as<float>(size_ * int64_t(requests_.size())) : nullptr;
    std::vector<LoraRange> ranges = requests_;
    const int64_t split = requests_[0].module->r * call_.in;
    context.pool.run(int64_t(requests_.size()), [&](int64_t i, int) {
      std::copy_n(requests_[size_t(i)].module->a, size_, values + i * size_);  // A, and B behind it
      if (sums) std::fill_n(sums + i * size_, size_, 0.f);
    });
    for (size_t i = 0; i < ranges.size(); ++i) {
      LoraModule& m = copies_[i] = *requests_[i].module;
      m.a = values + int64_t(i) * size_;
      m.b = m.a + split;
      if (sums) m.db = (m.da = sums + int64_t(i) * size_) + split;
      ranges[i].module = &m;
    }
    LoraCall batch{ranges, call_.in, call_.out, call_.storage, call_.x, call_.h, call_.h_stride, nullptr};
    lora_by_segment(context, batch, y, dx, backward_);
    if (sums)
      for (size_t i = 0; i < ranges.size(); ++i) context.kernels.axpy(requests_[i].module->da, sums + int64_t(i) * size_, 1.f, size_);
  }

 private:
  const LoraCall& call_;
  int64_t size_;
  bool backward_;
  std::vector<LoraRange> requests_;
  std::vector<LoraModule> copies_;
  Buffer values_, sums_;
};

// A grouped low-rank product over `segments` [2 × count] with an adapter each; factors and gradients float32.
Napi::Value time_lora(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object o = object(info[0], "options");
    const Plan plan = plan_from(o);
    const int64_t in = positive(o, "in"), out = positive(o, "out"), r = positive(o, "r"), count = positive(o, "adapterCount");
    const DType type = type_from(o);
    const bool backward = boolean(o, "backward");
    const std::string method = o.Get("method").ToString();
    const int64_t rows_each = positive(o, "rowsEach");
    if (method != "grouped" && method != "loop" && method != "gather") throw_error("BAD_ARGUMENT", "method: grouped, loop or gather");
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
      float* ys = static_cast<float*>(random_buffer(y, DType::f32, rows * out, 5));
      float* dxs = backward ? static_cast<float*>(random_buffer(dx, DType::f32, rows * in, 6)) : nullptr;
      if (ranges.empty()) throw_error("BAD_ARGUMENT", "no segments");
      Gathered gathered(call, rows_each, backward);
      return measure(plan, cancel, [&] {
        if (method == "loop") lora_by_segment(context, call, ys, dxs, backward);
        else if (method == "gather") gathered.run(context, ys, dxs);
        else if (backward) lora_backward(context, call, ys, out, dxs);
        else lora_forward(context, call, ys, out, true);
      });
    });
  });
}

// An operator of the decoder on `rows` tokens of a model of `width`, by name.
Napi::Value time_operator(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object o = object(info[0], "options");
    const Plan plan = plan_from(o);
    const int64_t rows = positive(o, "rows"), width = positive(o, "width");
    const DType type = type_from(o);
    const int storage = type == DType::f32 ? kF32 : kBf16;
    const std::string name = o.Get("name").ToString();
    return timed(info, plan, [=](Context& context, const Cancel& cancel) -> std::vector<double> {
      Buffer buffers[8];
      const auto floats = [&](int i, int64_t n) { return static_cast<float*>(random_buffer(buffers[i], DType::f32, n, uint64_t(i + 1))); };
      const auto typed = [&](int i, int64_t n) { return random_buffer(buffers[i], type, n, uint64_t(i + 1)); };
      const int64_t n = rows * width;
      if (name == "read") {
        const float* x = floats(0, n);
        std::vector<double> sums(size_t(context.pool.size() * 16));
        return measure(plan, cancel, [&] {
          context.pool.ranges(n / 4096, 1, [&](int64_t a, int64_t b, int thread) { sums[size_t(thread * 16)] += context.kernels.squared_norm(x + a * 4096, (b - a) * 4096); });
        });
      }
      if (name == "rmsnorm" || name == "rmsnorm backward") {
        float *x = floats(0, n), *w = floats(1, width), *rstd = floats(2, rows), *dx = floats(3, n), *dy = floats(4, n);
        void* y = typed(5, n);
        rmsnorm(context, storage, y, rstd, x, w, rows, width, 1e-5f);
        return measure(plan, cancel, [&] {
          if (name == "rmsnorm") rmsnorm(context, storage, y, rstd, x, w, rows, width, 1e-5f);
          else rmsnorm_backward(context, dx, dy, x, rstd, w, rows, width, false);
        });
      }
      if (name == "swiglu" || name == "swiglu backward") {
        void *gate_up = typed(0, 2 * n), *a = typed(1, n);
        float *da = floats(2, n), *d = floats(3, 2 * n);
        return measure(plan, cancel, [&] {
          if (name == "swiglu") swiglu(context, storage, a, gate_up, rows, width);
          else swiglu_backward(context, storage, d, da, gate_up, rows, width);
        });
      }
      if (name == "adamw") {
        float *p = floats(0, n), *g = floats(1, n), *m = floats(2, n), *v = floats(3, n);
        std::fill(v, v + n, 1.f);
        const AdamWStep step = adamw_step(1e-4, 0.9, 0.999, 1e-8, 0, 1, 2);
        return measure(plan, cancel, [&] { adamw(context, p, g, m, v, n, step); });
      }
      if (name == "head" || name == "head backward") {
        constexpr int64_t vocabulary = 49152;
        Head h{rows, width, vocabulary, matrix(typed(0, n), type, width), typed(1, vocabulary * width), type, nullptr};
        std::vector<int32_t> targets(static_cast<size_t>(rows), 7);
        h.targets = targets.data();
        PackedOperand packed;
        if (runs_in_bf16(context.kernels, type, type, false)) {
          pack_right(context.kernels, packed, transposed(h.weight, type, width), vocabulary, width, true);
          h.packed = &packed;
        }
        std::vector<Partition> partition(targets.size());
        float *logps = floats(2, rows), *d = floats(3, n), *g = floats(4, rows);
        head_logps(context, h, logps, partition.data(), nullptr);
        return measure(plan, cancel, [&] {
          if (name == "head") head_logps(context, h, logps, partition.data(), nullptr);
          else if (has_slopes(context, h)) head_logps(context, h, logps, partition.data(), nullptr, d);  // as a step does
          else head_backward(context, h, partition.data(), g, d, nullptr);
        });
      }
      if (name == "attention" || name == "attention backward") {  // 9 heads on 3, causal, one segment; `width` is that of q, k and v
        const AttentionShape shape{9, 3, width / 15, 0.125f, 0};
        float *q = floats(0, n), *dq = floats(1, n), *dout = floats(2, n);
        void* out = typed(3, n);
        const int64_t k = 9 * shape.head_dim, v = 12 * shape.head_dim;
        const std::vector<AttentionSegment> segments{{0, rows, 0, {{q + k, q + v, width, rows, dq + k, dq + v}}}};
        const std::vector<std::vector<int>> trees{{0}};
        return measure(plan, cancel, [&] {
          if (name == "attention") attention(context, shape, segments, q, width, storage, out);
          else attention_backward(context, shape, segments, trees, q, width, storage, dout, dq);
        });
      }
      throw_error("BAD_ARGUMENT", "no operator %s", name.c_str());
    });
  });
}

}  // namespace

void register_bench(Napi::Env env, Napi::Object exports) {
  Napi::Object out = Napi::Object::New(env);
  out.Set("peak", Napi::Function::New(env, peak));
  out.Set("gemm", Napi::Function::New(env, time_gemm));
  out.Set("groupedLora", Napi::Function::New(env, time_lora));
  out.Set("operator", Napi::Function::New(env, time_operator));
  exports.Set("bench", out);
}

}  // namespace pluralign
