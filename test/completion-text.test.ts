// What of a completion is its text: neither the token that ended it nor that token spelled out, wherever text is made.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { generate, stream } from '../lib/generation/engine.js';
import { TextWatch } from '../lib/generation/stop.js';
import { completionText, Wording } from '../lib/generation/text.js';
import { Model } from '../lib/model/model.js';
import { length } from '../lib/rewards/measures.js';
import { samplesOf } from '../lib/rl/sampling.js';

/** Letters are tokens by their code; 1 is the special `<end>`, and 2, which its tokenizer does not call special, `$`. */
const texts: Record<number, string> = { 1: '<end>', 2: '$' };
const tokenizer = {
  decode: (ids: ArrayLike<number>, { skipSpecial = false } = {}) =>
    Array.from(ids, (id) => (skipSpecial && id === 1 ? '' : (texts[id] ?? String.fromCharCode(id)))).join(''),
};
const model = { tokenizer, config: { eosIds: [1, 2] } } as unknown as Model;
const say = (text: string, ...end: number[]) => Int32Array.from([...[...text].map((c) => c.charCodeAt(0)), ...end]);

const cases: [string, Int32Array, string][] = [
  ['ended', say('a b', 1), 'a b'],
  ['ended by a token that is not marked special', say('a b', 2), 'a b'],
  ['ended by a token and its spelling', say('a b<end>', 1), 'a b'],
  ['ended by another token than the one it spelled', say('a b<end>', 2), 'a b'],
  ['cut behind the spelling', say('a b<end>'), 'a b<end>'],
  ['cut inside the spelling', say('a b<en'), 'a b<en'],
  ['going on behind the spelling', say('a<end> b', 1), 'a<end> b'],
  ['ending with what its unmarked token looks like', say('a b$', 1), 'a b$'],
  ['of an ending alone', say('<end>', 1), ''],
  ['empty', say(''), ''],
];

describe('text of a completion', () => {
  it.each(cases)('%s', (_, ids, text) => {
    expect(completionText(model, ids)).toBe(text);
    const [sample] = samplesOf([{ text: 'p', prompt: say('p') } as never], [ids], model);
    expect(sample).toMatchObject({ completion: text, ids, ended: ids[ids.length - 1] < 3 });
  });

  it.each(cases)('as it comes: %s', (_, ids, text) => {
    for (const run of [1, 2, 3, 100]) {
      const wording = new Wording(model);
      const watch = new TextWatch((some) => wording.said(some), [], wording);
      let shown = '';
      for (let at = 0; at < ids.length; at += run) {
        expect(watch.take([...ids.slice(0, at + run)], at)).toBe(Math.min(at + run, ids.length));
        shown += watch.show(at + run >= ids.length);
      }
      expect([shown, watch.text]).toEqual([text, text]);
    }
  });

  it('still has a stop string found in the spelling, however many tokens come at a time', () => {
    const ids = [...say('a b<end>', 1)];
    for (const run of [1, 4, 100]) {
      const wording = new Wording(model);
      const watch = new TextWatch((some) => wording.said(some), ['<end>'], wording);
      let count = 0;
      for (let at = 0; at < ids.length && !watch.stopped; at += run) count = watch.take(ids.slice(0, at + run), at);
      expect([watch.stopped, watch.text, count]).toEqual([true, 'a b', 8]);
    }
  });

  const stories = join(import.meta.dirname, '../../shared/models/tinystories-656k');
  it.skipIf(!existsSync(stories))('of stories that spell their end (skipped where ../shared is absent)', async () => {
    using teller = await Model.load(stories, { dtype: 'float32', threads: 1 });
    const prompt = Int32Array.from([teller.tokenizer.bosId!, ...teller.tokenizer.encode('Once upon a time')]);
    const asked = Array.from({ length: 24 }, (_, seed) => ({ prompt, seed, temperature: 1, maxNewTokens: 250 }));
    const said = await generate(teller, null, asked);
    const ended = said.filter(({ reason }) => reason === 'eos');
    expect(ended.length).toBeGreaterThan(10);
    const spelled = ended.filter(({ tokens }) =>
      teller.tokenizer.decode(tokens).includes('<|end_story|><|end_story|>'),
    );
    expect(spelled.length).toBe(ended.length);
    for (const { text } of ended) expect(text).not.toMatch(/end_story/);
    const parts = asked.map(() => '');
    for await (const part of stream(teller, null, asked)) parts[part.index] += part.text;
    expect(parts).toEqual(said.map(({ text }) => text));
    // A reward counts the words that a reader does.
    const prompts = said.map(() => ({ text: 'Once upon a time', prompt }));
    const samples = samplesOf(
      prompts as never,
      said.map(({ tokens }) => tokens),
      teller,
    );
    expect(samples.map(({ completion }) => completion)).toEqual(said.map(({ text }) => text));
    const words = said.map(({ text }) => text.match(/[\p{L}\p{M}'’]+/gu)!.length);
    expect(samples.map((sample) => length(sample, 'words', null))).toEqual(words);
  });
});
