#include "lora.h"

namespace pluralign {
namespace {

DType type_of(int storage) { return storage == kF32 ? DType::f32 : DType::bf16; }

uint64_t mix(uint64_t x) {  // splitmix64's finaliser: a counter in, 64 even bits out
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

bool drops(const LoraRange& r) { return r.module->dropout > 0.f && r.stream != 0; }

// Up to so many rows of a range are one task; more where B is turned for them.
constexpr int64_t kNearBytes = 256 << 10;  // of a thread's share of a near cache
constexpr int64_t kPassRows = 4, kTaskRows = 64, kTaskColumns = 1024;
int64_t tall_rows(const Context& context) { return context.pool.size() == 1 ? 512 : 128; }

// Of B, that is turned at a time: few rows read it once, many from a near cache.
int64_t turned_columns(int64_t rows, int64_t r) {
  const int64_t bytes = rows < 32 ? 24 << 10 : 192 << 10;
  return std::max<int64_t>(64, bytes / (4 * r) / 64 * 64);  // whole panels of any instruction set
}

// Adapters of many short ranges come from far away, each once: what the next task begins with is asked for in this one.
constexpr int64_t kFetched = 32 << 10;
void fetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < std::min(bytes, kFetched); i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

// The first columns of `rows` rows.
void fetch_heads(const float* from, int64_t rows, int64_t ld, int64_t columns) {
  for (int64_t i = 0; i < std::min<int64_t>(rows, 64); ++i) fetch(from + i * ld, std::min(ld, columns) * 4);
}

// Rows [row, row + rows) of the call, all of one range.
struct Part {
  const LoraRange* range;
  int64_t row, rows;
  float* low;  // backward: gradient of x Aᵀ, [rows × r]
};

struct Parts {
  Part* at;
  int64_t count;
};

Parts parts_of(Buffer& buffer, const LoraCall& c, int64_t most) {
  int64_t count = 0;
  for (const LoraRange& r : c.ranges) count += (r.rows + most - 1) / most;
  Parts parts{buffer.as<Part>(count), 0};
  for (const LoraRange& r : c.ranges)
    for (int64_t i = 0; i < r.rows; i += most) parts.at[parts.count++] = {&r, r.row + i, std::min(most, r.rows - i), nullptr};
  return parts;
}

// What one task has at hand.
struct Task {
  Context& context;
  const LoraCall& c;
  const Part& part;
  int thread;

  const LoraModule& m() const { return *part.range->module; }
  float* floats(int slot, int64_t n) const { return context.local[size_t(thread)].slot[size_t(slot)].as<float>(n); }
  float* h() const { return c.h + part.row * c.h_stride; }

  // Multiplies element (i, j) of columns [first, first + n) by 1/(1-p) or 0. The draw depends on the row's key, the column and
  // the stream alone, so a row meets the same mask in whatever batch it stands.
  void drop(float* x, int64_t first, int64_t n) const {
    const float keep = 1.f - m().dropout, scale = 1.f / keep;
    const uint64_t threshold = uint64_t(double(keep) * 4294967296.0);
    for (int64_t i = 0; i < part.rows; ++i) {
      const uint64_t key = mix(c.row_keys[part.row + i] ^ mix(part.range->stream));
      for (int64_t j = 0; j < n; ++j) x[i * n + j] *= (mix(key + uint64_t(first + j)) & 0xffffffffull) < threshold ? scale : 0.f;
    }
  }

  // Columns [first, first + n) of x, dropped where the module asks for it (then as float32 in a slot); ld: between rows.
  const void* x(int64_t first, int64_t n, DType& type, int64_t& ld) const {
    const int64_t at = part.row * c.in + first;
    type = type_of(c.storage);
    ld = c.in;
    const void* from = static_cast<const char*>(c.x) + at * int64_t(dtype_size(type));
    if (!drops(*part.range)) return from;
    float* copy = floats(0, part.rows * n);
    for (int64_t i = 0; i < part.rows; ++i)
      for (int64_t j = 0; j < n; ++j)
        copy[i * n + j] = c.storage == kF32 ? static_cast<const float*>(from)[i * ld + j] : to_float(static_cast<const bf16*>(from)[i * ld + j]);
    drop(copy, first, n);
    type = DType::f32;
    ld = n;
    return copy;
  }

  // h through the core, [rows × stride]; h itself where there is none.
  const float* middle(int64_t& stride) const {
    stride = c.h_stride;
    if (m().core_rows == 0) return h();
    stride = m().r;
    float* out = floats(1, part.rows * m().r);
    if (m().core_rows == 1) {
      for (int64_t i = 0; i < part.rows; ++i)
        for (int64_t j = 0; j < m().r; ++j) out[i * m().r + j] = h()[i * c.h_stride + j] * m().core[j];
    } else {
      context.kernels.dots(part.rows, m().r, m().r, h(), DType::f32, c.h_stride, m().core, m().r, out, m().r);
    }
    return out;
  }

  void down() const {
    DType type;
    int64_t ld;
    const void* from = x(0, c.in, type, ld);
    context.kernels.dots(part.rows, m().r, c.in, from, type, ld, m().a, c.in, h(), c.h_stride);
  }

  // Columns [first, first + n) of y.
  void up(int64_t first, int64_t n, char* y, DType type, int64_t ldy) const {
    const Kernels& kr = context.kernels;
    const int64_t r = m().r;
    int64_t stride;
    const float* low = middle(stride);
    const int64_t some = std::min(n, turned_columns(part.rows, r));
    float* b = floats(3, (some + kr.nr) * r);
    for (int64_t last = first + n; first < last; first += some) {
      const int64_t columns = std::min(some, last - first);
      kr.pack_b(b, m().b + first * r, DType::f32, columns, r, r, 1);
      kr.up(part.rows, columns, r, low, stride, b, y + (part.row * ldy + first) * int64_t(dtype_size(type)), type, ldy, m().scale, true);
    }
  }

  // Given dy of the part's rows: part.low, what the core gets of it, and dx.
  void down_backward(const float* dy, int64_t ldy, float* dc, float* dx) const {
    const int64_t r = m().r;
    if (dx && part.rows < kPassRows) fetch(m().a, r * c.in * 4);
    else if (dx && part.rows < 32) fetch_heads(m().a, r, c.in, 128);
    context.kernels.direct(part.rows, r, c.out, dy + part.row * ldy, ldy, m().b, r, dc, r, m().scale, false);
    if (m().core_rows == 1) {
      for (int64_t i = 0; i < part.rows; ++i)
        for (int64_t j = 0; j < r; ++j) part.low[i * r + j] = dc[i * r + j] * m().core[j];
    } else if (m().core_rows > 1) {
      context.kernels.direct(part.rows, r, r, dc, r, m().core, r, part.low, r, 1.f, false);
    }
    if (!dx) return;
    float* to = dx + part.row * c.in;
    if (!drops(*part.range)) return through_a(to);
    float* masked = floats(2, part.rows * c.in);
    context.kernels.direct(part.rows, c.in, r, part.low, r, m().a, c.in, masked, c.in, 1.f, false);
    drop(masked, 0, c.in);
    context.kernels.axpy(to, masked, 1.f, part.rows * c.in);
  }

  // dx += low A
  void through_a(float* dx) const {
    const Kernels& kr = context.kernels;
    const int64_t r = m().r, some = std::min(c.in, turned_columns(part.rows, r));
    if (part.rows < kPassRows) {
      float* sums = floats(2, part.rows * c.in);
      std::fill_n(sums, part.rows * c.in, 0.f);
      kr.pass(part.rows, c.in, r, part.low, r, m().a, c.in, sums, c.in);
      return kr.axpy(dx, sums, 1.f, part.rows * c.in);
    }
    float* a = floats(3, (some + kr.nr) * r);
    for (int64_t first = 0; first < c.in; first += some) {
      const int64_t columns = std::min(some, c.in - first);
      kr.pack_b(a, m().a + first, DType::f32, columns, r, 1, c.in);
      kr.up(part.rows, columns, r, part.low, r, a, dx + first, DType::f32, c.in, 1.f, true);
    }
  }

  void core_backward(const float* dc) const {
    const int64_t r = m().r;
    if (!m().dcore || m().core_rows == 0) return;
    if (m().core_rows > 1) return context.kernels.outer(r, r, part.rows, dc, r, h(), DType::f32, c.h_stride, m().dcore, r, 1.f);
    for (int64_t i = 0; i < part.rows; ++i)
      for (int64_t j = 0; j < r; ++j) m().dcore[j] += dc[i * r + j] * h()[i * c.h_stride + j];
  }

  void a_backward(int64_t first, int64_t n) const {
    if (!m().da || n <= 0) return;
    DType type;
    int64_t ld;
    const void* from = x(first, n, type, ld);
    context.kernels.outer(m().r, n, part.rows, part.low, m().r, from, type, ld, m().da + first, c.in, 1.f);
  }

  void b_backward(const float* dy, int64_t ldy, int64_t first, int64_t n) const {
    if (!m().db || n <= 0) return;
    int64_t stride;
    const float* low = middle(stride);
    context.kernels.outer(n, m().r, part.rows, dy + part.row * ldy + first, ldy, low, DType::f32, stride, m().db + first * m().r, m().r, m().scale);
  }
};

}  // namespace

void lora_forward(Context& context, const LoraCall& c, void* y, int64_t ldy, bool y_f32) {
  const Parts parts = parts_of(context.shared[0], c, kTaskRows), tall = parts_of(context.shared[1], c, tall_rows(context));
  const int64_t x_size = int64_t(dtype_size(type_of(c.storage))), y_size = y_f32 ? 4 : x_size;
  context.pool.run(parts.count, [&](int64_t i, int thread) {
    if (i + 1 < parts.count) {
      const Part& next = parts.at[i + 1];
      fetch(next.range->module->a, next.range->module->r * c.in * 4);
      fetch(static_cast<const char*>(c.x) + next.row * c.in * x_size, std::min<int64_t>(2, next.rows) * c.in * x_size);
    }
    Task{context, c, parts.at[i], thread}.down();
  });
  const int64_t chunks = (c.out + kTaskColumns - 1) / kTaskColumns;
  const DType type = y_f32 ? DType::f32 : type_of(c.storage);
  context.pool.run(tall.count * chunks, [&](int64_t t, int thread) {
    const int64_t first = t % chunks * kTaskColumns;
    if (t + 1 < tall.count * chunks) {
      const Part& next = tall.at[(t + 1) / chunks];
      const int64_t column = (t + 1) % chunks * kTaskColumns, n = std::min(kTaskColumns, c.out - column), r = next.range->module->r;
      fetch(next.range->module->b + column * r, n * r * 4);
      for (int64_t i = 0; i < std::min<int64_t>(4, next.rows); ++i) fetch(static_cast<const char*>(y) + ((next.row + i) * ldy + column) * y_size, n * y_size);
    }
    Task{context, c, tall.at[t / chunks], thread}.up(first, std::min(kTaskColumns, c.out - first), static_cast<char*>(y), type, ldy);
  });
}

void lora_backward(Context& context, const LoraCall& c, const float* dy, int64_t ldy, float* dx) {
  const Parts parts = parts_of(context.shared[0], c, kTaskRows);
  int64_t size = 0;
  for (int64_t i = 0; i < parts.count; ++i) size += parts.at[i].rows * parts.at[i].range->module->r;
  float *dc = context.shared[1].as<float>(size), *low = context.shared[2].as<float>(size);
  int64_t* offsets = context.shared[3].as<int64_t>(parts.count);
  for (int64_t i = 0, at = 0; i < parts.count; ++i) {
    Part& p = parts.at[i];
    offsets[i] = at;
    p.low = p.range->module->core_rows == 0 ? dc + at : low + at;
    at += p.rows * p.range->module->r;
  }
  // Factors may be shared, so one thread adds to the cores, and one to some columns of all A or B: sums keep their order.
  const int64_t widest = std::max(c.in, c.out), row_bytes = 4 * (2 * c.in + c.out);
  const int64_t chunk = context.pool.size() == 1 ? widest : std::max<int64_t>(96, widest / (4 * context.pool.size()) / 96 * 96), chunks = (widest + chunk - 1) / chunk;
  for (int64_t first = 0, last = 0; first < parts.count; first = last) {
    // So few rows that x and dy are still in the caches when the factors' gradients ask for them.
    for (int64_t rows = 0; last < parts.count && (rows == 0 || rows * row_bytes < context.pool.size() * kNearBytes); ++last) rows += parts.at[last].rows;
    context.pool.run(last - first, [&](int64_t i, int thread) {
      if (first + i + 1 < parts.count) {
        const LoraModule& next = *parts.at[first + i + 1].range->module;
        if (&next != parts.at[first + i].range->module) fetch(next.b, next.r * c.out * 4);
      }
      Task{context, c, parts.at[first + i], thread}.down_backward(dy, ldy, dc + offsets[first + i], dx);
    });
    for (int64_t i = first; i < last; ++i) Task{context, c, parts.at[i], 0}.core_backward(dc + offsets[i]);
    context.pool.run(2 * chunks, [&](int64_t t, int thread) {
      const int64_t column = t / 2 * chunk;
      for (int64_t i = first; i < last; ++i) {
        const Task task{context, c, parts.at[i], thread};
        if (const LoraModule* next = i + 1 < last ? parts.at[i + 1].range->module : nullptr; next && next != &task.m()) {
          if (t % 2 && next->da && column < c.in) fetch_heads(next->da + column, std::min<int64_t>(8, next->r), c.in, 512);
          if (t % 2 == 0 && next->db && column < c.out) fetch(next->db + column * next->r, 8 << 10);
        }
        if (t % 2) task.a_backward(column, std::min(chunk, c.in - column));
        else task.b_backward(dy, ldy, column, std::min(chunk, c.out - column));
      }
    });
  }
}

}  // namespace pluralign
