// The CPU's side of the table: each entry is one operator of ops/ under the context's instruction set. Errors are thrown, as
// this code and its caller are one program.
#include <cstring>
#include <new>

#include "device/device.h"
#include "ops/adamw/adamw.h"
#include "ops/attention/attention.h"
#include "ops/head/head.h"
#include "ops/linear/linear.h"
#include "ops/norm/norm.h"
#include "ops/rope/rope.h"
#include "ops/swiglu/swiglu.h"

namespace pluralign {
namespace {

using device::PlanArrays;
using device::Status;
using Handle = device::Context*;
using PlanHandle = const device::Plan*;

Context& cpu(Handle h) { return *reinterpret_cast<Context*>(h); }

// What the CPU keeps of a plan: the caller's arrays, and trees as attention wants them.
struct CpuPlan {
  PlanArrays arrays;
  std::vector<std::vector<int>> trees;
};
const CpuPlan& plan(PlanHandle p) { return *reinterpret_cast<const CpuPlan*>(p); }

DType type_of(int storage) { return storage == kF32 ? DType::f32 : DType::bf16; }

float element(const void* data, DType type, int64_t i) {
  return type == DType::f32 ? static_cast<const float*>(data)[i] : type == DType::bf16 ? to_float(static_cast<const bf16*>(data)[i]) : to_float(static_cast<const f16*>(data)[i]);
}

Operand operand(const device::View& v) { return matrix(v.data, v.type, v.ld); }

// ---- memory and plans

Status allocate(Handle, size_t bytes, const char*, void** out) {
  *out = ::operator new(bytes, std::align_val_t(64));
  return Status::ok;
}
void release(Handle, void* at) { ::operator delete(at, std::align_val_t(64)); }
constexpr int64_t kBytesEach = 256 << 10;  // of a thread; below that waking it costs more
Status copy(Handle h, void* to, const void* from, size_t bytes) {
  if (to != from)
    cpu(h).pool.ranges(int64_t(bytes), kBytesEach, [&](int64_t a, int64_t b, int) { std::memcpy(static_cast<char*>(to) + a, static_cast<const char*>(from) + a, size_t(b - a)); });
  return Status::ok;
}
Status zero(Handle h, void* to, size_t bytes) {
  cpu(h).pool.ranges(int64_t(bytes), kBytesEach, [&](int64_t a, int64_t b, int) { std::memset(static_cast<char*>(to) + a, 0, size_t(b - a)); });
  return Status::ok;
}
Status make_plan(Handle, const PlanArrays* host, device::Plan** out) {
  auto* p = new CpuPlan{*host, {}};
  for (int64_t t = 0; t < host->trees; ++t) p->trees.emplace_back(host->tree_nodes + host->tree_starts[t], host->tree_nodes + host->tree_starts[t + 1]);
  *out = reinterpret_cast<device::Plan*>(p);
  return Status::ok;
}
void drop_plan(Handle, device::Plan* p) { delete reinterpret_cast<CpuPlan*>(p); }

// ---- rows

Status embed(Handle h, const device::EmbedCall* c) {
  const PlanArrays& p = plan(c->plan).arrays;
  const int64_t d = c->table.cols;
  cpu(h).pool.ranges(p.rows, 64, [&](int64_t r, int64_t end, int) {
    for (; r < end; ++r) {
      const int64_t at = int64_t(p.tokens[r]) * c->table.ld;
      float* x = c->x + r * d;
      if (c->table.type == DType::f32) std::memcpy(x, static_cast<const float*>(c->table.data) + at, size_t(d) * 4);
      else if (c->table.type == DType::bf16) cpu(h).kernels.widen(x, static_cast<const bf16*>(c->table.data) + at, d);
      else
        for (int64_t i = 0; i < d; ++i) x[i] = element(c->table.data, c->table.type, at + i);
    }
  });
  return Status::ok;
}

Status embed_backward(Handle h, const device::EmbedBackwardCall* c) {
  const PlanArrays& p = plan(c->plan).arrays;
  cpu(h).pool.ranges(c->width, 32, [&](int64_t c0, int64_t c1, int) {
    for (int64_t r = 0; r < p.rows; ++r) cpu(h).kernels.axpy(c->dtable + int64_t(p.tokens[r]) * c->width + c0, c->dx + r * c->width + c0, 1.f, c1 - c0);
  });
  return Status::ok;
}

Status gather(Handle h, const device::GatherCall* c) {
  const PlanArrays& p = plan(c->plan).arrays;
  cpu(h).pool.ranges(p.readouts, 64, [&](int64_t i, int64_t end, int) {
    for (; i < end; ++i) std::memcpy(c->to + i * c->width, c->from + p.read_rows[i] * c->width, size_t(c->width) * 4);
  });
  return Status::ok;
}
Status gather_backward(Handle h, const device::GatherCall* c) {
  const PlanArrays& p = plan(c->plan).arrays;
  for (int64_t i = 0; i < p.readouts; ++i) cpu(h).kernels.axpy(c->from + p.read_rows[i] * c->width, c->to + i * c->width, 1.f, c->width);
  return Status::ok;
}

Status norm(Handle h, const device::NormCall* c) {
  rmsnorm(cpu(h), c->storage, c->y, c->rstd, c->x, c->weight, c->rows, c->width, c->eps);
  return Status::ok;
}
Status norm_backward(Handle h, const device::NormBackwardCall* c) {
  if (c->dweight) rmsnorm_backward_weight(cpu(h), c->dweight, c->dy, c->x, c->rstd, c->rows, c->width);
  rmsnorm_backward(cpu(h), c->dx, c->dy, c->x, c->rstd, c->weight, c->rows, c->width, c->accumulate != 0);
  return Status::ok;
}

RopeShape rope_shape(const device::RopeCall& c) { return {c.heads, c.kv_heads, c.head_dim, c.q_norm, c.k_norm, c.eps}; }
Status rope_forward(Handle h, const device::RopeCall* c) {
  const PlanArrays& p = plan(c->plan).arrays;
  rope(cpu(h), rope_shape(*c), RopeView{c->table, c->head_dim / 2}, c->storage, c->out, c->raw, p.positions, p.rows);
  return Status::ok;
}
Status rope_back(Handle h, const device::RopeCall* c) {
  const PlanArrays& p = plan(c->plan).arrays;
  rope_backward(cpu(h), rope_shape(*c), RopeView{c->table, c->head_dim / 2}, c->storage, c->out, c->raw, p.positions, p.rows, c->dq_norm, c->dk_norm);
  return Status::ok;
}

Status swiglu_forward(Handle h, const device::SwigluCall* c) {
  swiglu(cpu(h), c->storage, c->act, c->gate_up, c->rows, c->width);
  return Status::ok;
}
Status swiglu_back(Handle h, const device::SwigluCall* c) {
  swiglu_backward(cpu(h), c->storage, c->dgate_up, c->dact, c->gate_up, c->rows, c->width);
  return Status::ok;
}

// ---- attention

AttentionShape attention_shape(const device::AttentionCall& c) { return {c.heads, c.kv_heads, c.head_dim, c.scale, c.window}; }

std::vector<AttentionSegment> segments(const device::AttentionCall& c, float* gradient) {
  const PlanArrays& p = plan(c.plan).arrays;
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim, stride = q + 2 * kv;
  std::vector<AttentionSegment> out;
  for (int64_t i = 0; i < p.nodes; ++i) {
    const device::PlanNode& n = p.node[i];
    AttentionSegment& a = out.emplace_back(AttentionSegment{n.row, n.rows, n.prefix, {}});
    for (int64_t s = n.first_span; s < n.first_span + n.spans; ++s) {
      const float* at = c.qkv + p.span[s].row * stride;
      float* d = gradient ? gradient + p.span[s].row * stride : nullptr;
      a.path.push_back({at + q, at + q + kv, stride, p.span[s].rows, d ? d + q : nullptr, d ? d + q + kv : nullptr});
    }
  }
  return out;
}

Status attend(Handle h, const device::AttentionCall* c) {
  attention(cpu(h), attention_shape(*c), segments(*c, nullptr), c->qkv, (c->heads + 2 * c->kv_heads) * c->head_dim, c->storage, c->out);
  return Status::ok;
}
Status attend_back(Handle h, const device::AttentionBackwardCall* c) {
  const device::AttentionCall& f = c->forward;
  const int64_t stride = (f.heads + 2 * f.kv_heads) * f.head_dim;
  zero(h, c->dqkv, size_t(plan(f.plan).arrays.rows * stride) * 4);
  attention_backward(cpu(h), attention_shape(f), segments(f, c->dqkv), plan(f.plan).trees, f.qkv, stride, f.storage, c->dout, c->dqkv);
  return Status::ok;
}

// ---- linear layers

struct Parts {
  LinearPart at[device::kMostParts];
  LinearCall call;
};

void parts_of(Context& context, const device::LinearCall& c, Parts& out) {
  const PlanArrays& p = plan(c.plan).arrays;
  for (int i = 0; i < c.count; ++i) {
    const device::LinearPart& part = c.part[i];
    std::vector<LoraRange>& ranges = context.part_ranges[i];
    ranges.clear();
    if (part.modules)
      for (int64_t r = 0; r < p.runs; ++r)
        if (const device::PlanRun& run = p.run[r]; run.adapter >= 0 && part.modules[run.adapter].r > 0)
          ranges.push_back({run.row, run.rows, &part.modules[run.adapter], part.stream});
    out.at[i] = {part.out, operand(part.weight), static_cast<const PackedOperand*>(part.packed), part.bias, &ranges, part.h, part.y, part.dy, part.ldy};
  }
  out.call = {c.rows, c.in, c.storage, c.x, out.at, c.count, c.h_stride, p.row_keys};
}

Status linear(Handle h, const device::LinearCall* c) {
  Parts parts;
  parts_of(cpu(h), *c, parts);
  linear_forward(cpu(h), parts.call, c->residual != 0);
  return Status::ok;
}

Status linear_back(Handle h, const device::LinearCall* c) {
  Parts parts;
  parts_of(cpu(h), *c, parts);
  for (int i = 0; i < c->count; ++i) {
    const device::LinearPart& part = c->part[i];
    if (part.dweight) {
      Gemm g{part.out, c->in, c->rows, transposed(part.dy, DType::f32, part.ldy), matrix(c->x, type_of(c->storage), c->in), part.dweight, DType::f32, c->in};
      g.accumulate = true;
      g.bfloat16 = c->storage == kBf16;
      gemm(cpu(h), g);
    }
    if (part.dbias)
      for (int64_t r = 0; r < c->rows; ++r) cpu(h).kernels.axpy(part.dbias, part.dy + r * part.ldy, 1.f, part.out);
  }
  linear_backward(cpu(h), parts.call, c->dx);
  return Status::ok;
}

// ---- readouts

Head head_of(const device::HeadCall& c) {
  const PlanArrays& p = plan(c.plan).arrays;
  return {p.readouts, c.hidden.cols, c.weight.rows, operand(c.hidden), c.weight.data, c.weight.type, p.targets, c.scale, static_cast<const PackedOperand*>(c.packed)};
}
static_assert(sizeof(Partition) <= 2 * sizeof(double));

Status head(Handle h, const device::HeadCall* c) {
  const Head head = head_of(*c);
  head_logps(cpu(h), head, c->logps, reinterpret_cast<Partition*>(c->partition), c->squares, has_slopes(cpu(h), head) ? c->dhidden : nullptr);
  return Status::ok;
}
Status head_back(Handle h, const device::HeadCall* c) {
  if (!c->dweight && has_slopes(cpu(h), head_of(*c))) {
    const int64_t width = c->hidden.cols;
    cpu(h).pool.ranges(plan(c->plan).arrays.readouts, 64, [&](int64_t i, int64_t end, int) {
      for (; i < end; ++i)
        for (int64_t k = 0; k < width; ++k) c->dhidden[i * width + k] *= c->dlogps[i];
    });
    return Status::ok;
  }
  std::fill(c->dhidden, c->dhidden + plan(c->plan).arrays.readouts * c->hidden.cols, 0.f);
  head_backward(cpu(h), head_of(*c), reinterpret_cast<const Partition*>(c->partition), c->dlogps, c->dhidden, c->dweight);
  return Status::ok;
}

Status reward(Handle, const device::RewardCall* c) {
  const PlanArrays& p = plan(c->plan).arrays;
  for (int64_t i = 0; i < p.readouts; ++i) {
    const float* w = c->heads[c->readout_adapters[i]];
    double sum = 0;
    for (int64_t j = 0; j < c->hidden.cols; ++j) sum += double(w[j]) * element(c->hidden.data, c->hidden.type, i * c->hidden.ld + j);
    c->out[i] = float(sum);
  }
  return Status::ok;
}
Status reward_back(Handle, const device::RewardCall* c) {
  const PlanArrays& p = plan(c->plan).arrays;
  for (int64_t i = 0; i < p.readouts; ++i) {
    const float* w = c->heads[c->readout_adapters[i]];
    float* dw = c->dheads[c->readout_adapters[i]];
    for (int64_t j = 0; j < c->hidden.cols; ++j) {
      c->dhidden[i * c->hidden.cols + j] = c->dout[i] * w[j];
      dw[j] += c->dout[i] * element(c->hidden.data, c->hidden.type, i * c->hidden.ld + j);
    }
  }
  return Status::ok;
}

Status step(Handle h, const device::AdamWCall* c) {
  for (int64_t i = 0; i < c->spans; ++i) {
    const int64_t at = c->host_span[2 * i], n = c->host_span[2 * i + 1] - at;
    adamw(cpu(h), c->p + at, c->g + at, c->m + at, c->v + at, n,
          adamw_step(c->learning_rate, c->beta1, c->beta2, c->eps, c->host_decay[i] ? c->weight_decay : 0, c->grad_scale, c->host_step[i]));
  }
  return Status::ok;
}
Status squared_norms(Handle h, const device::SquaredNormsCall* c) {
  for (int64_t i = 0; i < c->spans; ++i) c->sums[i] = cpu(h).kernels.squared_norm(c->g + c->host_span[2 * i], c->host_span[2 * i + 1] - c->host_span[2 * i]);
  return Status::ok;
}

}  // namespace

const device::Table& cpu_table() {
  static const device::Table made = [] {
    device::Table t{};
    t.version = device::kVersion;
    t.bytes = sizeof t;
    t.module_bytes = sizeof(LoraModule);
    t.message = [](Handle) { return ""; };
    t.allocate = allocate;
    t.release = release;
    t.memory = [](Handle, device::Memory* out) { return *out = {}, Status::ok; };
    t.upload = t.fetch = t.copy = copy;
    t.zero = zero;
    t.synchronize = [](Handle) { return Status::ok; };
    t.make_plan = make_plan;
    t.drop_plan = drop_plan;
    t.embed = embed;
    t.embed_backward = embed_backward;
    t.norm = norm;
    t.norm_backward = norm_backward;
    t.rope = rope_forward;
    t.rope_backward = rope_back;
    t.attention = attend;
    t.attention_backward = attend_back;
    t.linear = linear;
    t.linear_backward = linear_back;
    t.swiglu = swiglu_forward;
    t.swiglu_backward = swiglu_back;
    t.gather = gather;
    t.gather_backward = gather_backward;
    t.head = head;
    t.head_backward = head_back;
    t.reward = reward;
    t.reward_backward = reward_back;
    t.adamw = step;
    t.squared_norms = squared_norms;
    return t;
  }();
  return made;
}

}  // namespace pluralign
