import type { Bank } from '../adapters/bank.js';
import { pack, splitByTokens, tokensAPass } from '../data/pack.js';
import type { Group } from '../data/types.js';
import { Wording } from '../generation/text.js';
import { sumTokens } from '../losses/index.js';
import type { Model } from '../model/model.js';
import { type Taste, utility } from './tastes.js';

/** The model without an adapter. */
export const base = -1;

/** Tokens. */
export const longestEnding = 120;
const batch = 16;

export interface SampleOptions {
  seed: number;
  temperature: number;
  abort?: Int32Array;
  onProgress?: (done: number) => void;
}

/** One ending for each prompt under an adapter (`base`: none), null where it did not come to its end. */
export async function sampleEndings(
  model: Model,
  bank: Bank | null,
  adapter: number,
  prompts: readonly string[],
  options: SampleOptions,
): Promise<(string | null)[]> {
  const { tokenizer } = model;
  const wording = new Wording(model);
  const start = tokenizer.bosId === null ? [] : [tokenizer.bosId];
  const endings: (string | null)[] = [];
  for (let from = 0; from < prompts.length; from += batch) {
    const ids = prompts.slice(from, from + batch).map((text) => Int32Array.from([...start, ...tokenizer.encode(text)]));
    const sampled = await model.generate(ids, bank, {
      adapter,
      maxNewTokens: longestEnding,
      temperature: options.temperature,
      seed: options.seed + from,
      abort: options.abort,
    });
    for (const tokens of sampled) {
      const finished = wording.ended(tokens);
      endings.push(finished ? wording.text(tokens) : null);
    }
    options.onProgress?.(endings.length);
  }
  return endings;
}

/**
 * Share of each annotator's pairs that a policy orders as the annotator did. An adapter orders by its implicit reward
 * log π(y|x) − log π_base(y|x) (Rafailov et al. 2023, eq. 5, up to a factor), the base by log π_base(y|x): it has no reward,
 * so this asks which ending it finds likelier. A tie counts as wrong. All policies are scored in one pass.
 * Result: for each adapter, in the order given, annotator → accuracy.
 */
export async function accuracies(
  model: Model,
  bank: Bank,
  adapters: readonly number[],
  pairs: readonly Group[],
  options: { abort?: Int32Array; onProgress?: (done: number) => void } = {},
): Promise<Map<string, number>[]> {
  const policies = [base, ...adapters.filter((adapter) => adapter !== base)];
  const right = adapters.map(() => new Map<string, number>());
  const counts = new Map<string, number>();
  let done = 0;
  for (const run of splitByTokens(pairs, policies.length, tokensAPass)) {
    const p = pack(run, { policies: policies.map((adapter) => ({ adapter, grad: false })), read: 'logps' });
    const { values } = await model.score(p, bank, 'logps', { abort: options.abort });
    const sums = sumTokens(values, p.offsets);
    const completions = p.groupOffsets[run.length];
    run.forEach((group, g) => {
      const name = group.annotator ?? '';
      counts.set(name, (counts.get(name) ?? 0) + 1);
      const difference = (policy: number) => {
        const at = policy * completions + p.groupOffsets[g];
        return sums[at] - sums[at + 1];
      };
      adapters.forEach((adapter, i) => {
        const margin = adapter === base ? difference(0) : difference(policies.indexOf(adapter)) - difference(0);
        right[i].set(name, (right[i].get(name) ?? 0) + (margin > 0 ? 1 : 0));
      });
    });
    done += run.length;
    options.onProgress?.(done);
  }
  return right.map((hits) => new Map([...hits].map(([name, n]) => [name, n / counts.get(name)!])));
}

/** Share of the places at which somebody of this taste likes `ours` better than `theirs`; a tie is half a win. */
export function winRate(taste: Taste, ours: readonly string[], theirs: readonly string[]): number {
  let wins = 0;
  ours.forEach((text, i) => {
    const difference = utility(taste, text) - utility(taste, theirs[i]);
    wins += difference > 0 ? 1 : difference === 0 ? 0.5 : 0;
  });
  return ours.length === 0 ? 0 : wins / ours.length;
}
