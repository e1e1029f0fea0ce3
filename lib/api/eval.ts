import { resolveLoss } from '../config/index.js';
import { type Evaluation, summarise } from '../evaluation/preference.js';
import { objectiveOf } from '../methods/index.js';
import { PluralignError } from '../native/errors.js';
import { MarginReference } from '../training/modpo.js';
import { progress } from '../training/progress.js';
import { noReference } from '../training/scorer.js';
import { openReference } from '../training/setup.js';
import { stopOf } from '../training/signals.js';
import { evaluateGroups } from '../training/step.js';
import { isBase, openPolicies, openRows, type PolicyOptions, scorerOf } from './policies.js';

const maxTokens = 8192;

/**
 * `pluralign eval`: how well each policy's rewards order the choices of `data`. An adapter's implicit reward is
 * β log π/π_ref (of a run its own β and reference, else 0.1 and the base); the base alone is judged by its
 * log-probabilities; a reward model by its rewards. `overall` is of the last adapter; with several, `policies` has each.
 * A run over types is judged by each annotator's mixture of its types (unless other adapters are to be compared with them).
 */
export async function evalCommand(
  options: PolicyOptions & { data: string[]; by?: 'annotator' },
): Promise<Evaluation & { policies?: Record<string, Evaluation> }> {
  const { signal, flag: abort } = stopOf(options.stop);
  const note = (text: string) => void process.stderr.write(`${text}\n`);
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
  const plain = await openReference(reference, model, maxTokens, true, options);
  using against = modpo ? await MarginReference.open(plain, model, modpo.rewards, beta, maxTokens) : plain;
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
      { maxTokens, abort, onProgress: (done) => bar.update(k * groups.length + done) },
    );
    results[policy.name] = summarise(rows, mean, policy.voters?.index);
  }
  bar.stop();
  const names = Object.keys(results);
  const first = results[names[names.length - 1]];
  return names.length > 1 ? { ...first, policies: results } : first;
}
