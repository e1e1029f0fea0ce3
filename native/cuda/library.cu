// The library's one symbol: the table of device/operators.h, with every exception turned into a status.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

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
    context->not_recorded("a fetch");
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
  return guarded(context, [&] {
    context->not_recorded("waiting");
    context->check(cudaStreamSynchronize(context->stream), "waiting");
  });
}

Status begin_recording(Context* context) {
  return guarded(context, [&] { context->begin_recording(); });
}
Status end_recording(Context* context, Recording** out) {
  return guarded(context, [&] {
    auto made = context->end_recording(out != nullptr);
    if (!out) return;
    if (!made) throw cuda::Failure(Status::bad_argument, "no recording is under way");
    *out = made.release();
    ++context->users;
  });
}
Status replay(Context* context, Recording* recording) {
  Status status = Status::ok;
  const Status reached = guarded(context, [&] { status = context->replay(*recording); });
  return reached == Status::ok ? status : reached;
}
void drop_recording(Context* context, Recording* recording) {
  if (!recording) return;
  context->drop(std::unique_ptr<Recording>(recording));
  let_go(context);
}

void let_go_of(Context* context, const Plan& plan) {
  if (plan.host.standing) context->release(plan.memory);
  else context->give_back(plan.memory);
}

// Every array one behind the other, each aligned to 16 bytes; `device` gets where they lie from a beginning of 0.
std::vector<char> lay_out(const PlanArrays& host, PlanArrays& device) {
  std::vector<char> bytes;
  const auto add = [&](auto*& field, int64_t count) {
    const size_t at = bytes.size(), size = size_t(count) * sizeof(*field);
    bytes.resize((at + size + 15) / 16 * 16);
    if (size) std::memcpy(bytes.data() + at, field, size);
    field = reinterpret_cast<std::remove_reference_t<decltype(field)>>(at);
  };
  device = host;
  add(device.tokens, device.rows);
  add(device.positions, device.rows);
  add(device.row_keys, device.rows);
  add(device.node, device.nodes);
  add(device.span, device.spans);
  add(device.tree_starts, device.trees + 1);
  add(device.tree_nodes, device.nodes);
  add(device.run, device.runs);
  add(device.read_rows, device.readouts);
  add(device.targets, device.readouts);
  add(device.draws, device.draws ? device.readouts : 0);
  return bytes;
}
void place(PlanArrays& device, char* at) {
  const auto move = [&](auto*& field) { field = reinterpret_cast<std::remove_reference_t<decltype(field)>>(at + reinterpret_cast<uintptr_t>(field)); };
  move(device.tokens), move(device.positions), move(device.row_keys), move(device.node), move(device.span), move(device.tree_starts);
  move(device.tree_nodes), move(device.run), move(device.read_rows), move(device.targets), move(device.draws);
}

Status make_plan(Context* context, const PlanArrays* host, Plan** out) {
  return guarded(context, [&] {
    auto plan = std::make_unique<Plan>();
    plan->host = *host;
    const std::vector<char> bytes = lay_out(*host, plan->on_device);
    // A standing plan's memory is its own, so that recordings over it end with it.
    plan->memory = host->standing ? context->allocate(bytes.size(), "a plan") : context->borrow(bytes.size(), "a plan");
    place(plan->on_device, static_cast<char*>(plan->memory));
    try {
      context->upload(plan->memory, bytes.data(), bytes.size());
    } catch (...) {
      let_go_of(context, *plan);
      throw;
    }
    *out = plan.release();
    ++context->users;
  });
}

Status renew_plan(Context* context, Plan* plan, const PlanArrays* host) {
  return guarded(context, [&] {
    const PlanArrays &a = plan->host, &b = *host;
    if (!a.standing || !b.standing || a.rows != b.rows || a.nodes != b.nodes || a.spans != b.spans || a.trees != b.trees || a.runs != b.runs || a.readouts != b.readouts || !a.draws != !b.draws)
      throw cuda::Failure(Status::bad_argument, "a standing plan has other sizes");
    plan->host = b;
    const std::vector<char> bytes = lay_out(b, plan->on_device);
    place(plan->on_device, static_cast<char*>(plan->memory));
    context->upload(plan->memory, bytes.data(), bytes.size());
    for (const auto& [name, schedule] : plan->schedules) schedule->renew(*plan);
  });
}

void drop_plan(Context* context, Plan* plan) {
  if (!plan) return;
  plan->schedules.clear();
  let_go_of(context, *plan);
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
    t.renew_plan = renew_plan;
    t.begin_recording = begin_recording;
    t.end_recording = end_recording;
    t.replay = replay;
    t.drop_recording = drop_recording;
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
