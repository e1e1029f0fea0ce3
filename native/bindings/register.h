// Each binding file has one function that adds what it offers to the addon's exports.
#pragma once
#include <napi.h>

namespace pluralign {

void register_safetensors(Napi::Env env, Napi::Object exports);
void register_preference(Napi::Env env, Napi::Object exports);
void register_kernels(Napi::Env env, Napi::Object exports);
void register_bank(Napi::Env env, Napi::Object exports);
void register_model(Napi::Env env, Napi::Object exports);
void register_optimizer(Napi::Env env, Napi::Object exports);
void register_generation(Napi::Env env, Napi::Object exports);
void register_merge(Napi::Env env, Napi::Object exports);
void register_bilinear(Napi::Env env, Napi::Object exports);
void register_device_bank(Napi::Env env, Napi::Object exports);
void register_device(Napi::Env env, Napi::Object exports);
void register_bench(Napi::Env env, Napi::Object exports);

}  // namespace pluralign
