// One tensor of a merge: several experts' updates of one weight in, one update out. Everything in float64.
#pragma once
#include <cstdint>
#include <vector>

#include "base/cancel.h"
#include "base/pool.h"

namespace pluralign {

// An expert's update τ of a weight [rows × cols]: scale · B A, or `dense` minus the tensor's base.
struct MergeExpert {
  const float* dense = nullptr;                  // [rows × cols]
  const float *a = nullptr, *b = nullptr;        // [r × cols], [rows × r], where dense is null
  int64_t r = 0;
  double scale = 1, weight = 1;
  uint64_t key = 0;                              // of its random draws
};

// Which elements of an update stay, before updates are combined. `density` is the share that stays.
enum class Keep {
  all,
  magnitude,    // the largest |τ|, ties to the lower index
  random,       // DARE (Yu et al. 2023): each with probability density, divided by it
  ranked,       // DELLA (Deep et al. 2024): probability rising with the rank of |τ| in its row, from density - epsilon/2 to
                // density + epsilon/2; what stays is divided by its probability
  breadcrumbs,  // Davari & Belilovsky 2023: without the share gamma of largest |τ|, then the largest that remain
};

enum class Combine {
  sum,         // λ Σ w τ
  average,     // λ Σ w τ / Σ w
  elect,       // TIES (Yadav et al. 2023): sign of Σ w τ elected for each element; λ · mean, weighted by |w|, of the w τ that agree
  slerp,       // two experts, t = w₂ / (w₁ + w₂); LERP where |cos| > 0.9995
  nuslerp,     // the same for each row (each output of the layer)
  multislerp,  // one step of the Karcher mean of directions from their weighted mean; norms are averaged
  stock,       // Jang et al. 2024: t · mean with t = N cosθ / (1 + (N - 1) cosθ)
};

struct MergeTensor {
  int64_t rows = 0, cols = 0;
  std::vector<MergeExpert> experts;
  const float* base = nullptr;  // [rows × cols]; null: zero
  Keep keep = Keep::all;
  Combine combine = Combine::sum;
  double density = 1, epsilon = 0, gamma = 0, lambda = 1;
};

// The merged update B A as factors: a [rank × cols], b [rows × rank].
struct MergeFactors {
  std::vector<float> a, b;
  int64_t rank = 0;
  double norm = 0, error = 0;  // Frobenius: of the update before truncation, and of what truncation cut off
};

// Whether the merged update is a combination of the experts' updates, row by row: then its rank is at most the sum of theirs.
bool is_linear(const MergeTensor& tensor);

// Coefficient of each expert's update, [experts × groups]: groups is rows for nuslerp, else 1. Only where is_linear.
std::vector<double> merge_coefficients(Pool& pool, const MergeTensor& tensor);

// The merged update in `out` [rows × cols].
void merge_dense(Pool& pool, const MergeTensor& tensor, double* out, const Cancel& cancel);

// The same from low-rank experts without ever forming it; is_linear only. rank 0: the concatenation (where the sum of
// ranks is over min(rows, cols): as few factors as hold it); otherwise the best approximation of that rank, from QR of
// the concatenated factors and the singular vectors of their small core.
MergeFactors merge_factors(Pool& pool, const MergeTensor& tensor, int64_t rank, const Cancel& cancel);

// The best approximation of rank `rank` of a dense update (Eckart–Young), with its Frobenius error.
MergeFactors best_rank(Pool& pool, const double* update, int64_t rows, int64_t cols, int64_t rank, const Cancel& cancel);

// A uniform draw in [0, 1) that depends on key and index alone.
double merge_uniform(uint64_t key, uint64_t index);

// Writes an expert's own update τ into `out` [rows × cols].
void expert_update(Pool& pool, const MergeTensor& tensor, const MergeExpert& expert, double* out);

// Applies tensor.keep to an update of one expert in place.
void sparsify(const MergeTensor& tensor, uint64_t key, double* update);

}  // namespace pluralign
