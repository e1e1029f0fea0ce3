import { drawComponent } from '../aggregation/mixture-file.js';
import { type Generated, type GeneratedPart, generate } from '../generation/engine.js';
import { logpsUnder } from '../generation/reference.js';
import type { LogitMixture, Sampling, SequenceRequest } from '../generation/request.js';
import { mergeWeights } from '../merge/methods.js';
import { PluralignError } from '../native/errors.js';
import type { LogitMix } from '../native/generation.js';
import { progress } from '../training/progress.js';
import { stopOf } from '../training/signals.js';
import { isBase, openPolicies, type Policies, type Policy, type PolicyOptions } from './policies.js';

export interface GenerateOptions extends PolicyOptions, Sampling {
  prompt: string | readonly string[];
  /** Each prompt is what a user says: it goes through the model's chat template, as conversations do in training. */
  chat?: boolean;
  /** Of a run with adapters by annotator: speak as each of these in place of the generic adapter. */
  annotators?: readonly string[];
  /** Of each adapter by its name: one policy that mixes them. */
  weights?: Readonly<Record<string, number>>;
  /** How `weights` mix: their updates (default; Σ w ΔW, not merged), or their next-token distributions (see `LogitMixture`). */
  mix?: 'updates' | LogitMix;
  /** α of mix `alpha`. */
  mixAlpha?: number;
  /** Sample i is drawn with seed + i; default 0. */
  seed?: number;
  samples?: number;
  maxNewTokens?: number;
  /** Texts that end a sample; they are no part of it. */
  stopTexts?: readonly string[];
  /** Sequences that run at a time. */
  batch?: number;
  /** Bytes for keys and values. */
  memory?: number;
  /** Give token ids, log-probabilities and why a sample ended. */
  logps?: boolean;
  /** Give log-probabilities under the base as well; implies `logps`. */
  baseLogps?: boolean;
  /** Called with the text of samples as it comes. */
  onText?: (sample: number, text: string) => void;
}

export interface GeneratedSample {
  policy: string;
  /** Its place among the prompts, where there are several. */
  prompt?: number;
  seed: number;
  text: string;
  /** How many; with EOS. */
  tokens: number;
  /** With `logps`: ids, log softmax(logits / temperature) of each, and `eos`, `stop` or `length`. */
  ids?: number[];
  logps?: number[];
  reason?: Generated['reason'];
  /** With `baseLogps`: of the same tokens under the base, at the same temperature. */
  base_logps?: number[];
}

export interface GenerateResult {
  prompt: string;
  prompts?: string[];
  samples: GeneratedSample[];
}

const mixName = 'mix';

/** Who speaks, and for each of them the policy of sample i. */
function speakers(
  { policies }: Policies,
  options: GenerateOptions,
): { name: string; policy: (seed: number) => number | LogitMixture }[] {
  const { weights, mix = 'updates' } = options;
  const speaking = policies.filter((p) => !p.reward && !p.voters);
  if (speaking.length === 0) throw new PluralignError('BAD_ARGUMENT', 'a reward model does not generate');
  if (weights && mix !== 'updates') {
    const parts = speaking.filter((p) => !isBase(p));
    const mixture = parts.find((p) => p.mixture);
    if (mixture) throw new PluralignError('BAD_ARGUMENT', `${mixture.name} is a mixture already and cannot be mixed`);
    const given = mergeWeights(
      parts.map((p) => p.name),
      weights,
    );
    const policy = { adapters: parts.map((p) => p.adapter), weights: given, mix, alpha: options.mixAlpha };
    return [{ name: mixName, policy: () => policy }];
  }
  if (weights) return [{ name: mixName, policy: () => speaking.at(-1)!.adapter }];
  const one =
    ({ mixture, adapter }: Policy) =>
    (seed: number) =>
      mixture ? mixture.adapters[drawComponent(mixture.weights, seed)] : adapter;
  return speaking.filter((p) => speaking.length === 1 || !isBase(p)).map((p) => ({ name: p.name, policy: one(p) }));
}

/** A bank with the annotators' adapters, and each as a speaker. Throws NOT_FOUND for one that the run does not know. */
function asAnnotators(annotators: readonly string[], { policies, model }: Policies, { weights }: GenerateOptions) {
  const voters = policies.find((p) => p.voters)?.voters;
  if (!voters)
    throw new PluralignError('BAD_ARGUMENT', '--annotator needs --run RUN of a run with adapters by annotator');
  if (voters.reward) throw new PluralignError('BAD_ARGUMENT', 'a reward model does not generate');
  if (weights) throw new PluralignError('BAD_ARGUMENT', '--annotator speaks as one; leave out --weights');
  const names = [...new Set(annotators)];
  for (const name of names) voters.require(name);
  const { bank } = voters.bank(model.shape, names);
  return { bank, speakers: names.map((name, i) => ({ name, policy: () => i + 1 })) };
}

/**
 * `pluralign generate`: samples of each prompt under each adapter (or the base where none is given, or a mix of the adapters
 * with `weights`), all in one batch. Throws what `openPolicies` and `generate` (lib/generation) throw.
 */
export async function generateCommand(options: GenerateOptions): Promise<GenerateResult> {
  const texts = typeof options.prompt === 'string' ? [options.prompt] : [...options.prompt];
  if (texts.length === 0) throw new PluralignError('BAD_ARGUMENT', 'generate needs a prompt');
  const { weights, mix = 'updates', mixAlpha, seed = 0, samples: count = 1, maxNewTokens = 128 } = options;
  if (mixAlpha !== undefined && mix !== 'alpha')
    throw new PluralignError('BAD_ARGUMENT', `a mix's alpha belongs to mix alpha, not to ${mix}`);
  if (mix !== 'updates' && !weights)
    throw new PluralignError('BAD_ARGUMENT', `mix ${mix} needs weights: NAME=w for each adapter`);
  const mixes = weights && mix === 'updates' ? [{ name: mixName, weights }] : [];
  const opened = await openPolicies({ ...options, mixes });
  using model = opened.model;
  const voices = options.annotators ? asAnnotators(options.annotators, opened, options) : null;
  const bank = voices?.bank ?? opened.bank;
  const { tokenizer, config } = model;
  const which = (i: number) => (texts.length === 1 ? '--prompt' : `prompt ${i + 1}`);
  if (options.chat && !tokenizer.hasChatTemplate)
    throw new PluralignError('BAD_ARGUMENT', `${model.dir} has no chat template; leave out --chat`);
  const prompts = texts.map((text, i) => {
    const said = options.chat
      ? tokenizer.encodeRendered(tokenizer.render([{ role: 'user', content: text }], { addGenerationPrompt: true }))
      : tokenizer.encode(text);
    // A template writes BOS itself, or does not; training has it once too.
    const ids = tokenizer.bosId === null || said[0] === tokenizer.bosId ? said : [tokenizer.bosId, ...said];
    if (ids.length === 0) throw new PluralignError('BAD_ARGUMENT', `${which(i)} is empty and the tokenizer has no BOS`);
    if (ids.length >= config.maxPositions)
      throw new PluralignError(
        'BAD_ARGUMENT',
        `${which(i)} has ${ids.length} tokens, the model takes ${config.maxPositions}`,
      );
    return Int32Array.from(ids);
  });
  const { temperature = 1, topK, topP, minP, repetitionPenalty } = options;
  const asked = (voices?.speakers ?? speakers(opened, options)).flatMap(({ name, policy }) =>
    prompts.flatMap((prompt, at) =>
      Array.from({ length: count }, (_, i) => {
        const request: SequenceRequest = {
          prompt,
          policy: policy(seed + i),
          seed: seed + i,
          maxNewTokens: Math.min(maxNewTokens, config.maxPositions - prompt.length),
          temperature,
          topK,
          topP,
          minP,
          repetitionPenalty,
        };
        return { name, at, seed: seed + i, request };
      }),
    ),
  );
  const { onText } = options;
  // Streamed text is its own progress.
  const bar = progress(asked.length, 'generate', { quiet: onText !== undefined });
  let [done, tokens] = [0, 0];
  const written = asked.map(() => 0);
  const onPart = (part: GeneratedPart) => {
    if (part.text !== '') onText?.(part.index, part.text);
    tokens += part.tokens - written[part.index];
    written[part.index] = part.tokens;
    if (part.done) done++;
    bar.update(done, { tokens });
  };
  try {
    const made = await generate(
      model,
      bank,
      asked.map(({ request }) => request),
      {
        batch: options.batch,
        memory: options.memory,
        stop: options.stopTexts,
        abort: stopOf(options.stop).flag,
        text: onText ? 'parts' : 'end',
        onPart,
      },
    );
    const { baseLogps = false, logps = baseLogps } = options;
    const requests = asked.map(({ request }) => request);
    const base = baseLogps ? await logpsUnder(model, bank, -1, requests, made, stopOf(options.stop).flag) : null;
    const samples = made.map((sample, i): GeneratedSample => {
      const { name, at, seed: drawn } = asked[i];
      return {
        policy: name,
        ...(texts.length > 1 ? { prompt: at } : {}),
        seed: drawn,
        text: sample.text,
        tokens: sample.tokens.length,
        ...(logps ? { ids: [...sample.tokens], logps: [...sample.logps], reason: sample.reason } : {}),
        ...(base ? { base_logps: [...base[i]] } : {}),
      };
    });
    return { prompt: texts[0], ...(texts.length > 1 ? { prompts: texts } : {}), samples };
  } finally {
    bar.stop();
  }
}
