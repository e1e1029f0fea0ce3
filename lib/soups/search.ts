import { join } from 'node:path';
import { Bank } from '../adapters/bank.js';
import type { LayerBlock } from '../adapters/mix.js';
import { mix32 } from '../base/random.js';
import { RecordLog } from '../base/record-log.js';
import { simplexGrid } from '../evaluation/fronts.js';
import { PluralignError } from '../native/errors.js';
import { sampler, samplesOf } from '../rl/sampling.js';
import { CmaEs } from '../search/cma-es.js';
import { adaptedLayers } from '../training/setup.js';
import type { Kitchen } from './kitchen.js';
import { objectivesOf } from './wishes.js';

export interface SearchResult {
  method: 'grid' | 'cma-es';
  /** What the person wants, [front wishes]. */
  target: number[];
  /** The experts' weights that were found for it, of each run of layers in turn, [runs · front wishes]. */
  weights: number[];
  /** First and last layer of each run of adapted layers. */
  layers: [number, number][];
  /** Σ target · objective − l1 Σ |weight|, on the prompts that were searched on. */
  value: number;
  evaluations: number;
  /** On the prompts that are judged: what the found weights are worth to the front wishes, and what the target as weights is. */
  found: number[];
  plain: number[];
}

/**
 * Weights of the experts for a person who wants `target`: those that are best on answers to training prompts, which every
 * candidate gives from the same random numbers. Candidates are mixed unmerged (Σ w ΔW), a generation side by side. With `blocks`, runs of
 * adapted layers have weights of their own. Throws `BAD_CONFIG` where those are more than there are such layers.
 */
export async function searchWeights(kitchen: Kitchen, chosen: readonly number[]): Promise<SearchResult> {
  const { config, points, stop } = kitchen;
  const soups = config.soups!;
  const { method, evaluations, l1, answers, deviation, blocks, target: given } = soups.search!;
  const names = chosen.map((wish) => soups.wishes[wish].name);
  const target = names.map((name) => (given === null ? 1 / names.length : (given[name] ?? 0)));
  const layers = runsOfLayers(await adaptedLayers(config, points.model.shape), blocks);
  const n = names.length;
  const blocksOf = (weights: readonly number[]): LayerBlock[] =>
    layers.map(([first, last], b) => ({ first, last, weights: weights.slice(b * n, (b + 1) * n) }));
  const sources: { name: string; dir: string; trainable: boolean }[] = [];
  for (const [k, wish] of chosen.entries())
    sources.push({ name: names[k], dir: await kitchen.expert(wish), trainable: false });
  const prompts = Array.from({ length: answers }, (_, i) => kitchen.prompts[i % kitchen.prompts.length]);
  const kept = await Kept.open(join(config.output, 'search.jsonl'));
  const seed = mix32(config.train.seed + 0x5ea7c);

  const valuesOf = async (candidates: readonly number[][]): Promise<number[]> => {
    const missing = candidates.filter((weights) => kept.value(weights) === undefined);
    if (missing.length > 0) {
      const mixes = missing.map((weights, i) => {
        const own = blocksOf(weights);
        return { name: `candidate ${i}`, weights: own[0].weights, blocks: own };
      });
      const bank = await Bank.fromPeft(points.model.shape, sources, mixes);
      for (const [i, weights] of missing.entries()) {
        if (stop.signal.aborted) throw new PluralignError('ABORTED', 'stopped on request; go on with --resume');
        const speaker = { model: points.model, bank, adapter: sources.length + i };
        const said = await sampler(speaker, config.rollout!, stop.flag)(prompts, seed);
        const each = objectivesOf(soups.wishes, await points.rewards.score(samplesOf(prompts, said, points.model)));
        const objectives = chosen.map((wish) => each[wish].reduce((a, b) => a + b, 0) / each[wish].length);
        const size = weights.reduce((sum, w) => sum + Math.abs(w), 0) / blocks;
        await kept.add(weights, objectives.reduce((sum, value, k) => sum + target[k] * value, 0) - l1 * size);
      }
      bank.dispose();
    }
    return candidates.map((weights) => kept.value(weights)!);
  };

  const start = layers.flatMap(() => target);
  let best: { weights: number[]; value: number } = { weights: start, value: Number.NEGATIVE_INFINITY };
  let count = 0;
  const look = async (candidates: readonly number[][]): Promise<number[]> => {
    const values = await valuesOf(candidates);
    count += candidates.length;
    values.forEach((value, i) => {
      if (value > best.value) best = { weights: candidates[i], value };
    });
    return values;
  };
  // Never worse, where it was searched on, than the person's own weights.
  await look([start]);
  if (method === 'grid')
    await look(soups.sums.flatMap((sum) => simplexGrid(names.length, soups.grid).map((w) => w.map((v) => v * sum))));
  else {
    const search = new CmaEs({ start, deviation, seed: config.train.seed });
    while (count + search.population <= evaluations) search.tell((await look(search.ask())).map((value) => -value));
    // The mean of noisy bests is better than the luckiest candidate; it has to show it.
    await look([search.mean]);
  }
  const over = (objectives: readonly number[]) => chosen.map((wish) => objectives[wish]);
  const found = await kitchen.mergedByLayer(chosen, blocksOf(best.weights));
  const plain = await kitchen.merged('cat', chosen, target);
  return {
    ...{ method, target, layers, evaluations: count },
    ...best,
    found: over(found.objectives),
    plain: over(plain.objectives),
  };
}

/** Layers in so many runs, with numbers of layers that differ by one at most: the first and the last of each. */
export function runsOfLayers(layers: readonly number[], runs: number): [number, number][] {
  if (runs > layers.length)
    throw new PluralignError(
      'BAD_CONFIG',
      `soups.search.blocks: found ${runs}, expected at most ${layers.length}, the layers that experts adapt`,
    );
  const cut = (k: number) => Math.round((k * layers.length) / runs);
  return Array.from({ length: runs }, (_, k) => [layers[cut(k)], layers[cut(k + 1) - 1]]);
}

/** Values of candidates, kept in a file, so that a stopped search goes on. */
class Kept {
  readonly #known = new Map<string, number>();

  private constructor(private readonly log: RecordLog<{ weights: number[]; value: number }>) {
    for (const { weights, value } of log.records) this.#known.set(JSON.stringify(weights), value);
  }

  static async open(path: string): Promise<Kept> {
    return new Kept(await RecordLog.open(path));
  }

  value(weights: readonly number[]): number | undefined {
    return this.#known.get(JSON.stringify(weights));
  }

  async add(weights: number[], value: number): Promise<void> {
    this.#known.set(JSON.stringify(weights), value);
    await this.log.append({ weights, value });
  }
}
