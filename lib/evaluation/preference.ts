import type { RowOutcome } from '../methods/objective.js';
import { worstDecile } from './bootstrap.js';
import { type ReliabilityBin, reliability } from './reliability.js';

// Types, not interfaces: a printer may take them as records.
export type PreferenceMetrics = {
  rows: number;
  /** Rows that are ties: in the likelihood, not in accuracy and margin. */
  ties?: number;
  /** Share of ordered pairs that the rewards order alike; equal rewards count as wrong. */
  accuracy: number;
  /** Mean reward of the preferred minus that of the other. */
  margin: number;
  /** Mean natural-log likelihood of a row's choice or ranking. */
  log_likelihood: number;
};

export type Evaluation = {
  overall: PreferenceMetrics & {
    /** Expected calibration error of pairs over ten bins of confidence; absent without pairs. */
    ece?: number;
    /** Mean (1 − p)² of pairs, p the likelihood of the choice. */
    brier?: number;
    loss?: number;
    /** Mean accuracy of the tenth of annotators (one at least) that fare worst; with two annotators or more. */
    worst_decile_accuracy?: number;
    /** Of a run over types: how well annotators' types agree with the groups that rows name. */
    adjusted_rand_index?: number;
    /** And how far their certainty is from being right. */
    responsibility_ece?: number;
  };
  /** By annotator, where rows name them. */
  annotators: Record<string, PreferenceMetrics>;
  /** By known group, where rows name them. */
  groups?: Record<string, PreferenceMetrics>;
  /** Votes of annotators with an adapter of their own (seen) and of others, whom the generic one judges (unseen). */
  voters?: Record<string, PreferenceMetrics>;
  /** Of decided pairs, by how sure the rewards are of them. */
  reliability?: ReliabilityBin[];
  /** The annotator with the lowest accuracy. */
  worst?: { annotator: string } & PreferenceMetrics;
};

/** Means weighted by the rows' weights. */
function metricsOf(rows: readonly RowOutcome[]): PreferenceMetrics {
  const sums = { weight: 0, decided: 0, accuracy: 0, margin: 0, logLikelihood: 0 };
  let ties = 0;
  for (const { group, accuracy, margin, logLikelihood } of rows) {
    sums.weight += group.weight;
    sums.logLikelihood += group.weight * logLikelihood;
    if (group.tie) {
      ties++;
      continue;
    }
    sums.decided += group.weight;
    sums.accuracy += group.weight * accuracy;
    sums.margin += group.weight * margin;
  }
  const mean = (sum: number, weight: number) => (weight > 0 ? sum / weight : 0);
  const out: PreferenceMetrics = {
    rows: rows.length,
    accuracy: mean(sums.accuracy, sums.decided),
    margin: mean(sums.margin, sums.decided),
    log_likelihood: mean(sums.logLikelihood, sums.weight),
  };
  if (ties > 0) out.ties = ties;
  return out;
}

/** Expected calibration error over ten equal bins of the confidence max(p, 1 − p), and the Brier score of the choices. */
export function calibration(probabilities: readonly number[]): { ece: number; brier: number } {
  const bins = Array.from({ length: 10 }, () => ({ n: 0, confidence: 0, right: 0 }));
  let brier = 0;
  for (const p of probabilities) {
    const confidence = Math.max(p, 1 - p);
    const bin = bins[Math.min(9, Math.floor((confidence - 0.5) * 20))];
    bin.n++;
    bin.confidence += confidence;
    bin.right += p > 0.5 ? 1 : 0;
    brier += (1 - p) ** 2;
  }
  const n = Math.max(1, probabilities.length);
  const ece = bins.reduce((sum, b) => sum + Math.abs(b.confidence - b.right), 0) / n;
  return { ece, brier: brier / n };
}

function grouped(
  rows: readonly RowOutcome[],
  key: (row: RowOutcome) => string | undefined,
): Record<string, PreferenceMetrics> {
  const parts = new Map<string, RowOutcome[]>();
  for (const row of rows) {
    const name = key(row);
    if (name === undefined) continue;
    if (!parts.has(name)) parts.set(name, []);
    parts.get(name)!.push(row);
  }
  const sorted = [...parts].sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
  return Object.fromEntries(sorted.map(([name, part]) => [name, metricsOf(part)]));
}

/**
 * Overall and per annotator: what `eval` prints and the report draws. `known`: annotators with an adapter of their own, to
 * tell seen voters from unseen ones.
 */
export function summarise(
  rows: readonly RowOutcome[],
  loss?: number,
  known?: { has(annotator: string): boolean },
): Evaluation {
  const pairs = rows.filter((r) => r.group.kind === 'pair' && !r.group.tie);
  const overall: Evaluation['overall'] = metricsOf(rows);
  if (pairs.length > 0) Object.assign(overall, calibration(pairs.map((r) => 1 / (1 + Math.exp(-r.margin)))));
  if (loss !== undefined) overall.loss = loss;
  const annotators = grouped(rows, (r) => r.group.annotator);
  const groups = grouped(rows, (r) => r.group.group);
  const out: Evaluation = { overall, annotators };
  if (pairs.length > 0) out.reliability = reliability(pairs.map((r) => r.margin));
  if (Object.keys(groups).length > 0) out.groups = groups;
  if (known) {
    const voters = grouped(rows, ({ group: { annotator } }) =>
      annotator === undefined ? undefined : known.has(annotator) ? 'seen' : 'unseen',
    );
    if (Object.keys(voters).length > 0) out.voters = voters;
  }
  const ranked = Object.entries(annotators).sort(([, a], [, b]) => a.accuracy - b.accuracy);
  if (ranked.length > 1) {
    const [annotator, metrics] = ranked[0];
    out.worst = { annotator, ...metrics };
    overall.worst_decile_accuracy = worstDecile(ranked.map(([, m]) => m.accuracy));
  }
  return out;
}
