// The decoder in float64, one row's path at a time: nothing is packed, blocked or shared with the library's code.
#pragma once
#include "model/bank.h"
#include "model/plan.h"
#include "support.h"

namespace pluralign::test {

struct DoubleModel {
  using Vector = std::vector<double>;

  ModelConfig config;
  std::vector<Factor> factors;
  std::map<std::string, int> weights;
  std::vector<std::vector<ModuleSpec>> adapters;
  std::vector<int> reward_heads;

  // Of every readout of the pack: its target's log-probability, or its reward.
  Vector score(const Pack& pack, const Vector& p, bool reward = false) const {
    Vector out;
    std::vector<std::vector<Vector>> known(static_cast<size_t>(pack.segments));  // hidden rows along each segment's path
    for (int64_t i = 0; i < pack.readouts; ++i) {
      int32_t segment = 0;
      while (pack.starts[segment + 1] <= pack.rows[i]) ++segment;
      const int adapter = pack.adapters[segment];
      std::vector<Vector>& rows = known[size_t(segment)];
      if (rows.empty()) {
        std::vector<int32_t> tokens;
        for (int32_t s = segment; s >= 0; s = pack.parents[s]) tokens.insert(tokens.begin(), pack.tokens + pack.starts[s], pack.tokens + pack.starts[s + 1]);
        rows = hidden_rows(tokens, adapter, p);
      }
      const Vector& hidden = rows[rows.size() - size_t(pack.starts[segment + 1] - pack.rows[i])];
      if (reward) {
        out.push_back(dot(hidden, &p[size_t(factors[size_t(reward_heads[size_t(adapter)])].offset)]));
        continue;
      }
      const double* head = weight(config.tied ? "model.embed_tokens.weight" : "lm_head.weight", p);
      Vector logits;
      double sum = 0;
      for (int64_t v = 0; v < config.vocabulary; ++v) sum += std::exp(logits.emplace_back(dot(hidden, head + v * config.hidden)));
      out.push_back(logits[size_t(pack.targets[i])] - std::log(sum));
    }
    return out;
  }

 private:
  static double dot(const Vector& x, const double* w) {
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += x[i] * w[i];
    return sum;
  }
  const double* weight(const std::string& name, const Vector& p) const {
    const auto at = weights.find(name);
    return at == weights.end() ? nullptr : &p[size_t(factors[size_t(at->second)].offset)];
  }
  Vector norm(const Vector& x, const double* w) const {
    double squares = 0;
    for (double v : x) squares += v * v;
    Vector y;
    for (size_t i = 0; i < x.size(); ++i) y.push_back(x[i] * w[i] / std::sqrt(squares / double(x.size()) + config.eps));
    return y;
  }
  Vector product(const Vector& x, int factor, const Vector& p) const {
    Vector y;
    const Factor& f = factors[size_t(factor)];
    for (int64_t o = 0; o < f.rows; ++o) y.push_back(dot(x, &p[size_t(f.offset + o * f.cols)]));
    return y;
  }
  Vector linear(int64_t layer, int target, const Vector& x, int adapter, const Vector& p) const {
    Vector y = product(x, weights.at(target_name(layer, target) + ".weight"), p);
    if (const double* bias = weight(target_name(layer, target) + ".bias", p))
      for (size_t i = 0; i < y.size(); ++i) y[i] += bias[i];
    if (adapter < 0) return y;
    for (const ModuleSpec& m : adapters[size_t(adapter)]) {
      if (m.layer != layer || m.target != target) continue;
      Vector h = product(x, m.a, p);
      if (m.core >= 0 && factors[size_t(m.core)].rows > 1) h = product(h, m.core, p);
      else if (m.core >= 0)
        for (size_t i = 0; i < h.size(); ++i) h[i] *= p[size_t(factors[size_t(m.core)].offset) + i];
      const Vector more = product(h, m.b, p);
      for (size_t i = 0; i < y.size(); ++i) y[i] += double(m.scale) * more[i];
    }
    return y;
  }
  // Heads of q or k: normed where the model norms them, and rotated.
  void turn(Vector& x, const double* norm_weight, int64_t position) const {
    const size_t width = size_t(config.head_dim), half = width / 2;
    for (size_t h = 0; h < x.size(); h += width) {
      if (norm_weight) {
        const Vector y = norm(Vector(x.begin() + int64_t(h), x.begin() + int64_t(h + width)), norm_weight);
        std::copy(y.begin(), y.end(), x.begin() + int64_t(h));
      }
      for (size_t i = 0; i < half; ++i) {
        const double angle = config.rope_frequencies[i] * double(position), c = config.rope_factor * std::cos(angle), s = config.rope_factor * std::sin(angle);
        const double a = x[h + i], b = x[h + half + i];
        x[h + i] = a * c - b * s;
        x[h + half + i] = b * c + a * s;
      }
    }
  }

  std::vector<Vector> hidden_rows(const std::vector<int32_t>& tokens, int adapter, const Vector& p) const {
    const ModelConfig& c = config;
    std::vector<Vector> x;
    for (int32_t t : tokens) {
      const double* e = weight("model.embed_tokens.weight", p) + t * c.hidden;
      x.emplace_back(e, e + c.hidden);
    }
    for (int64_t l = 0; l < c.layers; ++l) {
      const std::string name = "model.layers." + std::to_string(l) + ".";
      std::vector<Vector> keys, values;
      for (size_t t = 0; t < x.size(); ++t) {
        const Vector n = norm(x[t], weight(name + "input_layernorm.weight", p));
        Vector q = linear(l, kQ, n, adapter, p);
        keys.push_back(linear(l, kK, n, adapter, p));
        values.push_back(linear(l, kV, n, adapter, p));
        turn(q, c.qk_norm ? weight(name + "self_attn.q_norm.weight", p) : nullptr, int64_t(t));
        turn(keys[t], c.qk_norm ? weight(name + "self_attn.k_norm.weight", p) : nullptr, int64_t(t));
        Vector attended(size_t(c.q_width()), 0);
        for (int64_t h = 0; h < c.heads; ++h) {
          const int64_t kv = h / (c.heads / c.kv_heads) * c.head_dim;
          const size_t first = c.window > 0 && int64_t(t) >= c.window ? t + 1 - size_t(c.window) : 0;
          Vector score;
          double sum = 0;
          for (size_t j = first; j <= t; ++j) {
            double s = 0;
            for (int64_t i = 0; i < c.head_dim; ++i) s += q[size_t(h * c.head_dim + i)] * keys[j][size_t(kv + i)];
            sum += score.emplace_back(std::exp(s / std::sqrt(double(c.head_dim))));
          }
          for (size_t j = first; j <= t; ++j)
            for (int64_t i = 0; i < c.head_dim; ++i) attended[size_t(h * c.head_dim + i)] += score[j - first] / sum * values[j][size_t(kv + i)];
        }
        const Vector o = linear(l, kO, attended, adapter, p);
        for (size_t i = 0; i < o.size(); ++i) x[t][i] += o[i];
      }
      for (Vector& row : x) {
        const Vector n = norm(row, weight(name + "post_attention_layernorm.weight", p));
        Vector gate = linear(l, kGate, n, adapter, p);
        const Vector up = linear(l, kUp, n, adapter, p);
        for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
        const Vector down = linear(l, kDown, gate, adapter, p);
        for (size_t i = 0; i < down.size(); ++i) row[i] += down[i];
      }
    }
    for (Vector& row : x) row = norm(row, weight("model.norm.weight", p));
    return x;
  }
};

}  // namespace pluralign::test
