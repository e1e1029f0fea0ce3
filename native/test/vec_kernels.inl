// The vector primitives of one instruction set, as functions over arrays. Included once per set by vec_test.cc.
#include "ops/isa/vec.inl"

struct Primitives {
  static void exps(const float* x, float* y, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(y + i, vexp(load(x + i)));
    if (i < n) store_tail(y + i, vexp(load_tail(x + i, n - i)), n - i);
  }
  static void exps_of_two(const float* x, float* y) { store(y, near_exp2(load(x))); }
  static void inverses(const float* x, float* y) { store(y, inverse(load(x))); }
  template <class From, class To>
  static void convert(const From* x, To* y, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(y + i, load(x + i));
    if (i < n) store_tail(y + i, load_tail(x + i, n - i), n - i);
  }
  // The first n lanes, the others as load_tail leaves them.
  static void tail(const float* x, float* y, int64_t n) { store(y, load_tail(x, n)); }
  static float total(const float* x) { return sum(load(x)); }
  static float top(const float* x) { return maximum(load(x)); }
  static void larger(const float* a, const float* b, float* y) { store(y, vmax(load(a), load(b))); }
  static constexpr int width = W;
};
