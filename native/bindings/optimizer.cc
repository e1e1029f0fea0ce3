// AdamW over spans of a flat buffer, and norms of spans.
#include "ops/adamw/adamw.h"

#include <cmath>

#include "arrays.h"
#include "jobs.h"
#include "register.h"

namespace pluralign {
namespace {

void check_spans(const Span<int32_t>& spans, int64_t size) {
  if (spans.size % 2) throw_error("BAD_ARGUMENT", "spans must be pairs of start and end");
  for (int64_t i = 0; i < spans.size; i += 2)
    if (spans.data[i] < 0 || spans.data[i + 1] < spans.data[i] || spans.data[i + 1] > size)
      throw_error("BAD_ARGUMENT", "span %lld does not fit the buffer", (long long)(i / 2));
}

Napi::Value adamw_job(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto job = std::make_unique<Job>(info.Env());
    for (int i = 0; i < 4; ++i) job->keep(info[size_t(i)]);
    const auto p = array<float>(info[0], "parameters"), g = array<float>(info[1], "gradients"), m = array<float>(info[2], "m"), v = array<float>(info[3], "v");
    if (g.size != p.size || m.size != p.size || v.size != p.size) throw_error("BAD_ARGUMENT", "parameters, gradients, m and v must be of one length");
    const Napi::Object o = object(info[4], "options");
    const auto spans = array<int32_t>(o.Get("spans"), "spans"), steps = array<int32_t>(o.Get("steps"), "steps");
    const auto decay = array<uint8_t>(o.Get("decay"), "decay");
    for (const char* key : {"spans", "steps", "decay"}) job->keep(o.Get(key));
    check_spans(spans, p.size);
    if (steps.size * 2 != spans.size || decay.size * 2 != spans.size) throw_error("BAD_ARGUMENT", "steps and decay must have one element for each span");
    const double lr = number(o, "learningRate"), b1 = number(o, "beta1"), b2 = number(o, "beta2"), eps = number(o, "eps"), wd = number(o, "weightDecay"), scale = number(o, "gradScale");
    Executor& executor = Executor::of(info.Env());
    job->work = [=, &executor](const Cancel&) {
      // One thread: a step over adapters is far shorter than waking the others.
      Context context(kernels_of(choose_isa()), executor.pool(1));
      for (int64_t i = 0; i < steps.size; ++i) {
        const int64_t at = spans.data[2 * i], n = spans.data[2 * i + 1] - at;
        adamw(context, p.data + at, g.data + at, m.data + at, v.data + at, n, adamw_step(lr, b1, b2, eps, decay.data[i] ? wd : 0, scale, steps.data[i]));
      }
    };
    return executor.submit(std::move(job));
  });
}

Napi::Value norms(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto values = array<float>(info[0], "values");
    const auto spans = array<int32_t>(info[1], "spans");
    check_spans(spans, values.size);
    const Kernels& k = kernels_of(choose_isa());
    auto out = Napi::Float64Array::New(info.Env(), size_t(spans.size / 2));
    for (int64_t i = 0; i < spans.size / 2; ++i)
      out.Data()[i] = std::sqrt(k.squared_norm(values.data + spans.data[2 * i], spans.data[2 * i + 1] - spans.data[2 * i]));
    return out;
  });
}

}  // namespace

void register_optimizer(Napi::Env env, Napi::Object exports) {
  exports.Set("adamw", Napi::Function::New(env, adamw_job));
  exports.Set("norms", Napi::Function::New(env, norms));
}

}  // namespace pluralign
