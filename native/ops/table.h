// The seam between operators and instruction sets: what each set implements, and the context an operator runs in.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "base/cpu.h"
#include "base/dtype.h"
#include "base/pool.h"
#include "ops/bilinear/kernels.h"

namespace pluralign {

// One AdamW update of a run of parameters; see ops/adamw/adamw.h.
struct AdamWStep {
  float learning_rate, beta1, beta2, rest1, rest2, eps, weight_decay, grad_scale;  // rest: 1 - beta, rounded once
  double correction1, correction2;  // 1 - beta^t
};

// One block of a product of bfloat16, C[m × n] = alpha · Σ_terms A B (+ bias of the columns) (+ C), summed in float32. Panels
// hold 16 rows of A or 16 columns of B, k in blocks of 32, zero padded: A [panel][block][16 rows][32], B
// [panel][block][16 pairs of k][16 columns][2], which is what both a tile of AMX and `vdpbf16ps` want.
struct Bf16Block {
  struct Term {
    const bf16 *a, *b;         // a: panel of the block's row `begin`
    int64_t a_panel, b_panel;  // elements from one panel to the next
    int64_t k;
    int64_t begin, end;        // rows of the block that it adds to, multiples of 32 (or the last)
  };
  int64_t m, n;
  const Term* terms;
  int64_t term_count;
  void* c;
  DType c_type;
  int64_t ldc;
  float alpha;
  const float* bias;
  bool accumulate;
  float* stage;  // room for m rounded up to 32, times 32
  const float* addend = nullptr;  // [m × n], added before C is rounded
  int64_t ldadd = 0;
};
// A tile of attention scores [rows × n], rows of ld with room for n rounded up to 32: row i sees the columns below hi + i, the
// last `window` of them (0: all).
struct SoftmaxTile {
  float* scores;
  int64_t ld, rows, hi, window, n;
  float scale;
};

// Queries of one segment under one key head; heads of `width`, and a group of them, are at most kNarrow. Query i has position prefix + i and sees
// positions up to its own, the last `window` of them (0: all).
struct NarrowAttention {
  int64_t prefix, rows, length, group, width, window;
  float scale;
  const float *keys, *values;  // [length × width]
  const float* q;              // query i, head j of the group at q + i · stride + j · width
  int64_t stride;
  bf16* packed;                // room for 80 times narrow_room(length), of `scores` for 64 times
  float* scores;
};
constexpr int64_t kNarrow = 16;
inline int64_t narrow_room(int64_t length) { return (length + 3) / 4 * 4; }

constexpr int64_t kBf16Panel = 16, kBf16K = 32, kBf16Rows = 32;

// Vector code of one instruction set. Row kernels work on rows [0, rows) of contiguous matrices unless a stride is named.
// Every reduction runs in an order that depends on the row alone.
struct Kernels {
  Isa isa = Isa::reference;

  // gemm: micro tile of mr × nr (1 × 1 in the reference). Panels: A [ceil(m/mr)][k][mr], B [ceil(n/nr)][k][nr], both zero padded.
  int mr = 0, nr = 0;
  // Packs a [rows × k] operand whose element (i, p) is at src[i * row_stride + p * k_stride].
  void (*pack_a)(float* dst, const void* src, DType type, int64_t rows, int64_t k, int64_t row_stride, int64_t k_stride) = nullptr;
  void (*pack_b)(float* dst, const void* src, DType type, int64_t cols, int64_t k, int64_t col_stride, int64_t k_stride) = nullptr;
  // C[m × n] = alpha · A B (+ bias of the columns) (+ C). a_step, b_step: floats from one panel to the next.
  void (*panels)(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_step, const float* b, int64_t b_step, void* c,
                 DType c_type, int64_t ldc, float alpha, const float* bias, bool accumulate) = nullptr;

  // Products of bfloat16; null where the set has none and takes the panels above. Sums run over terms and k in order.
  // Packs [rows × k] into panels of A or of B, rounding `scale` times what is no bfloat16 (scale must be 1 for one).
  void (*pack_bf16[2])(bf16* dst, const void* src, DType type, int64_t rows, int64_t k, int64_t row_stride, int64_t k_stride,
                       float scale) = {};
  // Panels [first, last) of Bᵀ [columns × k], into dst, from all panels of B [k × columns]: what a product with the transpose
  // of a packed operand needs.
  void (*turn_bf16)(bf16* dst, const bf16* src, int64_t columns, int64_t k, int64_t first, int64_t last) = nullptr;
  void (*multiply_bf16)(const Bf16Block& block) = nullptr;
  int64_t bf16_columns = 0;  // columns of C that are worked on at a time
  int64_t bf16_rows_bytes = 0;  // of A, that should stay in the second-level cache

  // lora: products straight from rows in memory, for i < m, j < n, p < k, c in rows of ldc; a, b may be bfloat16 where typed.
  // c(i, j) += alpha · Σ_p a[p · lda + i] b[p · ldb + j]
  void (*outer)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const void* b, DType b_type, int64_t ldb, float* c,
                int64_t ldc, float alpha) = nullptr;
  // c(i, j) (+)= alpha · Σ_p a[i · lda + p] b[p · ldb + j]
  void (*direct)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
                 float alpha, bool accumulate) = nullptr;
  // c(i, j) += Σ_p a[i · lda + p] b[p · ldb + j], for few rows of a: b passes by once, in the order of its memory
  void (*pass)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) = nullptr;
  // c(i, j) = Σ_p a[i · lda + p] b[j · ldb + p]
  void (*dots)(int64_t m, int64_t n, int64_t k, const void* a, DType a_type, int64_t lda, const float* b, int64_t ldb, float* c,
               int64_t ldc) = nullptr;

  // y [m × n] (+)= alpha · h Bᵀ, h [m × r], B [n × r] packed by pack_b; y in rows of ldy
  void (*up)(int64_t m, int64_t n, int64_t r, const float* h, int64_t ldh, const float* b, void* y, DType y_type, int64_t ldy, float alpha,
             bool accumulate) = nullptr;

  // lora: a step of generation in bfloat16, over factors packed as ops/lora/step.h says; null where the set has no such products.
  // h [rows × r] = x Aᵀ, x in rows of ldx
  void (*step_down)(int64_t rows, int64_t r, int64_t k, const bf16* x, int64_t ldx, const bf16* a, float* h) = nullptr;
  // y [rows × n] (+)= h Bᵀ, h [rows × r rounded up to 2]
  void (*step_up)(int64_t rows, int64_t n, int64_t r, const bf16* h, const bf16* b, float* y, int64_t ldy, bool accumulate) = nullptr;
  void (*step_pack_a)(bf16* to, const float* a, int64_t r, int64_t k) = nullptr;
  void (*step_pack_b)(bf16* to, const float* b, int64_t n, int64_t r) = nullptr;

  // norm: see ops/norm/norm.h
  void (*rmsnorm[2])(void* y, float* rstd, const float* x, const float* weight, int64_t rows, int64_t width, float eps) = {};
  void (*rmsnorm_backward)(float* dx, const float* dy, const float* x, const float* rstd, const float* weight, int64_t rows,
                           int64_t width, bool accumulate) = nullptr;
  // rope: turns pairs (i, half + i) of each of `heads` heads of 2 · half by the angles, or back.
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t half, int64_t heads, bool back) = nullptr;
  void (*widen)(float* to, const bf16* from, int64_t n) = nullptr;
  // swiglu: see ops/swiglu/swiglu.h
  void (*swiglu[2])(void* a, const void* gate_up, int64_t rows, int64_t width) = {};
  void (*swiglu_backward[2])(float* d_gate_up, const float* da, const void* gate_up, int64_t rows, int64_t width) = {};

  // attention: turns scores of one row into probabilities softmax(scale · score) over columns [lo, hi), zero elsewhere in
  // [0, n). Rows have room for n rounded up to 16.
  void (*softmax_row)(float* scores, int64_t lo, int64_t hi, int64_t n, float scale) = nullptr;
  // Given probabilities and their gradient on [lo, hi): dp ← p (dp - Σ p dp) scale, zero elsewhere.
  void (*softmax_row_backward)(const float* p, float* dp, int64_t lo, int64_t hi, int64_t n, float scale) = nullptr;

  // to_i = bfloat16(from_i · scale[i] (1 where null)), n elements of each row.
  void (*round_rows)(bf16* to, int64_t ldt, const float* from, int64_t ldf, int64_t rows, int64_t n, const float* scale) = nullptr;
  // With products of bfloat16 (else null): e^(scale (score - maximum)) as panels of a left operand, zero where a row does not
  // see, and the inverse of each row's sum.
  void (*softmax_bf16)(const SoftmaxTile& tile, bf16* left, float* inverse) = nullptr;
  // Given the gradients of the probabilities (rows of tile.ld): probabilities and gradients of the scores as right operands
  // (k: the rows), the latter as a left operand too. Scores are overwritten.
  void (*softmax_bf16_backward)(const SoftmaxTile& tile, const float* grads, bf16* ds_left, bf16* p_right, bf16* ds_right) = nullptr;

  // Both at once for narrow heads, where products by tiles would wait for their sums; null where tiles do not. `out` lies as q
  // does, in rows of ldo.
  void (*attend_narrow)(const NarrowAttention& a, bf16* out, int64_t ldo) = nullptr;
  // Given dout, as out lies: dq (as q lies) is written, dkeys and dvalues [length × width] are added to.
  void (*attend_narrow_backward)(const NarrowAttention& a, const float* dout, int64_t ldd, float* dq, float* dkeys, float* dvalues) = nullptr;

  // head: folds n logits of a row into the running maximum and sums Σ e^(x - max), Σ e^(2(x - max)).
  void (*logsumexp_row)(const float* logits, int64_t n, float* maximum, double* sum, double* sum_squares) = nullptr;
  // With products of bfloat16 (else null): the same to what they keep, and e^(x - maximum so far), rounded, into the row's place
  // `left` (may be null) in panels of a left operand, zero behind the last.
  void (*weigh_bf16)(const float* logits, int64_t n, float* maximum, double* sum, double* sum_squares, bf16* left) = nullptr;
  // logits → gradient: x ← factor · e^(x - maximum)
  void (*head_gradient_row)(float* logits, int64_t n, float maximum, float factor) = nullptr;

  void (*adamw)(float* p, const float* g, float* m, float* v, int64_t n, const AdamWStep& step) = nullptr;
  // y += alpha x; dot product (float64 over lanes of float32 blocks)
  void (*axpy)(float* y, const float* x, float alpha, int64_t n) = nullptr;
  double (*squared_norm)(const float* x, int64_t n) = nullptr;
  // bilinear: low-rank rewards of votes, see ops/bilinear/kernels.h
  BilinearKernels<float> bilinear_f32;
  BilinearKernels<double> bilinear_f64;
  // bench: n rounds of independent multiply-adds in registers; gives the floating-point operations done.
  double (*multiply_adds)(int64_t n, volatile float* sink) = nullptr;
  double (*multiply_adds_bf16)(int64_t n, volatile float* sink) = nullptr;  // null where the set has no such products
};

const Kernels& kernels_of(Isa isa);

// Memory that grows to the largest size asked for and stays: nothing is allocated in a loop after its first turn.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& o) noexcept : data_(o.data_), bytes_(o.bytes_) { o.data_ = nullptr; o.bytes_ = 0; }
  Buffer& operator=(Buffer&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }
  ~Buffer() { release(); }
  // At least `bytes` (64-byte aligned); contents are lost when it grows.
  void* get(size_t bytes) {
    if (bytes > bytes_) {
      release();
      const size_t rounded = (bytes + bytes / 16 + 63) / 64 * 64;
      data_ = ::operator new(rounded, kAlignment);
      bytes_ = rounded;
    }
    return data_;
  }
  template <class T = float>
  T* as(int64_t count) { return static_cast<T*>(get(size_t(count > 0 ? count : 1) * sizeof(T))); }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  void release() {
    ::operator delete(data_, kAlignment);
    data_ = nullptr;
    bytes_ = 0;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

struct LoraModule;

// Rows that one adapter answers for. `stream`: seed of this linear's dropout masks; 0: nothing is dropped.
struct LoraRange {
  int64_t row, rows;
  const LoraModule* module;
  uint64_t stream;
};

// What an operator runs in: the vector code, the threads, and scratch memory (shared, and of each thread).
struct Context {
  Context(const Kernels& k, Pool& p) : kernels(k), pool(p), local(size_t(p.size())) {}
  const Kernels& kernels;
  Pool& pool;
  Buffer packed_a, packed_b, cuts, head;
  Buffer shared[8];               // of the operator in hand, on the calling thread
  std::vector<LoraRange> ranges;  // likewise
  std::vector<LoraRange> part_ranges[3];  // of the linear layers in hand
  struct Local { Buffer slot[14]; };
  std::vector<Local> local;
};

}  // namespace pluralign
