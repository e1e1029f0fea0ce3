// Dense and grouped low-rank products by OpenBLAS and oneDNN, for products.mjs. Reads a line for each timing and answers with
// the nanoseconds of one call, or with `none` where the library has no such way:
//   linear WAY DTYPE ROWS IN OUT SECONDS          y = x Wᵀ, repeated for at least SECONDS
//   lora WAY WIDTH R ROWS_EACH BACKWARD COUNT…    requests of each adapter, caches overwritten before the call
// One thread is timed by its processor time, more by the clock. A few elements of every result are checked against sums in
// float64 before it is timed.
#include <cblas.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

namespace {

using dnnl::memory;
using Tag = memory::format_tag;
using Call = std::function<void()>;

int threads = 1;

double now() {
  timespec t;
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float from_bf16(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

std::vector<float> random_floats(int64_t n, uint64_t seed) {
  std::vector<float> out(size_t(std::max<int64_t>(1, n)));
  uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
  for (auto& v : out) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    v = float(int32_t(state >> 32)) * (1.f / 2147483648.f);
  }
  return out;
}

std::vector<uint16_t> rounded(const std::vector<float>& from) {
  std::vector<uint16_t> out(from.size());
  std::transform(from.begin(), from.end(), out.begin(), to_bf16);
  return out;
}

[[noreturn]] void wrong(const std::string& what) {
  std::cerr << "products: " << what << " is wrong\n";
  std::exit(1);
}

void expect(double found, double wanted, double tolerance, const std::string& what) {
  if (!(std::abs(found - wanted) <= tolerance)) wrong(what);
}

dnnl::engine& engine() {
  static dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}
dnnl::stream& stream() {
  static dnnl::stream s(engine());
  return s;
}

// y = x Wᵀ for one layer: what was made for it, so that the rounds of one shape share it.
struct Linear {
  std::vector<float> x, w, y;
  std::vector<uint16_t> xh, wh, yh;
  Call call;
};

template <class Primitive, class Description>
void with_onednn(Linear& l, const Description& description, const memory& x, memory w, memory y) {
  memory weights = w;
  if (description.weights_desc() != w.get_desc()) {  // prepared once, as a frozen weight can be
    weights = memory(description.weights_desc(), engine());
    dnnl::reorder(w, weights).execute(stream(), w, weights);
    stream().wait();
  }
  const Primitive primitive(description);
  l.call = [=] {
    primitive.execute(stream(), {{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DST, y}});
    stream().wait();
  };
}

// Ways: openblas, openblas-transposed (W kept as [in × out]); onednn (W as it is), onednn-matmul and onednn-inner (W
// reordered once as the library wishes).
bool prepare(Linear& l, const std::string& way, bool bf16, int64_t m, int64_t k, int64_t n) {
  l.x = random_floats(m * k, 1);
  l.w = random_floats(n * k, 2);
  l.y.resize(size_t(bf16 ? 1 : m * n));
  if (bf16) {
    l.xh = rounded(l.x);
    l.wh = rounded(l.w);
    l.yh.resize(size_t(m * n));
  }
  if (way.rfind("openblas", 0) == 0) {
    if (bf16) return false;
    const bool flipped = way != "openblas";
    if (flipped) {
      std::vector<float> turned(l.w.size());
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < k; ++j) turned[size_t(j * n + i)] = l.w[size_t(i * k + j)];
        std::swap(l.w, turned);
    }
    l.call = [&l, m, k, n, flipped] {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, flipped ? CblasNoTrans : CblasTrans, int(m), int(n), int(k), 1.f, l.x.data(), int(k), l.w.data(),
                  int(flipped ? n : k), 0.f, l.y.data(), int(n));
    };
  } else {
    const auto type = bf16 ? memory::data_type::bf16 : memory::data_type::f32;
    const memory::desc xd({m, k}, type, Tag::ab), yd({m, n}, type, Tag::ab);
    const memory x(xd, engine(), bf16 ? static_cast<void*>(l.xh.data()) : l.x.data());
    const memory y(yd, engine(), bf16 ? static_cast<void*>(l.yh.data()) : l.y.data());
    void* w = bf16 ? static_cast<void*>(l.wh.data()) : l.w.data();
    try {
      if (way == "onednn-inner") {
        const dnnl::inner_product_forward::primitive_desc d(
            {dnnl::prop_kind::forward_inference, xd, memory::desc({n, k}, type, Tag::any), yd}, engine());
        with_onednn<dnnl::inner_product_forward>(l, d, x, memory({{n, k}, type, Tag::ab}, engine(), w), y);
      } else {
        const memory::desc plain({k, n}, type, Tag::ba), any({k, n}, type, Tag::any);
        const dnnl::matmul::primitive_desc d({xd, way == "onednn" ? plain : any, yd}, engine());
        with_onednn<dnnl::matmul>(l, d, x, memory(plain, engine(), w), y);
      }
    } catch (const dnnl::error&) {
      return false;
    }
  }
  l.call();
  for (int64_t i : {int64_t(0), m / 2, m - 1})
    for (int64_t j : {int64_t(0), n / 3, n - 1}) {
      const bool flipped = way == "openblas-transposed";
      double sum = 0;
      for (int64_t p = 0; p < k; ++p) {
        const float a = bf16 ? from_bf16(l.xh[size_t(i * k + p)]) : l.x[size_t(i * k + p)];
        sum += double(a) * double(bf16 ? from_bf16(l.wh[size_t(j * k + p)]) : l.w[size_t(flipped ? p * n + j : j * k + p)]);
      }
      expect(bf16 ? from_bf16(l.yh[size_t(i * n + j)]) : l.y[size_t(i * n + j)], sum, bf16 ? 0.02 * std::abs(sum) + 0.05 : 1e-3, way);
    }
  return true;
}

// C [m × n] (+)= alpha · A B by one library; a and b may lie transposed.
struct Product {
  int64_t m, n, k;
  const float* a;
  bool a_turned;
  const float* b;
  bool b_turned;
  float* c;
  float alpha;
  bool add;
};

void by_openblas(const Product& p) {
  cblas_sgemm(CblasRowMajor, p.a_turned ? CblasTrans : CblasNoTrans, p.b_turned ? CblasTrans : CblasNoTrans, int(p.m), int(p.n), int(p.k), p.alpha,
              p.a, int(p.a_turned ? p.m : p.k), p.b, int(p.b_turned ? p.k : p.n), p.add ? 1.f : 0.f, p.c, int(p.n));
}

// Making a primitive takes longer than most of these products: they are kept by shape, and made before the clock starts.
void by_onednn(const Product& p) {
  struct Made {
    dnnl::matmul primitive;
    memory a, b, c;
  };
  static std::map<std::tuple<int64_t, int64_t, int64_t, bool, bool, bool, float>, Made> made;
  const auto key = std::make_tuple(p.m, p.n, p.k, p.a_turned, p.b_turned, p.add, p.alpha);
  auto found = made.find(key);
  if (found == made.end()) {
    const auto f32 = memory::data_type::f32;
    const memory::desc a({p.m, p.k}, f32, p.a_turned ? Tag::ba : Tag::ab), b({p.k, p.n}, f32, p.b_turned ? Tag::ba : Tag::ab), c({p.m, p.n}, f32, Tag::ab);
    dnnl::primitive_attr attributes;
    attributes.set_output_scales(0, {p.alpha});
    dnnl::post_ops sum;
    sum.append_sum(1.f);
    if (p.add) attributes.set_post_ops(sum);
    const dnnl::matmul::primitive_desc d({a, b, c}, attributes, engine());
    found = made.emplace(key, Made{dnnl::matmul(d), memory(a, engine(), nullptr), memory(b, engine(), nullptr), memory(c, engine(), nullptr)}).first;
  }
  Made& m = found->second;
  m.a.set_data_handle(const_cast<float*>(p.a));
  m.b.set_data_handle(const_cast<float*>(p.b));
  m.c.set_data_handle(p.c);
  m.primitive.execute(stream(), {{DNNL_ARG_SRC, m.a}, {DNNL_ARG_WEIGHTS, m.b}, {DNNL_ARG_DST, m.c}});
}

constexpr float kScale = 1e-3f;

// y += s x Aᵀ Bᵀ, or its gradients, one adapter's rows after the other's.
struct Lora {
  int64_t width, r;
  bool backward;
  std::vector<int64_t> rows;  // of each adapter
  std::vector<float> x, y, h, dh, dx, factors, gradients;

  int64_t size() const { return 2 * width * r; }
  float* a(size_t i) { return factors.data() + int64_t(i) * size(); }
  float* b(size_t i) { return a(i) + width * r; }

  void run(void (*multiply)(const Product&)) {
    int64_t row = 0;
    for (size_t i = 0; i < rows.size(); row += rows[i++]) {
      const int64_t m = rows[i];
      float *xs = x.data() + row * width, *ys = y.data() + row * width, *hs = h.data() + row * r, *das = gradients.data() + int64_t(i) * size();
      if (!backward) {
        multiply({m, r, width, xs, false, a(i), true, hs, 1, false});
        multiply({m, width, r, hs, false, b(i), true, ys, kScale, true});
        continue;
      }
      multiply({width, r, m, ys, true, hs, false, das + width * r, kScale, true});
      multiply({m, r, width, ys, false, b(i), false, dh.data(), kScale, false});
      multiply({r, width, m, dh.data(), true, xs, false, das, 1, true});
      multiply({m, width, r, dh.data(), false, a(i), false, dx.data() + row * width, 1, true});
    }
    stream().wait();
  }

  // The last element of y, or of dx, after one call from zero.
  void check(void (*multiply)(const Product&), const std::string& way) {
    std::fill(backward ? dx.begin() : y.begin(), backward ? dx.end() : y.end(), 0.f);
    if (backward) y = random_floats(int64_t(y.size()), 6);
    run(multiply);
    const size_t i = rows.size() - 1;
    const auto at = [&](std::vector<float>& v, int64_t n) { return v.data() + v.size() - size_t(n); };
    double sum = 0;
    for (int64_t q = 0; q < r; ++q) {
      double low = 0;
      for (int64_t p = 0; p < width; ++p) low += backward ? double(at(y, width)[p]) * b(i)[p * r + q] : double(at(x, width)[p]) * a(i)[q * width + p];
      sum += kScale * low * (backward ? a(i)[q * width + width - 1] : b(i)[(width - 1) * r + q]);
    }
    expect(backward ? dx.back() : y.back(), sum, 1e-4, way);
  }
};

void wipe_caches() {
  static std::vector<char> bytes(size_t(64) << 20);
  static char value = 0;
  ++value;
  volatile char* p = bytes.data();
  for (size_t i = 0; i < bytes.size(); i += 64) p[i] = value;
}

std::string time_linear(std::istringstream& in, const std::string& line) {
  static std::string made;
  static Linear linear;
  static bool has = false;
  std::string way, type;
  int64_t m, k, n;
  double seconds;
  in >> way >> type >> m >> k >> n >> seconds;
  if (made != line) {
    linear = Linear();
    has = prepare(linear, way, type == "bf16", m, k, n);
    made = line;
  }
  if (!has) return "none";
  linear.call();
  double start = now();
  linear.call();
  const auto repeats = std::max<int64_t>(1, int64_t(seconds / std::max(1e-9, now() - start)));
  start = now();
  for (int64_t i = 0; i < repeats; ++i) linear.call();
  return std::to_string((now() - start) / double(repeats) * 1e9);
}

std::string time_lora(std::istringstream& in, const std::string& line) {
  static std::string made;
  static Lora lora;
  std::string way;
  int64_t each, count, total = 0;
  int backward;
  in >> way;
  const auto multiply = way == "openblas" ? by_openblas : by_onednn;
  if (made != line) {
    lora = Lora();
    in >> lora.width >> lora.r >> each >> backward;
    lora.backward = backward != 0;
    while (in >> count) {
      lora.rows.push_back(count * each);
      total += lora.rows.back();
    }
    lora.x = random_floats(total * lora.width, 1);
    lora.y = random_floats(total * lora.width, 2);
    lora.h = random_floats(total * lora.r, 3);
    lora.factors = random_floats(int64_t(lora.rows.size()) * lora.size(), 4);
    if (lora.backward) {
      lora.dh.resize(size_t(total * lora.r));
      lora.dx.resize(size_t(total * lora.width));
      lora.gradients.resize(lora.factors.size());
    }
    lora.check(multiply, way);
    made = line;
  }
  wipe_caches();
  const double start = now();
  lora.run(multiply);
  return std::to_string((now() - start) * 1e9);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) threads = std::atoi(argv[1]);
  openblas_set_num_threads(threads);
  const auto* v = dnnl::version();
  const char* config = openblas_get_config();
  std::cout << config << "; oneDNN " << v->major << "." << v->minor << "." << v->patch << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream in(line);
    std::string what;
    in >> what;
    const std::string answer = what == "linear" ? time_linear(in, line) : time_lora(in, line);
    std::cout << answer << std::endl;
  }
}
