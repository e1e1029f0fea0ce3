// Models for JavaScript. Arguments are checked on the main thread; the work runs as jobs.
#include <optional>

#include "arrays.h"
#include "jobs.h"
#include "loaded.h"
#include "register.h"

namespace pluralign {
namespace {

ModelConfig config_from(const Napi::Object& o) {
  ModelConfig c;
  c.vocabulary = integer(o, "vocabSize");
  c.hidden = integer(o, "hiddenSize");
  c.intermediate = integer(o, "intermediateSize");
  c.layers = integer(o, "layers");
  c.heads = integer(o, "heads");
  c.kv_heads = integer(o, "kvHeads");
  c.head_dim = integer(o, "headDim");
  c.window = integer(o, "slidingWindow", 0);
  c.eps = number(o, "normEps");
  c.rope_factor = number(o, "ropeAttentionFactor");
  c.qk_norm = boolean(o, "qkNorm");
  c.tied = boolean(o, "tied");
  const auto f = array<double>(o.Get("ropeInverseFrequencies"), "ropeInverseFrequencies");
  c.rope_frequencies.assign(f.data, f.data + f.size);
  for (int64_t n : {c.vocabulary, c.hidden, c.intermediate, c.layers, c.heads, c.kv_heads, c.head_dim})
    if (n < 1 || n > (int64_t(1) << 24)) throw_error("BAD_ARGUMENT", "the model's sizes must be positive");
  if (c.heads % c.kv_heads || c.head_dim % 2 || f.size * 2 != c.head_dim)
    throw_error("BAD_ARGUMENT", "heads must be a multiple of kvHeads, headDim even, and frequencies headDim / 2");
  return c;
}

std::string dtype_from(const Napi::Object& o) {
  const std::string dtype = o.Get("dtype").ToString();
  if (dtype != "float32" && dtype != "bfloat16") throw_error("BAD_ARGUMENT", "dtype must be float32 or bfloat16, found %s", dtype.c_str());
  return dtype;
}

void choose_device(const Napi::Object& options, Loaded& loaded) {
  const Napi::Value library = options.Get("library");
  if (library.IsUndefined() || library.IsNull()) return;
  loaded.library = library.ToString();
  loaded.ordinal = int(integer(options, "ordinal", 0, 1023));
}

constexpr napi_type_tag kModelTag = {0x5e0b7c93d1f8246a, 0xb46d9f2e8a7130c5};

class ModelObject : public Napi::ObjectWrap<ModelObject> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Model", {InstanceAccessor<&ModelObject::kind>("kind"), InstanceAccessor<&ModelObject::shares_packs>("sharesPacks"), InstanceMethod<&ModelObject::score>("score"),
                                      InstanceMethod<&ModelObject::backward>("backward"), InstanceMethod<&ModelObject::hidden>("hidden"),
                                      InstanceMethod<&ModelObject::generate>("generate"), InstanceMethod<&ModelObject::memory>("memory"),
                                      InstanceMethod<&ModelObject::weight_shapes>("weightShapes"), InstanceMethod<&ModelObject::dispose>("dispose")});
  }
  explicit ModelObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    if (info.Length() != 1 || !info[0].IsExternal()) throw to_js_error(info.Env(), "BAD_ARGUMENT", "models are made by loadModel or emptyModel");
    loaded_ = *info[0].As<Napi::External<std::shared_ptr<Loaded>>>().Data();
    info.This().As<Napi::Object>().TypeTag(&kModelTag);
    account(info.Env());
  }
  ~ModelObject() override { unaccount(Env()); }

  static Napi::Value wrap(Napi::Env env, const std::shared_ptr<Loaded>& loaded);

 private:
  Napi::Value kind(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), "model"); }

  Napi::Value shares_packs(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const auto l = loaded();
      return Napi::Boolean::New(info.Env(), l->library.empty() && l->model->weights().in_cache());
    });
  }

  friend std::shared_ptr<Loaded> pluralign::loaded_from(const Napi::Value& model);
  std::shared_ptr<Loaded> loaded() const {
    if (!loaded_) throw Error("DISPOSED", "the model was disposed of");
    return loaded_;
  }
  static std::shared_ptr<Bank> bank(const Napi::Value& v) { return bank_from(v); }
  static void set_abort(Job& job, const Napi::Value& flag) {
    if (flag.IsUndefined() || flag.IsNull()) return;
    const auto flags = array<int32_t>(flag, "abort");
    if (flags.size == 0) throw_error("BAD_ARGUMENT", "abort must have an element");
    job.abort_flag = flags.data;
    job.keep(flag);
  }
  // The weights' and activations' memory counts as the garbage collector's concern.
  void account(Napi::Env env) {
    const int64_t now = loaded_ ? loaded_->weight_bytes + loaded_->activation_bytes : 0;
    Napi::MemoryManagement::AdjustExternalMemory(env, now - accounted_);
    accounted_ = now;
  }
  void unaccount(Napi::Env env) {
    if (accounted_) Napi::MemoryManagement::AdjustExternalMemory(env, -accounted_);
    accounted_ = 0;
  }

  static Pack pack_from(const Napi::Object& o, Job& job) {
    const auto take = [&](const char* key) {
      const Napi::Value v = o.Get(key);
      job.keep(v);
      return v;
    };
    const auto tokens = array<int32_t>(take("tokens"), "tokens");
    const auto starts = array<int32_t>(take("segmentStarts"), "segmentStarts");
    const auto parents = array<int32_t>(take("parents"), "parents");
    const auto adapters = array<int32_t>(take("adapters"), "adapters");
    const auto grads = array<uint8_t>(take("needsGrad"), "needsGrad");
    const auto keys = array<uint32_t>(take("keys"), "keys");
    const auto rows = array<int32_t>(take("rows"), "rows");
    const auto targets = array<int32_t>(take("targets"), "targets");
    const int64_t s = parents.size;
    if (starts.size != s + 1 || adapters.size != s || grads.size != s || keys.size != s || targets.size != rows.size)
      throw_error("BAD_ARGUMENT", "pack: the arrays of segments or of readouts differ in length");
    return {tokens.data, tokens.size, starts.data, parents.data, adapters.data, grads.data, keys.data, s, rows.data, targets.data, rows.size};
  }

  Napi::Value submit(const Napi::CallbackInfo& info, std::unique_ptr<Job> job, std::function<void(Model&, const Device&, const Cancel&)> body) {
    Executor& executor = Executor::of(info.Env());
    job->work = [loaded = loaded(), body = std::move(body), &executor](const Cancel& cancel) {
      struct Measured {
        Loaded& loaded;
        ~Measured() { loaded.measure(); }
      } measured{*loaded};
      body(*loaded->model, loaded->ready(executor), cancel);
    };
    job->keep(info.This());
    if (!job->result) job->result = [this](Napi::Env env) -> Napi::Value {
      account(env);
      return env.Undefined();
    };
    return executor.submit(std::move(job));
  }

  Napi::Value score(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      auto job = std::make_unique<Job>(info.Env());
      const auto model = loaded();
      const Pack pack = pack_from(object(info[0], "pack"), *job);
      const auto b = bank(info[1]);
      job->keep(info[1]);
      const Napi::Object options = object(info[2], "options");
      const std::string read = options.Get("read").ToString();
      if (read != "logps" && read != "reward") throw_error("BAD_ARGUMENT", "read must be logps or reward");
      const ScoreRequest request{read == "reward", boolean(options, "keep"), boolean(options, "checkpoint"), uint32_t(integer(options, "dropoutSeed", 0, UINT32_MAX)),
                                 options.Get("temperature").IsUndefined() ? 1.f : float(number(options, "temperature"))};
      if (!(request.temperature > 0)) throw_error("BAD_ARGUMENT", "temperature must be above 0");
      set_abort(*job, options.Get("abort"));
      const auto out = array<float>(info[3], "out");
      job->keep(info[3]);
      Span<float> squares;
      if (info.Length() > 4 && !info[4].IsUndefined()) {
        squares = array<float>(info[4], "squares");
        job->keep(info[4]);
        if (squares.size != pack.readouts) throw_error("BAD_ARGUMENT", "squares must have one element for each readout");
      }
      if (out.size != pack.readouts) throw_error("BAD_ARGUMENT", "out must have one element for each readout");
      return submit(info, std::move(job), [=](Model& m, const Device& device, const Cancel& cancel) {
        m.score(device, pack, b.get(), request, out.data, squares.data, cancel);
      });
    });
  }

  Napi::Value backward(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      auto job = std::make_unique<Job>(info.Env());
      const auto model = loaded();
      const auto b = bank(info[0]);
      if (!b) throw_error("BAD_ARGUMENT", "backward needs a bank");
      job->keep(info[0]);
      const auto gradient = array<float>(info[1], "gradient");
      job->keep(info[1]);
      if (info.Length() > 2) set_abort(*job, info[2]);
      return submit(info, std::move(job), [=](Model& m, const Device& device, const Cancel& cancel) { m.backward(device, *b, gradient.data, gradient.size, cancel); });
    });
  }

  Napi::Value hidden(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      auto job = std::make_unique<Job>(info.Env());
      const auto model = loaded();
      const Pack pack = pack_from(object(info[0], "pack"), *job);
      const auto b = bank(info[1]);
      job->keep(info[1]);
      const auto out = array<float>(info[2], "out");
      job->keep(info[2]);
      if (info.Length() > 3) set_abort(*job, info[3]);
      if (out.size != pack.readouts * model->model->config().hidden) throw_error("BAD_ARGUMENT", "out must be [readouts x hiddenSize]");
      return submit(info, std::move(job), [=](Model& m, const Device& device, const Cancel& cancel) { m.hidden(device, pack, b.get(), out.data, cancel); });
    });
  }

  Napi::Value generate(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      auto job = std::make_unique<Job>(info.Env());
      const auto model = loaded();
      std::vector<std::vector<int32_t>> prompts;
      const Napi::Array texts_in = list(info[0], "prompts");
      for (uint32_t i = 0; i < texts_in.Length(); ++i) {
        const auto ids = array<int32_t>(texts_in.Get(i), "prompt");
        prompts.emplace_back(ids.data, ids.data + ids.size);
      }
      const auto b = bank(info[1]);
      job->keep(info[1]);
      const Napi::Object o = object(info[2], "options");
      GenerateRequest request{int(integer(o, "adapter", -1)), integer(o, "maxNewTokens", 0), float(number(o, "temperature")), float(number(o, "topP")), integer(o, "topK", 0), {}, {}};
      if (!(request.temperature >= 0)) throw_error("BAD_ARGUMENT", "temperature must be 0 (greedy) or more, found %g", request.temperature);
      if (!(request.top_p > 0 && request.top_p <= 1)) throw_error("BAD_ARGUMENT", "topP must be in (0, 1], found %g", request.top_p);
      const auto seeds = array<uint32_t>(o.Get("seeds"), "seeds");
      request.seeds.assign(seeds.data, seeds.data + seeds.size);
      const auto stops = array<int32_t>(o.Get("stopTokens"), "stopTokens");
      request.stop_tokens.assign(stops.data, stops.data + stops.size);
      set_abort(*job, o.Get("abort"));
      auto texts = std::make_shared<std::vector<std::vector<int32_t>>>();
      job->result = [this, texts](Napi::Env env) -> Napi::Value {
        account(env);
        Napi::Array out = Napi::Array::New(env, texts->size());
        for (size_t i = 0; i < texts->size(); ++i) {
          auto ids = Napi::Int32Array::New(env, (*texts)[i].size());
          std::copy((*texts)[i].begin(), (*texts)[i].end(), ids.Data());
          out.Set(uint32_t(i), ids);
        }
        return out;
      };
      return submit(info, std::move(job), [=, &executor = Executor::of(info.Env())](Model& m, const Device& device, const Cancel& cancel) {
        *texts = m.generate(model->host(executor), device, prompts, b.get(), request, cancel);
      });
    });
  }

  Napi::Value memory(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&]() -> Napi::Value {
      const auto model = loaded();
      Napi::Object out = Napi::Object::New(info.Env());
      out.Set("weights", double(model->weight_bytes));
      out.Set("activations", double(model->activation_bytes));
      out.Set("device", double(model->device_bytes));
      return out;
    });
  }

  Napi::Value weight_shapes(const Napi::CallbackInfo& info);

  Napi::Value dispose(const Napi::CallbackInfo& info) {
    loaded_.reset();
    unaccount(info.Env());
    return info.Env().Undefined();
  }

  std::shared_ptr<Loaded> loaded_;
  int64_t accounted_ = 0;
};

Napi::Value shapes_to_js(Napi::Env env, const std::vector<WeightShape>& shapes) {
  Napi::Array out = Napi::Array::New(env);
  for (const WeightShape& s : shapes) {
    Napi::Object o = Napi::Object::New(env);
    o.Set("name", s.name);
    o.Set("rows", double(s.rows));
    o.Set("cols", double(s.cols));
    out.Set(out.Length(), o);
  }
  return out;
}

Napi::Value ModelObject::weight_shapes(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return shapes_to_js(info.Env(), loaded()->model->weights().shapes()); });
}

// The constructors of this environment, kept on the exports object.
Napi::Value ModelObject::wrap(Napi::Env env, const std::shared_ptr<Loaded>& loaded) {
  auto* holder = new std::shared_ptr<Loaded>(loaded);
  const auto external = Napi::External<std::shared_ptr<Loaded>>::New(env, holder, [](Napi::Env, std::shared_ptr<Loaded>* p) { delete p; });
  const Napi::Object made = Executor::of(env).constructor("Model").New({external});
  holder->reset();  // the external lives until it is collected, and must not keep the weights from dispose()
  return made;
}

Napi::Value load_model(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const ModelConfig config = config_from(object(info[0], "config"));
    std::vector<std::string> files;
    const Napi::Array paths = list(info[1], "files");
    for (uint32_t i = 0; i < paths.Length(); ++i) files.push_back(paths.Get(i).ToString());
    const Napi::Object options = object(info[2], "options");
    const bool bfloat16 = dtype_from(options) == "bfloat16";
    auto loaded = std::make_shared<Loaded>();
    loaded->threads = int(integer(options, "threads", 1, 1024));
    choose_device(options, *loaded);
    auto job = std::make_unique<Job>(info.Env());
    job->work = [=](const Cancel& cancel) {
      loaded->model = std::make_unique<Model>(config, Weights::load(config, files, bfloat16, cancel), bfloat16);
      loaded->measure();
    };
    job->result = [loaded](Napi::Env env) { return ModelObject::wrap(env, loaded); };
    return Executor::of(info.Env()).submit(std::move(job));
  });
}

Napi::Value empty_model(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const ModelConfig config = config_from(object(info[0], "config"));
    const Napi::Object options = object(info[1], "options");
    auto loaded = std::make_shared<Loaded>();
    loaded->threads = int(integer(options, "threads", 1, 1024));
    choose_device(options, *loaded);
    loaded->model = std::make_unique<Model>(config, Weights::none(config), dtype_from(options) == "bfloat16");
    return ModelObject::wrap(info.Env(), loaded);
  });
}

Napi::Value all_weight_shapes(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    std::vector<WeightShape> shapes = weight_shapes(config_from(object(info[0], "config")));
    std::erase_if(shapes, [](const WeightShape& s) { return s.optional; });
    return shapes_to_js(info.Env(), shapes);
  });
}

}  // namespace

std::shared_ptr<Loaded> loaded_from(const Napi::Value& v) {
  if (!object(v, "model").CheckTypeTag(&kModelTag)) throw_error("BAD_ARGUMENT", "model must come from loadModel or emptyModel");
  return Napi::ObjectWrap<ModelObject>::Unwrap(object(v, "model"))->loaded();
}

void register_model(Napi::Env env, Napi::Object exports) {
  Executor::of(env).keep_constructor("Model", ModelObject::define(env));
  exports.Set("loadModel", Napi::Function::New(env, load_model));
  exports.Set("emptyModel", Napi::Function::New(env, empty_model));
  exports.Set("weightShapes", Napi::Function::New(env, all_weight_shapes));
}

}  // namespace pluralign
