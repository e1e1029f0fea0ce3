import type { Bank } from '../adapters/bank.js';
import type { ResolvedRollout } from '../config/rollout-schema.js';
import { generate } from '../generation/engine.js';
import type { SequenceRequest } from '../generation/request.js';
import { Wording } from '../generation/text.js';
import type { Model } from '../model/model.js';
import type { Sample } from '../rewards/types.js';
import type { AdapterChoice } from '../training/scorer.js';
import type { Prompt } from './prompts.js';

/** An adapter of a bank (−1: the base) that answers, or each prompt's own. */
export interface Speaker {
  model: Model;
  bank: Bank | null;
  adapter: AdapterChoice;
}

export type SampleFunction = (prompts: readonly Prompt[], seed: number) => Promise<Int32Array[]>;

/** Answers of a speaker: sample i of a call is drawn with seed + i. */
export function sampler(
  { model, bank, adapter }: Speaker,
  rollout: ResolvedRollout,
  abort?: Int32Array,
  say: typeof generate = generate,
): SampleFunction {
  const settings = {
    maxNewTokens: rollout.max_new_tokens,
    temperature: rollout.temperature,
    topK: rollout.top_k,
    topP: rollout.top_p,
  };
  return async (prompts, seed) => {
    const out: Int32Array[] = [];
    for (let at = 0; at < prompts.length; at += rollout.at_once) {
      const requests = prompts.slice(at, at + rollout.at_once).map(
        (asked, i): SequenceRequest => ({
          ...settings,
          prompt: asked.prompt,
          policy: typeof adapter === 'number' ? adapter : adapter(asked),
          seed: ((seed + at) >>> 0) + i,
        }),
      );
      const said = await say(model, bank, requests, { abort, text: 'none' });
      out.push(...said.map(({ tokens }) => tokens));
    }
    return out;
  };
}

/** Answers as rewards see them. Generation stops behind the first EOS, so nothing follows it. */
export function samplesOf(prompts: readonly Prompt[], answers: readonly Int32Array[], model: Model): Sample[] {
  const wording = new Wording(model);
  return answers.map((ids, i) => ({
    prompt: prompts[i].text,
    completion: wording.text(ids),
    promptIds: prompts[i].prompt,
    ids,
    ended: wording.ended(ids),
    ...(prompts[i].annotator !== undefined && { annotator: prompts[i].annotator }),
  }));
}
