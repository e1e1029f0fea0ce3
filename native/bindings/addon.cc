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
    Napi::Array supported = Napi::Array::New(env), features = Napi::Array::New(env);
    for (Isa isa : {Isa::reference, Isa::generic, Isa::avx2, Isa::avx512})
      if (isa_supported(isa)) supported.Set(supported.Length(), isa_name(isa));
    for (const auto& f : cpu_features()) features.Set(features.Length(), f);
    out.Set("supported", supported);
    out.Set("features", features);
    return out;
  });
}

}  // namespace

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new std::unique_ptr<Executor>(std::make_unique<Executor>(env)));
  exports.Set("cpu", Napi::Function::New(env, cpu));
  register_safetensors(env, exports);
  register_preference(env, exports);
  register_model(env, exports);
  register_optimizer(env, exports);
  return exports;
}

}  // namespace pluralign

static Napi::Object init_addon(Napi::Env env, Napi::Object exports) { return pluralign::init(env, exports); }
NODE_API_MODULE(pluralign, init_addon)
