// The addon's entry: one Executor per environment, then each binding file adds its own functions.
#include "base/cpu.h"
#include "jobs.h"
#include "register.h"

namespace pluralign {
namespace {

Napi::Value cpu(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    Napi::Object out = Napi::Object::New(env);
    out.Set("isa", isa_name(choose_isa()));
    Napi::Array supported = Napi::Array::New(env), unsupported = Napi::Array::New(env), features = Napi::Array::New(env);
    for (int i = 0; i < kIsas; ++i) {
      const std::string why = isa_obstacle(Isa(i));
      if (why.empty()) {
        supported.Set(supported.Length(), isa_name(Isa(i)));
        continue;
      }
      Napi::Object one = Napi::Object::New(env);
      one.Set("name", isa_name(Isa(i)));
      one.Set("why", why);
      unsupported.Set(unsupported.Length(), one);
    }
    for (const auto& f : cpu_features()) features.Set(features.Length(), f);
    out.Set("supported", supported);
    out.Set("unsupported", unsupported);
    out.Set("features", features);
    return out;
  });
}

Napi::Value use_error_class(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    if (!info[0].IsFunction()) throw Error("BAD_ARGUMENT", "the error class must be a constructor of (code, message)");
    Executor::of(info.Env()).keep_constructor("Error", info[0].As<Napi::Function>());
    return info.Env().Undefined();
  });
}

}  // namespace

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new std::unique_ptr<Executor>(std::make_unique<Executor>(env)));
  exports.Set("cpu", Napi::Function::New(env, cpu));
  exports.Set("useErrorClass", Napi::Function::New(env, use_error_class));
  register_safetensors(env, exports);
  register_preference(env, exports);
  register_bank(env, exports);
  register_model(env, exports);
  register_optimizer(env, exports);
  register_kernels(env, exports);
  register_generation(env, exports);
  register_merge(env, exports);
  register_bilinear(env, exports);
  register_device_bank(env, exports);
  register_device(env, exports);
  register_bench(env, exports);
  return exports;
}

}  // namespace pluralign

static Napi::Object init_addon(Napi::Env env, Napi::Object exports) { return pluralign::init(env, exports); }
NODE_API_MODULE(pluralign, init_addon)
