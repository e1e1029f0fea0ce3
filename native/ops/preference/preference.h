// Preference losses on per-completion scores, float64, with the gradient of each score.
//
// A score is a completion's summed log-probability (or a reward). Every function returns
//     L = Σ_i w_i l_i / N
// and writes the row losses l_i and dL/dscore. N is `normaliser`; 0 stands for Σ_i w_i. A step that is split into packs
// passes the whole step's N to each pack, so that the packs' gradients add up to those of one batch. Rows of NaN give NaN;
// no row, or no weight at all, gives 0. Pointers to weights may be null (all 1). Nothing here checks its arguments: the
// callers do. ρ = log π(y|x) − log π_ref(y|x), w the chosen and l the rejected completion, Δ = ρ_w − ρ_l, ε the label
// smoothing, n_w and n_l token counts (at least 1), σ the logistic function.
#pragma once
#include <cstdint>
#include <span>

namespace pluralign::preference {

// The values are the codes that lib/losses/pair.ts sends.
enum class PairLoss : int32_t {
  sigmoid,       // −(1−ε) log σ(βΔ) − ε log σ(−βΔ)
  robust,        // [−(1−ε) log σ(βΔ) + ε log σ(−βΔ)] / (1−2ε)
  hinge,         // max(0, 1 − βΔ)
  ipo,           // (ρ_w/n_w − ρ_l/n_l − 1/(2β))²
  exo_pair,      // KL([σ(βΔ), σ(−βΔ)] ‖ [1−ε, ε])
  nca_pair,      // −log σ(βρ_w) − ½ log σ(−βρ_w) − ½ log σ(−βρ_l)
  bco_pair,      // −log σ(βρ_w − δ) − log σ(−(βρ_l − δ))
  sppo_hard,     // (ρ_w − 1/(2β))² + (ρ_l + 1/(2β))²
  aot,           // smoothed −log σ(β(sort(log π_w − log π_l) − sort(log π_ref,w − log π_ref,l)))
  aot_unpaired,  // smoothed −log σ(β(sort(ρ_w) − sort(ρ_l)))
  apo_zero,      // 1 − σ(βρ_w) + σ(βρ_l)
  apo_down,      // σ(βρ_w) + 1 − σ(βΔ)
  discopop,      // m = σ(βΔ/τ): (1−m)(−log σ(βΔ)) + m exp(−βΔ)
  sft,           // −log π_w · N / T: sums to the mean over all T chosen tokens
  sigmoid_norm,  // smoothed −log σ(β(ρ_w/n_w − ρ_l/n_l))
  simpo,         // smoothed −log σ(β(log π_w/n_w − log π_l/n_l) − γ)
  cpo,           // smoothed −log σ(β(log π_w − log π_l)) + α · sft
  orpo,          // sft − β log σ(log odds_w − log odds_l), odds p/(1−p) of the per-token geometric mean p
};

// Replaces ρ by f'(exp ρ) in the losses built on Δ.
enum class Divergence : int32_t {
  reverse_kl,  // ρ
  forward_kl,  // 1 − exp(−ρ)
  js,          // log 2 + log σ(ρ)
  alpha,       // (exp((a−1)ρ) − 1)/(a−1); ρ at a = 1
};

struct Pairs {
  int64_t rows;
  const double *chosen, *rejected;          // log-probability sums under the policy
  const double *ref_chosen, *ref_rejected;  // under the reference; null: none (only for losses that need none)
  const double *chosen_tokens, *rejected_tokens;
  const double* weights;  // w_i, or null
  const double* factors;  // constants on l_i that do not enter N (WPO), or null; not with aot, aot_unpaired
};

struct PairTerm {
  PairLoss type;
  double weight;
};

struct PairOptions {
  double beta = 0.1;
  double label_smoothing = 0;
  double delta = 0;         // bco_pair's δ
  double discopop_tau = 0.05;
  double simpo_gamma = 0.5;
  double cpo_alpha = 1;
  Divergence divergence = Divergence::reverse_kl;
  double divergence_alpha = 0.5;
  double normaliser = 0;        // N; 0: Σ w_i
  double token_normaliser = 0;  // T; 0: Σ w_i n_w,i
};

// All arrays [rows], overwritten.
struct PairOutput {
  double *row_losses, *d_chosen, *d_rejected;
};

// l_i = factor_i Σ_k weight_k · loss_k. aot and aot_unpaired match quantiles over the rows, by mass where weights differ
// (so that a row of weight 2 is the same as the row twice); their l_i belongs to the row of the chosen side.
double pair_loss(const Pairs& pairs, std::span<const PairTerm> terms, const PairOptions& options, const PairOutput& out);

// Bradley–Terry on rewards: l = −log σ(r_w − r_l − margin) + centring (r_w + r_l)². margins may be null (0).
double reward_loss(int64_t rows, const double* chosen, const double* rejected, const double* margins, const double* weights,
                   double centring, double normaliser, double* row_losses, double* d_chosen, double* d_rejected);

// Votes that may call two completions equal; d is the difference of their rewards, the first's minus the other's.
enum class TieModel : int32_t {
  rao_kupper,  // ν > 1: P(first) = σ(d − log ν), P(tie) = (ν² − 1) σ(d − log ν) σ(−d − log ν). Rao & Kupper 1967, eq. 2.3
  davidson,    // ν > 0: P(first) : P(other) : P(tie) = 1 : e^{−d} : ν e^{−d/2}. Davidson 1970, eq. 2.4
};

// l_i = −log P of what the vote says: the first is better, or (where `tied` is not 0) neither is. Arrays [rows]; d_log_nu is
// one number, dL/d log ν, for those who learn ν.
double tie_loss(int64_t rows, const double* differences, const uint8_t* tied, const double* weights, TieModel model, double nu,
                double normaliser, double* row_losses, double* d_differences, double* d_log_nu);

enum class RankingLoss : int32_t {
  plackett_luce,  // Σ_k [logsumexp_{j not yet ranked} s_j − s_(k)], k over the ranking (its last term is 0 if it is full)
  best,           // the first of these terms: softmax of the best against all; S-DPO is the same function
  lipo,           // LambdaLoss, see ranking.cc
};

// Group i holds scores[offsets[i] … offsets[i+1]) and ranks ranking[ranking_offsets[i] … ranking_offsets[i+1]), indices
// inside the group, best first, distinct; shorter than the group: top-m.
struct Rankings {
  int64_t groups;
  const int32_t *offsets, *ranking_offsets, *ranking;
  const double *scores, *ref_scores;  // s = β(scores − ref_scores); ref_scores null: s = β · scores
  const double* weights;
};

// row_losses [groups], d_scores [offsets[groups]].
double ranking_loss(const Rankings& rankings, RankingLoss type, double beta, double normaliser, double* row_losses,
                    double* d_scores);

enum class UnpairedLoss : int32_t {
  kto,                // λ_D (1 − σ(β(ρ − KL))), λ_U (1 − σ(β(KL − ρ)))
  bco,                // −λ_D log σ(βρ − δ), −λ_U log σ(−(βρ − δ))
  apo_zero_unpaired,  // λ_D (1 − σ(βρ)), λ_U σ(βρ)
};

struct Unpaired {
  int64_t rows;
  const double *logps, *ref_logps;
  const uint8_t* labels;  // 1: desirable
  const double* weights;
};

struct UnpairedOptions {
  double beta = 0.1;
  double desirable = 1, undesirable = 1;  // λ_D, λ_U; they do not enter N
  double baseline = 0;                    // KL (kto) or δ (bco), a constant: no gradient flows through it
  double normaliser = 0;
};

double unpaired_loss(const Unpaired& data, UnpairedLoss type, const UnpairedOptions& options, double* row_losses,
                     double* d_logps);

// l_i = −log π_i · (1 / tokens_i); L = Σ w_i (−log π_i) / T, T = token_normaliser or where that is 0 Σ w_i tokens_i.
double sft_loss(int64_t rows, const double* logps, const double* tokens, const double* weights, double token_normaliser,
                double* row_losses, double* d_logps);

}  // namespace pluralign::preference
