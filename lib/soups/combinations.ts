import type { ResolvedWish } from '../config/soups-schema.js';
import type { Text } from '../data/types.js';
import { type Verdict, verdict, type WinRate, winRate } from '../evaluation/pairwise.js';
import { type EndpointJudge, type JudgeCost, someAtOnce } from '../judges/index.js';
import type { Evaluated } from './points.js';

export interface Combinations {
  /** Wishes of each combination. */
  combinations: string[][];
  policies: string[];
  /** Policy against policy over all combinations, prompts and criteria; null on the diagonal, [policies][policies]. */
  matrix: (WinRate | null)[][];
  /** Mean of what the chosen wishes make of a policy's answers, [combinations][policies]. */
  objectives: number[][];
  /** The first policy against each by an endpoint, where there is one. */
  judged: { model: string; rates: (WinRate | null)[]; cost: JudgeCost } | null;
}

/** The first policy against each of the others by an endpoint, in both orders; every wish's criterion by itself. */
export async function judgeOn(
  wishes: readonly ResolvedWish[],
  combinations: readonly number[][],
  answers: readonly { name: string; evaluated: Evaluated }[][],
  prompts: readonly Text[],
  judge: EndpointJudge,
  settings: { model: string; answers: number; at_once: number; samples: number; seed: number },
): Promise<NonNullable<Combinations['judged']>> {
  const count = Math.min(settings.answers, prompts.length);
  const rates: (WinRate | null)[] = [null];
  for (let p = 1; p < answers[0].length; p++) {
    const asked = Array.from({ length: count }, (_, i) => i).flatMap((i) =>
      combinations.flatMap((chosen, c) => chosen.map((wish) => ({ i, c, wish }))),
    );
    const said = await someAtOnce(asked, settings.at_once, ({ i, c, wish }) => {
      const [ours, theirs] = [answers[c][0], answers[c][p]].map((entry) => entry.evaluated.answers[i]);
      return verdict(judge.by(wishes[wish].criterion!), prompts[i], ours, theirs);
    });
    // Answers to one prompt belong together.
    const byPrompt = new Map<number, Verdict[]>();
    asked.forEach(({ i }, at) => {
      const prompt = Math.floor(i / settings.samples);
      byPrompt.set(prompt, [...(byPrompt.get(prompt) ?? []), said[at]]);
    });
    rates.push(winRate([...byPrompt.values()], settings.seed));
  }
  return { model: settings.model, rates, cost: judge.cost };
}

/**
 * Compares policies on every combination: each chosen wish is a criterion that both answers to a prompt are judged by. A
 * reward judges an answer alone, so the order of the two cannot matter; values within 1e-9 of each other tie.
 */
export function compareOn(
  wishes: readonly ResolvedWish[],
  combinations: readonly number[][],
  /** Each policy's answers under each combination, [combinations][policies]. */
  answers: readonly { name: string; evaluated: Evaluated }[][],
  /** Answers to a prompt, side by side; intervals draw prompts with all of theirs. */
  samples: number,
  seed: number,
): Combinations {
  const policies = answers[0].map((entry) => entry.name);
  const verdicts = (a: number, b: number): Verdict[][] =>
    Array.from({ length: answers[0][0].evaluated.each[0].length / samples }, (_, prompt) =>
      Array.from({ length: samples }, (__, k) => prompt * samples + k).flatMap((i) =>
        combinations.flatMap((chosen, c) =>
          chosen.map((wish): Verdict => {
            const difference = answers[c][a].evaluated.each[wish][i] - answers[c][b].evaluated.each[wish][i];
            return Math.abs(difference) <= 1e-9 ? 0 : difference > 0 ? 1 : -1;
          }),
        ),
      ),
    );
  return {
    judged: null,
    combinations: combinations.map((chosen) => chosen.map((i) => wishes[i].name)),
    policies,
    matrix: policies.map((_, a) => policies.map((_, b) => (a === b ? null : winRate(verdicts(a, b), seed)))),
    objectives: answers.map((row, c) =>
      row.map(({ evaluated }) => {
        const chosen = combinations[c];
        return chosen.reduce((sum, wish) => sum + evaluated.objectives[wish], 0) / chosen.length;
      }),
    ),
  };
}
