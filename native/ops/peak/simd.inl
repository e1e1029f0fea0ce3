// The most that this instruction set's multiply-adds can do: enough independent chains to hide their latency, all in
// registers. What a benchmark's share of the peak is measured against.

static double multiply_adds(int64_t n, volatile float* sink) {
  constexpr int chains = 12;
  const vf a = splat(*sink), b = splat(*sink);
  vf acc[chains];
  for (int i = 0; i < chains; ++i) acc[i] = splat(float(i));
  for (int64_t p = 0; p < n; ++p)
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) acc[i] = acc[i] * a + b;
  vf total{};
  for (int i = 0; i < chains; ++i) total += acc[i];
  *sink = sum(total);
  return 2.0 * chains * W * double(n);
}

static void fill_peak(Kernels& k) { k.multiply_adds = multiply_adds; }
