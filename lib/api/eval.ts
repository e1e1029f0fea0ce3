import { resolveConfig } from '../config/index.js';
import { type Evaluation, summarise } from '../evaluation/preference.js';
import { objectiveOf } from '../methods/index.js';
import { PluralignError } from '../native/errors.js';
import { progress } from '../training/progress.js';
import { Reference } from '../training/scorer.js';
import { evaluateGroups } from '../training/step.js';
import { openPolicies, openRows, type PolicyOptions } from './policies.js';

const maxTokens = 8192;

/**
 * `pluralign eval`: how well each policy's rewards order the choices of `data`. An adapter's implicit reward is
 * β log π/π_ref against the base (β of the run, else 0.1); the base alone is judged by its log-probabilities; a reward
 * model by its rewards. `overall` is of the last adapter; with several, `policies` has each.
 */
export async function evalCommand(
  options: PolicyOptions & { data: string[]; by?: 'annotator'; stop: { signal: AbortSignal; flag: Int32Array } },
): Promise<Evaluation & { policies?: Record<string, Evaluation> }> {
  const { model, bank, policies, loss } = await openPolicies(options);
  using _model = model;
  const note = (text: string) => void process.stderr.write(`${text}\n`);
  const groups = await openRows(options.data, model, { overLength: 'drop', signal: options.stop.signal, note });
  const bad = groups.find((g) => g.kind !== 'pair' && g.kind !== 'ranking');
  if (bad) throw new PluralignError('BAD_DATA', `${bad.origin.file}:${bad.origin.line}: eval needs pairs or rankings`);
  const judged = policies.length > 1 ? policies.filter((p) => p.adapter !== -1 || p.reward) : policies;
  const base = new Reference({ model, bank: null, adapter: -1 }, true, maxTokens);
  const results: Record<string, Evaluation> = {};
  const bar = progress(groups.length * judged.length, 'evaluate');
  for (const [k, policy] of judged.entries()) {
    const alone = policy.adapter === -1;
    const objective = objectiveOf(
      resolveConfig({
        method: policy.reward ? 'reward' : 'dpo',
        model: 'evaluated',
        data: { train: 'evaluated' },
        loss: policy.reward ? {} : { beta: loss?.beta ?? 0.1, type: alone ? 'cpo' : 'sigmoid', cpo_alpha: 0 },
        output: 'evaluated',
      }),
    );
    const { rows, loss: mean } = await evaluateGroups(
      groups,
      objective,
      { model, bank, adapter: policy.adapter },
      objective.reference ? base : null,
      { maxTokens, abort: options.stop.flag, onProgress: (done) => bar.update(k * groups.length + done) },
    );
    results[policy.name] = summarise(rows, mean);
  }
  bar.stop();
  const names = Object.keys(results);
  const first = results[names[names.length - 1]];
  return names.length > 1 ? { ...first, policies: results } : first;
}
