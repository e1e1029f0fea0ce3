// One pair's loss and its derivatives, before weights; shared by pair.cc and nothing else outside this folder.
#pragma once
#include "preference.h"

namespace pluralign::preference {

struct PairRow {
  double chosen, rejected;              // log π
  double rho_chosen, rho_rejected;      // ρ (NaN-free only where there is a reference)
  double score_chosen, score_rejected;  // ρ after the divergence
  double slope_chosen, slope_rejected;  // dscore/dρ
  double chosen_tokens, rejected_tokens;
  double nll_scale;  // N / T
};

struct PairValue {
  double loss, d_chosen, d_rejected;
};

// −(1−ε) log σ(x) − ε log σ(−x) and its derivative.
double smoothed_log_loss(double x, double smoothing, double* slope);

// f'(exp ρ) and its derivative in ρ.
double divergence_score(double rho, Divergence divergence, double alpha, double* slope);

// Any type but aot and aot_unpaired.
PairValue pair_term(PairLoss type, const PairRow& row, const PairOptions& options);

}  // namespace pluralign::preference
