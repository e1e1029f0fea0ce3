// Typed arrays and plain values out of JavaScript, checked.
#pragma once
#include <napi.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/status.h"

namespace pluralign {

template <class T>
struct Span {
  T* data = nullptr;
  int64_t size = 0;
};

template <class T> constexpr napi_typedarray_type array_type();
template <> constexpr napi_typedarray_type array_type<float>() { return napi_float32_array; }
template <> constexpr napi_typedarray_type array_type<double>() { return napi_float64_array; }
template <> constexpr napi_typedarray_type array_type<int32_t>() { return napi_int32_array; }
template <> constexpr napi_typedarray_type array_type<uint32_t>() { return napi_uint32_array; }
template <> constexpr napi_typedarray_type array_type<uint8_t>() { return napi_uint8_array; }

// The array's memory, byteOffset respected. It is valid while JavaScript holds the array.
template <class T>
Span<T> array(const Napi::Value& value, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != array_type<T>())
    throw_error("BAD_ARGUMENT", "%s must be a typed array of its type", name);
  auto a = value.As<Napi::TypedArrayOf<T>>();
  return {a.Data(), int64_t(a.ElementLength())};
}

inline double number(const Napi::Object& o, const char* key) {
  const Napi::Value v = o.Get(key);
  if (!v.IsNumber()) throw_error("BAD_ARGUMENT", "%s must be a number", key);
  return v.As<Napi::Number>().DoubleValue();
}
inline int64_t integer(const Napi::Object& o, const char* key, int64_t lowest = INT32_MIN, int64_t highest = INT32_MAX) {
  const double value = number(o, key);
  if (!(value >= double(lowest) && value <= double(highest) && value == std::floor(value)))
    throw_error("BAD_ARGUMENT", "%s must be a whole number from %lld to %lld, found %g", key, (long long)lowest, (long long)highest, value);
  return int64_t(value);
}
inline bool boolean(const Napi::Object& o, const char* key) { return o.Get(key).ToBoolean().Value(); }

inline Napi::Object object(const Napi::Value& v, const char* name) {
  if (!v.IsObject()) throw_error("BAD_ARGUMENT", "%s must be an object", name);
  return v.As<Napi::Object>();
}

inline Napi::Array list(const Napi::Value& v, const char* name) {
  if (!v.IsArray()) throw_error("BAD_ARGUMENT", "%s must be an array", name);
  return v.As<Napi::Array>();
}

}  // namespace pluralign
