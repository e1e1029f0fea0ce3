import type { Bank } from '../adapters/bank.js';
import { mix32, Random } from '../base/random.js';
import { pack, splitByTokens, tokensAPass } from '../data/pack.js';
import type { Group } from '../data/types.js';
import { sumTokens } from '../losses/index.js';
import type { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import { type PromptMeans, promptMeans } from './estimate.js';

export interface SampleOptions {
  /** Prompts that are answered, drawn without replacement; default 512, or all there are. */
  prompts?: number;
  /** Answers of each policy to a prompt. Default 1. */
  perPrompt?: number;
  maxNewTokens?: number;
  temperature?: number;
  seed?: number;
  /** The bank of the types' adapters, where it is another than that of the policies. */
  judges?: Bank;
  abort?: Int32Array;
  onProgress?: (done: number, total: number) => void;
}

const atOnce = 32;

/** Distinct prompts of some groups, in an order drawn by the seed. Prompts without room for an answer are left out. */
export function drawPrompts(groups: readonly Group[], room: number, count: number, seed: number): Int32Array[] {
  const distinct = [...new Map(groups.map((g) => [g.prompt.join(), g.prompt])).values()].filter(
    (p) => p.length <= room,
  );
  if (distinct.length === 0)
    throw new PluralignError('BAD_DATA', `found no prompt of at most ${room} tokens to sample answers to`);
  return new Random(seed, 0x9807).shuffle(distinct).slice(0, count);
}

/** What was sampled, beside what it says. */
export interface Sampled {
  means: PromptMeans;
  /** Mean over a prompt's samples of min_k log π_k/π_ref, J arrays [prompts]. */
  least: readonly Float64Array[];
  prompts: number;
  perPrompt: number;
  /** Mean tokens of an answer, and the share that was cut at `maxNewTokens`, by policy. */
  meanTokens: number[];
  cut: number[];
}

/**
 * Samples answers to prompts from each policy and asks every type's policy, and the reference, how likely each is:
 * log π_k(y|x) − log π_ref(y|x) for y ∼ π_j. A policy's sample for a prompt depends on the seed, not on the others.
 *
 * `policies`: the J adapters that are sampled; `types`: the K adapters that judge; `reference` gives log-probabilities of
 * groups' completions, [completions].
 */
export async function sampleLogRatios(
  model: Model,
  bank: Bank | null,
  policies: readonly number[],
  types: readonly number[],
  reference: (groups: readonly Group[]) => Promise<Float64Array>,
  prompts: readonly Int32Array[],
  options: SampleOptions = {},
): Promise<Sampled> {
  const { perPrompt = 1, maxNewTokens = 128, temperature = 1, seed = 0, judges = bank, abort } = options;
  const total = policies.length * prompts.length * perPrompt;
  const ends = new Set(model.config.eosIds);
  const meanTokens: number[] = [];
  const cut: number[] = [];
  const ratios: Float64Array[][] = [];
  let done = 0;
  for (const [j, adapter] of policies.entries()) {
    const asked = prompts.flatMap((prompt) => Array.from({ length: perPrompt }, () => prompt));
    const answers: Int32Array[] = [];
    const first = mix32(mix32(seed) + j);
    for (let at = 0; at < asked.length; at += atOnce) {
      const some = asked.slice(at, at + atOnce);
      const settings = { adapter, seed: (first + at) >>> 0, temperature, maxNewTokens, abort };
      answers.push(...(await model.generate(some, bank, settings)));
      options.onProgress?.(done + answers.length / 2, total);
    }
    meanTokens.push(answers.reduce((sum, ids) => sum + ids.length, 0) / answers.length);
    cut.push(answers.filter((ids) => !ends.has(ids[ids.length - 1])).length / answers.length);
    const groups = prompts.map(
      (prompt, index): Group => ({
        index,
        kind: 'text',
        prompt,
        completions: answers.slice(index * perPrompt, (index + 1) * perPrompt),
        weight: 1,
        origin: { file: 'samples', line: index + 1 },
      }),
    );
    const own = types.map(() => new Float64Array(asked.length));
    let sample = 0;
    for (const run of splitByTokens(groups, types.length, tokensAPass)) {
      const p = pack(run, { policies: types.map((type) => ({ adapter: type, grad: false })), read: 'logps' });
      const { values } = await model.score(p, judges, 'logps', { abort });
      const sums = sumTokens(values, p.offsets);
      const base = await reference(run);
      for (const [k, ratio] of own.entries()) {
        for (let c = 0; c < base.length; c++) ratio[sample + c] = sums[k * base.length + c] - base[c];
      }
      sample += base.length;
      options.onProgress?.(done + (asked.length + sample) / 2, total);
    }
    ratios.push(own);
    done += asked.length;
  }
  const means = promptMeans({ ratios, prompts: prompts.length, perPrompt });
  const lowest = ratios.map((own) => [own[0].map((_, s) => Math.min(...own.map((ratio) => ratio[s])))]);
  const [least] = promptMeans({ ratios: lowest, prompts: prompts.length, perPrompt });
  return { means, least, prompts: prompts.length, perPrompt, meanTokens, cut };
}
