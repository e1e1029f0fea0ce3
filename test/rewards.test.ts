// What the built-in rewards measure, and what is done to values before they are added up.
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { adapterConfig } from '../lib/adapters/config.js';
import { savePeft } from '../lib/adapters/peft.js';
import { AdapterPopulation } from '../lib/adapters/population.js';
import { rewardTermSchema } from '../lib/config/rollout-schema.js';
import { pack } from '../lib/data/pack.js';
import { Rewards } from '../lib/rewards/compose.js';
import { pleasantWords, unpleasantWords } from '../lib/rewards/lexicon.js';
import { length, matches, readability, sentiment, syllablesOf, wordLength } from '../lib/rewards/measures.js';
import { openRewards } from '../lib/rewards/open.js';
import type { Sample } from '../lib/rewards/types.js';
import { train } from '../lib/training/train.js';
import { shake, tinyModel } from './support/engine.js';
import { fixture } from './support/runs.js';

const sample = (completion: string, ids = [3, 4]): Sample => ({
  prompt: 'p',
  completion,
  promptIds: Int32Array.of(1, 2),
  ids: Int32Array.from(ids),
  ended: false,
});
const groupOf = ({ promptIds, ids }: Sample) => ({
  index: 0,
  kind: 'text' as const,
  prompt: promptIds,
  completions: [ids],
  weight: 1,
  origin: { file: '', line: 1 },
});
const term = (given: object) => {
  const parsed = rewardTermSchema.parse(given);
  return { ...parsed, name: parsed.name ?? parsed.type };
};

describe('measures of text', () => {
  it('sentiment counts words of the lists over the root of all words', () => {
    expect(sentiment('She was happy, and laughed.')).toBeCloseTo(2 / Math.sqrt(5), 12);
    expect(sentiment('A sad, sad day')).toBeCloseTo(-2 / Math.sqrt(4), 12);
    expect(sentiment('')).toBe(0);
    for (const word of pleasantWords) expect(unpleasantWords.has(word), word).toBe(false);
  });

  it('readability is Flesch’s formula', () => {
    // 2 sentences, 6 words, 6 syllables.
    expect(readability('The cat sat. The dog ran.')).toBeCloseTo(206.835 - 1.015 * 3 - 84.6, 9);
    expect(['cat', 'little', 'happy', 'made', 'idea', 'be'].map(syllablesOf)).toEqual([1, 1, 2, 1, 2, 1]);
  });

  it('length, word length and patterns', () => {
    expect(length(sample('one two'), 'words', null)).toBe(2);
    expect(length(sample('héé'), 'characters', null)).toBe(3);
    expect(length(sample('x', [1, 2, 3]), 'tokens', 5)).toBe(-2);
    expect(wordLength('to be happy')).toBe(3);
    expect(wordLength('…')).toBe(0);
    // A run without spaces counts as a long word, not as all there is.
    expect(wordLength(`no ${'a'.repeat(500)}`)).toBe(11);
    expect(readability(`no ${'ba'.repeat(500)}.`)).toBeCloseTo(206.835 - 1.015 * 2 - (84.6 * 11) / 2, 9);
    expect(matches('Lily saw Tom', /tom/iu, false)).toBe(1);
    expect(matches('a b a', /a/gu, true)).toBe(2);
    expect(matches('x', /a/u, false)).toBe(0);
  });
});

describe('several rewards as one', () => {
  const rewards = () =>
    new Rewards([
      { name: 'n', weight: 2, normalise: true, bound: 1, of: (s) => s.map(({ ids }) => ids[0]) },
      { name: 'm', weight: -0.5, normalise: false, bound: null, of: async (s) => s.map(({ ids }) => ids[1]) },
    ]);

  it('shifts and scales by the reference, cuts, weighs and adds up', async () => {
    const r = rewards();
    const reference = [1, 3, 5].map((x) => sample('', [x, 10 * x]));
    expect(r.wantsScale).toBe(true);
    expect(await r.fit(reference)).toEqual({ mean: [3, 0], deviation: [2, 1] });
    const { raw, parts, total } = await r.score([sample('', [4, 7]), sample('', [100, 0])]);
    expect(raw.map((x) => [...x])).toEqual([
      [4, 100],
      [7, 0],
    ]);
    expect([...parts[0]]).toEqual([0.5, 1]);
    expect([...total]).toEqual([2 * 0.5 - 0.5 * 7, 2]);
  });
});

describe('rewards of a configuration', () => {
  it('a reward model is the head at the last token of an answer, with its EOS', async () => {
    using model = await tinyModel('mistral', 1);
    const bank = Bank.create(model.shape, adapterConfig({ r: 2, alpha: 4 }), ['default'], {
      seed: 2,
      rewardHead: true,
    });
    shake(bank);
    const dir = mkdtempSync(join(tmpdir(), 'pluralign-reward-'));
    await savePeft(bank, 'default', dir, {});
    const rewards = await openRewards([term({ type: 'model', adapter: dir, normalise: false })], model, {
      maxTokens: 9,
    });
    const samples = [sample('', [5, 6, 7]), sample('', [8])];
    const { raw } = await rewards.score(samples);
    for (const [i, one] of samples.entries()) {
      const group = groupOf(one);
      const p = pack([group], { policies: [{ adapter: 0, grad: false }], read: 'reward' });
      expect(raw[0][i]).toBeCloseTo((await model.score(p, bank, 'reward')).values[0], 5);
    }
  });

  it('a policy trained on preferences is worth its log-ratio to the base', async () => {
    const f = fixture('mistral');
    using model = await tinyModel('mistral', 1);
    const rewards = await openRewards([term({ type: 'policy', adapter: f.adapter, normalise: false })], model, {
      maxTokens: 9,
    });
    const samples = [sample('', [5, 6, 7]), sample('', [8]), sample('', [2, 9])];
    const { raw } = await rewards.score(samples);
    const bank = await Bank.fromPeft(model.shape, [{ name: 'x', dir: f.adapter }]);
    for (const [i, one] of samples.entries()) {
      const sums = [0, -1].map(async (adapter) => {
        const p = pack([groupOf(one)], { policies: [{ adapter, grad: false }], read: 'logps' });
        return (await model.score(p, bank, 'logps')).values.reduce((a, b) => a + b, 0);
      });
      const [own, base] = await Promise.all(sums);
      expect(raw[0][i]).toBeCloseTo(own - base, 4);
      expect(Math.abs(own - base)).toBeGreaterThan(1e-3);
    }
  });

  it('a voter’s reward model, where a run has one for each', async () => {
    const f = fixture('mistral');
    const run = join(mkdtempSync(join(tmpdir(), 'pluralign-voters-')), 'run');
    await train(
      {
        method: 'reward',
        model: f.model,
        data: { train: f.prefs },
        adapter: { r: 2, alpha: 4, share: 'b' },
        train: { steps: 2, learning_rate: 0.05, dtype: 'float32', threads: 1 },
        output: run,
      },
      { quiet: true },
    );
    using model = await tinyModel('mistral', 1);
    const [one, two] = [...new Set(f.rows.map((row) => row.annotator))];
    const open = (annotator: string) =>
      openRewards([term({ type: 'model', adapter: run, annotator, normalise: false })], model, { maxTokens: 100 });
    const samples = [sample('', [5, 6, 7])];
    const values = [];
    for (const [i, annotator] of [one, two].entries()) {
      const { bank } = AdapterPopulation.open(join(run, 'population.safetensors')).bank(model.shape, [one, two]);
      const group = { ...groupOf(samples[0]) };
      const p = pack([group], { policies: [{ adapter: i + 1, grad: false }], read: 'reward' });
      const { raw } = await (await open(annotator)).score(samples);
      expect(raw[0][0]).toBeCloseTo((await model.score(p, bank, 'reward')).values[0], 5);
      values.push(raw[0][0]);
    }
    expect(values[0]).not.toBe(values[1]);
    await expect(open('nobody')).rejects.toThrow(/has no annotator "nobody"/);
  });

  it('a module’s function, or a message that says what is there', async () => {
    using model = await tinyModel('mistral', 1);
    const dir = mkdtempSync(join(tmpdir(), 'pluralign-module-'));
    const path = join(dir, 'mine.mjs');
    writeFileSync(path, 'export const shouts = (samples) => samples.map((s) => s.completion.length);');
    const open = (given: object) => openRewards([term({ type: 'module', ...given })], model, { maxTokens: 100 });
    const { raw } = await (await open({ module: path, export: 'shouts' })).score([sample('abc')]);
    expect([...raw[0]]).toEqual([3]);
    await expect(open({ module: path })).rejects.toThrow(/exports shouts, expected a function "default"/);
    await expect(open({ module: join(dir, 'none.mjs') })).rejects.toMatchObject({ code: 'NOT_FOUND' });
    writeFileSync(join(dir, 'bad.mjs'), 'export default (');
    await expect(open({ module: join(dir, 'bad.mjs') })).rejects.toThrow(/does not load/);
  });
});
