import { type LossType, lossSchema } from './loss-schema.js';
import { adapterSchema, type ParsedConfig } from './schema.js';

/** Keys of `loss` that only some losses read. */
const lossKeys: readonly { key: keyof ParsedConfig['loss']; losses: readonly LossType[] }[] = [
  {
    key: 'label_smoothing',
    losses: ['sigmoid', 'robust', 'exo_pair', 'aot', 'aot_unpaired', 'sigmoid_norm', 'simpo', 'cpo'],
  },
  { key: 'discopop_tau', losses: ['discopop'] },
  { key: 'simpo_gamma', losses: ['simpo'] },
  { key: 'cpo_alpha', losses: ['cpo'] },
  { key: 'desirable_weight', losses: ['kto', 'bco', 'apo_zero_unpaired'] },
  { key: 'undesirable_weight', losses: ['kto', 'bco', 'apo_zero_unpaired'] },
];

/** Keys that were given another value than their default, and that nothing in this run would read. */
export function unusedKeys(
  { method, model, data, loss, train, adapter }: ParsedConfig,
  types: readonly LossType[],
  perAnnotator: boolean,
): { path: string[]; message: string }[] {
  const usual = lossSchema.parse({});
  const unused = lossKeys
    .filter(({ key, losses }) => loss[key] !== usual[key] && !types.some((type) => losses.includes(type)))
    .map(({ key, losses }) => ({
      path: ['loss', key],
      message: `belongs to loss.type ${losses.join(', ')}; here it would change nothing`,
    }));
  for (const key of ['margin', 'centring'] as const)
    if (loss[key] !== usual[key] && method !== 'reward' && method !== 'em-reward')
      unused.push({ path: ['loss', key], message: `belongs to method reward, but the method is ${method}` });
  if (train.schedule === 'constant' && train.min_learning_rate_ratio !== 0)
    unused.push({
      path: ['train', 'min_learning_rate_ratio'],
      message: 'belongs to train.schedule: linear or cosine; here it would change nothing',
    });
  if (train.eval_every !== null && model !== 'features') {
    const path = ['train', 'eval_every'];
    if (method === 'em-dpo' || method === 'em-reward')
      unused.push({ path, message: `is not for ${method}, which evaluates once, after its last round` });
    else if (method === 'soups' && data.split === null && data.eval !== null)
      unused.push({ path, message: 'is not for soups, which judges its policies on data.eval once, after training' });
    else if (data.eval === null && data.split === null)
      unused.push({ path, message: 'nothing to evaluate on; give data.eval or data.split' });
  }
  if (adapter !== null && adapter !== 'full' && adapter.generic !== adapterSchema.parse({}).generic && !perAnnotator)
    unused.push({
      path: ['adapter', 'generic'],
      message: 'needs adapter.per: annotator; here it would change nothing',
    });
  return unused;
}
