// safetensors files for JavaScript: header, one tensor, or all of them. Synchronous: adapters and item tables are small,
// and a model's weights go through loadModel instead.
#include "model/safetensors.h"

#include "base/json.h"
#include "base/status.h"
#include "jobs.h"
#include "register.h"

namespace pluralign {
namespace {

std::string text_argument(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (info.Length() <= index || !info[index].IsString())
    throw Error("BAD_ARGUMENT", std::string(name) + " must be a string");
  return info[index].As<Napi::String>().Utf8Value();
}

std::shared_ptr<SafetensorsFile> open_argument(const Napi::CallbackInfo& info) {
  const std::string path = text_argument(info, 0, "path");
  if (path.find('\0') != std::string::npos) throw Error("BAD_ARGUMENT", "path " + quoted(path) + " has a null character");
  return SafetensorsFile::open(path);
}

// Keys come from the file: defining them, unlike setting, makes "__proto__" a key like any other.
Napi::Object metadata_object(Napi::Env env, const SafetensorsFile& file) {
  Napi::Object out = Napi::Object::New(env);
  for (const auto& [key, value] : file.metadata())
    out.DefineProperty(Napi::PropertyDescriptor::Value(Napi::String::New(env, key), Napi::String::New(env, value),
                                                       napi_default_jsproperty));
  return out;
}

Napi::Object tensor_object(Napi::Env env, const TensorView& t) {
  Napi::Object out = Napi::Object::New(env);
  Napi::Array shape = Napi::Array::New(env, t.shape.size());
  for (size_t i = 0; i < t.shape.size(); ++i) shape.Set(uint32_t(i), Napi::Number::New(env, double(t.shape[i])));
  out.Set("name", Napi::String::New(env, t.name));
  out.Set("dtype", Napi::String::New(env, t.dtype_name));
  out.Set("shape", shape);
  return out;
}

Napi::Float32Array float_array(Napi::Env env, const SafetensorsFile& file, const TensorView& t) {
  try {
    check_float(t);
  } catch (const Error& e) {
    throw Error(e.code(), file.path() + ": " + e.what());
  }
  Napi::Float32Array out = Napi::Float32Array::New(env, size_t(t.elements()));
  copy_to_float(t, out.Data());
  return out;
}

Napi::Value safetensors_info(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const auto file = open_argument(info);
    Napi::Array tensors = Napi::Array::New(env, file->tensors().size());
    uint32_t index = 0;
    for (const TensorView& t : file->tensors()) {
      Napi::HandleScope scope(env);
      tensors.Set(index++, tensor_object(env, t));
    }
    Napi::Object out = Napi::Object::New(env);
    out.Set("metadata", metadata_object(env, *file));
    out.Set("tensors", tensors);
    return out;
  });
}

Napi::Value safetensors_tensor(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const auto file = open_argument(info);
    const std::string name = text_argument(info, 1, "name");
    const TensorView* tensor = file->find(name);
    if (!tensor) throw Error("NOT_FOUND", file->path() + ": there is no tensor " + quoted(name));
    return float_array(env, *file, *tensor);
  });
}

Napi::Value safetensors_read(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const auto file = open_argument(info);
    Napi::Array tensors = Napi::Array::New(env, file->tensors().size());
    uint32_t index = 0;
    for (const TensorView& t : file->tensors()) {
      Napi::HandleScope scope(env);
      Napi::Object tensor = tensor_object(env, t);
      tensor.Set("data", float_array(env, *file, t));
      tensors.Set(index++, tensor);
    }
    Napi::Object out = Napi::Object::New(env);
    out.Set("metadata", metadata_object(env, *file));
    out.Set("tensors", tensors);
    return out;
  });
}

}  // namespace

void register_safetensors(Napi::Env env, Napi::Object exports) {
  exports.Set("safetensorsInfo", Napi::Function::New(env, safetensors_info));
  exports.Set("safetensorsTensor", Napi::Function::New(env, safetensors_tensor));
  exports.Set("safetensorsRead", Napi::Function::New(env, safetensors_read));
}

}  // namespace pluralign
