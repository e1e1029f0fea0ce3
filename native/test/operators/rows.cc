#include <cmath>
#include <cstring>

#include "ops/rope/rope.h"
#include "shapes.h"

namespace pluralign::test {
namespace {

using device::Table;

Case embed(const Segments& s, int64_t width, int64_t vocabulary, int storage) {
  Case c{"embed", sizes({0, width}), storage, s.forest(vocabulary)};
  const int64_t rows = c.forest.rows;
  c.shape = sizes({rows, width});
  const int table = c.add("table", storage, noise(vocabulary * width)), x = c.room("x", kF32, rows * width);
  const int dx = c.add("dx", kF32, noise(rows * width)), dtable = c.add("dtable", kF32, noise(vocabulary * width), Role::gradient);
  c.forward = [=](const Side& on) { on.run(&Table::embed, device::EmbedCall{on.plan(), {on.at<void>(table), type_of(storage), 0, vocabulary, width, width}, on.at(x)}); };
  c.backward = [=](const Side& on) { on.run(&Table::embed_backward, device::EmbedBackwardCall{on.plan(), on.at(dx), on.at(dtable), width, vocabulary}); };
  c.slopes = {{table, dtable}};
  c.out = x;
  c.dout = dx;
  c.bytes = double(rows * width) * (4 + (storage == kF32 ? 4 : 2));
  return c;
}

Case gather(const Segments& s, int64_t width) {
  Case c{"gather", "", kF32, s.forest()};
  const int64_t rows = c.forest.rows;
  c.shape = sizes({rows, width});
  const int x = c.add("x", kF32, noise(rows * width)), read = c.room("read", kF32, rows * width);
  const int d = c.add("d", kF32, noise(rows * width)), dx = c.add("dx", kF32, noise(rows * width, 2), Role::gradient);
  c.forward = [=](const Side& on) { on.run(&Table::gather, device::GatherCall{on.plan(), width, on.at(x), on.at(read)}); };
  c.backward = [=](const Side& on) { on.run(&Table::gather_backward, device::GatherCall{on.plan(), width, on.at(dx), on.at(d)}); };
  c.slopes = {{x, dx}};
  c.out = read;
  c.dout = d;
  c.bytes = double(rows * width) * 8;
  return c;
}

Case norm(int64_t rows, int64_t width, int storage) {
  Case c{"norm", sizes({rows, width}), storage, {}};
  const int x = c.add("x", kF32, noise(rows * width, 2)), weight = c.add("weight", kF32, noise(width)), y = c.room("y", storage, rows * width), rstd = c.room("rstd", kF32, rows);
  const int dy = c.add("dy", kF32, noise(rows * width)), dx = c.room("dx", kF32, rows * width, Role::gradient), dweight = c.add("dweight", kF32, noise(width), Role::gradient);
  c.forward = [=](const Side& on) { on.run(&Table::norm, device::NormCall{rows, width, on.at(x), on.at(weight), on.at<void>(y), on.at(rstd), storage, 1e-5f}); };
  c.backward = [=](const Side& on) {
    on.run(&Table::norm_backward, device::NormBackwardCall{rows, width, on.at(dy), on.at(x), on.at(rstd), on.at(weight), on.at(dx), on.at(dweight), 0, 0});
  };
  c.slopes = {{x, dx}, {weight, dweight}};
  c.out = y;
  c.dout = dy;
  c.bytes = double(rows * width) * (4 + (storage == kF32 ? 4 : 2));
  return c;
}

Case rope(const Segments& s, int64_t heads, int64_t kv_heads, int64_t head_dim, bool normed, int storage) {
  Case c{normed ? "rope, normed" : "rope", "", storage, s.forest()};
  const int64_t rows = c.forest.rows, width = (heads + 2 * kv_heads) * head_dim;
  c.shape = sizes({rows, heads, kv_heads, head_dim});
  RopeTable table;
  std::vector<double> frequencies;
  for (int64_t i = 0; i < head_dim / 2; ++i) frequencies.push_back(std::pow(1e-4, 2.0 * double(i) / double(head_dim)));
  table.reserve(std::max<int64_t>(1, c.forest.longest), frequencies.data(), head_dim / 2, 1.1);
  const int raw = c.add("raw", storage, noise(rows * width)), out = c.room("out", kF32, rows * width), d = c.add("d raw", kF32, noise(rows * width), Role::gradient);
  const int values = c.add("table", kF32, table.values()), q = c.add("q norm", kF32, noise(head_dim)), k = c.add("k norm", kF32, noise(head_dim));
  const int dq = c.add("dq norm", kF32, noise(head_dim), Role::gradient), dk = c.add("dk norm", kF32, noise(head_dim), Role::gradient);
  const auto call = [=](const Side& on, int to) {
    return device::RopeCall{on.plan(), heads, kv_heads, head_dim, on.at(normed ? q : -1), on.at(normed ? k : -1), 1e-5f, storage, on.at(values), on.at<void>(raw), on.at(to),
                            on.at(normed ? dq : -1), on.at(normed ? dk : -1)};
  };
  c.forward = [=](const Side& on) { on.run(&Table::rope, call(on, out)); };
  c.backward = [=](const Side& on) { on.run(&Table::rope_backward, call(on, d)); };
  c.slopes = {{raw, d, false}};
  if (normed) c.slopes.insert(c.slopes.end(), {{q, dq}, {k, dk}});
  c.out = out;
  c.dout = d;
  c.bytes = double(rows * width) * (4 + (storage == kF32 ? 4 : 2));
  return c;
}

Case swiglu(int64_t rows, int64_t width, int storage) {
  Case c{"swiglu", sizes({rows, width}), storage, {}};
  const int gate_up = c.add("gate, up", storage, noise(rows * 2 * width, 2)), act = c.room("act", storage, rows * width);
  const int dact = c.add("dact", kF32, noise(rows * width)), d = c.room("d gate, up", kF32, rows * 2 * width, Role::gradient);
  const auto call = [=](const Side& on) { return device::SwigluCall{rows, width, on.at<void>(gate_up), on.at<void>(act), on.at(dact), on.at(d), storage, 0}; };
  c.forward = [=](const Side& on) { on.run(&Table::swiglu, call(on)); };
  c.backward = [=](const Side& on) { on.run(&Table::swiglu_backward, call(on)); };
  c.slopes = {{gate_up, d}};
  c.out = act;
  c.dout = dact;
  c.bytes = double(rows * width) * 3 * (storage == kF32 ? 4 : 2);
  return c;
}

// Adapters 0 and 2 share a head; 1 has none.
Case reward(const Segments& s, int64_t width, int storage) {
  Case c{"reward", "", storage, s.forest()};
  const int64_t n = c.forest.rows;
  c.shape = sizes({n, width});
  const int heads = c.add("head", kF32, noise(width)), dheads = c.add("dhead", kF32, noise(width, 2), Role::gradient), hidden = c.add("hidden", storage, noise(n * width));
  const int out = c.room("reward", kF32, n), dout = c.add("dout", kF32, noise(n)), dhidden = c.room("dhidden", kF32, n * width, Role::gradient);
  const auto thrice = [](int array) {
    return [array](const Side& on) {
      const float* list[3] = {on.at(array), nullptr, on.at(array)};
      return std::vector<char>(reinterpret_cast<const char*>(list), reinterpret_cast<const char*>(list) + sizeof list);
    };
  };
  const int head_list = c.made("heads", thrice(heads)), dhead_list = c.made("dheads", thrice(dheads));
  const int who = c.made("adapters", [n](const Side&) {
    std::vector<char> bytes(size_t(n) * 4);
    for (int64_t i = 0; i < n; ++i) {
      const int32_t adapter = int32_t(i % 2 * 2);
      std::memcpy(bytes.data() + 4 * i, &adapter, 4);
    }
    return bytes;
  });
  const auto call = [=](const Side& on) {
    return device::RewardCall{on.plan(), {on.at<void>(hidden), type_of(storage), 0, n, width, width}, on.at<const float*>(head_list), on.at<float*>(dhead_list), on.at<int32_t>(who), on.at(out),
                              on.at(dout), on.at(dhidden), 3};
  };
  c.forward = [=](const Side& on) { on.run(&Table::reward, call(on)); };
  c.backward = [=](const Side& on) { on.run(&Table::reward_backward, call(on)); };
  c.slopes = {{heads, dheads}, {hidden, dhidden}};
  c.out = out;
  c.dout = dout;
  c.bytes = double(n * width) * (storage == kF32 ? 4 : 2);
  return c;
}

Case adamw(int64_t n) {
  Case c{"adamw", sizes({n}), kF32, {}};
  std::vector<float> squares = noise(n);
  for (float& x : squares) x = std::abs(x);
  const int p = c.add("p", kF32, noise(n), Role::result), g = c.add("g", kF32, noise(n)), m = c.add("m", kF32, noise(n, 0.1), Role::result), v = c.add("v", kF32, squares, Role::result);
  c.forward = [=](const Side& on) {
    const int64_t span[] = {0, 0, n / 9, n / 9 + n % 2, n / 3, n};
    const int32_t step[] = {1, 1, 7};
    const uint8_t decay[] = {1, 1, 0};
    on.run(&Table::adamw, device::AdamWCall{on.at(p), on.at(g), on.at(m), on.at(v), 3, span, step, decay, 1e-2, 0.9, 0.999, 1e-8, 0.1, 0.5});
  };
  c.bytes = double(n) * 2 / 3 * 28;
  return c;
}

}  // namespace

Cases row_cases() {
  Cases all;
  for (const Segments& s : odd_forests()) {
    for (const int64_t width : {1, 33, 160}) {
      in_both_types(all.odd, [=](int storage) { return embed(s, width, 17, storage); });
      in_both_types(all.odd, [=](int storage) { return reward(s, width, storage); });
      all.odd.push_back([=] { return gather(s, width); });
    }
    for (const auto& [heads, kv_heads, dim] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 2}, {4, 2, 6}, {3, 1, 80}})
      for (const bool normed : {false, true}) in_both_types(all.odd, [=, h = heads, kv = kv_heads, d = dim](int storage) { return rope(s, h, kv, d, normed, storage); });
  }
  for (const int64_t rows : {0, 1, 19})
    for (const int64_t width : {2, 37, 300}) {  // the gradient of a norm of one number is what rounding leaves
      in_both_types(all.odd, [=](int storage) { return norm(rows, width, storage); });
      in_both_types(all.odd, [=](int storage) { return swiglu(rows, width, storage); });
    }
  for (const int64_t n : {0, 1, 700}) all.odd.push_back([=] { return adamw(n); });

  const Segments batch = pairs(8192, 2);
  in_both_types(all.real, [=](int storage) { return embed(batch, 4096, 32000, storage); });
  all.real.push_back([=] { return gather(batch, 4096); });
  in_both_types(all.real, [=](int storage) { return norm(8192, 4096, storage); });
  in_both_types(all.real, [=](int storage) { return rope(batch, 32, 8, 128, false, storage); });
  in_both_types(all.real, [=](int storage) { return swiglu(8192, 14336, storage); });
  in_both_types(all.real, [=](int storage) { return reward(batch, 4096, storage); });
  all.real.push_back([] { return adamw(40'000'000); });
  return all;
}

}  // namespace pluralign::test
