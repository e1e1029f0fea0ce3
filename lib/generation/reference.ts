import type { Bank } from '../adapters/bank.js';
import { pack, splitByTokens, tokensAPass } from '../data/pack.js';
import type { Group } from '../data/types.js';
import type { Model } from '../model/model.js';
import type { Generated } from './engine.js';
import type { SequenceRequest } from './request.js';

/**
 * Log-probabilities of samples under another policy, token for token, with each one's prompt and temperature: what `logps`
 * of a sample is under its own. `adapter` -1: the base.
 */
export async function logpsUnder(
  model: Model,
  bank: Bank | null,
  adapter: number,
  requests: readonly SequenceRequest[],
  samples: readonly Generated[],
  abort?: Int32Array,
): Promise<Float32Array[]> {
  const out = samples.map(() => new Float32Array(0));
  const heats = requests.map(({ temperature = 0 }) => (temperature === 0 ? 1 : temperature));
  for (const temperature of new Set(heats)) {
    const groups = samples.flatMap(({ tokens }, index): Group[] => {
      if (heats[index] !== temperature || tokens.length === 0) return [];
      const origin = { file: 'samples', line: index + 1 };
      return [{ index, kind: 'text', prompt: requests[index].prompt, completions: [tokens], weight: 1, origin }];
    });
    for (const some of splitByTokens(groups, 1, tokensAPass)) {
      const p = pack(some, { policies: [{ adapter, grad: false }], read: 'logps' });
      const { values } = await model.score(p, bank, 'logps', { temperature, abort });
      some.forEach(({ index }, i) => {
        out[index] = values.slice(p.offsets[i], p.offsets[i + 1]);
      });
    }
  }
  return out;
}
