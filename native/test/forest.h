// Random forests of segments for the attention tests, in the decoder's layout, with attention over them in float64.
#pragma once
#include "ops/attention/attention.h"
#include "support.h"

namespace pluralign::test {

struct Forest {
  // parents[i] < i, or -1. Rows stand in the order of segments; a row holds query heads, key heads, value heads.
  Forest(const AttentionShape& s, std::vector<int> parents_, std::vector<int64_t> lengths_, unsigned seed)
      : shape(s), parents(std::move(parents_)), lengths(std::move(lengths_)), stride((s.heads + 2 * s.kv_heads) * s.head_dim + 3) {
    std::vector<int> tree;
    for (size_t i = 0; i < parents.size(); ++i) {
      const int parent = parents[i];
      paths.push_back(parent < 0 ? std::vector<size_t>{} : paths[size_t(parent)]);
      paths.back().push_back(i);
      tree.push_back(parent < 0 ? int(trees.size()) : tree[size_t(parent)]);
      if (parent < 0) trees.emplace_back();
      trees[size_t(tree[i])].push_back(int(i));
      starts.push_back(rows);
      rows += lengths[i];
    }
    Random random(seed);
    x = random.normals(rows * stride);
    dout = random.normals(rows * out_width());
    segments = over(x.data(), nullptr);
  }
  Forest(const Forest& o) : shape(o.shape), parents(o.parents), lengths(o.lengths), stride(o.stride), rows(o.rows), starts(o.starts), paths(o.paths),
                            trees(o.trees), x(o.x), dout(o.dout), segments(over(x.data(), nullptr)) {}

  int64_t out_width() const { return shape.heads * shape.head_dim; }
  int64_t key_at() const { return out_width(); }
  int64_t value_at() const { return out_width() + shape.kv_heads * shape.head_dim; }

  std::vector<AttentionSegment> over(const float* data, float* gradient) const {
    std::vector<AttentionSegment> out;
    for (size_t i = 0; i < parents.size(); ++i) {
      AttentionSegment s{starts[i], lengths[i], 0, {}};
      for (size_t p : paths[i]) {
        const float* at = data + starts[p] * stride;
        float* d = gradient ? gradient + starts[p] * stride : nullptr;
        s.path.push_back({at + key_at(), at + value_at(), stride, lengths[p], d ? d + key_at() : nullptr, d ? d + value_at() : nullptr});
        if (p != i) s.prefix += lengths[p];
      }
      out.push_back(std::move(s));
    }
    return out;
  }

  // The path of one segment by itself: as one segment, or as the chain of segments that it is.
  Forest alone(size_t segment, bool whole) const {
    std::vector<int> chain;
    std::vector<int64_t> counts;
    int64_t total = 0;
    for (size_t p : paths[segment]) {
      chain.push_back(int(chain.size()) - 1);
      counts.push_back(lengths[p]);
      total += lengths[p];
    }
    Forest f(shape, whole ? std::vector<int>{-1} : chain, whole ? std::vector<int64_t>{total} : counts, 0);
    auto at = f.x.begin();
    auto d = f.dout.begin();
    for (size_t p : paths[segment]) {
      at = std::copy_n(x.begin() + starts[p] * stride, lengths[p] * stride, at);
      d = std::copy_n(dout.begin() + starts[p] * out_width(), lengths[p] * out_width(), d);
    }
    return f;
  }

  // Values that bfloat16 has, so that rounding the operands of products to it changes nothing.
  Forest rounded() const {
    Forest f(*this);
    for (std::vector<float>* v : {&f.x, &f.dout})
      for (float& e : *v) e = to_float(to_bf16(e));
    return f;
  }

  Typed attend(Context& context, int storage) const {
    Typed out(storage, size_t(rows * out_width()));
    attention(context, shape, segments, x.data(), stride, storage, out.data());
    return out;
  }
  // Gradients of queries, keys and values in x's layout, on a buffer that holds `start`.
  std::vector<float> attend_back(Context& context, int storage = kF32, float start = 0) const {
    std::vector<float> d(x.size(), start);
    attention_backward(context, shape, over(x.data(), d.data()), trees, x.data(), stride, storage, dout.data(), d.data());
    return d;
  }

  std::vector<double> forward(const std::vector<double>& v) const {
    std::vector<double> out(size_t(rows * out_width()), 0);
    each(v, [&](int64_t row, int64_t head, const std::vector<int64_t>& keys, const std::vector<double>& p) {
      for (size_t j = 0; j < keys.size(); ++j)
        for (int64_t c = 0; c < shape.head_dim; ++c) out[size_t(row * out_width() + head * shape.head_dim + c)] += p[j] * v[size_t(keys[j] * stride + value_at() + kv(head) + c)];
    });
    return out;
  }
  std::vector<double> backward(const std::vector<double>& v) const {
    std::vector<double> d(v.size(), 0);
    each(v, [&](int64_t row, int64_t head, const std::vector<int64_t>& keys, const std::vector<double>& p) {
      const int64_t width = shape.head_dim, query = row * stride + head * width;
      const float* g = &dout[size_t(row * out_width() + head * width)];
      std::vector<double> dp(keys.size(), 0);
      double mean = 0;
      for (size_t j = 0; j < keys.size(); ++j) {
        for (int64_t c = 0; c < width; ++c) dp[j] += g[c] * v[size_t(keys[j] * stride + value_at() + kv(head) + c)];
        mean += p[j] * dp[j];
      }
      for (size_t j = 0; j < keys.size(); ++j)
        for (int64_t c = 0; c < width; ++c) {
          const double ds = p[j] * (dp[j] - mean) * double(shape.scale);
          const size_t key = size_t(keys[j] * stride + key_at() + kv(head) + c), value = size_t(keys[j] * stride + value_at() + kv(head) + c);
          d[size_t(query + c)] += ds * v[key];
          d[key] += ds * v[size_t(query + c)];
          d[value] += p[j] * g[c];
        }
    });
    return d;
  }

  AttentionShape shape;
  std::vector<int> parents;
  std::vector<int64_t> lengths;
  int64_t stride, rows = 0;
  std::vector<int64_t> starts;
  std::vector<std::vector<size_t>> paths;
  std::vector<std::vector<int>> trees;
  std::vector<float> x, dout;
  std::vector<AttentionSegment> segments;

 private:
  int64_t kv(int64_t head) const { return head / (shape.heads / shape.kv_heads) * shape.head_dim; }

  // body(row, head, rows of the keys it sees, their probabilities)
  template <class Body>
  void each(const std::vector<double>& v, Body&& body) const {
    for (size_t s = 0; s < parents.size(); ++s) {
      std::vector<int64_t> path;
      for (size_t p : paths[s])
        for (int64_t i = 0; i < lengths[p]; ++i) path.push_back(starts[p] + i);
      for (int64_t i = 0; i < lengths[s]; ++i)
        for (int64_t h = 0; h < shape.heads; ++h) {
          const int64_t position = int64_t(path.size()) - lengths[s] + i, first = shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) : 0;
          const std::vector<int64_t> keys(path.begin() + first, path.begin() + position + 1);
          std::vector<double> p;
          double top = -1e300, sum = 0;
          for (int64_t key : keys) {
            double dot = 0;
            for (int64_t c = 0; c < shape.head_dim; ++c) dot += v[size_t((starts[s] + i) * stride + h * shape.head_dim + c)] * v[size_t(key * stride + key_at() + kv(h) + c)];
            p.push_back(dot * double(shape.scale));
            top = std::max(top, p.back());
          }
          for (double& e : p) sum += e = std::exp(e - top);
          for (double& e : p) e /= sum;
          body(starts[s] + i, h, keys, p);
        }
    }
  }
};

}  // namespace pluralign::test
