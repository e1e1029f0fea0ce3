// Generation for JavaScript: one object holds the sequences of a batch that goes on; see NativeGeneration in
// lib/native/generation.ts.
#include "model/generate.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "arrays.h"
#include "jobs.h"
#include "loaded.h"
#include "register.h"

namespace pluralign {
namespace {

struct Held {
  std::shared_ptr<Loaded> loaded;
  std::unique_ptr<Generation> generation;  // made by the first run: the instruction set is then known
  Generation::Limits limits;
  std::vector<int32_t> stop_tokens;
  bool broken = false;  // an error came half way
};

constexpr napi_type_tag kGenerationTag = {0x2f96c1ad7e0854b3, 0x81d3f7a95c6e402b};

SequenceRequest request_from(const Napi::Object& o) {
  SequenceRequest q;
  const auto prompt = array<int32_t>(o.Get("prompt"), "prompt");
  q.prompt.assign(prompt.data, prompt.data + prompt.size);
  const auto adapters = array<int32_t>(o.Get("adapters"), "adapters");
  const auto weights = array<float>(o.Get("weights"), "weights");
  if (adapters.size != weights.size) throw_error("BAD_ARGUMENT", "a sequence needs a weight for each adapter");
  for (int64_t i = 0; i < adapters.size; ++i) q.members.push_back({adapters.data[i], weights.data[i]});
  static const std::map<std::string, Mix> kMixes = {{"reverse-kl", Mix::reverse_kl}, {"forward-kl", Mix::forward_kl}, {"alpha", Mix::alpha}};
  const auto mix = kMixes.find(o.Get("mix").ToString());
  if (mix == kMixes.end()) throw_error("BAD_ARGUMENT", "mix must be reverse-kl, forward-kl or alpha");
  q.mix = mix->second;
  q.alpha = number(o, "alpha");
  q.max_new_tokens = integer(o, "maxNewTokens", 0);
  q.seed = uint32_t(integer(o, "seed", 0, UINT32_MAX));
  SampleOptions& s = q.sampling;
  s.temperature = float(number(o, "temperature"));
  s.top_k = integer(o, "topK", 0);
  s.top_p = float(number(o, "topP"));
  s.min_p = float(number(o, "minP"));
  s.repetition_penalty = float(number(o, "repetitionPenalty"));
  if (!(s.temperature >= 0)) throw_error("BAD_ARGUMENT", "temperature must be 0 (greedy) or more, found %g", double(s.temperature));
  if (!(s.top_p > 0 && s.top_p <= 1)) throw_error("BAD_ARGUMENT", "topP must be in (0, 1], found %g", double(s.top_p));
  if (!(s.min_p >= 0 && s.min_p <= 1)) throw_error("BAD_ARGUMENT", "minP must be in [0, 1], found %g", double(s.min_p));
  if (!(s.repetition_penalty > 0)) throw_error("BAD_ARGUMENT", "repetitionPenalty must be positive, found %g", double(s.repetition_penalty));
  if (!std::isfinite(q.alpha) || q.alpha == 0) throw_error("BAD_ARGUMENT", "alpha must be a number other than 0, found %g", q.alpha);
  return q;
}

template <class Array, class T>
Array typed(Napi::Env env, const std::vector<T>& from) {
  auto out = Array::New(env, from.size());
  std::copy(from.begin(), from.end(), out.Data());
  return out;
}

Napi::Value to_js(Napi::Env env, const std::vector<SequenceOutput>& outputs, int64_t left, int64_t replayed) {
  std::vector<int32_t> ids, ends, tokens;
  std::vector<float> logps;
  std::vector<uint8_t> finished;
  for (const SequenceOutput& o : outputs) {
    ids.push_back(int32_t(o.id));
    tokens.insert(tokens.end(), o.tokens.begin(), o.tokens.end());
    logps.insert(logps.end(), o.logps.begin(), o.logps.end());
    ends.push_back(int32_t(tokens.size()));
    finished.push_back(o.finished);
  }
  Napi::Object out = Napi::Object::New(env);
  out.Set("ids", typed<Napi::Int32Array>(env, ids));
  out.Set("ends", typed<Napi::Int32Array>(env, ends));
  out.Set("tokens", typed<Napi::Int32Array>(env, tokens));
  out.Set("logps", typed<Napi::Float32Array>(env, logps));
  out.Set("finished", typed<Napi::Uint8Array>(env, finished));
  out.Set("left", double(left));
  out.Set("replayed", double(replayed));
  return out;
}

class GenerationObject : public Napi::ObjectWrap<GenerationObject> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Generation", {InstanceMethod<&GenerationObject::run>("run"), InstanceMethod<&GenerationObject::bytes>("bytes")});
  }
  explicit GenerationObject(const Napi::CallbackInfo& info) : ObjectWrap(info), held_(std::make_shared<Held>()) {
    guarded(info.Env(), [&]() -> Napi::Value {
      held_->loaded = loaded_from(info[0]);
      const Napi::Object o = object(info[1], "options");
      held_->limits = {integer(o, "rows", 1), int64_t(number(o, "memory"))};
      const auto stops = array<int32_t>(o.Get("stopTokens"), "stopTokens");
      held_->stop_tokens.assign(stops.data, stops.data + stops.size);
      info.This().As<Napi::Object>().TypeTag(&kGenerationTag);
      return info.Env().Undefined();
    });
  }

 private:
  Napi::Value bytes(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const Model& model = *held_->loaded->model;
      const KvCache cache(model.config(), kernels_of(choose_isa()), model.storage());
      const double tokens = info[0].ToNumber().DoubleValue();
      if (!(tokens >= 0 && tokens < 1e9)) throw_error("BAD_ARGUMENT", "tokens must be a number of tokens");
      const double on_device = double(model.config().layers * DeviceCache::row_bytes(model.config(), model.storage())) * std::floor(tokens);
      return Napi::Number::New(info.Env(), held_->loaded->library.empty() ? double(cache.bytes(int64_t(tokens))) : on_device);
    });
  }

  Napi::Value run(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      if (!info.This().As<Napi::Object>().CheckTypeTag(&kGenerationTag)) throw_error("BAD_ARGUMENT", "run needs its generation");
      auto job = std::make_unique<Job>(info.Env());
      job->keep(info.This());
      const auto bank = bank_from(info[0]);
      job->keep(info[0]);
      const Napi::Object o = object(info[1], "options");
      const int64_t steps = integer(o, "steps", 0);
      auto added = std::make_shared<std::vector<std::pair<int64_t, SequenceRequest>>>();
      const Napi::Array requests = list(o.Get("add"), "add");
      for (uint32_t i = 0; i < requests.Length(); ++i) {
        Napi::HandleScope scope(info.Env());
        const Napi::Object q = object(requests.Get(i), "request");
        added->emplace_back(integer(q, "id", 0), request_from(q));
      }
      const auto removed = array<int32_t>(o.Get("remove"), "remove");
      std::vector<int32_t> gone(removed.data, removed.data + removed.size);
      if (const Napi::Value flag = o.Get("abort"); !flag.IsUndefined() && !flag.IsNull()) {
        const auto flags = array<int32_t>(flag, "abort");
        if (flags.size == 0) throw_error("BAD_ARGUMENT", "abort must have an element");
        job->abort_flag = flags.data;
        job->keep(flag);
      }
      auto outputs = std::make_shared<std::vector<SequenceOutput>>();
      auto left = std::make_shared<int64_t>(0), replayed = std::make_shared<int64_t>(0);
      Executor& executor = Executor::of(info.Env());
      job->work = [held = held_, bank, steps, added, gone, outputs, left, replayed, &executor](const Cancel& cancel) {
        if (held->broken) throw_error("BAD_ARGUMENT", "this generation ended with an error; open another");
        held->broken = true;
        Model& model = *held->loaded->model;
        const Device& device = held->loaded->ready(executor);
        if (!held->generation) held->generation = std::make_unique<Generation>(model, held->loaded->host(executor), device, held->limits, held->stop_tokens);
        for (int32_t id : gone) held->generation->remove(id);
        for (auto& [id, request] : *added) held->generation->add(id, std::move(request), bank ? bank->adapters() : 0);
        *outputs = held->generation->run(model, bank.get(), steps, cancel);
        *left = held->generation->left();
        *replayed = held->generation->replayed();
        held->loaded->measure();
        held->broken = false;
      };
      job->result = [outputs, left, replayed](Napi::Env env) { return to_js(env, *outputs, *left, *replayed); };
      return executor.submit(std::move(job));
    });
  }

  std::shared_ptr<Held> held_;
};

Napi::Value create_generation(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return Executor::of(info.Env()).constructor("Generation").New({info[0], info[1]}); });
}

}  // namespace

void register_generation(Napi::Env env, Napi::Object exports) {
  Executor::of(env).keep_constructor("Generation", GenerationObject::define(env));
  exports.Set("createGeneration", Napi::Function::New(env, create_generation));
}

}  // namespace pluralign
