import { freemem } from 'node:os';
import type { Bank } from '../adapters/bank.js';
import type { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import type { NativeGeneration, NativeSequence } from '../native/generation.js';
import { addon } from '../native/loader.js';
import { nativeSequence, type SequenceRequest } from './request.js';
import { TextWatch } from './stop.js';
import { Wording } from './text.js';

export interface EngineOptions {
  /** Sequences that run at a time (each policy of a mixture counts); default 128. */
  batch?: number;
  /** Bytes for keys and values; default: 80 % of what is free, 40 % on a GPU. Sequences wait where they do not all fit. */
  memory?: number;
  /** Texts that end a sequence; they are no part of its text. */
  stop?: readonly string[];
  /** When texts are made: as tokens come (default of `stream`), at the end (of `generate`), or not at all, which is fastest. */
  text?: 'parts' | 'end' | 'none';
  /** Nonzero stops the generation, which then throws `ABORTED`. [1] */
  abort?: Int32Array;
}

/** What a sequence said. */
export interface Generated {
  /** New tokens; where it ended by itself, EOS is the last, and with a stop string the token that completed it. */
  tokens: Int32Array;
  /** Of each token: log softmax(logits / temperature), natural, before penalty and cuts (temperature 1 where greedy). */
  logps: Float32Array;
  /** Without special tokens, the ending (see `Wording`) and stop string. */
  text: string;
  reason: 'eos' | 'stop' | 'length';
}

/** New text of one request; `done` with its last. */
export interface GeneratedPart {
  index: number;
  text: string;
  tokens: number;
  done: Generated | null;
}

/** How long a call into the addon should take: short where somebody follows the text, long where nobody does. */
const followedMs = 30;
const unfollowedMs = 300;
const longestBurst = 256;

interface Running {
  ids: number[];
  logps: number[];
  watch: TextWatch;
}

/**
 * Generates for all requests side by side and yields their text as it comes. Requests under different adapters share every
 * pass over the base; as sequences end, waiting ones take their place. What a request says does not depend on the others.
 * The bank's factors must not change before the last has ended.
 *
 * Throws `BAD_ARGUMENT` for a request that is malformed or longer than the model's positions, `OUT_OF_MEMORY` where one
 * sequence's keys and values do not fit (saying what they need), `NON_FINITE` for damaged weights, `ABORTED`.
 */
export async function* stream(
  model: Model,
  bank: Bank | null,
  requests: readonly SequenceRequest[],
  options: EngineOptions = {},
): AsyncGenerator<GeneratedPart, void> {
  const { maxPositions, eosIds } = model.config;
  const add = requests.map((request, i): NativeSequence => {
    const sequence = nativeSequence(i, request);
    const length = sequence.prompt.length + sequence.maxNewTokens;
    if (length > maxPositions)
      throw new PluralignError(
        'BAD_ARGUMENT',
        `a prompt of ${sequence.prompt.length} tokens and ${sequence.maxNewTokens} new ones do not fit the model's ` +
          `${maxPositions} positions`,
      );
    return sequence;
  });
  const wording = new Wording(model);
  const decode = (ids: ArrayLike<number>) => wording.said(ids);
  const { stop = [], text: texts = 'parts' } = options;
  const running = requests.map((): Running => ({ ids: [], logps: [], watch: new TextWatch(decode, stop, wording) }));
  // Without stop strings and readers nobody needs the text before the end.
  const follow = stop.length > 0 || texts === 'parts';
  const generation: NativeGeneration = addon().createGeneration(model.native, {
    rows: options.batch ?? 128,
    memory: Math.floor(options.memory ?? (model.device === 'cpu' ? 0.8 * freemem() : -1)),
    stopTokens: Int32Array.from(eosIds),
  });
  let left = requests.length;
  let waiting = add;
  let remove: number[] = [];
  let steps = 1;
  while (left > 0 || waiting.length > 0) {
    const started = performance.now();
    const out = await generation.run(bank?.native() ?? null, {
      add: waiting,
      remove: Int32Array.from(remove),
      steps,
      abort: options.abort,
    });
    const took = Math.max(performance.now() - started, 0.01);
    // The first burst has the prompts in it, which says little about the next.
    steps =
      waiting.length > 0
        ? 4
        : Math.max(1, Math.min(longestBurst, Math.round((steps * (follow ? followedMs : unfollowedMs)) / took)));
    waiting = [];
    remove = [];
    left = out.left;
    for (let i = 0, at = 0; i < out.ids.length; at = out.ends[i++]) {
      const index = out.ids[i];
      const sequence = running[index];
      const known = sequence.ids.length;
      for (let t = at; t < out.ends[i]; t++) {
        sequence.ids.push(out.tokens[t]);
        sequence.logps.push(out.logps[t]);
      }
      const last = out.finished[i] === 1;
      if (follow || (last && texts === 'end')) {
        const kept = sequence.watch.take(sequence.ids, known);
        sequence.ids.length = kept;
        sequence.logps.length = kept;
      }
      const { stopped } = sequence.watch;
      if (stopped && !last) {
        remove.push(index);
        left--;
      }
      const ended = stopped || last;
      const text = texts === 'parts' ? sequence.watch.show(ended) : '';
      if (!ended && text === '') continue;
      yield { index, text, tokens: sequence.ids.length, done: ended ? finish(sequence, wording) : null };
    }
  }
}

function finish({ ids, logps, watch }: Running, wording: Wording): Generated {
  const reason = watch.stopped ? 'stop' : wording.ended(ids) ? 'eos' : 'length';
  return { tokens: Int32Array.from(ids), logps: Float32Array.from(logps), text: watch.text, reason };
}

/** What every request said, in their order. Throws what `stream` throws. */
export async function generate(
  model: Model,
  bank: Bank | null,
  requests: readonly SequenceRequest[],
  options: EngineOptions & { onPart?: (part: GeneratedPart) => void } = {},
): Promise<Generated[]> {
  const out = new Array<Generated>(requests.length);
  const text = options.text ?? (options.onPart ? 'parts' : 'end');
  for await (const part of stream(model, bank, requests, { ...options, text })) {
    options.onPart?.(part);
    if (part.done) out[part.index] = part.done;
  }
  return out;
}
