import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Random } from '../lib/base/random.js';
import { readRows } from '../lib/data/index.js';
import { expand, tellBeginnings, tellStories } from '../lib/demo/grammar.js';
import { type DemoPlan, defaultPlan, demo, demoModel } from '../lib/demo/index.js';
import { base, sampleEndings, winRate } from '../lib/demo/policies.js';
import { grammatical } from '../lib/demo/recognise.js';
import { Session } from '../lib/demo/session.js';
import { makeSoup } from '../lib/demo/soup.js';
import { soupTable } from '../lib/demo/tables.js';
import { cheerfulness, cheerfulWords, sadWords, wordiness } from '../lib/demo/tastes.js';
import { collectVotes, makeAnnotators } from '../lib/demo/votes.js';
import { Model } from '../lib/model/model.js';
import { safetensorsInfo } from '../lib/model/safetensors.js';

const stories = tellStories(2000, 3);
const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;

describe('grammar', () => {
  it('tells the same stories for the same seed, and others for another', () => {
    expect(tellStories(50, 3)).toEqual(stories.slice(0, 50));
    expect(tellStories(50, 4)).not.toEqual(stories.slice(0, 50));
    expect(new Set(tellBeginnings(100, 1)).size).toBe(100);
  });

  it('tells varied stories of 3 to 6 whole sentences', () => {
    expect(new Set(stories.map((s) => s.beginning + s.ending)).size).toBeGreaterThan(1990);
    for (const { beginning, ending } of stories) {
      const text = beginning + ending;
      expect(text).toMatch(/^(?:[A-Z][a-zA-Z, ]+\.(?: |$)){3,6}$/);
      expect(text).not.toMatch(/ {2}| [.,]|\ba [aeiou]|\ban [^aeiou]/);
      expect(ending[0]).toBe(' ');
      expect(grammatical(text)).toBe(1);
    }
  });

  it('keeps the mood out of the beginning and in the ending', () => {
    for (const { beginning, ending, turn, close } of stories) {
      expect(cheerfulness(beginning)).toBe(0);
      const words = (beginning.toLowerCase().match(/[a-z]+/g) ?? []).filter(
        (w) => cheerfulWords.has(w) || sadWords.has(w),
      );
      expect(words).toEqual([]);
      if (turn === close) expect(cheerfulness(ending)).toBe(turn === 'cheerful' ? 1 : -1);
    }
    const graded = stories.filter((s) => s.turn !== s.close).map((s) => Math.abs(cheerfulness(s.ending)));
    expect(mean(graded.map((value) => (value < 1 ? 1 : 0)))).toBeGreaterThan(0.9);
    expect(stories.filter((s) => s.turn === 'sad').length / stories.length).toBeCloseTo(0.5, 1);
  });

  it('writes ornate stories with longer sentences', () => {
    const of = (style: string) => mean(stories.filter((s) => s.style === style).map((s) => wordiness(s.ending)));
    expect(of('plain')).toBeLessThan(-0.3);
    expect(of('ornate')).toBeGreaterThan(0.3);
  });

  it('expands choices, optional phrases and slots', () => {
    const slots = { name: 'Mia' };
    expect(expand('{name} ran<, [fast|fast] and far>.', slots, 'plain', new Random(1))).toBe('Mia ran.');
    const ornate = Array.from({ length: 20 }, (_, i) => expand('so {name} ran< far>.', slots, 'ornate', new Random(i)));
    expect(new Set(ornate)).toEqual(new Set(['So Mia ran.', 'So Mia ran far.']));
    expect(() => expand('{who}', slots, 'plain', new Random(1))).toThrow('who');
  });

  it('is recognised sentence by sentence', () => {
    expect(grammatical('He felt happy. He felt happy happy.')).toBe(0.5);
    expect(grammatical('The race was warm and sweet, and everyone cheered.')).toBe(0);
    expect(grammatical('')).toBe(0);
  });
});

describe('tastes', () => {
  it('measure cheerfulness, the last sentence twice', () => {
    expect(cheerfulness('He was happy. He was glad.')).toBe(1);
    expect(cheerfulness('He was sad.')).toBe(-1);
    expect(cheerfulness('He was happy. He was sad.')).toBeCloseTo(-1 / 3);
    expect(cheerfulness('He went home.')).toBe(0);
    expect(cheerfulness('')).toBe(0);
  });

  it('measure words a sentence', () => {
    expect(wordiness('one two three four five six seven eight nine.')).toBe(0);
    expect(wordiness('one two.')).toBe(-1);
    expect(wordiness('a a a a a a a a a a a a a a a a a a. ')).toBe(1);
    expect(wordiness('')).toBe(0);
  });

  it('decide votes, with noise', () => {
    const annotators = makeAnnotators();
    expect(annotators).toHaveLength(12);
    expect(new Set(annotators.map((a) => a.name)).size).toBe(12);
    const candidates = Array.from({ length: 60 }, (_, i) => ({
      prompt: `p${i}`,
      endings: [' She felt happy.', ' She felt sad.', ' She sat.'],
    }));
    const votes = collectVotes(annotators, candidates, 50, 1);
    expect(votes).toEqual(collectVotes(annotators, candidates, 50, 1));
    expect(votes).toHaveLength(600);
    for (const { name, group } of annotators) {
      const own = votes.filter((vote) => vote.annotator === name);
      expect(new Set(own.map((v) => `${v.prompt} ${[v.chosen, v.rejected].sort()}`)).size).toBe(50);
      const cheerful = mean(own.map((v) => (cheerfulness(v.chosen) > cheerfulness(v.rejected) ? 1 : 0)));
      if (group === 'sunny') expect(cheerful).toBeGreaterThan(0.8);
      else expect(cheerful).toBeLessThan(0.2);
    }
    expect(mean(votes.map((v) => (cheerfulness(v.chosen) > cheerfulness(v.rejected) ? 1 : 0)))).not.toBe(0.5);
    expect(collectVotes(annotators, [{ prompt: '', endings: [' He sat.', ' He ran.'] }], 5, 1)).toEqual([]);
  });

  it('value stories by wish, one without an end as nothing', () => {
    const told = [
      ['He was glad to go to a big old tree by the sea.', null],
      ['He wept.', ' He was glad. '],
    ];
    expect(soupTable(['a', 'b'], ['base', 'soup'], told)).toEqual({
      rows: [
        { policy: 'base', cheerful: 0.5, ornate: 0.5, both: 0.5 },
        { policy: 'soup', cheerful: 0, ornate: -1, both: -0.5 },
      ],
      samples: [
        { prompt: 'a', base: 'He was glad to go to a big old tree by the sea.', soup: 'He wept.' },
        { prompt: 'b', base: '', soup: 'He was glad.' },
      ],
    });
  });

  it('win rates count ties as half', () => {
    const taste = { cheerfulness: 1, wordiness: 0 };
    expect(winRate(taste, ['He was glad.', 'He sat.', 'He wept.'], ['He sat.', 'He ran.', 'He sat.'])).toBe(0.5);
  });
});

describe('the embedded model', () => {
  it('is small, in bf16', async () => {
    const file = join(demoModel, 'model.safetensors');
    expect((await stat(file)).size).toBeLessThan(2e6);
    const { tensors } = safetensorsInfo(file);
    expect(new Set(tensors.map((t) => t.dtype))).toEqual(new Set(['BF16']));
    const parameters = tensors.reduce((sum, t) => sum + t.shape.reduce((product, n) => product * n, 1), 0);
    expect(parameters).toBeLessThan(1e6);
  });

  it('keeps every text of the grammar through its tokenizer', async () => {
    using model = await Model.load(demoModel);
    const { tokenizer } = model;
    expect([tokenizer.bosToken, tokenizer.eosToken, tokenizer.vocabSize]).toEqual(['<|begin|>', '<|end|>', 512]);
    for (const { beginning, ending } of stories.slice(0, 200)) {
      const whole = tokenizer.encode(beginning + ending);
      expect(tokenizer.decode(whole)).toBe(beginning + ending);
      expect(whole).toEqual(Int32Array.from([...tokenizer.encode(beginning), ...tokenizer.encode(ending)]));
    }
  });

  it('tells stories of the grammar, cheerful ones and sad ones', async () => {
    using model = await Model.load(demoModel);
    const prompts = tellBeginnings(60, 77);
    const told = await sampleEndings(model, null, base, prompts, { seed: 1, temperature: 1 });
    const finished = told.filter((text) => text !== null);
    expect(finished.length).toBeGreaterThan(57);
    expect(mean(finished.map(grammatical))).toBeGreaterThan(0.93);
    expect(new Set(finished).size).toBeGreaterThan(57);
    expect(finished.filter((text) => cheerfulness(text) > 0).length).toBeGreaterThan(15);
    expect(finished.filter((text) => cheerfulness(text) < 0).length).toBeGreaterThan(15);
  });
});

describe('demo, shrunk', () => {
  const small: Partial<DemoPlan> = {
    prompts: 16,
    heldPrompts: 8,
    endings: 3,
    votes: 8,
    heldVotes: 8,
    epochs: 5,
    stories: 4,
    shown: 1,
    soup: { prompts: 16, steps: 3, batchSize: 4 },
  };
  const quiet = { dtype: 'auto', device: 'auto', threads: 'auto', quiet: true } as const;
  const idle = { signal: new AbortController().signal, flag: new Int32Array(1), requested: false, exitCode: 0 };
  const stop = { ...idle, request: () => {}, dispose: () => {} };
  let folder = '';

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'pluralign-demo-'));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  it('serves each group by its own policy and writes a report', async () => {
    const output = join(folder, 'demo');
    const first = await demo({ ...quiet, stop, output, plan: small });
    expect(first.paths.run).toBe(output);
    expect(first.table).toHaveLength(15);
    const all = first.table.at(-1)!;
    expect(all['own group']).toBeGreaterThan(0.65);
    expect(all['own group']).toBeGreaterThan((all.everyone as number) + 0.1);
    expect(first.stories.map((row) => row.policy)).toEqual(['base', 'sunny', 'rainy', 'everyone']);
    expect(Object.keys(first.samples[0])).toEqual(['prompt', 'base', 'sunny', 'rainy', 'everyone']);

    const { rows } = await readRows(join(output, 'rows.jsonl'));
    expect(rows).toHaveLength(96);
    expect(new Set(rows.map((row) => row.group))).toEqual(new Set(['sunny', 'rainy']));
    const held = await readRows(join(output, 'held-out.jsonl'));
    const seen = new Set(rows.map((row) => row.prompt));
    expect(held.rows.some((row) => seen.has(row.prompt))).toBe(false);
    for (const policy of ['sunny', 'rainy', 'everyone'])
      expect(existsSync(join(output, policy, 'adapter/adapter_model.safetensors'))).toBe(true);
    const page = await readFile(first.paths.report, 'utf8');
    for (const text of ['Ada', 'everyone', 'sunny_win_rate']) expect(page).toContain(text);
    expect(page).not.toContain('No logged training steps');

    expect(first.soup.map((row) => row.policy)).toEqual(['base', 'cheerful', 'ornate', 'soup']);
    expect(Object.keys(first.soup_samples[0])).toEqual(['prompt', 'base', 'cheerful', 'ornate', 'soup']);
    for (const text of ['expert and soup', first.soup_samples[0].soup]) expect(page).toContain(text);
    // The mix is both experts' updates, half of each.
    const config = JSON.parse(await readFile(join(output, 'soup/adapter_config.json'), 'utf8'));
    expect(config.r).toBe(16);
  });

  it('mixes experts into one that serves both wishes', async () => {
    const session = new Session({ ...quiet, stop }, defaultPlan, join(folder, 'soup'));
    await mkdir(session.folder);
    const { rows } = await makeSoup(session);
    const [base, cheerful, ornate, soup] = rows as unknown as Record<'cheerful' | 'ornate' | 'both', number>[];
    expect(cheerful.cheerful).toBeGreaterThan(base.cheerful + 0.3);
    expect(ornate.ornate).toBeGreaterThan(base.ornate + 0.3);
    for (const row of [base, cheerful, ornate]) expect(soup.both).toBeGreaterThan(row.both);
  });

  it('gives the same numbers again, in a folder of its own', async () => {
    const soup = { prompts: 4, steps: 2, batchSize: 2 };
    const plan = { ...small, prompts: 4, heldPrompts: 4, votes: 3, heldVotes: 3, epochs: 1, stories: 1, soup };
    const output = join(folder, 'again');
    const first = await demo({ ...quiet, stop, output, plan });
    const second = await demo({ ...quiet, stop, output, plan });
    expect([first.paths.run, second.paths.run]).toEqual([output, `${output}-2`]);
    expect({ ...second, seconds: 0, paths: 0 }).toEqual({ ...first, seconds: 0, paths: 0 });
    for (const name of [
      'rows.jsonl',
      'held-out.jsonl',
      'sunny/adapter/adapter_model.safetensors',
      'soup/adapter_model.safetensors',
    ])
      expect(await readFile(join(second.paths.run, name))).toEqual(await readFile(join(output, name)));
  });

  it('stops when asked', async () => {
    const requested = { ...stop, requested: true };
    await expect(demo({ ...quiet, stop: requested, output: join(folder, 'stopped') })).rejects.toMatchObject({
      code: 'ABORTED',
    });
  });
});
