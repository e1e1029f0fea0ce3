import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Json } from '../lib/model/folder.js';
import { loadTokenizer } from '../lib/model/tokenizer.js';

const fixtures = new URL('fixtures/tokenizer/', import.meta.url);
const read = (name: string): Json => JSON.parse(readFileSync(new URL(name, fixtures), 'utf8'));
const shared = new URL('../../shared/', import.meta.url).pathname;

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'pluralign-tokenizer-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

/** Writes a model folder's tokenizer files and loads it. */
function load(tokenizer: unknown, config: Json | null = null, more: Record<string, unknown> = {}) {
  const files = { 'tokenizer.json': tokenizer, ...(config && { 'tokenizer_config.json': config }), ...more };
  for (const [name, value] of Object.entries(files)) {
    writeFileSync(join(dir, name), typeof value === 'string' ? value : JSON.stringify(value));
  }
  return loadTokenizer(dir);
}

describe('parity with the tokenizers and transformers of Python', () => {
  const { samples, variants } = read('ids.json') as unknown as {
    samples: string[];
    variants: {
      name: string;
      tokenizer: string;
      parts: Json;
      config: Json | null;
      model_type: string | null;
      ids: number[][];
      decoded: string[];
    }[];
  };

  test.each(variants)('$name', async ({ tokenizer, parts, config, model_type, ids, decoded }) => {
    const json = { ...read(`${tokenizer}.json`), ...parts };
    const loaded = await load(json, config, model_type ? { 'config.json': { model_type } } : {});
    samples.forEach((text, i) => {
      expect([...loaded.encode(text)], JSON.stringify(text)).toEqual(ids[i]);
      expect([...loaded.encodeRendered(text)], JSON.stringify(text)).toEqual(ids[i]);
      expect(loaded.decode(ids[i]), JSON.stringify(text)).toBe(decoded[i]);
    });
    expect(samples.length).toBeGreaterThan(30);
  });

  const golden = join(shared, 'reference/tinystories-656k.golden.json');
  test.skipIf(!existsSync(golden))('tinystories-656k of ../shared (skipped where it is absent)', async () => {
    const loaded = await loadTokenizer(join(shared, 'models/tinystories-656k'));
    const { bos, eos, cases } = JSON.parse(readFileSync(golden, 'utf8'));
    expect(loaded).toMatchObject({ bosId: bos, eosId: eos, vocabSize: 2048, bosToken: '<|start_story|>' });
    for (const { text, ids, ids_without_special, greedy24, greedy24_text } of cases) {
      expect([...loaded.encode(text)]).toEqual(ids_without_special);
      expect([loaded.bosId, ...loaded.encode(text)]).toEqual(ids);
      expect(loaded.decode(greedy24)).toBe(greedy24_text);
    }
  });

  const parity = join(shared, 'reference/parity-llama/model');
  test.skipIf(!existsSync(parity))('parity-llama of ../shared (skipped where it is absent)', async () => {
    const loaded = await loadTokenizer(parity);
    expect(loaded).toMatchObject({ bosId: 256, eosId: 257, vocabSize: 259, hasChatTemplate: false });
    expect(loaded.encode('the cat sat</s>')).toHaveLength(12);
    expect(loaded.encode('the cat sat</s>').at(-1)).toBe(257);
  });
});

describe('byte-level text survives', () => {
  test.each(['llama3', 'gpt2'])('%s: decode(encode(x)) is x', async (name) => {
    const { variants } = read('ids.json') as unknown as { variants: { name: string; parts: Json }[] };
    const loaded = await load({ ...read('byte-level.json'), ...variants.find((v) => v.name === name)?.parts });
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 60 }), (text) => {
        expect(loaded.decode(loaded.encode(text))).toBe(text);
      }),
      { numRuns: 300, seed: 1 },
    );
    fc.assert(
      fc.property(
        fc.string({ unit: fc.constantFrom(' ', '\n', 'a', 'é', "'s", '1', '.', '😀', '\u00a0'), maxLength: 40 }),
        (text) => {
          expect(loaded.decode(loaded.encode(text))).toBe(text);
        },
      ),
      { numRuns: 300, seed: 2 },
    );
  });

  test('half of a surrogate pair becomes the replacement character', async () => {
    const loaded = await load(read('byte-level.json'));
    expect(loaded.decode(loaded.encode('a\ud800b'))).toBe('a\ufffdb');
  });
});

describe('special tokens', () => {
  const base = () => read('byte-level.json');

  test('from tokenizer_config.json, as text or object; add_bos_token: false takes the id away, not the text', async () => {
    expect(await load(base(), { bos_token: '<s>', eos_token: { content: '</s>' } })).toMatchObject({
      bosId: 0,
      eosId: 1,
      bosToken: '<s>',
      eosToken: '</s>',
    });
    expect(await load(base(), { bos_token: '<s>', add_bos_token: false })).toMatchObject({
      bosId: null,
      bosToken: '<s>',
    });
    expect(await load(base(), { bos_token: null, eos_token: '</s>' })).toMatchObject({
      bosId: null,
      bosToken: null,
      eosId: 1,
    });
  });

  test('from special_tokens_map.json, then config.json', async () => {
    expect(
      await load(base(), {}, { 'special_tokens_map.json': { bos_token: '<s>', eos_token: '</s>' } }),
    ).toMatchObject({
      bosId: 0,
      eosId: 1,
    });
    rmSync(join(dir, 'special_tokens_map.json'));
    rmSync(join(dir, 'tokenizer_config.json'));
    expect(await load(base(), null, { 'config.json': { bos_token_id: 0, eos_token_id: [2, 1] } })).toMatchObject({
      bosId: 0,
      eosToken: '<pad>',
    });
    // Qwen: the model's configuration names a BOS that its tokenizer does not have.
    expect(await load(base(), {}, { 'config.json': { bos_token_id: 0, eos_token_id: 1 } })).toMatchObject({
      bosId: null,
      eosId: 1,
    });
  });

  test('a name outside the vocabulary is refused', async () => {
    await expect(load(base(), { eos_token: '<eot>' })).rejects.toMatchObject({
      code: 'BAD_FILE',
      message: expect.stringMatching(/tokenizer_config.json: eos_token: "<eot>"/),
    });
  });

  test('are left out of text where asked; unknown ids always are', async () => {
    const loaded = await load(base(), { bos_token: '<s>', eos_token: '</s>' });
    const ids = [0, ...loaded.encode('hi there'), 1, 99999];
    expect(loaded.decode(ids)).toBe('<s>hi there</s>');
    expect(loaded.decode(ids, { skipSpecial: true })).toBe('hi there');
    expect(loaded.decode([])).toBe('');
    expect(loaded.decode(Int32Array.of(1), { skipSpecial: true })).toBe('');
    expect(loaded.encode('')).toEqual(new Int32Array(0));
  });

  test('tokens that only tokenizer_config.json adds are known', async () => {
    const before = (await load(base())).vocabSize;
    const loaded = await load(base(), { added_tokens_decoder: { [before + 4]: { content: '<tool>', special: true } } });
    expect([...loaded.encode('<tool>')]).toEqual([before + 4]);
    expect(loaded.vocabSize).toBe(before + 5);
  });
});

describe('bad files', () => {
  const base = () => read('byte-level.json') as Json & { model: { vocab: Record<string, number>; merges: string[][] } };

  test('no tokenizer.json', async () => {
    await expect(loadTokenizer(dir)).rejects.toMatchObject({
      code: 'NOT_FOUND',
      message: expect.stringContaining(dir),
    });
  });

  test.each<[string, (json: ReturnType<typeof base>) => unknown, string, RegExp]>([
    ['not JSON', () => '{"model":', 'BAD_FILE', /not valid JSON/],
    ['no model', (json) => ({ ...json, model: undefined }), 'BAD_FILE', /model: expected an object/],
    ['no vocabulary', (json) => ({ ...json, model: { ...json.model, vocab: {} } }), 'BAD_FILE', /model.vocab/],
    [
      'an id twice',
      (json) => ({ ...json, model: { ...json.model, vocab: { ...json.model.vocab, zz: 5 } } }),
      'BAD_FILE',
      /"zz".*id of its own/,
    ],
    [
      'a negative id',
      (json) => ({ ...json, model: { ...json.model, vocab: { ...json.model.vocab, zz: -1 } } }),
      'BAD_FILE',
      /"zz"/,
    ],
    [
      'a merge of three',
      (json) => ({ ...json, model: { ...json.model, merges: [['a', 'b', 'c']] } }),
      'BAD_FILE',
      /merges\[0\]/,
    ],
    [
      'a merge of strangers',
      (json) => ({ ...json, model: { ...json.model, merges: ['qq q'] } }),
      'BAD_FILE',
      /merges\[0\].*"qq"/,
    ],
    [
      'an added token without text',
      (json) => ({ ...json, added_tokens: [{ id: 3 }] }),
      'BAD_FILE',
      /added_tokens\[0\].content/,
    ],
    ['WordLevel', (json) => ({ ...json, model: { type: 'WordLevel', vocab: { a: 0 } } }), 'UNSUPPORTED', /WordLevel/],
    ['dropout', (json) => ({ ...json, model: { ...json.model, dropout: 0.1 } }), 'UNSUPPORTED', /dropout/],
    ['an unknown normaliser', (json) => ({ ...json, normalizer: { type: 'Nmt' } }), 'UNSUPPORTED', /Normalizer Nmt/],
    [
      'another split',
      (json) => ({
        ...json,
        pre_tokenizer: { type: 'Split', pattern: { String: ' ' }, behavior: 'MergedWithPrevious' },
      }),
      'UNSUPPORTED',
      /MergedWithPrevious/,
    ],
  ])('%s', async (_, change, code, message) => {
    await expect(load(change(base()))).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });
});

test('a megabyte is tokenised in seconds', async () => {
  const { samples } = read('ids.json') as unknown as { samples: string[] };
  const line = samples.slice(0, 3).join(' ');
  const rows = Math.ceil(1e6 / line.length);
  for (const name of ['byte-level.json', 'sentencepiece.json']) {
    const loaded = await load(read(name));
    const start = performance.now();
    let tokens = 0;
    for (let i = 0; i < rows; i++) tokens += loaded.encode(`${line} ${i}`).length;
    expect(tokens).toBeGreaterThan(rows * 20);
    expect(performance.now() - start).toBeLessThan(15_000);
  }
});
