import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { resolveLoss, runConfigPath } from '../config/index.js';
import { tokensAPass } from '../data/pack.js';
import { type Comparison, compareEvaluations } from '../evaluation/compare.js';
import { type Evaluation, summarise } from '../evaluation/preference.js';
import { objectiveOf } from '../methods/index.js';
import { PluralignError } from '../native/errors.js';
import { MarginReference } from '../training/modpo.js';
import { noteTo, progress } from '../training/progress.js';
import { noReference } from '../training/scorer.js';
import { openReference } from '../training/setup.js';
import { stopOf } from '../training/signals.js';
import { evaluateGroups } from '../training/step.js';
import { isBase, openPolicies, openRows, type PolicyOptions, scorerOf } from './policies.js';

export interface EvalOptions extends PolicyOptions {
  data: string[];
  by?: 'annotator';
  /** What to compare with, voter by voter: another run, an adapter folder, or a policy of the same evaluation (`generic`). */
  compare?: string;
  /** The two trained with other seeds: of a run and the one to compare it with. */
  again?: { run: string; other: string }[];
}

type Evaluated = Evaluation & { policies?: Record<string, Evaluation> };

/** `pluralign eval`: see `evaluate`; with `compare` also how much better than another on the same rows. */
export async function evalCommand(
  options: EvalOptions,
): Promise<Evaluated & { comparison?: Comparison & { with: string } }> {
  const { compare, again = [], ...rest } = options;
  const result = await evaluate(rest);
  if (compare === undefined) return result;
  const pairs: [Evaluation, Evaluation][] = [[result, await otherOf(result, compare, rest)]];
  for (const { run, other } of again) {
    const one = await evaluate({ ...rest, run, model: undefined, adapters: [] });
    pairs.push([one, await otherOf(one, other, rest)]);
  }
  return { ...result, comparison: { with: compare, ...compareEvaluations(pairs) } };
}

/** The evaluation that `name` stands for beside one of the same rows. */
async function otherOf(one: Evaluated, name: string, options: EvalOptions): Promise<Evaluation> {
  const policy = one.policies && Object.hasOwn(one.policies, name) ? one.policies[name] : null;
  if (policy) return policy;
  if (existsSync(runConfigPath(name))) return evaluate({ ...options, run: name, model: undefined, adapters: [] });
  if (existsSync(join(name, 'adapter_config.json')))
    return evaluate({ ...options, adapters: [{ name: 'other', dir: name }] });
  const policies = Object.keys(one.policies ?? {});
  const known = policies.length > 0 ? ` or one of ${policies.join(', ')}` : '';
  throw new PluralignError('NOT_FOUND', `${name}: expected a run folder, an adapter folder${known} to compare with`);
}

/**
 * How well each policy's rewards order the choices of `data`. An adapter's implicit reward is
 * β log π/π_ref (of a run its own β and reference, else 0.1 and the base); the base alone is judged by its
 * log-probabilities; a reward model by its rewards. `overall` is of the last adapter; with several, `policies` has each.
 * A run over types is judged by each annotator's mixture of its types (unless other adapters are to be compared with them).
 */
async function evaluate(options: Omit<EvalOptions, 'compare' | 'again'>): Promise<Evaluated> {
  const { signal, flag: abort } = stopOf(options.stop);
  const note = noteTo({});
  if (options.run !== undefined) {
    const { emConfig, evaluateRun } = await import('../em/run.js');
    const types = (options.adapters ?? []).length === 0 ? emConfig(options.run) : null;
    if (types) return evaluateRun({ ...options, run: options.run, note });
    const { evalFeatures, isFeatureRun } = await import('../features/run.js');
    if (await isFeatureRun(options.run)) return evalFeatures(options.run, options.data, { signal, note });
  }
  const opened = await openPolicies(options);
  const { model, policies, beta, reference, ties, modpo } = opened;
  using _model = model;
  const all = await openRows(options.data, model, { overLength: 'drop', signal, note });
  const groups = ties.ties === 'drop' ? all.filter((g) => !g.tie) : all;
  if (groups.length === 0) throw new PluralignError('BAD_DATA', `${options.data.join(', ')}: every row is a tie`);
  if (groups.length < all.length) note(`${all.length - groups.length} rows are ties and were left out`);
  const bad = groups.find((g) => g.kind !== 'pair' && g.kind !== 'ranking');
  if (bad) throw new PluralignError('BAD_DATA', `${bad.origin.file}:${bad.origin.line}: eval needs pairs or rankings`);
  const judged = policies.length > 1 ? policies.filter((p) => !isBase(p)) : policies;
  const plain = await openReference(reference, model, tokensAPass, true, options);
  using against = modpo ? await MarginReference.open(plain, model, modpo.rewards, beta, tokensAPass) : plain;
  const results: Record<string, Evaluation> = {};
  const bar = progress(groups.length * judged.length, 'evaluate');
  for (const [k, policy] of judged.entries()) {
    const method = policy.reward ? 'reward' : 'dpo';
    const objective = objectiveOf({ method, loss: resolveLoss({ beta, modpo, ...ties }, method) });
    const alone = isBase(policy) && reference === 'base' && !modpo;
    const { rows, loss: mean } = await evaluateGroups(
      groups,
      objective,
      scorerOf(policy, opened, groups),
      objective.reference ? (alone ? noReference : against) : null,
      { maxTokens: tokensAPass, abort, onProgress: (done) => bar.update(k * groups.length + done) },
    );
    results[policy.name] = summarise(rows, mean, policy.voters?.index);
  }
  bar.stop();
  const names = Object.keys(results);
  const first = results[names[names.length - 1]];
  return names.length > 1 ? { ...first, policies: results } : first;
}
