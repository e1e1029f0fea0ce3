// Device libraries for JavaScript. What they do may end the process where a driver is broken, so lib/native/device.ts asks in
// a child process first.
#include "device/library.h"

#include "arrays.h"
#include "jobs.h"
#include "register.h"

namespace pluralign {
namespace {

// (path) → JSON
Napi::Value describe(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return Napi::String::New(info.Env(), describe_devices(info[0].ToString())); });
}

// (path, ordinal): opens the device once and says nothing; throws why it cannot be had.
Napi::Value try_device(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    open_device(info[0].ToString(), int(info[1].ToNumber().Int32Value())).close();
    return info.Env().Undefined();
  });
}

}  // namespace

void register_device(Napi::Env env, Napi::Object exports) {
  exports.Set("describeDevices", Napi::Function::New(env, describe));
  exports.Set("tryDevice", Napi::Function::New(env, try_device));
}

}  // namespace pluralign
