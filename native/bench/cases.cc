#include "cases.h"

#include "ops/adamw/adamw.h"
#include "ops/attention/attention.h"
#include "ops/head/head.h"
#include "ops/lora/lora.h"
#include "ops/norm/norm.h"
#include "ops/swiglu/swiglu.h"

namespace pluralign {
namespace {

using Body = std::function<void()>;

// Uniform in [-1, 1).
struct Data {
  explicit Data(DType type, int64_t n, uint64_t seed) : floats(type == DType::f32 ? size_t(n) : 0), halves(type == DType::f32 ? 0 : size_t(n)) {
    uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
    for (int64_t i = 0; i < n; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      const float v = float(int32_t(state >> 32)) * (1.f / 2147483648.f);
      if (type == DType::f32) floats[size_t(i)] = v;
      else halves[size_t(i)] = to_bf16(v);
    }
  }
  void* at() { return floats.empty() ? static_cast<void*>(halves.data()) : floats.data(); }
  std::vector<float> floats;
  std::vector<bf16> halves;
};

// What a call needs, alive for as long as the call is.
struct Operands {
  std::vector<std::unique_ptr<Data>> data;
  PackedOperand packed;
  void* make(DType type, int64_t n) {
    data.push_back(std::make_unique<Data>(type, n, data.size() + 1));
    return data.back()->at();
  }
  float* floats(int64_t n) { return static_cast<float*>(make(DType::f32, n)); }
};

const char* type_name(DType type) { return type == DType::f32 ? "float32" : "bf16"; }
std::string label(const char* op, DType type, std::initializer_list<int64_t> shape) {
  std::string name = std::string(op) + "/" + type_name(type) + "/";
  for (int64_t n : shape) name.append(name.back() == '/' ? 0 : 1, 'x').append(std::to_string(n));
  return name;
}

BenchCase linear(DType type, int64_t m, int64_t k, int64_t n) {
  const auto prepare = [=](Context& context) -> Body {
    const auto o = std::make_shared<Operands>();
    Gemm g{m, n, k, matrix(o->make(type, m * k), type, k), transposed(o->make(type, n * k), type, k), o->make(type, m * n), type, n};
    pack_right(context.kernels, o->packed, g.b, n, k, runs_in_bf16(context.kernels, type, type, false));
    g.packed = &o->packed;
    return [=, &context] { gemm(context, g); (void)o; };
  };
  return {label("linear", type, {m, k, n}), 2.0 * double(m) * double(n) * double(k), 0, prepare};
}

BenchCase norm(DType type, int64_t rows, int64_t width, bool backward) {
  const auto prepare = [=](Context& context) -> Body {
    const auto o = std::make_shared<Operands>();
    const int storage = type == DType::f32 ? kF32 : kBf16;
    const int64_t n = rows * width;
    float *x = o->floats(n), *w = o->floats(width), *rstd = o->floats(rows), *dx = o->floats(n), *dy = o->floats(n);
    void* y = o->make(type, n);
    rmsnorm(context, storage, y, rstd, x, w, rows, width, 1e-5f);
    return [=, &context] {
      (void)o;
      if (backward) rmsnorm_backward(context, dx, dy, x, rstd, w, rows, width, false);
      else rmsnorm(context, storage, y, rstd, x, w, rows, width, 1e-5f);
    };
  };
  const double bytes = double(rows * width) * (backward ? 12 : 4 + double(dtype_size(type)));
  return {label(backward ? "rmsnorm_backward" : "rmsnorm", type, {rows, width}), 0, bytes, prepare};
}

BenchCase gated(DType type, int64_t rows, int64_t width, bool backward) {
  const auto prepare = [=](Context& context) -> Body {
    const auto o = std::make_shared<Operands>();
    const int storage = type == DType::f32 ? kF32 : kBf16;
    const int64_t n = rows * width;
    void *gate_up = o->make(type, 2 * n), *a = o->make(type, n);
    float *da = o->floats(n), *d = o->floats(2 * n);
    return [=, &context] {
      (void)o;
      if (backward) swiglu_backward(context, storage, d, da, gate_up, rows, width);
      else swiglu(context, storage, a, gate_up, rows, width);
    };
  };
  const double e = double(dtype_size(type));
  return {label(backward ? "swiglu_backward" : "swiglu", type, {rows, width}), 0, double(rows * width) * (backward ? 2 * e + 12 : 3 * e), prepare};
}

// 3 heads on 1, causal, one sequence.
BenchCase attend(DType type, int64_t rows, int64_t head, bool backward) {
  const auto prepare = [=](Context& context) -> Body {
    struct Shapes {
      AttentionShape shape;
      std::vector<AttentionSegment> segments;
      std::vector<std::vector<int>> trees{{0}};
    };
    const auto o = std::make_shared<Operands>();
    const int64_t width = 5 * head;
    float *q = o->floats(rows * width), *dq = o->floats(rows * width), *dout = o->floats(rows * 3 * head);
    void* out = o->make(type, rows * 3 * head);
    const int64_t k = 3 * head, v = 4 * head;
    const auto s = std::make_shared<Shapes>(Shapes{{3, 1, head, 0.125f, 0}, {{0, rows, 0, {{q + k, q + v, width, rows, dq + k, dq + v}}}}});
    return [=, &context] {
      (void)o;
      if (backward) attention_backward(context, s->shape, s->segments, s->trees, q, width, type == DType::f32 ? kF32 : kBf16, dout, dq);
      else attention(context, s->shape, s->segments, q, width, type == DType::f32 ? kF32 : kBf16, out);
    };
  };
  const double square = 3.0 * double(head * rows * rows);
  return {label(backward ? "attention_backward" : "attention", type, {rows, head}), square * (backward ? 5 : 2), 0, prepare};
}

BenchCase head(DType type, int64_t rows, int64_t width, int64_t vocabulary) {
  const auto prepare = [=](Context& context) -> Body {
    struct Outputs {
      std::vector<int32_t> targets;
      std::vector<Partition> partition;
    };
    const auto o = std::make_shared<Operands>();
    const auto out = std::make_shared<Outputs>(Outputs{std::vector<int32_t>(size_t(rows), 7), std::vector<Partition>(static_cast<size_t>(rows))});
    Head h{rows, width, vocabulary, matrix(o->make(type, rows * width), type, width), o->make(type, vocabulary * width), type, nullptr};
    h.targets = out->targets.data();
    if (runs_in_bf16(context.kernels, type, type, false)) {
      pack_right(context.kernels, o->packed, transposed(h.weight, type, width), vocabulary, width, true);
      h.packed = &o->packed;
    }
    float* logps = o->floats(rows);
    return [=, &context] { (void)o; head_logps(context, h, logps, out->partition.data(), nullptr); };
  };
  return {label("head", type, {rows, width, vocabulary}), 2.0 * double(rows) * double(width) * double(vocabulary), 0, prepare};
}

// `adapters` of `each` rows.
BenchCase low_rank(int64_t adapters, int64_t each, int64_t width, int64_t r, bool backward) {
  const auto prepare = [=](Context& context) -> Body {
    struct Modules {
      std::vector<LoraModule> modules;
      std::vector<LoraRange> ranges;
    };
    const auto o = std::make_shared<Operands>();
    const auto s = std::make_shared<Modules>();
    const int64_t rows = adapters * each, size = r * width;
    float *factors = o->floats(2 * adapters * size), *gradients = o->floats(2 * adapters * size);
    for (int64_t i = 0; i < adapters; ++i) {
      LoraModule m{};
      m.a = factors + 2 * i * size;
      m.b = m.a + size;
      m.da = gradients + 2 * i * size;
      m.db = m.da + size;
      m.r = r;
      m.scale = 1e-3f;
      s->modules.push_back(m);
    }
    for (int64_t i = 0; i < adapters; ++i) s->ranges.push_back({i * each, each, &s->modules[size_t(i)], 0});
    float *x = o->floats(rows * width), *h = o->floats(rows * r), *y = o->floats(rows * width), *dx = o->floats(rows * width);
    return [=, &context] {
      (void)o;
      const LoraCall call{s->ranges, width, width, kF32, x, h, r, nullptr};
      if (backward) lora_backward(context, call, y, width, dx);
      else lora_forward(context, call, y, width, true);
    };
  };
  return {label(backward ? "lora_backward" : "lora", DType::f32, {adapters, each, width, r}),
          4.0 * double(adapters * each * width * r) * (backward ? 2 : 1), 0, prepare};
}

BenchCase optimiser(int64_t n) {
  const auto prepare = [=](Context& context) -> Body {
    const auto o = std::make_shared<Operands>();
    float *p = o->floats(n), *g = o->floats(n), *m = o->floats(n), *v = o->floats(n);
    std::fill(v, v + n, 1.f);
    return [=, &context] { (void)o; adamw(context, p, g, m, v, n, adamw_step(1e-4, 0.9, 0.999, 1e-8, 0, 1, 2)); };
  };
  return {label("adamw", DType::f32, {n}), 0, 28.0 * double(n), prepare};
}

}  // namespace

std::vector<BenchCase> bench_cases(bool small) {
  std::vector<BenchCase> cases;
  const int64_t tokens = small ? 48 : 1024, width = small ? 192 : 576, inner = small ? 400 : 1536;
  for (DType type : {DType::f32, DType::bf16}) {
    for (int64_t m : small ? std::vector<int64_t>{1, 48} : std::vector<int64_t>{1, 32, 256, 2048}) {
      cases.push_back(linear(type, m, width, inner));
      cases.push_back(linear(type, m, inner, width));
      if (!small && m > 1) cases.push_back(linear(type, m, width, 49152));
      if (!small) cases.push_back(linear(type, m, 2048, 2048));
    }
    for (bool backward : {false, true}) {
      cases.push_back(norm(type, tokens, width, backward));
      cases.push_back(gated(type, tokens, inner, backward));
      cases.push_back(attend(type, tokens, 64, backward));
    }
    cases.push_back(head(type, small ? 16 : 256, width, small ? 1000 : 49152));
  }
  for (bool backward : {false, true}) {
    cases.push_back(low_rank(8, small ? 6 : 64, width, 16, backward));
    if (!small) cases.push_back(low_rank(64, 1, width, 16, backward));
  }
  cases.push_back(optimiser(small ? 10000 : 1 << 20));
  return cases;
}

}  // namespace pluralign
