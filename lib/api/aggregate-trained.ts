import { join } from 'node:path';
import { Bank } from '../adapters/bank.js';
import { adapterConfig } from '../adapters/config.js';
import { loadPeft, savePeft } from '../adapters/peft.js';
import { estimateL } from '../aggregation/estimate.js';
import { drawPrompts, sampleLogRatios } from '../aggregation/sample.js';
import { writeFileAtomic } from '../base/files.js';
import { loadConfig, runConfigPath } from '../config/index.js';
import { packTokens } from '../data/pack.js';
import type { Group } from '../data/types.js';
import { readResponsibilities, responsibilitiesPath } from '../em/files.js';
import { DpoObjective } from '../methods/dpo.js';
import { PluralignError } from '../native/errors.js';
import { DataOrder } from '../training/order.js';
import { progress } from '../training/progress.js';
import { learningRateFactor } from '../training/schedule.js';
import { openReference, prepareData } from '../training/setup.js';
import { type Stop, stopOf } from '../training/signals.js';
import { lossStep } from '../training/step.js';
import { type AggregatePoliciesOptions, aggregatePolicies, type RunAggregate } from './aggregate-run.js';
import { openPolicies } from './policies.js';

export interface TrainedOptions {
  output: string;
  /** Times that the types' weights move. Default 20. */
  rounds?: number;
  /** Optimizer steps between. Default 10. */
  steps?: number;
  /** η of the weights' update, for regrets as shares of the largest between two types. Default 0.5. */
  weightStep?: number;
  /** Prompts that regrets are estimated with in a round. Default 64. */
  prompts?: number;
  maxNewTokens?: number;
  seed?: number;
  stop?: Stop;
  quiet?: boolean;
}

export interface TrainedRound {
  round: number;
  /** Share of each type in the votes that were trained on, [K]. */
  weights: number[];
  /** Regret of each type under the policy after the round's steps, estimated on the round's samples, [K]. */
  regrets: number[];
  loss: number;
}

/**
 * The trained alternative to a mixture: one adapter against min_π max_k regret_k(π). The types' weights p go by optimistic
 * multiplicative weights, p_t ∝ p_{t−1} exp(η (2 g_t − g_{t−1})), with g the types' regrets as shares of the largest one
 * between two types; the policy goes by DPO on all votes, an annotator's rows weighing Σ_k p_k γ_ik / (share of k), so that
 * a type counts by p_k and not by its size. Regrets are estimated on fresh samples in every round.
 *
 * Source: the trained form of min-max regret aggregation (Chidambaram et al. 2024, arXiv 2405.15065), with preference
 * training in the place of the policy gradient.
 */
export async function trainMinMaxRegret(run: string, options: TrainedOptions): Promise<TrainedRound[]> {
  const { rounds = 20, steps = 10, weightStep = 0.5, maxNewTokens = 128, seed = 0, quiet = false, output } = options;
  const { flag: abort, signal } = stopOf(options.stop);
  const config = loadConfig(runConfigPath(run));
  const { train, loss } = config;
  const opened = await openPolicies({ run, dtype: train.dtype, device: train.device, threads: train.threads });
  using model = opened.model;
  const types = opened.policies.filter((p) => p.adapter !== -1);
  if (types.length < 2 || types.some((p) => p.reward))
    throw new PluralignError('BAD_ARGUMENT', `${run}: expected a run with policies of at least two types (em-dpo)`);
  const data = await prepareData(config, model, { signal, quiet });
  const known = await readResponsibilities(responsibilitiesPath(run));
  const { groups, gamma } = responsible(data.train, known, types.length, run);
  const share = types.map((_, k) => gamma.reduce((sum, own) => sum + own[k], 0) / gamma.length);

  const { config: shape } = await loadPeft(types[0].dir!, model.shape);
  // The policy in training is one more adapter beside the frozen ones, so that samples are judged in one pass.
  const bank = Bank.create(model.shape, adapterConfig({ ...shape, share: 'none' }), ['policy'], { seed });
  using against = await openReference(opened.reference, model, packTokens(train), true, train);
  const objective = new DpoObjective(loss);
  const prompts = drawPrompts(groups, model.config.maxPositions - maxNewTokens, options.prompts ?? 64, seed);
  const reference = (some: readonly Group[]) => against.sums(some, objective, abort);
  const own = await sampleLogRatios(
    model,
    opened.bank,
    types.map((p) => p.adapter),
    types.map((p) => p.adapter),
    reference,
    prompts,
    { maxNewTokens, seed, abort, perPrompt: 2 },
  );
  const { L } = estimateL(own.means);
  const best = L.map((row, k) => row[k]);
  const scale = Math.max(1e-12, ...L.map((row, k) => loss.beta * (best[k] - Math.min(...row))));

  const order = new DataOrder(groups.length, { batchSize: train.batch_size, seed, shuffle: true });
  const bar = progress(rounds * steps, 'train', { quiet });
  const log: TrainedRound[] = [];
  const decay = { kind: 'linear', warmup: 0, minRatio: 0 } as const;
  let p = new Array<number>(types.length).fill(1 / types.length);
  let before = new Array<number>(types.length).fill(0);
  try {
    for (let round = 0, step = 0; round < rounds; round++) {
      const weights = p;
      groups.forEach((group, i) => {
        group.weight = data.train[i].weight * weights.reduce((sum, w, k) => sum + (w * gamma[i][k]) / share[k], 0);
      });
      let mean = 0;
      for (let s = 0; s < steps; s++, step++) {
        bank.zeroGrad();
        const batch = [...order.batch(step)].map((i) => groups[i]);
        const outcome = await lossStep(batch, objective, { model, bank, adapter: 0 }, against, {
          maxTokens: packTokens(train),
          checkpoint: train.gradient_checkpointing,
          dropoutSeed: step + 1,
          abort,
        });
        mean += outcome.loss / steps;
        const { beta1, beta2, eps, weight_decay: weightDecay, max_grad_norm: maxGradNorm } = train;
        const learningRate = train.learning_rate * learningRateFactor(step, rounds * steps, decay);
        await bank.step({ beta1, beta2, eps, weightDecay, maxGradNorm, learningRate });
        bar.update(step + 1, { loss: outcome.loss });
      }
      const regrets = await regretsOf(round);
      log.push({ round: round + 1, weights, regrets, loss: mean });
      const g = regrets.map((regret, k) => (2 * regret - before[k]) / scale);
      const moved = p.map((value, k) => value * Math.exp(weightStep * g[k]));
      const sum = moved.reduce((a, b) => a + b, 0);
      p = moved.map((value) => value / sum);
      before = regrets;
    }
  } finally {
    bar.stop();
  }
  await savePeft(bank, 'policy', output, { baseModel: config.model?.replace(/^hf:/, '') });
  await writeFileAtomic(
    join(output, 'rounds.json'),
    `${JSON.stringify({ run, types: types.map((t) => t.name), rounds: log }, null, 1)}\n`,
  );
  bank.dispose();
  return log;

  /** β (L_kk − L_kπ) with π the policy as it stands. */
  async function regretsOf(round: number): Promise<number[]> {
    const judged = await sampleLogRatios(
      model,
      bank,
      [0],
      types.map((t) => t.adapter),
      reference,
      prompts,
      {
        maxNewTokens,
        seed: seed + 1 + round,
        abort,
        judges: opened.bank!,
      },
    );
    return estimateL(judged.means).L.map(([value], k) => loss.beta * (best[k] - value));
  }
}

/**
 * `pluralign aggregate RUN --rule trained`: trains that adapter into `output` and sets its regrets beside every mixture's.
 * `weights` are the types' mean weights over the rounds.
 */
export async function aggregateTrained(
  options: AggregatePoliciesOptions & Pick<TrainedOptions, 'rounds' | 'steps'>,
): Promise<RunAggregate> {
  const { run, output, prompts, ...rest } = options;
  if (run === undefined || output === undefined)
    throw new PluralignError(
      'BAD_ARGUMENT',
      '--rule trained trains on the votes of a RUN into --output DIR; give both',
    );
  const rounds = await trainMinMaxRegret(run, { ...rest, output });
  const found = await aggregatePolicies({
    ...rest,
    run,
    prompts,
    output: undefined,
    rule: 'min-max-regret',
    compare: [...(options.compare ?? []), { name: 'trained', dir: output }],
  });
  const { name: _name, ...regrets } = found.others[found.others.length - 1];
  const rewards = found.types.map((_, k) => found.beta * found.L[k][found.L[k].length - 1]);
  const weights = found.types.map((_, k) => rounds.reduce((sum, { weights: w }) => sum + w[k] / rounds.length, 0));
  return { ...found, ...regrets, rewards, weights, rule: 'trained' };
}

/** Copies of the rows whose annotators have responsibilities, whose weights may change, and these. */
function responsible(
  rows: readonly Group[],
  known: ReadonlyMap<string, number[]>,
  types: number,
  run: string,
): { groups: Group[]; gamma: number[][] } {
  const gamma = rows.map((row) => {
    const own = row.annotator === undefined ? undefined : known.get(row.annotator);
    if (own?.length !== types)
      throw new PluralignError(
        'BAD_DATA',
        `${row.origin.file}:${row.origin.line}: ${responsibilitiesPath(run)} has no ${types} responsibilities of ` +
          `annotator ${JSON.stringify(row.annotator)}; was the data changed since the run?`,
      );
    return own;
  });
  return { groups: rows.map((row) => ({ ...row })), gamma };
}
