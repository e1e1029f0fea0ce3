import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import * as fsp from 'node:fs/promises';
import { join } from 'node:path';
import { isMixture, mixtureName } from '../aggregation/mixture-file.js';
import type { AggregateOptions } from '../aggregation/rules.js';
import { drawPrompts, type Sampled, sampleLogRatios } from '../aggregation/sample.js';
import { type Regrets, type SampleRule, type SideBySide, sideBySide } from '../aggregation/side-by-side.js';
import { ioError, makeFolder, writeFileAtomic } from '../base/files.js';
import { loadConfig, resolveLoss, runConfigPath } from '../config/index.js';
import { tokensAPass } from '../data/pack.js';
import { readResponsibilities, responsibilitiesPath } from '../em/files.js';
import { objectiveOf } from '../methods/index.js';
import { PluralignError } from '../native/errors.js';
import { progress } from '../training/progress.js';
import { openReference } from '../training/setup.js';
import { stopOf } from '../training/signals.js';
import { isBase, openPolicies, openRows, type Policies, type Policy, type PolicyOptions } from './policies.js';

/** The policies of a run over types, or adapters of one model (`data` is needed then). */
export interface AggregatePoliciesOptions extends PolicyOptions {
  rule: SampleRule;
  /** Folder for the mixture: mixture.json and the policies' files. */
  output?: string;
  /** α of rule `alpha`, and the solver of the worst-case rules. */
  alpha?: number;
  solver?: 'lp' | 'hedge';
  /** Rows whose prompts are answered; default: the run's training rows. */
  data?: string[];
  /** At most; default 512. */
  prompts?: number;
  /** Answers of each policy to a prompt; default 1. */
  samples?: number;
  /** Default 128. */
  maxNewTokens?: number;
  /** Default 1: the policies as they are. */
  temperature?: number;
  /** Default 0. */
  seed?: number;
  /** Other adapters whose regrets are wanted too, such as one policy for all. */
  compare?: { name: string; dir: string }[];
  quiet?: boolean;
}

/** The printed result, and (without `rules` and `others`) mixture.json. */
export interface RunAggregate extends Regrets {
  rule: SampleRule | 'trained';
  weights: number[];
  rewards: number[];
  /** Names of the types' policies, in the order of `weights`. */
  types: string[];
  beta: number;
  L: number[][];
  L_standard_errors: number[][];
  sampling: {
    prompts: number;
    per_prompt: number;
    seed: number;
    temperature: number;
    max_new_tokens: number;
    mean_tokens: number[];
    /** Share of answers that were cut at max_new_tokens. */
    cut: number[];
  };
  rules: SideBySide['rules'];
  others: SideBySide['others'];
}

/** RUN/aggregation.json: samples' means, kept so that another rule costs nothing, and what the report shows. */
interface Kept {
  key: string;
  sampled: Omit<Sampled, 'means' | 'least'> & { means: number[][][]; least: number[][] };
  shown: Omit<RunAggregate, 'rule' | 'weights' | 'rewards' | keyof Regrets>;
}

/** Where a run over types keeps what its aggregation found. */
export function aggregationPath(run: string): string {
  return join(run, 'aggregation.json');
}

/**
 * `pluralign aggregate`: one policy from the types' policies. Estimates L_kk' = E_{y∼π_k'}[log π_k/π_ref] by sampling,
 * weighs the policies by the rule, and writes the mixture as a folder that stands wherever an adapter does: a sequence is
 * spoken by policy k with probability w_k (Chidambaram et al. 2024, arXiv 2405.15065, min-max regret aggregation).
 *
 * Throws `BAD_ARGUMENT` where there are fewer than two policies, `BAD_DATA` without prompts, and what opening throws.
 */
export async function aggregatePolicies(options: AggregatePoliciesOptions): Promise<RunAggregate> {
  const { run, adapters = [], compare = [], seed = 0, temperature = 1, maxNewTokens = 128, samples = 1 } = options;
  if (run !== undefined && adapters.length > 0)
    throw new PluralignError('BAD_ARGUMENT', 'a RUN has a policy for each type; give other adapters with --compare');
  const stop = stopOf(options.stop);
  const opened = await openPolicies({ ...options, adapters: [...adapters, ...compare] });
  using _model = opened.model;
  const { types, others } = sides(run ?? options.model!, opened.policies, compare.length);
  if (options.output !== undefined) await checkOutput(options.output);
  const config = run === undefined ? null : loadConfig(runConfigPath(run));
  const data = options.data ?? config?.data.train;
  if (!data) throw new PluralignError('BAD_ARGUMENT', 'found no --data ROWS, expected rows whose prompts are answered');
  const groups = await openRows(data, opened.model, { overLength: 'drop', signal: stop.signal });
  const prompts = drawPrompts(groups, opened.model.config.maxPositions - maxNewTokens, options.prompts ?? 512, seed);

  const { beta, reference, model } = opened;
  const settings = { samples, maxNewTokens, temperature, seed, beta, reference, dtype: model.dtype, model: model.dir };
  const key = await keyOf([...types, ...others], prompts, settings);
  const before = run === undefined ? null : await readKept(run, key);
  const sampled = before ?? (await sample(opened, types, others, prompts, options));
  const typeWeights = run === undefined ? undefined : await shares(run, types.length);
  const aggregateOptions: AggregateOptions = { alpha: options.alpha, solver: options.solver, typeWeights };
  const table = sideBySide(
    sampled.means,
    sampled.least,
    opened.beta,
    others.map((p) => p.name),
    { ...aggregateOptions, seed },
  );
  const shown: Kept['shown'] = {
    types: types.map((p) => p.name),
    beta: opened.beta,
    L: table.L,
    L_standard_errors: table.standardErrors,
    sampling: {
      prompts: sampled.prompts,
      per_prompt: sampled.perPrompt,
      seed,
      temperature,
      max_new_tokens: maxNewTokens,
      mean_tokens: sampled.meanTokens,
      cut: sampled.cut,
    },
    rules: table.rules,
    others: table.others,
  };
  const { rule, weights, rewards, ...regrets } = table.rules.find((r) => r.rule === options.rule)!;
  const result: RunAggregate = { rule, weights, ...regrets, rewards, ...shown };
  if (run !== undefined) {
    const means = sampled.means.map((row) => row.map((values) => [...values]));
    const least = sampled.least.map((values) => [...values]);
    const kept: Kept = { key, sampled: { ...sampled, means, least }, shown };
    await writeFileAtomic(aggregationPath(run), `${JSON.stringify(kept)}\n`);
    const { writeReport } = await import('../report/index.js');
    await writeReport(run);
  }
  if (options.output !== undefined) await writeMixture(options.output, result, types, config?.model ?? options.model!);
  return result;
}

/** The types' own policies, and those that they are compared with. */
function sides(source: string, policies: readonly Policy[], compared: number): { types: Policy[]; others: Policy[] } {
  const speaking = policies.filter((p) => !isBase(p));
  const types = speaking.slice(0, speaking.length - compared);
  if (types.length < 2)
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${source}: found ${types.length === 1 ? '1 policy' : `${types.length} policies`}, expected one for each of at least two types (a run of em-dpo, or several --adapter); where held-out votes chose one type, its policy is everybody's as it is`,
    );
  const voters = speaking.find((p) => p.voters);
  if (voters)
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${source}: found adapters by annotator, expected a policy for each type (a run of em-dpo, or several --adapter)`,
    );
  const mute = speaking.find((p) => p.mixture !== null || p.reward);
  if (mute)
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${mute.name}: found ${mute.reward ? 'a reward model' : 'a mixture'} in ${mute.dir}, expected an adapter that speaks`,
    );
  return { types, others: speaking.slice(types.length) };
}

async function sample(
  { model, bank, reference }: Policies,
  types: readonly Policy[],
  others: readonly Policy[],
  prompts: readonly Int32Array[],
  options: AggregatePoliciesOptions,
): Promise<Sampled> {
  const { flag: abort } = stopOf(options.stop);
  const { maxNewTokens = 128, temperature = 1, seed = 0 } = options;
  using against = await openReference(reference, model, tokensAPass, false, options);
  const objective = objectiveOf({ method: 'dpo', loss: resolveLoss({}, 'dpo') });
  const bar = progress((types.length + others.length) * prompts.length * (options.samples ?? 1), 'sample', options);
  try {
    return await sampleLogRatios(
      model,
      bank,
      [...types, ...others].map((p) => p.adapter),
      types.map((p) => p.adapter),
      (groups) => against.sums(groups, objective, abort),
      prompts,
      {
        perPrompt: options.samples,
        maxNewTokens,
        temperature,
        seed,
        abort,
        onProgress: (done) => bar.update(Math.floor(done)),
      },
    );
  } finally {
    bar.stop();
  }
}

/** Everything that the samples depend on. */
async function keyOf(policies: readonly Policy[], prompts: readonly Int32Array[], settings: object): Promise<string> {
  const hash = createHash('sha256').update(JSON.stringify(settings));
  for (const prompt of prompts) hash.update(prompt);
  for (const { name, dir } of policies) {
    hash.update(name);
    for (const file of ['adapter_config.json', 'adapter_model.safetensors'])
      hash.update(await fsp.readFile(join(dir!, file)).catch(() => Buffer.alloc(0)));
  }
  return hash.digest('hex');
}

async function readKept(run: string, key: string): Promise<Sampled | null> {
  const text = await fsp.readFile(aggregationPath(run), 'utf8').catch(() => null);
  if (text === null) return null;
  try {
    const { key: found, sampled } = JSON.parse(text) as Kept;
    if (found !== key) return null;
    const means = sampled.means.map((row) => row.map((values) => Float64Array.from(values)));
    return { ...sampled, means, least: sampled.least.map((values) => Float64Array.from(values)) };
  } catch {
    // Half a file of another version; the samples are drawn again.
    return null;
  }
}

/** η_k, the mean responsibility; equal where the run has no responsibilities. */
async function shares(run: string, types: number): Promise<number[] | undefined> {
  const path = responsibilitiesPath(run);
  if (!existsSync(path)) return undefined;
  const lines = [...(await readResponsibilities(path)).values()];
  if (lines.length === 0 || lines[0].length !== types) return undefined;
  return lines[0].map((_, k) => lines.reduce((sum, line) => sum + line[k], 0) / lines.length);
}

async function checkOutput(dir: string): Promise<void> {
  if (existsSync(dir) && !isMixture(dir) && (await fsp.readdir(dir)).length > 0)
    throw new PluralignError('BAD_ARGUMENT', `${dir} is not empty and no mixture; give another --output`);
}

async function writeMixture(
  dir: string,
  result: RunAggregate,
  types: readonly Policy[],
  model: string | null,
): Promise<void> {
  const failed = (what: string) => (error: unknown) => {
    throw ioError(what, dir, error);
  };
  await makeFolder(dir).catch(failed('make'));
  for (const { name, dir: from } of types) {
    const to = join(dir, name);
    if (from !== to) await fsp.cp(from!, to, { recursive: true }).catch(failed('copy a policy to'));
  }
  const { rules: _rules, others: _others, ...rest } = result;
  const policies = types.map(({ name }, k) => ({ name, weight: result.weights[k] }));
  await writeFileAtomic(
    join(dir, mixtureName),
    `${JSON.stringify({ base_model: model, policies, ...rest }, null, 2)}\n`,
  );
}
