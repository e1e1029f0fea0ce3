import type { Bank } from '../adapters/bank.js';
import { drawComponent } from '../aggregation/mixture-file.js';
import type { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import { stopOf } from '../training/signals.js';
import { isBase, openPolicies, type Policy, type PolicyOptions } from './policies.js';

/** `pluralign generate`: samples of one prompt under each adapter (or the base where none is given). */
export async function generateCommand(
  options: PolicyOptions & {
    prompt: string;
    weights?: Record<string, number>;
    /** With a run that has adapters by annotator: speak as this one. */
    annotator?: string;
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
  const voice = options.annotator === undefined ? null : asAnnotator(options.annotator, policies, model);
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
  const speakers = policies.filter((p) => {
    if (voice) return p.voters !== undefined;
    return !p.reward && !p.voters && (policies.length === 1 || !isBase(p));
  });
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
      const speaker = voice ? { bank: voice, adapter: 1 } : { bank, adapter };
      made.push(...(await model.generate(prompts, speaker.bank, { ...settings, adapter: speaker.adapter, seed })));
    }
    made.forEach((ids, i) => {
      samples.push({
        policy: options.annotator ?? name,
        seed: seed + i,
        text: tokenizer.decode(ids, { skipSpecial: true }),
        tokens: ids.length,
      });
    });
  }
  return { prompt: options.prompt, samples };
}

/** A bank whose second adapter is the annotator's. Throws NOT_FOUND for one that the run does not know. */
function asAnnotator(annotator: string, policies: readonly Policy[], model: Model): Bank {
  const voters = policies.find((p) => p.voters)?.voters;
  if (!voters)
    throw new PluralignError('BAD_ARGUMENT', '--annotator needs --run RUN of a run with adapters by annotator');
  if (voters.reward) throw new PluralignError('BAD_ARGUMENT', 'a reward model does not generate');
  voters.require(annotator);
  return voters.bank(model.shape, [annotator]).bank;
}
