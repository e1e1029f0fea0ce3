import type { Group } from '../data/types.js';
import { sftLoss, spreadGradient, sumTokens } from '../losses/index.js';
import { PluralignError } from '../native/errors.js';
import type { LossOutcome, Objective, Scores, Totals } from './objective.js';
import { weightOf } from './preferences.js';

/** Next-token likelihood of completions (or of plain text), the mean over all tokens of the step. Also `pretrain`. */
export class SftObjective implements Objective {
  readonly read = 'logps';
  readonly reference = false;
  readonly squares = false;
  readonly coupled = false;
  readonly summing = 'tokens';

  check(groups: readonly Group[]): void {
    const bad = groups.find((g) => g.kind !== 'text');
    if (bad)
      throw new PluralignError(
        'BAD_DATA',
        `${bad.origin.file}:${bad.origin.line}: a preference row; this method learns from text ({"text"}, {"prompt","completion"} or {"messages"})`,
      );
  }

  sums(_groups: readonly Group[], values: Float32Array, offsets: Int32Array): Float64Array {
    return sumTokens(values, offsets);
  }

  totals(groups: readonly Group[]): Totals {
    let weight = 0;
    let tokens = 0;
    for (const g of groups) {
      weight += g.weight;
      tokens += g.weight * g.completions[0].length;
    }
    return { weight: weight || 1, tokens: tokens || 1 };
  }

  loss(scores: Scores, totals: Totals): LossOutcome {
    const { groups, offsets, values } = scores;
    const tokens = Float64Array.from(groups, (g) => g.completions[0].length);
    const logps = sumTokens(values, offsets);
    const result = sftLoss({ logps, tokens, weights: weightOf(groups) }, { normaliser: totals.tokens });
    const gradient = spreadGradient(result.dLogps, offsets);
    const mean =
      logps.reduce((a, b) => a + b, 0) /
      Math.max(
        1,
        tokens.reduce((a, b) => a + b, 0),
      );
    return { loss: result.loss, gradient, metrics: { 'logps/token': mean }, rows: [] };
  }

  state(): unknown {
    return null;
  }

  restore(): void {}
}
