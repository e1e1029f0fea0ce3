// Banks for JavaScript: the factors of adapters (or base weights) over buffers that JavaScript holds.
#include <map>

#include "arrays.h"
#include "jobs.h"
#include "loaded.h"
#include "register.h"

namespace pluralign {
namespace {

// Tells banks from other wrapped objects: unwrapping those as a bank would read foreign memory.
constexpr napi_type_tag kBankTag = {0x8c1f5d0a6b7e4239, 0x97a3e4d2c0b15f68};

class BankObject : public Napi::ObjectWrap<BankObject> {
 public:
  static Napi::Function define(Napi::Env env) { return DefineClass(env, "Bank", {InstanceAccessor<&BankObject::kind>("kind")}); }
  explicit BankObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    guarded(info.Env(), [&]() -> Napi::Value {
      const Napi::Object layout = object(info[0], "layout");
      const auto parameters = array<float>(info[1], "parameters");
      const auto gradients = array<float>(info[2], "gradients");
      if (parameters.size != gradients.size) throw_error("BAD_ARGUMENT", "parameters and gradients must be of one length");
      const auto flat = array<int32_t>(layout.Get("factors"), "factors");
      std::vector<Factor> factors;
      for (int64_t i = 0; i + 2 < flat.size; i += 3) factors.push_back({flat.data[i], flat.data[i + 1], flat.data[i + 2]});
      std::vector<std::vector<ModuleSpec>> adapters;
      if (flat.size % 3) throw_error("BAD_ARGUMENT", "factors must be triples of offset, rows and columns");
      const Napi::Array all = list(layout.Get("adapters"), "adapters");
      for (uint32_t i = 0; i < all.Length(); ++i) {
        Napi::HandleScope scope(info.Env());
        auto& modules = adapters.emplace_back();
        const Napi::Array specs = list(all.Get(i), "an adapter's modules");
        for (uint32_t j = 0; j < specs.Length(); ++j) {
          const Napi::Object m = object(specs.Get(j), "module");
          modules.push_back({integer(m, "layer"), int(integer(m, "target")), int(integer(m, "a")), int(integer(m, "b")), int(integer(m, "core")),
                             float(number(m, "scale")), float(number(m, "dropout"))});
        }
      }
      const auto heads = array<int32_t>(layout.Get("rewardHeads"), "rewardHeads");
      std::map<std::string, int> weights;
      const Napi::Object named = object(layout.Get("weights"), "weights");
      const Napi::Array names = named.GetPropertyNames();
      for (uint32_t i = 0; i < names.Length(); ++i) {
        const std::string name = names.Get(i).ToString();
        weights[name] = int(integer(named, name.c_str()));
      }
      bank_ = std::make_shared<Bank>(parameters.data, gradients.data, parameters.size, std::move(factors), adapters,
                                     std::vector<int>(heads.data, heads.data + heads.size), std::move(weights));
      parameters_ = Napi::Persistent(info[1].As<Napi::Object>());
      gradients_ = Napi::Persistent(info[2].As<Napi::Object>());
      info.This().As<Napi::Object>().TypeTag(&kBankTag);
      return info.Env().Undefined();
    });
  }
  Napi::Value kind(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), "bank"); }
  std::shared_ptr<Bank> bank() const {
    // A buffer that was transferred to another thread leaves an array of length 0.
    if (array<float>(parameters_.Value(), "parameters").size != bank_->size() || array<float>(gradients_.Value(), "gradients").size != bank_->size())
      throw_error("BAD_ARGUMENT", "the bank's buffers were transferred or resized");
    return bank_;
  }

 private:
  std::shared_ptr<Bank> bank_;
  Napi::ObjectReference parameters_, gradients_;  // the buffers the bank points into
};

Napi::Value create_bank(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return Executor::of(info.Env()).constructor("Bank").New({info[0], info[1], info[2]}); });
}

}  // namespace

std::shared_ptr<Bank> bank_from(const Napi::Value& v) {
  if (v.IsNull() || v.IsUndefined()) return nullptr;
  if (!object(v, "bank").CheckTypeTag(&kBankTag)) throw_error("BAD_ARGUMENT", "bank must come from createBank");
  return Napi::ObjectWrap<BankObject>::Unwrap(object(v, "bank"))->bank();
}

void register_bank(Napi::Env env, Napi::Object exports) {
  Executor::of(env).keep_constructor("Bank", BankObject::define(env));
  exports.Set("createBank", Napi::Function::New(env, create_bank));
}

}  // namespace pluralign
