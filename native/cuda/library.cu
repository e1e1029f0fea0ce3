// The library's one symbol: the table of device/operators.h, with every exception turned into a status.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>

#include "cuda/context.h"
#include "cuda/products.h"
#include "ops/lora/lora.h"

namespace pluralign::device {
namespace {

template <class Body>
Status guarded(Context* context, Body&& body) noexcept {
  try {
    if (context->lost) throw cuda::Failure(Status::device_lost, "cuda:" + std::to_string(context->ordinal) + " failed before; the device can be used again by a new process");
    context->check(cudaSetDevice(context->ordinal), "choosing the device");  // a setting of the calling thread
    body();
    return Status::ok;
  } catch (const cuda::Failure& e) {
    context->message = e.what();
    return e.status;
  } catch (const std::bad_alloc&) {
    context->message = "the host has no memory left";
    return Status::out_of_memory;
  } catch (const std::exception& e) {
    context->message = e.what();
    return Status::failed;
  }
}

template <auto op, class Call>
Status call(Context* context, const Call* c) {
  return guarded(context, [&] { op(*context, *c); });
}

Status open(const Options* options, Context** out, char* text, size_t size) {
  try {
    *out = new Context(options->ordinal, options->memory);
    return Status::ok;
  } catch (const cuda::Failure& e) {
    std::snprintf(text, size, "%s", e.what());
    return e.status;
  } catch (const std::exception& e) {
    std::snprintf(text, size, "%s", e.what());
    return Status::failed;
  }
}

// What is held or planned on a context outlives whoever opened it: the last that goes ends a context that was closed.
void let_go(Context* context) {
  if (--context->users == 0) delete context;
}
void close(Context* context) { let_go(context); }
const char* message(Context* context) { return context->message.c_str(); }

Status allocate(Context* context, size_t bytes, const char* purpose, void** out) {
  return guarded(context, [&] {
    *out = context->allocate(bytes, purpose);
    ++context->users;
  });
}
void release(Context* context, void* at) {  // on any thread
  if (context->release(at)) let_go(context);
}
Status upload(Context* context, void* to, const void* host, size_t bytes) {
  return guarded(context, [&] { context->upload(to, host, bytes); });
}
Status fetch(Context* context, void* host, const void* from, size_t bytes) {
  return guarded(context, [&] {
    if (bytes) context->check(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, context->stream), "fetching");
    context->check(cudaStreamSynchronize(context->stream), "fetching");
  });
}
Status copy(Context* context, void* to, const void* from, size_t bytes) {
  return guarded(context, [&] { context->check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, context->stream), "copying"); });
}
Status zero(Context* context, void* to, size_t bytes) {
  return guarded(context, [&] { context->check(cudaMemsetAsync(to, 0, bytes, context->stream), "clearing"); });
}
Status synchronize(Context* context) {
  return guarded(context, [&] { context->check(cudaStreamSynchronize(context->stream), "waiting"); });
}

// Every array in one allocation, each aligned to 16 bytes, by one upload.
Status make_plan(Context* context, const PlanArrays* host, Plan** out) {
  return guarded(context, [&] {
    auto plan = std::make_unique<Plan>();
    plan->host = plan->on_device = *host;
    std::vector<char> bytes;
    std::vector<std::pair<size_t, void**>> places;
    const auto add = [&](auto*& field, int64_t count) {
      const size_t at = bytes.size(), size = size_t(count) * sizeof(*field);
      bytes.resize((at + size + 15) / 16 * 16);
      if (size) std::memcpy(bytes.data() + at, field, size);
      places.emplace_back(at, const_cast<void**>(reinterpret_cast<const void* const*>(&field)));
    };
    PlanArrays& d = plan->on_device;
    add(d.tokens, d.rows);
    add(d.positions, d.rows);
    add(d.row_keys, d.rows);
    add(d.node, d.nodes);
    add(d.span, d.spans);
    add(d.tree_starts, d.trees + 1);
    add(d.tree_nodes, d.nodes);
    add(d.run, d.runs);
    add(d.read_rows, d.readouts);
    add(d.targets, d.readouts);
    plan->memory = context->borrow(bytes.size(), "a plan");
    for (auto [at, field] : places) *field = static_cast<char*>(plan->memory) + at;
    try {
      context->upload(plan->memory, bytes.data(), bytes.size());
    } catch (...) {
      context->give_back(plan->memory);
      throw;
    }
    *out = plan.release();
    ++context->users;
  });
}

void drop_plan(Context* context, Plan* plan) {
  if (!plan) return;
  plan->schedules.clear();
  context->give_back(plan->memory);
  delete plan;
  let_go(context);
}

size_t describe(char* text, size_t size) {
  int driver = 0, runtime = 0, devices = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  std::string why;
  if (const cudaError_t e = cudaGetDeviceCount(&devices); e != cudaSuccess) why = cudaGetErrorString(e), devices = 0;
  cudaGetLastError();
  std::string json = "{\"driver\":" + std::to_string(driver) + ",\"runtime\":" + std::to_string(runtime) + ",\"obstacle\":\"" + why + "\",\"devices\":[";
  for (int i = 0; i < devices; ++i) {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, i) != cudaSuccess) continue;
    std::string name;
    for (const char* c = p.name; *c; ++c)
      if (*c != '"' && *c != '\\' && *c >= ' ') name += *c;
    json += std::string(i ? "," : "") + "{\"name\":\"" + name + "\",\"capability\":\"" + std::to_string(p.major) + "." + std::to_string(p.minor) + "\",\"memory\":" + std::to_string(p.totalGlobalMem) + "}";
  }
  json += "],\"products\":\"" + cuda::Products().source() + "\"}";
  if (size) std::snprintf(text, size, "%s", json.c_str());
  return json.size();
}

}  // namespace

Status memory_of(Context* context, Memory* out);

const Table& table() {
  static const Table made = [] {
    Table t{};
    t.version = kVersion;
    t.bytes = sizeof(Table);
    t.module_bytes = sizeof(LoraModule);
    t.open = open;
    t.close = close;
    t.message = message;
    t.describe = describe;
    t.allocate = allocate;
    t.release = release;
    t.memory = [](Context* c, Memory* out) { return guarded(c, [&] { memory_of(c, out); }); };
    t.upload = upload;
    t.fetch = fetch;
    t.copy = copy;
    t.zero = zero;
    t.synchronize = synchronize;
    t.make_plan = make_plan;
    t.drop_plan = drop_plan;
    t.norm = call<cuda::norm, NormCall>;
    t.norm_backward = call<cuda::norm_backward, NormBackwardCall>;
    t.embed = call<cuda::embed, EmbedCall>;
    t.embed_backward = call<cuda::embed_backward, EmbedBackwardCall>;
    t.rope = call<cuda::rope, RopeCall>;
    t.rope_backward = call<cuda::rope_backward, RopeCall>;
    t.linear = call<cuda::linear, LinearCall>;
    t.linear_backward = call<cuda::linear_backward, LinearCall>;
    t.swiglu = call<cuda::swiglu, SwigluCall>;
    t.swiglu_backward = call<cuda::swiglu_backward, SwigluCall>;
    t.gather = call<cuda::gather, GatherCall>;
    t.gather_backward = call<cuda::gather_backward, GatherCall>;
    t.reward = call<cuda::reward, RewardCall>;
    t.reward_backward = call<cuda::reward_backward, RewardCall>;
    t.adamw = call<cuda::adamw, AdamWCall>;
    t.sample = call<cuda::sample, SampleCall>;
    t.squared_norms = call<cuda::squared_norms, SquaredNormsCall>;
    t.head = call<cuda::head, HeadCall>;
    t.head_backward = call<cuda::head_backward, HeadCall>;
    t.attention = call<cuda::attention, AttentionCall>;
    t.attention_cached = call<cuda::attention_cached, CachedAttentionCall>;
    t.attention_backward = call<cuda::attention_backward, AttentionBackwardCall>;
    return t;
  }();
  return made;
}

}  // namespace pluralign::device

#ifdef _WIN32
#define PLURALIGN_EXPORT __declspec(dllexport)
#else
#define PLURALIGN_EXPORT __attribute__((visibility("default")))
#endif
extern "C" PLURALIGN_EXPORT const pluralign::device::Table* pluralign_device() { return &pluralign::device::table(); }
