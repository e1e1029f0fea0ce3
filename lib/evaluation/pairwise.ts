import { Random } from '../base/random.js';
import type { Text } from '../data/types.js';
import { PluralignError } from '../native/errors.js';

/** Which of two answers is better: above 0 the first, below 0 the second, 0 neither. It may depend on their order. */
export type Judge = (prompt: Text, first: string, second: string) => number | Promise<number>;

/** What became of two policies' answers to one prompt under one criterion: 1 win of the first, 0 tie, −1 loss. */
export type Verdict = -1 | 0 | 1;

/**
 * Asks a judge in both orders: whoever wins both has won, anything else is a tie, so that a judge who favours a place
 * decides nothing. Throws `BAD_ARGUMENT` where the judge gives no number.
 */
export async function verdict(judge: Judge, prompt: Text, ours: string, theirs: string): Promise<Verdict> {
  const [there, back] = [await judge(prompt, ours, theirs), await judge(prompt, theirs, ours)];
  for (const value of [there, back])
    if (typeof value !== 'number' || Number.isNaN(value))
      throw new PluralignError('BAD_ARGUMENT', `the judge said ${String(value)}, expected a number`);
  if (there > 0 && back < 0) return 1;
  return there < 0 && back > 0 ? -1 : 0;
}

/** A judge by a number for each answer; answers closer than `margin` tie. */
export const judgeBy =
  (value: (prompt: Text, answer: string) => number, margin = 0): Judge =>
  (prompt, first, second) => {
    const difference = value(prompt, first) - value(prompt, second);
    return Math.abs(difference) <= margin ? 0 : difference;
  };

export interface WinRate {
  win: number;
  tie: number;
  lose: number;
  /** Wins and half of the ties, of all; its 95 % interval by the bootstrap over prompts. */
  rate: number;
  interval: [number, number];
}

/** Verdicts [prompts][criteria] as shares. Prompts are drawn again as wholes, as their criteria belong together. */
export function winRate(verdicts: readonly (readonly Verdict[])[], seed = 0, draws = 1000): WinRate {
  const each = verdicts.map((row) => row.reduce((sum: number, v) => sum + (v + 1) / 2, 0) / row.length);
  const all = verdicts.flat();
  const share = (v: Verdict) => all.filter((x) => x === v).length / Math.max(1, all.length);
  const mean = (at: (i: number) => number) => {
    let sum = 0;
    for (let i = 0; i < each.length; i++) sum += at(i);
    return sum / Math.max(1, each.length);
  };
  const random = new Random(seed, 0xb007);
  const drawn = Array.from({ length: draws }, () => mean(() => each[random.below(each.length)])).sort((a, b) => a - b);
  return {
    win: share(1),
    tie: share(0),
    lose: share(-1),
    rate: mean((i) => each[i]),
    interval: [drawn[Math.floor(0.025 * draws)], drawn[Math.ceil(0.975 * draws) - 1]],
  };
}
