// Preference losses on typed arrays, as `addon.preference`. Batches are a few thousand numbers at most, so these run at once
// on the calling thread. Shapes and indices are checked here; values (ranges of options, NaN) in lib/losses.
#include "ops/preference/preference.h"

#include <vector>

#include "base/status.h"
#include "jobs.h"
#include "register.h"

namespace pluralign {
namespace {

namespace pref = preference;

// A Float64Array property of `object`; null where it is undefined and `optional`.
const double* doubles(const Napi::Object& object, const char* name, size_t length, bool optional = false) {
  const Napi::Value value = object.Get(name);
  if (optional && (value.IsUndefined() || value.IsNull())) return nullptr;
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float64_array)
    throw_error("BAD_ARGUMENT", "%s must be a Float64Array", name);
  const auto array = value.As<Napi::Float64Array>();
  if (array.ElementLength() != length)
    throw_error("BAD_SHAPE", "%s has %zu elements, expected %zu", name, array.ElementLength(), length);
  static const double nothing = 0;  // an empty array may have no storage
  return length ? array.Data() : &nothing;
}

size_t length_of(const Napi::Object& object, const char* name, napi_typedarray_type type) {
  const Napi::Value value = object.Get(name);
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != type)
    throw_error("BAD_ARGUMENT", "%s is missing or is a typed array of another kind", name);
  return value.As<Napi::TypedArray>().ElementLength();
}

std::span<const int32_t> ints(const Napi::Object& object, const char* name) {
  const size_t n = length_of(object, name, napi_int32_array);
  return {n ? object.Get(name).As<Napi::Int32Array>().Data() : nullptr, n};
}

double number(const Napi::Object& object, const char* name, double otherwise) {
  const Napi::Value value = object.Get(name);
  if (value.IsUndefined()) return otherwise;
  if (!value.IsNumber()) throw_error("BAD_ARGUMENT", "%s must be a number", name);
  return value.As<Napi::Number>().DoubleValue();
}

int32_t code(const Napi::Object& object, const char* name, int32_t count) {
  const double value = number(object, name, 0);
  if (!(value >= 0 && value < count)) throw_error("BAD_ARGUMENT", "%s: there is no code %g", name, value);
  return static_cast<int32_t>(value);
}

Napi::Object object_at(const Napi::CallbackInfo& info, size_t i) {
  if (!info[i].IsObject()) throw_error("BAD_ARGUMENT", "argument %zu must be an object", i + 1);
  return info[i].As<Napi::Object>();
}

// The result object and its arrays; the pointer stays valid as long as the result does.
struct Result {
  explicit Result(Napi::Env env) : env(env), object(Napi::Object::New(env)) {}
  double* array(const char* name, size_t length) {
    auto values = Napi::Float64Array::New(env, length);
    object.Set(name, values);
    return length ? values.Data() : &nothing;
  }
  Napi::Value with_loss(double loss) {
    object.Set("loss", loss);
    return object;
  }
  Napi::Env env;
  Napi::Object object;
  double nothing = 0;
};

Napi::Value pair(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object scores = object_at(info, 0), options = object_at(info, 1);
    const size_t n = length_of(scores, "chosen", napi_float64_array);
    const pref::Pairs pairs{static_cast<int64_t>(n),
                            doubles(scores, "chosen", n),
                            doubles(scores, "rejected", n),
                            doubles(scores, "refChosen", n, true),
                            doubles(scores, "refRejected", n, true),
                            doubles(scores, "chosenTokens", n),
                            doubles(scores, "rejectedTokens", n),
                            doubles(scores, "weights", n, true),
                            doubles(scores, "factors", n, true)};
    const auto types = ints(options, "types");
    const double* weights = doubles(options, "typeWeights", types.size());
    std::vector<pref::PairTerm> terms;
    for (size_t i = 0; i < types.size(); ++i) {
      if (types[i] < 0 || types[i] > static_cast<int32_t>(pref::PairLoss::orpo))
        throw_error("BAD_ARGUMENT", "types: there is no code %d", types[i]);
      const auto type = static_cast<pref::PairLoss>(types[i]);
      const bool transport = type == pref::PairLoss::aot || type == pref::PairLoss::aot_unpaired;
      if (transport && !(pairs.ref_chosen && pairs.ref_rejected))
        throw_error("BAD_ARGUMENT", "refChosen and refRejected are missing");
      terms.push_back({type, weights[i]});
    }
    pref::PairOptions o;
    o.beta = number(options, "beta", o.beta);
    o.label_smoothing = number(options, "labelSmoothing", o.label_smoothing);
    o.delta = number(options, "delta", o.delta);
    o.discopop_tau = number(options, "discopopTau", o.discopop_tau);
    o.simpo_gamma = number(options, "simpoGamma", o.simpo_gamma);
    o.cpo_alpha = number(options, "cpoAlpha", o.cpo_alpha);
    o.divergence = static_cast<pref::Divergence>(code(options, "divergence", 4));
    o.divergence_alpha = number(options, "divergenceAlpha", o.divergence_alpha);
    o.normaliser = number(options, "normaliser", 0);
    o.token_normaliser = number(options, "tokenNormaliser", 0);
    Result result(info.Env());
    const pref::PairOutput out{result.array("rowLosses", n), result.array("dChosen", n), result.array("dRejected", n)};
    return result.with_loss(pref::pair_loss(pairs, terms, o, out));
  });
}

Napi::Value reward(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object scores = object_at(info, 0), options = object_at(info, 1);
    const size_t n = length_of(scores, "chosen", napi_float64_array);
    Result result(info.Env());
    double* losses = result.array("rowLosses", n);
    double* chosen = result.array("dChosen", n);
    double* rejected = result.array("dRejected", n);
    return result.with_loss(pref::reward_loss(
        static_cast<int64_t>(n), doubles(scores, "chosen", n), doubles(scores, "rejected", n),
        doubles(scores, "margins", n, true), doubles(scores, "weights", n, true), number(options, "centring", 0),
        number(options, "normaliser", 0), losses, chosen, rejected));
  });
}

// Offsets start at 0, never fall and end at `end`.
void check_offsets(const char* name, std::span<const int32_t> offsets, size_t groups, size_t end) {
  if (offsets.size() != groups + 1) throw_error("BAD_SHAPE", "%s has %zu elements, expected %zu", name, offsets.size(), groups + 1);
  if (offsets[0] != 0 || offsets[groups] != static_cast<int64_t>(end))
    throw_error("BAD_SHAPE", "%s must run from 0 to %zu, found %d to %d", name, end, offsets[0], offsets[groups]);
  for (size_t i = 0; i < groups; ++i)
    if (offsets[i] > offsets[i + 1]) throw_error("BAD_SHAPE", "%s falls at group %zu", name, i);
}

void check_rankings(std::span<const int32_t> offsets, std::span<const int32_t> starts, std::span<const int32_t> ranking) {
  std::vector<uint8_t> seen;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const int32_t size = offsets[i + 1] - offsets[i];
    seen.assign(size, 0);
    for (int32_t k = starts[i]; k < starts[i + 1]; ++k) {
      const int32_t item = ranking[k];
      if (item < 0 || item >= size)
        throw_error("BAD_ARGUMENT", "group %zu: the ranking names response %d, the group has responses 0 to %d", i, item, size - 1);
      if (seen[item]++) throw_error("BAD_ARGUMENT", "group %zu: the ranking names response %d twice", i, item);
    }
  }
}

Napi::Value ranking(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object scores = object_at(info, 0), options = object_at(info, 1);
    const size_t n = length_of(scores, "scores", napi_float64_array);
    const auto offsets = ints(scores, "offsets"), starts = ints(scores, "rankingOffsets"), order = ints(scores, "ranking");
    if (offsets.empty()) throw_error("BAD_SHAPE", "offsets is empty, expected groups + 1 elements");
    const size_t groups = offsets.size() - 1;
    check_offsets("offsets", offsets, groups, n);
    check_offsets("rankingOffsets", starts, groups, order.size());
    check_rankings(offsets, starts, order);
    const pref::Rankings rankings{static_cast<int64_t>(groups),         offsets.data(),
                                  starts.data(),                        order.data(),
                                  doubles(scores, "scores", n),         doubles(scores, "refScores", n, true),
                                  doubles(scores, "weights", groups, true)};
    const auto type = static_cast<pref::RankingLoss>(code(options, "type", 3));
    Result result(info.Env());
    double* losses = result.array("rowLosses", groups);
    double* gradient = result.array("dScores", n);
    return result.with_loss(
        pref::ranking_loss(rankings, type, number(options, "beta", 1), number(options, "normaliser", 0), losses, gradient));
  });
}

Napi::Value unpaired(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object scores = object_at(info, 0), options = object_at(info, 1);
    const size_t n = length_of(scores, "logps", napi_float64_array);
    if (length_of(scores, "labels", napi_uint8_array) != n) throw_error("BAD_SHAPE", "labels must have %zu elements", n);
    const pref::Unpaired data{static_cast<int64_t>(n), doubles(scores, "logps", n), doubles(scores, "refLogps", n),
                              scores.Get("labels").As<Napi::Uint8Array>().Data(), doubles(scores, "weights", n, true)};
    pref::UnpairedOptions o;
    o.beta = number(options, "beta", o.beta);
    o.desirable = number(options, "desirableWeight", o.desirable);
    o.undesirable = number(options, "undesirableWeight", o.undesirable);
    o.baseline = number(options, "baseline", o.baseline);
    o.normaliser = number(options, "normaliser", 0);
    const auto type = static_cast<pref::UnpairedLoss>(code(options, "type", 3));
    Result result(info.Env());
    double* losses = result.array("rowLosses", n);
    double* gradient = result.array("dLogps", n);
    return result.with_loss(pref::unpaired_loss(data, type, o, losses, gradient));
  });
}

Napi::Value ties(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object scores = object_at(info, 0), options = object_at(info, 1);
    const size_t n = length_of(scores, "differences", napi_float64_array);
    if (length_of(scores, "tied", napi_uint8_array) != n) throw_error("BAD_SHAPE", "tied must have %zu elements", n);
    Result result(info.Env());
    double* losses = result.array("rowLosses", n);
    double* gradient = result.array("dDifferences", n);
    double d_log_nu = 0;
    const auto model = static_cast<pref::TieModel>(code(options, "type", 2));
    const double loss = pref::tie_loss(static_cast<int64_t>(n), doubles(scores, "differences", n),
                                       n ? scores.Get("tied").As<Napi::Uint8Array>().Data() : nullptr,
                                       doubles(scores, "weights", n, true), model, number(options, "nu", 1),
                                       number(options, "normaliser", 0), losses, gradient, &d_log_nu);
    result.object.Set("dLogNu", d_log_nu);
    return result.with_loss(loss);
  });
}

Napi::Value sft(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const Napi::Object scores = object_at(info, 0), options = object_at(info, 1);
    const size_t n = length_of(scores, "logps", napi_float64_array);
    Result result(info.Env());
    double* losses = result.array("rowLosses", n);
    double* gradient = result.array("dLogps", n);
    return result.with_loss(pref::sft_loss(static_cast<int64_t>(n), doubles(scores, "logps", n), doubles(scores, "tokens", n),
                                           doubles(scores, "weights", n, true), number(options, "normaliser", 0), losses,
                                           gradient));
  });
}

}  // namespace

void register_preference(Napi::Env env, Napi::Object exports) {
  Napi::Object out = Napi::Object::New(env);
  out.Set("pair", Napi::Function::New(env, pair));
  out.Set("reward", Napi::Function::New(env, reward));
  out.Set("ranking", Napi::Function::New(env, ranking));
  out.Set("unpaired", Napi::Function::New(env, unpaired));
  out.Set("ties", Napi::Function::New(env, ties));
  out.Set("sft", Napi::Function::New(env, sft));
  exports.Set("preference", out);
}

}  // namespace pluralign
