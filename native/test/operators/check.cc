#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "operator.h"

namespace pluralign::test {
namespace {

constexpr float kUnset = std::numeric_limits<float>::quiet_NaN();
constexpr double kSlopeLimit = 1e-2, kStep = 1e-2;

std::vector<char> stored(const Array& a, const std::vector<float>& values) {
  std::vector<char> bytes(values.size() * (a.storage == kF32 ? 4 : 2));
  if (a.storage == kF32) std::memcpy(bytes.data(), values.data(), bytes.size());
  else
    for (size_t i = 0; i < values.size(); ++i) {
      const bf16 b = to_bf16(values[i]);
      std::memcpy(bytes.data() + 2 * i, &b, 2);
    }
  return bytes;
}

// ‖a - b‖ / ‖b‖; infinite where one of them is no number and the other is.
double apart(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    difference += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
    size += double(b[i]) * b[i];
  }
  if (difference == 0) return 0;
  const double relative = std::sqrt(difference / std::max(size, 1e-30));
  return std::isfinite(relative) ? relative : std::numeric_limits<double>::infinity();
}

}  // namespace

int Case::room(const char* name, int kind, int64_t n, Role role) { return add(name, kind, std::vector<float>(size_t(n), kUnset), role); }

std::vector<float> noise(int64_t n, double deviation) {
  std::vector<float> v(static_cast<size_t>(n));
  uint64_t state = 0x9e3779b97f4a7c15ull ^ uint64_t(n);
  const float scale = float(deviation * std::sqrt(12.0) / 16777216.0);
  for (float& x : v) {  // xorshift64*
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    x = (float((state * 0x2545f4914f6cdd1dull) >> 40) - 8388607.5f) * scale;
  }
  return v;
}

Side::Side(const Device& device, const Case& c) : device_(device), case_(c), plan_arrays_(c.forest.arrays()), buffers_(c.arrays.size()), made_(c.arrays.size()) {
  plan_ = device_.make_plan(plan_arrays_);
  for (size_t i = 0; i < c.arrays.size(); ++i)
    if (!c.arrays[i].make) {
      buffers_[i].get(device_, c.arrays[i].values.size() * 4);
      put(int(i), c.arrays[i].values);
    }
  for (size_t i = 0; i < c.arrays.size(); ++i) {
    if (!c.arrays[i].make) continue;
    made_[i] = c.arrays[i].make(*this);
    device_.upload(buffers_[i].get(device_, made_[i].size()), made_[i].data(), made_[i].size());
  }
}
Side::~Side() { device_.drop_plan(plan_); }

void Side::put(int array, const std::vector<float>& values) {
  const std::vector<char> bytes = stored(case_.arrays[size_t(array)], values);
  device_.upload(at<void>(array), bytes.data(), bytes.size());
}

std::vector<float> Side::read(int array) const {
  const Array& a = case_.arrays[size_t(array)];
  std::vector<float> out(a.values.size());
  if (a.storage == kF32) {
    device_.fetch(out.data(), at<void>(array), out.size() * 4);
    return out;
  }
  std::vector<bf16> half(out.size());
  device_.fetch(half.data(), at<void>(array), half.size() * 2);
  for (size_t i = 0; i < half.size(); ++i) out[i] = to_float(half[i]);
  return out;
}

Verdict equal(const Case& c, const Device& expected, const Device& device) {
  Verdict worst;
  const Side a(expected, c), b(device, c);
  for (const Side* side : {&a, &b}) {
    c.forward(*side);
    if (c.backward) c.backward(*side);
  }
  for (size_t i = 0; i < c.arrays.size(); ++i) {
    if (c.arrays[i].role == Role::input) continue;
    const double off = apart(b.read(int(i)), a.read(int(i)));
    if (off >= worst.error) worst.error = off, worst.what = c.arrays[i].name;
  }
  worst.good = worst.error <= (c.storage == kF32 ? 1e-5 : 1e-2);
  return worst;
}

// Along the gradient that the backward pass gives, what the forward pass's output does must be that gradient's square.
Verdict gradients(const Case& c, const Device& device) {
  Verdict worst;
  for (const Case::Slope& slope : c.slopes) {
    const std::vector<float>& x = c.arrays[size_t(slope.of)].values;
    const std::vector<float>& weight = c.arrays[size_t(c.dout)].values;
    std::vector<float> gradient;
    {
      const Side side(device, c);
      c.forward(side);
      c.backward(side);
      gradient = side.read(slope.gradient);
    }
    const std::vector<float>& before = c.arrays[size_t(slope.gradient)].values;
    double squares = 0, size = 0;
    for (size_t i = 0; i < gradient.size(); ++i) {
      if (slope.added && !std::isnan(before[i])) gradient[i] -= before[i];
      squares += double(gradient[i]) * gradient[i];
      size += double(x[i]) * x[i];
    }
    if (gradient.empty() || squares == 0) continue;
    const double step = kStep * std::sqrt(size / squares);
    const auto output = [&](double by) {
      Side side(device, c);
      std::vector<float> moved(x);
      for (size_t i = 0; i < x.size(); ++i) moved[i] = float(moved[i] + by * gradient[i]);
      side.put(slope.of, moved);
      c.forward(side);
      return side.read(c.out);
    };
    const std::vector<float> up = output(step), down = output(-step);
    double change = 0;
    for (size_t i = 0; i < up.size(); ++i) change += (double(up[i]) - down[i]) * weight[i];
    const double off = std::abs(change / (2 * step) / squares - 1);
    if (!(off < worst.error)) worst.error = off, worst.what = c.arrays[size_t(slope.of)].name;
  }
  worst.good = worst.error <= kSlopeLimit;
  return worst;
}

Times time_case(const Case& c, const Device& device, double seconds) {
  using Clock = std::chrono::steady_clock;
  const Side side(device, c);
  const auto wait = [&] { device.synchronize(); };
  const auto median = [&](const std::function<void(const Side&)>& pass) {
    for (int i = 0; i < 3; ++i) pass(side);
    wait();
    std::vector<double> each;  // of ten passes at a time: launches queue up behind each other as they do in a model
    const auto begin = Clock::now();
    do {
      const auto start = Clock::now();
      for (int i = 0; i < 10; ++i) pass(side);
      wait();
      each.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count() / 10);
    } while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds && each.size() < 50);
    std::nth_element(each.begin(), each.begin() + ptrdiff_t(each.size() / 2), each.end());
    return each[each.size() / 2];
  };
  Times t;
  t.forward = median(c.forward);
  if (c.backward) t.backward = median(c.backward);
  return t;
}

}  // namespace pluralign::test
