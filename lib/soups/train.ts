import { join } from 'node:path';
import { writeFileAtomic } from '../base/files.js';
import { mix32 } from '../base/random.js';
import type { ResolvedConfig } from '../config/index.js';
import { packTokens } from '../data/pack.js';
import { simplexGrid } from '../evaluation/fronts.js';
import { checkJudge, openJudge } from '../judges/index.js';
import { methodNames } from '../merge/index.js';
import { nativeConfig, readModelConfig } from '../model/config.js';
import { resolveModel } from '../model/hub.js';
import { PluralignError } from '../native/errors.js';
import { openRewards } from '../rewards/open.js';
import { preparePrompts } from '../rl/prompts.js';
import { sampler, samplesOf } from '../rl/sampling.js';
import { noteTo, progress } from '../training/progress.js';
import { openRunFolder } from '../training/run-folder.js';
import { adaptedLayers, openModel } from '../training/setup.js';
import { stopOf } from '../training/signals.js';
import type { TrainOptions, TrainSummary } from '../training/train.js';
import { type Combinations, compareOn, judgeOn } from './combinations.js';
import type { Front } from './fronts.js';
import { chordFront, frontOf } from './fronts.js';
import { type Answerer, Kitchen } from './kitchen.js';
import { type Evaluated, Points } from './points.js';
import { withRewards } from './policies.js';
import { runsOfLayers, type SearchResult, searchWeights } from './search.js';
import { backboneWeights, combinationsOf, rewardsOf } from './wishes.js';

/** RUN/soups.json: what the report draws. */
export interface SoupsResult {
  wishes: string[];
  /** Wishes that the fronts are over. */
  front: string[];
  reference_point: number;
  base: number[];
  /** What each expert's answers are worth to each wish, and its KL, [wishes][wishes]. */
  experts: { name: string; objectives: number[]; kl: number | null; length: number }[];
  fronts: Front[];
  combinations: Combinations | null;
  /** Weights that were searched for; null: nobody asked. */
  search: SearchResult | null;
  /** Answers to the same prompts as weights move, and what each is worth to the wishes of the front. */
  samples: { prompt: unknown; answers: { weights: number[] | 'base'; text: string; objectives: number[] }[] }[];
}

/**
 * Experts for single wishes, their mixes, and what they are compared with (`method: soups`; Personalized Soups, arXiv
 * 2310.11564). Every policy is a run of its own below the run folder, every judged policy a line of points.jsonl, so that a
 * stopped run goes on where it was. Throws as `train`.
 */
export async function trainSoups(given: ResolvedConfig, options: TrainOptions = {}): Promise<TrainSummary> {
  const { quiet = false } = options;
  const note = noteTo(options);
  const stop = stopOf(options.stop);
  if (given.soups!.judge) checkJudge(given.soups!.judge);
  const folder = await openRunFolder(given, { resume: options.resume });
  let begun = false;
  try {
    const started = performance.now();
    const unknown = given.soups!.merges.find((name) => !methodNames.includes(name));
    if (unknown !== undefined)
      throw new PluralignError(
        'BAD_CONFIG',
        `soups.merges: ${JSON.stringify(unknown)} is not known; expected ${methodNames.join(', ')}`,
      );
    // Said before hours of training, not after.
    if (given.soups!.search && given.model !== null) {
      const shape = nativeConfig(readModelConfig(await resolveModel(given.model)));
      runsOfLayers(await adaptedLayers(given, shape), given.soups!.search.blocks);
    }
    const hold = async () => {
      // From here on the folder holds a run: other settings need another one.
      await writeFileAtomic(folder.paths.metrics, `${JSON.stringify({ step: 0 })}\n`);
      begun = true;
    };
    if (given.soups!.wishes.some((wish) => wish.rewards === null)) await hold();
    const config = await withRewards(given, { ...options, quiet, onNote: note, stop });
    using model = await openModel(config);
    const soups = config.soups!;
    const { wishes } = soups;
    const ones = wishes.map(() => 1);
    const rewards = await openRewards(rewardsOf(wishes, ones), model, {
      functions: options.rewards,
      maxTokens: packTokens(config.train),
      abort: stop.flag,
      onWarning: note,
    });
    const prompts = await preparePrompts(config, model, stop.signal);
    for (const text of prompts.notes) note(text);
    const base = { model, bank: null, adapter: -1 };
    const asked = Array.from(
      { length: config.rollout!.reference_samples },
      (_, i) => prompts.train[i % prompts.train.length],
    );
    const answers = await sampler(base, config.rollout!, stop.flag)(asked, mix32(config.train.seed + 0x5ca1e));
    if (rewards.wantsScale) await rewards.fit(samplesOf(asked, answers, model));
    await hold();
    const judged = prompts.eval.flatMap((prompt) => Array.from({ length: soups.samples }, () => prompt));
    const points = await Points.open(
      join(folder.dir, 'points.jsonl'),
      config,
      model,
      rewards,
      wishes,
      judged,
      stop.flag,
    );
    const kitchen = new Kitchen(config, prompts.train, points, { ...options, quiet, onNote: note }, stop);
    const result = await cook(kitchen, quiet);
    const cost = result.combinations?.judged?.cost;
    if (cost)
      note(
        `${soups.judge!.model} judged: ${cost.asked} questions asked, ${cost.cached} known already; ${cost.inputTokens} tokens read, ` +
          `${cost.outputTokens} written${cost.money === null ? '' : `, ${cost.money.toFixed(4)} by soups.judge.price`}`,
      );
    await writeFileAtomic(join(folder.dir, 'soups.json'), `${JSON.stringify(result, null, 1)}\n`);
    const summary: TrainSummary = {
      method: config.method,
      steps: 0,
      finished: true,
      seconds: (performance.now() - started) / 1000,
      train: Object.fromEntries(result.fronts.map((front) => [`hypervolume/${front.name}`, front.hypervolume])),
      data: { ...prompts.reports },
      paths: { run: folder.dir, adapter: join(folder.dir, 'experts') },
    };
    await folder.writeSummary(summary);
    const { writeReport } = await import('../report/index.js');
    await writeReport(folder.dir);
    return summary;
  } catch (error) {
    if (!begun) await folder.discard();
    throw error;
  } finally {
    await folder.release();
  }
}

/** The whole table: every front over the chosen wishes, then the combinations. */
async function cook(kitchen: Kitchen, quiet: boolean): Promise<SoupsResult> {
  const { config, points } = kitchen;
  const soups = config.soups!;
  const { wishes, baselines } = soups;
  const names = wishes.map((wish) => wish.name);
  const chosen = soups.front.map((name) => names.indexOf(name));
  const weights = simplexGrid(chosen.length, soups.grid);
  const has = (name: (typeof baselines)[number]) => baselines.includes(name);
  const combinations = soups.combinations ? combinationsOf(wishes) : [];
  const bar = progress(kitchen.work(weights, combinations.length), 'soups', { quiet });
  kitchen.onDone = (done) => bar.update(done);
  try {
    const base = await points.of('base', null);
    // Only the experts that something is made of.
    const wanted = wishes.map((_, i) => combinations.length > 0 || chosen.includes(i));
    await kitchen.experts(names.flatMap((_, i) => (wanted[i] ? [i] : [])));
    const experts: Evaluated[] = [];
    for (const [i, name] of names.entries())
      experts.push(wanted[i] ? await points.of(`expert ${name}`, await kitchen.expert(i)) : base);
    const over = (evaluated: Evaluated) => chosen.map((i) => evaluated.objectives[i]);
    const corners = chosen.map((i) => over(experts[i]));
    const { reference_point: reference } = soups;
    const fronts: Front[] = [chordFront(weights, corners, reference)];
    const sweep = async (name: string, grid: number[][], of: (w: number[]) => Promise<Evaluated>) => {
      const found: { weights: number[]; objectives: number[]; kl: number | null }[] = [];
      for (const w of grid) {
        const evaluated = await of(w);
        found.push({ weights: w, objectives: over(evaluated), kl: evaluated.kl });
      }
      fronts.push(frontOf(name, found, corners, reference));
    };
    const fromExperts = (method: string) => (w: number[]) => kitchen.merged(method, chosen, w);
    for (const method of soups.merges) await sweep(method, weights, fromExperts(method));
    for (const mix of soups.logits)
      await sweep(mix === 'reverse-kl' ? 'logits' : `logits, ${mix}`, weights, (w) => kitchen.logits(chosen, w, mix));
    const extended = soups.sums.filter((sum) => sum !== 1);
    if (extended.length > 0) {
      const grid = [1, ...extended].flatMap((sum) => weights.map((w) => w.map((value) => value * sum)));
      await sweep(`cat, Σw up to ${Math.max(...soups.sums)}`, grid, fromExperts('cat'));
    }
    if (has('backbones'))
      await sweep('backbones', weights, (w) => kitchen.fromBackbones(chosen, w, backboneWeights(w, soups.mixing)));
    if (has('morl')) await sweep('morl', weights, (w) => kitchen.morl(chosen, w));
    const search = soups.search ? await searchWeights(kitchen, chosen) : null;
    if (has('modpo')) await sweep('modpo', weights, (w) => kitchen.modpo(chosen, w));
    // As many as stand side by side, from one end of the weights to the other.
    const places = new Set(Array.from({ length: 5 }, (_, i) => Math.round((i * (weights.length - 1)) / 4)));
    const mixed: { weights: number[] | 'base'; evaluated: Evaluated }[] = [{ weights: 'base', evaluated: base }];
    for (const place of places)
      mixed.push({ weights: weights[place], evaluated: await kitchen.merged('cat', chosen, weights[place]) });
    return {
      wishes: names,
      front: soups.front,
      reference_point: reference,
      base: base.objectives,
      experts: names.flatMap((name, i) =>
        wanted[i] ? [{ name, objectives: experts[i].objectives, kl: experts[i].kl, length: experts[i].length }] : [],
      ),
      fronts,
      search,
      combinations: combinations.length > 0 ? await compare(kitchen, combinations) : null,
      samples: points.shown.map(({ prompt, at }) => ({
        prompt,
        answers: mixed.map(({ weights: mix, evaluated }) => ({
          weights: mix,
          text: evaluated.answers[at],
          objectives: chosen.map((i) => evaluated.each[i][at]),
        })),
      })),
    };
  } finally {
    bar.stop();
  }
}

/** Soups, and every baseline there is, on each combination of wishes. */
async function compare(kitchen: Kitchen, combinations: readonly number[][]): Promise<Combinations> {
  const { config } = kitchen;
  const { wishes, baselines } = config.soups!;
  const policies: [string, Answerer][] = [
    [
      'soup',
      (chosen) =>
        kitchen.merged(
          'cat',
          chosen,
          chosen.map(() => 1 / chosen.length),
        ),
    ],
    ['base', () => kitchen.points.of('base', null)],
  ];
  if (baselines.includes('prompting')) policies.push(['prompting', (chosen) => kitchen.prompted(chosen)]);
  if (baselines.includes('sft')) policies.push(['sft', (chosen) => kitchen.sft(chosen)]);
  if (baselines.includes('one_reward')) policies.push(['one reward', () => kitchen.oneReward()]);
  if (baselines.includes('p_morl')) policies.push(['P-MORL', (chosen) => kitchen.pMorl(chosen)]);
  if (baselines.includes('morl'))
    policies.push([
      'MORL',
      (chosen) =>
        kitchen.morl(
          chosen,
          chosen.map(() => 1 / chosen.length),
        ),
    ]);
  const answers: { name: string; evaluated: Evaluated }[][] = [];
  for (const chosen of combinations) {
    const row: { name: string; evaluated: Evaluated }[] = [];
    for (const [name, answer] of policies) row.push({ name, evaluated: await answer(chosen) });
    answers.push(row);
  }
  const { judge, samples } = config.soups!;
  const { seed } = config.train;
  const found = compareOn(wishes, combinations, answers, samples, seed);
  if (judge) {
    const endpoint = await openJudge(judge, join(config.output, 'judged.jsonl'), kitchen.stop.signal);
    const prompts = kitchen.points.prompts.map((prompt) => prompt.text);
    found.judged = await judgeOn(wishes, combinations, answers, prompts, endpoint, { ...judge, samples, seed });
  }
  return found;
}
