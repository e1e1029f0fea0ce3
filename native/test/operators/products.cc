#include <cmath>
#include <cstring>

#include "ops/lora/lora.h"
#include "shapes.h"

namespace pluralign::test {
namespace {

using device::Table;

Case attention(const Segments& s, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t window, int storage) {
  Case c{window ? "attention, window" : "attention", "", storage, s.forest()};
  const int64_t rows = c.forest.rows, stride = (heads + 2 * kv_heads) * head_dim, width = heads * head_dim;
  c.shape = sizes({rows, heads, kv_heads, head_dim});
  const int qkv = c.add("qkv", kF32, noise(rows * stride)), out = c.room("out", storage, rows * width), lse = c.add("lse", kF32, noise(rows * heads));
  const int dout = c.add("dout", kF32, noise(rows * width)), dqkv = c.room("dqkv", kF32, rows * stride, Role::gradient);
  const float scale = float(1 / std::sqrt(double(head_dim)));
  const auto call = [=](const Side& on) { return device::AttentionCall{on.plan(), heads, kv_heads, head_dim, window, scale, storage, on.at(qkv), on.at<void>(out), on.at(lse)}; };
  c.forward = [=](const Side& on) { on.run(&Table::attention, call(on)); };
  c.backward = [=](const Side& on) { on.run(&Table::attention_backward, device::AttentionBackwardCall{call(on), on.at(dout), on.at(dqkv)}); };
  c.slopes = {{qkv, dqkv}};
  c.out = out;
  c.dout = dout;
  for (const device::PlanNode& n : c.forest.nodes) c.flops += 4.0 * double(width) * double(n.rows) * (double(n.prefix) + double(n.rows + 1) / 2);
  return c;
}

// One linear of a call: its weight (none: adapters alone), bias, and what adapters 0, 1, 2 … have here, of rank `rank`. Every
// second adapter shares the first one's A and has a core of its own; with more than two the last leaves the layer alone.
struct Linear {
  int weight = -1, bias = -1, dweight = -1, dbias = -1, y = -1, dy = -1, h = -1, modules = -1;
  int64_t out = 0;
};

struct Layout {
  int64_t in, rank;
  std::vector<int64_t> outs;
  int adapters;
  float dropout;
  bool dense, residual, trained;  // trained: the base's weights are too
};

int add_modules(Case& c, const Layout& l, int64_t out, bool varied) {
  struct Ids {
    int a, b, core, da, db, dcore;
    int64_t core_rows, rank;
  };
  std::vector<Ids> ids;
  const auto factor = [&](const char* name, const char* gradient, int64_t n, double size) {
    const int values = c.add(name, kF32, noise(n, size)), slope = c.add(gradient, kF32, noise(n), Role::gradient);
    if (l.dropout == 0) c.slopes.push_back({values, slope});
    return std::pair<int, int>(values, slope);
  };
  for (int i = 0; i < l.adapters; ++i) {
    const bool absent = varied && l.adapters > 2 && i == l.adapters - 1;
    const int64_t r = absent ? 0 : varied && i == 2 ? l.rank + 3 : l.rank;
    Ids m{-1, -1, -1, -1, -1, -1, 0, r};
    if (!absent) {
      if (varied && i == 1) std::tie(m.a, m.da) = std::pair(ids[0].a, ids[0].da);
      else std::tie(m.a, m.da) = factor("A", "dA", r * l.in, 1 / std::sqrt(double(l.in)));
      std::tie(m.b, m.db) = factor("B", "dB", out * r, 1 / std::sqrt(double(r)));
      if (varied && i == 1) {
        m.core_rows = r;
        std::tie(m.core, m.dcore) = factor("core", "dcore", r * r, 1 / std::sqrt(double(r)));
      }
    }
    ids.push_back(m);
  }
  return c.made("modules", [ids, dropout = l.dropout](const Side& on) {
    std::vector<char> bytes;
    for (const Ids& m : ids) {
      const LoraModule module{on.at(m.a), on.at(m.b), on.at(m.core), on.at(m.da), on.at(m.db), on.at(m.dcore), m.rank, m.core_rows, 0.8f, dropout};
      bytes.insert(bytes.end(), reinterpret_cast<const char*>(&module), reinterpret_cast<const char*>(&module) + sizeof module);
    }
    return bytes;
  });
}

Case linear(const char* name, const Segments& s, const Layout& l, bool varied, int storage) {
  Case c{name, "", storage, s.forest()};
  const int64_t rows = c.forest.rows, stride = l.rank + 4;
  c.shape = sizes({rows, l.in});
  int64_t ldy = 0, column = 0;
  for (int64_t out : l.outs) {
    c.shape += (column++ ? ", " : " -> ") + std::to_string(out);
    ldy += out;
  }
  if (l.adapters) c.shape += ", " + std::to_string(l.adapters) + " of rank " + std::to_string(l.rank);
  const int x = c.add("x", storage, noise(rows * l.in)), dx = l.dense ? c.room("dx", kF32, rows * l.in, Role::gradient) : c.add("dx", kF32, noise(rows * l.in, 2), Role::gradient);
  const int y_storage = l.residual ? kF32 : storage;
  const int y = l.residual ? c.add("y", kF32, noise(rows * ldy), Role::result) : c.room("y", y_storage, rows * ldy), dy = c.add("dy", kF32, noise(rows * ldy));
  if (l.dropout == 0) c.slopes.push_back({x, dx});
  std::vector<Linear> parts;
  for (int64_t out : l.outs) {
    Linear p;
    p.out = out;
    p.weight = c.add("weight", storage, l.dense ? noise(out * l.in, 1 / std::sqrt(double(l.in))) : std::vector<float>(size_t(out * l.in)));
    if (l.trained) {
      p.dweight = c.add("dweight", kF32, noise(out * l.in), Role::gradient);
      p.bias = c.add("bias", kF32, noise(out));
      p.dbias = c.add("dbias", kF32, noise(out), Role::gradient);
      c.slopes.insert(c.slopes.end(), {{p.weight, p.dweight}, {p.bias, p.dbias}});
    }
    if (l.adapters) {
      p.h = c.room("h", kF32, rows * stride, Role::input);
      p.modules = add_modules(c, l, out, varied);
      c.flops += l.dense ? 0 : 2.0 * double(rows * l.rank) * double(l.in + out);
      c.bytes += l.dense ? 0 : double(rows) * double(l.in * (storage == kF32 ? 4 : 2) + out * 8) + double(l.adapters * l.rank) * double(l.in + out) * 4;
    }
    if (l.dense) c.flops += 2.0 * double(rows) * double(l.in) * double(out);
    parts.push_back(p);
  }
  const auto call = [=, dense = l.dense, in = l.in, adapters = l.adapters, residual = l.residual, stream = l.dropout > 0 ? 7u : 0u](const Side& on) {
    device::LinearCall call{on.plan(), rows, in, adapters ? stride : 0, on.at<void>(x), storage, int32_t(parts.size()), residual, adapters, {}, on.at(dx)};
    int64_t first = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      const Linear& from = parts[i];
      device::LinearPart& p = call.part[i];
      p.out = from.out;
      // A device leaves the dense product out where there is no weight; the CPU multiplies by zeros.
      p.weight = {dense || on.device().on_cpu() ? on.at<void>(from.weight) : nullptr, type_of(storage), 0, from.out, in, in};
      p.bias = on.at(from.bias);
      p.modules = on.at<LoraModule>(from.modules);
      p.host_modules = from.modules < 0 ? nullptr : on.on_host<LoraModule>(from.modules);
      p.h = on.at(from.h);
      p.y = on.at<char>(y) + first * (y_storage == kF32 ? 4 : 2);
      p.dy = on.at(dy) + first;
      p.ldy = ldy;
      p.dweight = on.at(from.dweight);
      p.dbias = on.at(from.dbias);
      p.stream = stream ? stream + i : 0;
      first += from.out;
    }
    return call;
  };
  c.forward = [=](const Side& on) { on.run(&Table::linear, call(on)); };
  c.backward = [=](const Side& on) {
    // The CPU writes dx where there is a dense product; without one the device adds to it.
    if (!l.dense && on.device().on_cpu()) {
      std::vector<float> there(on.read(dx));
      on.run(&Table::linear_backward, call(on));
      std::vector<float> added(on.read(dx));
      for (size_t i = 0; i < there.size(); ++i) added[i] += there[i];
      const_cast<Side&>(on).put(dx, added);
    } else on.run(&Table::linear_backward, call(on));
  };
  c.out = y;
  c.dout = dy;
  return c;
}

Case head(const Segments& s, int64_t width, int64_t vocabulary, bool trained, int storage) {
  Case c{"head", "", storage, s.forest(vocabulary)};
  const int64_t rows = c.forest.rows;
  c.shape = sizes({rows, width, vocabulary});
  const int hidden = c.add("hidden", storage, noise(rows * width)), weight = c.add("weight", storage, noise(vocabulary * width, 1 / std::sqrt(double(width))));
  const int logps = c.room("logps", kF32, rows), partition = c.add("partition", kF32, std::vector<float>(size_t(rows) * 4)), squares = c.room("squares", kF32, rows);
  const int dlogps = c.add("dlogps", kF32, noise(rows)), dhidden = c.room("dhidden", kF32, rows * width, Role::gradient);
  const int dweight = trained ? c.add("dweight", kF32, noise(vocabulary * width, 0.01), Role::gradient) : -1;
  const auto call = [=](const Side& on) {
    return device::HeadCall{on.plan(), {on.at<void>(hidden), type_of(storage), 0, rows, width, width}, {on.at<void>(weight), type_of(storage), 0, vocabulary, width, width}, nullptr, 1.2f, 0,
                            on.at(logps), on.at<double>(partition), on.at(squares), on.at(dlogps), on.at(dhidden), on.at(dweight)};
  };
  c.forward = [=](const Side& on) { on.run(&Table::head, call(on)); };
  c.backward = [=](const Side& on) { on.run(&Table::head_backward, call(on)); };
  c.slopes = {{hidden, dhidden}};
  if (trained) c.slopes.push_back({weight, dweight});
  c.out = logps;
  c.dout = dlogps;
  c.flops = 2.0 * double(rows) * double(width) * double(vocabulary);
  return c;
}

}  // namespace

Cases product_cases() {
  Cases all;
  for (const Segments& s : odd_forests()) {
    for (const auto& [heads, kv_heads, dim, window] :
         {std::tuple<int64_t, int64_t, int64_t, int64_t>{2, 2, 12, 0}, {3, 1, 16, 17}, {2, 1, 8, 1}, {4, 2, 80, 3}, {1, 1, 5, 0}})
      in_both_types(all.odd, [=, h = heads, kv = kv_heads, d = dim, w = window](int storage) { return attention(s, h, kv, d, w, storage); });
    for (const Layout& l : {Layout{7, 1, {5}, 3, 0, true, true, false}, Layout{40, 8, {72, 9}, 3, 0, true, false, false}, Layout{33, 3, {70, 8, 16}, 3, 0.4f, true, false, false},
                            Layout{24, 2, {17}, 0, 0, true, false, true}, Layout{40, 8, {72, 9}, 4, 0, false, true, false}})
      in_both_types(all.odd, [=](int storage) { return linear(l.dense ? "linear" : "lora", s, l, true, storage); });
    for (const auto& [width, vocabulary] : {std::pair<int64_t, int64_t>{4, 7}, {1, 1}, {9, 70}, {16, 600}})
      in_both_types(all.odd, [=, w = width, v = vocabulary](int storage) { return head(s, w, v, true, storage); });
  }
  const Segments plain = pairs(8192, 0), two = pairs(4096, 2), few = pairs(1024, 0);
  in_both_types(all.real, [=](int storage) { return attention(plain, 32, 8, 128, 0, storage); });
  for (const auto& [length, heads, kv, dim] : {std::tuple<int64_t, int64_t, int64_t, int64_t>{1024, 32, 8, 128}, {8192, 32, 8, 128}, {1024, 9, 3, 64}}) {
    const size_t n = size_t(8192 / length);  // sequences beside each other, as others measure attention
    const Segments s{std::vector<int>(n, -1), std::vector<int64_t>(n, length), std::vector<int>(n, -1)};
    all.real.push_back([=, l = length, h = heads, k = kv, d = dim] {
      Case c = attention(s, h, k, d, 0, kBf16);
      c.op = "attention, whole " + std::to_string(l);
      return c;
    });
  }
  in_both_types(all.real, [=](int storage) { return attention(plain, 9, 3, 64, 0, storage); });
  in_both_types(all.real, [=](int storage) { return linear("linear", plain, {4096, 0, {4096}, 0, 0, true, false, false}, false, storage); });
  in_both_types(all.real, [=](int storage) { return linear("linear", two, {4096, 16, {4096, 1024, 1024}, 2, 0, true, false, false}, false, storage); });
  in_both_types(all.real, [=](int storage) { return linear("linear", two, {4096, 16, {14336, 14336}, 2, 0, true, false, false}, false, storage); });
  in_both_types(all.real, [=](int storage) { return linear("linear", two, {14336, 16, {4096}, 2, 0, true, true, false}, false, storage); });
  in_both_types(all.real, [=](int storage) { return head(few, 4096, 128256, false, storage); });
  return all;
}

// The shapes of Punica (Chen et al. 2023, §7): a batch of rows whose adapters are all the same, all different, equally many
// rows each (√n adapters), or skewed (each adapter 1.5 times as popular as the next). Then passes of training.
Cases lora_cases() {
  Cases all;
  for (const int64_t rows : {1, 8, 32, 64})
    for (const char* popularity : {"identical", "uniform", "skewed", "distinct"}) {
      if (rows == 1 && std::strcmp(popularity, "identical") != 0) continue;
      Segments s;
      const std::string kind = popularity;
      int64_t adapters = 1;
      std::vector<int64_t> counts;
      if (kind == "identical") counts = {rows};
      else if (kind == "distinct") counts.assign(size_t(rows), 1);
      else if (kind == "uniform") {
        adapters = int64_t(std::ceil(std::sqrt(double(rows))));
        for (int64_t i = 0; i < adapters; ++i) counts.push_back(rows * (i + 1) / adapters - rows * i / adapters);
      } else
        for (int64_t left = rows; left > 0; left -= counts.back()) counts.push_back(std::max<int64_t>(1, left / 3));
      for (size_t i = 0; i < counts.size(); ++i) {
        s.parents.push_back(-1);
        s.lengths.push_back(counts[i]);
        s.adapters.push_back(int(i));
      }
      all.real.push_back([=] { return linear((std::string("lora ") + kind).c_str(), s, {4096, 16, {4096}, int(counts.size()), 0, false, true, false}, false, kBf16); });
    }
  for (const int adapters : {1, 4, 64}) {
    Segments s;
    for (int i = 0; i < adapters; ++i) {
      s.parents.push_back(-1);
      s.lengths.push_back(8192 / adapters);
      s.adapters.push_back(i);
    }
    all.real.push_back([=] { return linear("lora training", s, {4096, 16, {4096}, adapters, 0, false, true, false}, false, kBf16); });
  }
  return all;
}

}  // namespace pluralign::test
