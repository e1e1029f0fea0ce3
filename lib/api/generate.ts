import { drawComponent } from '../aggregation/mixture-file.js';
import { PluralignError } from '../native/errors.js';
import { stopOf } from '../training/signals.js';
import { isBase, openPolicies, type PolicyOptions } from './policies.js';

/** `pluralign generate`: samples of one prompt under each adapter (or the base where none is given). */
export async function generateCommand(
  options: PolicyOptions & {
    prompt: string;
    weights?: Record<string, number>;
    /** Sample i is drawn with seed + i; default 0. */
    seed?: number;
    samples?: number;
    maxNewTokens?: number;
    /** Default 1; 0: greedy. */
    temperature?: number;
    topK?: number;
    topP?: number;
  },
): Promise<{ prompt: string; samples: { policy: string; seed: number; text: string; tokens: number }[] }> {
  if (options.weights)
    throw new PluralignError(
      'UNSUPPORTED',
      '--weights: mixing adapters at generation is not in this version; give one --adapter',
    );
  const { model, bank, policies } = await openPolicies(options);
  using _model = model;
  const { tokenizer, config } = model;
  const abort = stopOf(options.stop).flag;
  const prompt = Int32Array.from([
    ...(tokenizer.bosId === null ? [] : [tokenizer.bosId]),
    ...tokenizer.encode(options.prompt),
  ]);
  if (prompt.length === 0) throw new PluralignError('BAD_ARGUMENT', '--prompt is empty and the tokenizer has no BOS');
  const room = config.maxPositions - prompt.length;
  if (room < 1)
    throw new PluralignError(
      'BAD_ARGUMENT',
      `--prompt has ${prompt.length} tokens, the model takes ${config.maxPositions}`,
    );
  const speakers = policies.filter((p) => !p.reward && (policies.length === 1 || !isBase(p)));
  if (speakers.length === 0) throw new PluralignError('BAD_ARGUMENT', 'a reward model does not generate');
  const samples: { policy: string; seed: number; text: string; tokens: number }[] = [];
  for (const { name, adapter, mixture } of speakers) {
    const { seed = 0, samples: count = 1, maxNewTokens = 128, temperature = 1, topK, topP } = options;
    const settings = { temperature, topK, topP, maxNewTokens: Math.min(maxNewTokens, room), abort };
    const made: Int32Array[] = [];
    if (mixture) {
      for (let i = 0; i < count; i++) {
        const speaker = mixture.adapters[drawComponent(mixture.weights, seed + i)];
        made.push(...(await model.generate([prompt], bank, { ...settings, adapter: speaker, seed: seed + i })));
      }
    } else {
      const prompts = Array.from({ length: count }, () => prompt);
      made.push(...(await model.generate(prompts, bank, { ...settings, adapter, seed })));
    }
    made.forEach((ids, i) => {
      samples.push({
        policy: name,
        seed: seed + i,
        text: tokenizer.decode(ids, { skipSpecial: true }),
        tokens: ids.length,
      });
    });
  }
  return { prompt: options.prompt, samples };
}
