// Banks whose factors, gradients and moments stay on the device of a model while steps are taken; see NativeDeviceBanks in
// lib/native/addon.ts.
#include <cmath>

#include "arrays.h"
#include "jobs.h"
#include "loaded.h"
#include "register.h"

namespace pluralign {
namespace {

std::shared_ptr<Bank> needed_bank(const Napi::Value& value) {
  auto bank = bank_from(value);
  if (!bank) throw_error("BAD_ARGUMENT", "expected a bank");
  return bank;
}

std::vector<int64_t> spans_from(const Napi::Value& value, int64_t size) {
  const auto spans = array<int32_t>(value, "spans");
  if (spans.size % 2) throw_error("BAD_ARGUMENT", "spans must be pairs of start and end");
  for (int64_t i = 0; i < spans.size; i += 2)
    if (spans.data[i] < 0 || spans.data[i + 1] < spans.data[i] || spans.data[i + 1] > size) throw_error("BAD_ARGUMENT", "span %lld does not fit the buffer", (long long)(i / 2));
  return {spans.data, spans.data + spans.size};
}

// A job on the bank, the second argument, where the model, the first, runs; it keeps all arguments.
Napi::Value with_bank(const Napi::CallbackInfo& info, std::unique_ptr<Job> job, std::function<void(PlacedBank&)> body) {
  const auto loaded = loaded_from(info[0]);
  const auto bank = needed_bank(info[1]);
  for (size_t i = 0; i < info.Length(); ++i) job->keep(info[i]);
  Executor& executor = Executor::of(info.Env());
  job->work = [loaded, bank, body = std::move(body), &executor](const Cancel&) {
    body(bank->on(loaded->ready(executor)));
    loaded->measure();
  };
  return executor.submit(std::move(job));
}

float* moments_from(const Napi::Value& value, const char* name, int64_t size) {
  const auto moments = array<float>(value, name);
  if (moments.size != size) throw_error("BAD_ARGUMENT", "%s must be of the bank's length", name);
  return moments.data;
}

Napi::Value take_over(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto bank = needed_bank(info[1]);
    const bool fresh = info[2].IsNull();
    const float* m = fresh ? nullptr : moments_from(info[2], "m", bank->size());
    const float* v = fresh ? nullptr : moments_from(info[3], "v", bank->size());
    return with_bank(info, std::make_unique<Job>(info.Env()), [m, v](PlacedBank& placed) { placed.take_over(m, v); });
  });
}

Napi::Value send_home(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto bank = needed_bank(info[1]);
    float *m = moments_from(info[2], "m", bank->size()), *v = moments_from(info[3], "v", bank->size());
    return with_bank(info, std::make_unique<Job>(info.Env()), [m, v](PlacedBank& placed) { placed.send_home(m, v); });
  });
}

Napi::Value clear(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const int64_t size = needed_bank(info[1])->size();
    auto spans = info[2].IsNull() ? std::vector<int64_t>{0, size} : spans_from(info[2], size);
    return with_bank(info, std::make_unique<Job>(info.Env()), [spans = std::move(spans)](PlacedBank& placed) { placed.clear(spans); });
  });
}

Napi::Value step(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object o = object(info[2], "options");
    const auto steps = array<int32_t>(o.Get("steps"), "steps");
    const auto decay = array<uint8_t>(o.Get("decay"), "decay");
    const Napi::Value most = o.Get("maxGradNorm");
    PlacedBank::Step s{spans_from(o.Get("spans"), needed_bank(info[1])->size()),
                       {steps.data, steps.data + steps.size},
                       {decay.data, decay.data + decay.size},
                       number(o, "learningRate"),
                       number(o, "beta1"),
                       number(o, "beta2"),
                       number(o, "eps"),
                       number(o, "weightDecay"),
                       most.IsNull() ? double(INFINITY) : number(o, "maxGradNorm")};
    if (s.steps.size() * 2 != s.spans.size() || s.decay.size() * 2 != s.spans.size())
      throw_error("BAD_ARGUMENT", "steps and decay must have one element for each span");
    auto norms = std::make_shared<std::vector<double>>();
    auto job = std::make_unique<Job>(info.Env());
    job->result = [norms](Napi::Env env) -> Napi::Value {
      auto out = Napi::Float64Array::New(env, norms->size());
      std::copy(norms->begin(), norms->end(), out.Data());
      return out;
    };
    return with_bank(info, std::move(job), [s = std::move(s), norms](PlacedBank& placed) { *norms = placed.step(s); });
  });
}

}  // namespace

void register_device_bank(Napi::Env env, Napi::Object exports) {
  Napi::Object banks = Napi::Object::New(env);
  banks.Set("takeOver", Napi::Function::New(env, take_over));
  banks.Set("sendHome", Napi::Function::New(env, send_home));
  banks.Set("clear", Napi::Function::New(env, clear));
  banks.Set("step", Napi::Function::New(env, step));
  exports.Set("deviceBanks", banks);
}

}  // namespace pluralign
