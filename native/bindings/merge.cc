// One tensor of a merge as a job; see NativeMerge in lib/native/merge.ts.
#include "ops/merge/merge.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "arrays.h"
#include "base/dtype.h"
#include "jobs.h"
#include "register.h"

namespace pluralign {
namespace {

template <class T>
T named(const Napi::Object& o, const char* key, const std::map<std::string, T>& names) {
  const std::string name = o.Get(key).ToString();
  const auto found = names.find(name);
  if (found == names.end()) throw_error("BAD_ARGUMENT", "%s: unknown value %s", key, name.c_str());
  return found->second;
}

const std::map<std::string, Keep> kKeeps = {{"all", Keep::all}, {"magnitude", Keep::magnitude}, {"random", Keep::random},
                                            {"ranked", Keep::ranked}, {"breadcrumbs", Keep::breadcrumbs}};
const std::map<std::string, Combine> kCombines = {{"sum", Combine::sum}, {"average", Combine::average}, {"elect", Combine::elect},
                                                  {"slerp", Combine::slerp}, {"nuslerp", Combine::nuslerp},
                                                  {"multislerp", Combine::multislerp}, {"stock", Combine::stock}};

MergeTensor tensor_from(const Napi::Object& o, Job& job) {
  const auto floats = [&](const Napi::Object& from, const char* key, int64_t size) -> const float* {
    const Napi::Value v = from.Get(key);
    if (v.IsUndefined() || v.IsNull()) return nullptr;
    const auto x = array<float>(v, key);
    if (x.size != size) throw_error("BAD_SHAPE", "%s has %lld values, expected %lld", key, (long long)x.size, (long long)size);
    job.keep(v);
    return x.data;
  };
  MergeTensor t;
  t.rows = integer(o, "rows", 1);
  t.cols = integer(o, "cols", 1);
  t.keep = named(o, "keep", kKeeps);
  t.combine = named(o, "combine", kCombines);
  t.density = number(o, "density");
  t.epsilon = number(o, "epsilon");
  t.gamma = number(o, "gamma");
  t.lambda = number(o, "lambda");
  t.base = floats(o, "base", t.rows * t.cols);
  const Napi::Array experts = list(o.Get("experts"), "experts");
  if (experts.Length() == 0) throw_error("BAD_ARGUMENT", "a merge needs an expert");
  for (uint32_t i = 0; i < experts.Length(); ++i) {
    const Napi::Object from = object(experts.Get(i), "expert");
    MergeExpert& e = t.experts.emplace_back();
    e.weight = number(from, "weight");
    if (!std::isfinite(e.weight)) throw_error("BAD_ARGUMENT", "a weight is not finite");
    e.dense = floats(from, "dense", t.rows * t.cols);
    if (!e.dense) {
      e.r = integer(from, "r", 1);
      e.scale = number(from, "scale");
      e.a = floats(from, "a", e.r * t.cols);
      e.b = floats(from, "b", t.rows * e.r);
      if (!e.a || !e.b) throw_error("BAD_ARGUMENT", "an expert needs `dense`, or `a` and `b`");
    }
    const auto key = array<uint32_t>(from.Get("key"), "key");
    if (key.size != 2) throw_error("BAD_ARGUMENT", "key must have two words");
    e.key = uint64_t(key.data[0]) << 32 | key.data[1];
  }
  return t;
}

struct Merged {
  MergeFactors factors;
  std::vector<float> dense;
};

// base + update, rounded as the file will hold it; the rounding's size goes into `error`.
void add_base(const MergeTensor& t, const std::vector<double>& update, bool bfloat16, Merged& out) {
  double norm = 0, error = 0;
  out.dense.resize(update.size());
  for (size_t i = 0; i < update.size(); ++i) {
    const double exact = update[i] + (t.base ? double(t.base[i]) : 0.0);
    const float stored = bfloat16 ? to_float(to_bf16(float(exact))) : float(exact);
    out.dense[i] = stored;
    norm += update[i] * update[i];
    error += (double(stored) - exact) * (double(stored) - exact);
  }
  out.factors.norm = std::sqrt(norm);
  out.factors.error = std::sqrt(error);
}

Napi::Value merge_tensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto job = std::make_unique<Job>(info.Env());
    const Napi::Object o = object(info[0], "tensor");
    const MergeTensor t = tensor_from(o, *job);
    const std::string as = o.Get("as").ToString();
    if (as != "factors" && as != "weight") throw_error("BAD_ARGUMENT", "as must be factors or weight");
    const bool factors = as == "factors", bfloat16 = boolean(o, "bfloat16");
    const int64_t rank = integer(o, "rank", 0);
    const int threads = int(integer(o, "threads", 1, 1024));
    const bool low_rank = is_linear(t) && std::all_of(t.experts.begin(), t.experts.end(), [](const MergeExpert& e) { return !e.dense; });
    if (factors && !low_rank && rank == 0) throw_error("BAD_ARGUMENT", "this update is not of low rank: a rank is needed");
    auto merged = std::make_shared<Merged>();
    Executor& executor = Executor::of(info.Env());
    job->work = [=, &executor](const Cancel& cancel) {
      Pool& pool = executor.pool(threads);
      if (factors && low_rank) {
        merged->factors = merge_factors(pool, t, rank, cancel);
        return;
      }
      std::vector<double> update(static_cast<size_t>(t.rows * t.cols));
      merge_dense(pool, t, update.data(), cancel);
      if (factors) merged->factors = best_rank(pool, update.data(), t.rows, t.cols, rank, cancel);
      else add_base(t, update, bfloat16, *merged);
    };
    job->result = [merged](Napi::Env env) -> Napi::Value {
      const auto copy = [&](const std::vector<float>& from) {
        auto out = Napi::Float32Array::New(env, from.size());
        std::copy(from.begin(), from.end(), out.Data());
        return out;
      };
      Napi::Object out = Napi::Object::New(env);
      out.Set("rank", double(merged->factors.rank));
      out.Set("norm", merged->factors.norm);
      out.Set("error", merged->factors.error);
      out.Set("a", copy(merged->factors.a));
      out.Set("b", copy(merged->factors.b));
      out.Set("dense", copy(merged->dense));
      return out;
    };
    return executor.submit(std::move(job));
  });
}

}  // namespace

void register_merge(Napi::Env env, Napi::Object exports) { exports.Set("mergeTensor", Napi::Function::New(env, merge_tensor)); }

}  // namespace pluralign
