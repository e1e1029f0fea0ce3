import { PluralignError } from '../native/errors.js';
import { openPolicies, type PolicyOptions } from './policies.js';

/** `pluralign generate`: samples of one prompt under each adapter (or the base where none is given). */
export async function generateCommand(
  options: PolicyOptions & {
    prompt: string;
    weights?: Record<string, number>;
    seed: number;
    samples: number;
    maxNewTokens: number;
    temperature: number;
    topK: number;
    topP: number;
    stop: { signal: AbortSignal; flag: Int32Array };
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
  const speakers = policies.filter((p) => !p.reward && (policies.length === 1 || p.adapter !== -1));
  if (speakers.length === 0) throw new PluralignError('BAD_ARGUMENT', 'a reward model does not generate');
  const samples: { policy: string; seed: number; text: string; tokens: number }[] = [];
  for (const { name, adapter } of speakers) {
    const { seed, maxNewTokens, temperature, topK, topP, stop } = options;
    const made = await model.generate(
      Array.from({ length: options.samples }, () => prompt),
      bank,
      { adapter, seed, temperature, topK, topP, maxNewTokens: Math.min(maxNewTokens, room), abort: stop.flag },
    );
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
