import { PluralignError } from '../native/errors.js';
import { stopOf } from '../training/signals.js';
import { openPolicies, type PolicyOptions } from './policies.js';

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
    const { seed = 0, samples: count = 1, maxNewTokens = 128, temperature = 1, topK, topP } = options;
    const made = await model.generate(
      Array.from({ length: count }, () => prompt),
      bank,
      {
        adapter,
        seed,
        temperature,
        topK,
        topP,
        maxNewTokens: Math.min(maxNewTokens, room),
        abort: stopOf(options.stop).flag,
      },
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
