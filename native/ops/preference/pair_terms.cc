#include "pair_terms.h"

#include "math.h"

namespace pluralign::preference {

double smoothed_log_loss(double x, double smoothing, double* slope) {
  *slope = -(1 - smoothing) * sigmoid(-x) + smoothing * sigmoid(x);
  // 0 · log σ(−x) is left out: it is NaN where x is infinite.
  return smoothing == 0 ? -log_sigmoid(x) : -(1 - smoothing) * log_sigmoid(x) - smoothing * log_sigmoid(-x);
}

double divergence_score(double rho, Divergence divergence, double alpha, double* slope) {
  switch (divergence) {
    case Divergence::forward_kl:
      return 1 - cut_exp(-rho, slope);
    case Divergence::js:
      *slope = sigmoid(-rho);
      return std::log(2.0) + log_sigmoid(rho);
    case Divergence::alpha: {
      const double c = alpha - 1;
      if (std::fabs(c) < 1e-6) break;
      const double e = cut_exp(c * rho, slope);
      // expm1 keeps the digits that exp − 1 loses where c ρ is small.
      return (*slope == 0 ? e - 1 : std::expm1(c * rho)) / c;
    }
    case Divergence::reverse_kl:
      break;
  }
  *slope = 1;
  return rho;
}

namespace {

// log(p / (1 − p)) of p = exp(x); x is cut just below 0, where the odds have no bound.
double log_odds(double x, double* slope) {
  constexpr double highest = -1e-7;
  if (x > highest) {
    *slope = 0;
    x = highest;
  } else {
    *slope = -1 / std::expm1(x);
  }
  return x - std::log(-std::expm1(x));
}

PairValue on_difference(const PairRow& r, double loss, double slope) {
  return {loss, slope * r.slope_chosen, -slope * r.slope_rejected};
}

PairValue nll(const PairRow& r) { return {-r.chosen * r.nll_scale, -r.nll_scale, 0}; }

PairValue discopop(const PairRow& r, double beta, double tau) {
  const double x = beta * (r.score_chosen - r.score_rejected);
  const double mix = sigmoid(x / tau), rest = sigmoid(-x / tau);
  // m e^{−x} in logs: either factor alone overflows or underflows.
  double e_slope;
  const double e = cut_exp(log_sigmoid(x / tau) - x, &e_slope);
  const double slope = mix * rest / tau * log_sigmoid(x) - rest * sigmoid(-x) + e_slope * (rest / tau - 1);
  return on_difference(r, -rest * log_sigmoid(x) + e, beta * slope);
}

PairValue exo(const PairRow& r, double beta, double smoothing) {
  const double x = beta * (r.score_chosen - r.score_rejected);
  const double qw = sigmoid(x), ql = sigmoid(-x), log_pw = std::log1p(-smoothing), log_pl = std::log(smoothing);
  const double loss = qw * (log_sigmoid(x) - log_pw) + ql * (log_sigmoid(-x) - log_pl);
  return on_difference(r, loss, beta * qw * ql * (x - log_pw + log_pl));
}

}  // namespace

PairValue pair_term(PairLoss type, const PairRow& r, const PairOptions& o) {
  const double beta = o.beta, eps = o.label_smoothing;
  const double x = beta * (r.score_chosen - r.score_rejected);
  const double rw = beta * r.rho_chosen, rl = beta * r.rho_rejected;
  double slope = 0;
  switch (type) {
    case PairLoss::sigmoid: {
      const double loss = smoothed_log_loss(x, eps, &slope);
      return on_difference(r, loss, beta * slope);
    }
    case PairLoss::robust: {
      const double scale = 1 / (1 - 2 * eps);
      const double loss = -(1 - eps) * log_sigmoid(x) + (eps == 0 ? 0 : eps * log_sigmoid(-x));
      return on_difference(r, loss * scale, beta * scale * (-(1 - eps) * sigmoid(-x) - eps * sigmoid(x)));
    }
    case PairLoss::hinge:
      return on_difference(r, relu(1 - x), x < 1 ? -beta : 0);
    case PairLoss::ipo: {
      const double d = r.score_chosen / r.chosen_tokens - r.score_rejected / r.rejected_tokens - 1 / (2 * beta);
      return {d * d, 2 * d * r.slope_chosen / r.chosen_tokens, -2 * d * r.slope_rejected / r.rejected_tokens};
    }
    case PairLoss::exo_pair:
      return exo(r, beta, eps);
    case PairLoss::nca_pair:
      return {-log_sigmoid(rw) - 0.5 * log_sigmoid(-rw) - 0.5 * log_sigmoid(-rl),
              beta * (-sigmoid(-rw) + 0.5 * sigmoid(rw)), beta * 0.5 * sigmoid(rl)};
    case PairLoss::bco_pair:
      return {-log_sigmoid(rw - o.delta) - log_sigmoid(o.delta - rl), -beta * sigmoid(o.delta - rw),
              beta * sigmoid(rl - o.delta)};
    case PairLoss::sppo_hard: {
      const double a = r.rho_chosen - 1 / (2 * beta), b = r.rho_rejected + 1 / (2 * beta);
      return {a * a + b * b, 2 * a, 2 * b};
    }
    case PairLoss::apo_zero:
      return {sigmoid(-rw) + sigmoid(rl), -beta * sigmoid(rw) * sigmoid(-rw), beta * sigmoid(rl) * sigmoid(-rl)};
    case PairLoss::apo_down: {
      const double d = rw - rl, both = beta * sigmoid(d) * sigmoid(-d);
      return {sigmoid(rw) + sigmoid(-d), beta * sigmoid(rw) * sigmoid(-rw) - both, both};
    }
    case PairLoss::discopop:
      return discopop(r, beta, o.discopop_tau);
    case PairLoss::sft:
      return nll(r);
    case PairLoss::sigmoid_norm: {
      const double mean = r.score_chosen / r.chosen_tokens - r.score_rejected / r.rejected_tokens;
      const double loss = smoothed_log_loss(beta * mean, eps, &slope);
      return {loss, beta * slope * r.slope_chosen / r.chosen_tokens, -beta * slope * r.slope_rejected / r.rejected_tokens};
    }
    case PairLoss::simpo: {
      const double mean = r.chosen / r.chosen_tokens - r.rejected / r.rejected_tokens;
      const double loss = smoothed_log_loss(beta * mean - o.simpo_gamma, eps, &slope);
      return {loss, beta * slope / r.chosen_tokens, -beta * slope / r.rejected_tokens};
    }
    case PairLoss::cpo: {
      const double loss = smoothed_log_loss(beta * (r.chosen - r.rejected), eps, &slope);
      const PairValue likelihood = nll(r);
      return {loss + o.cpo_alpha * likelihood.loss, beta * slope + o.cpo_alpha * likelihood.d_chosen, -beta * slope};
    }
    case PairLoss::orpo: {
      double slope_w, slope_l;
      const double odds = log_odds(r.chosen / r.chosen_tokens, &slope_w) - log_odds(r.rejected / r.rejected_tokens, &slope_l);
      const PairValue likelihood = nll(r);
      const double s = -beta * sigmoid(-odds);
      return {likelihood.loss - beta * log_sigmoid(odds), likelihood.d_chosen + s * slope_w / r.chosen_tokens,
              -s * slope_l / r.rejected_tokens};
    }
    case PairLoss::aot:
    case PairLoss::aot_unpaired:
      break;
  }
  return {std::nan(""), std::nan(""), std::nan("")};
}

}  // namespace pluralign::preference
