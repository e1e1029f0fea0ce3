import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Group, groupsOf, type PairRow, type Row, splitRows, tokenNotes } from '../lib/data/index.js';
import { PluralignError } from '../lib/native/errors.js';
import { appending, characterTokenizer } from './data-rows.js';

const origin = { file: 'rows.jsonl', line: 7 };
const base = { index: 0, origin, weight: 1 };
const pair = (prompt: Row['prompt'], chosen: Row['prompt'], rejected: Row['prompt'], index = 0): PairRow => ({
  ...base,
  index,
  kind: 'pair',
  prompt,
  chosen,
  rejected,
});
const user = (content: string) => [{ role: 'user', content }];
const assistant = (content: string) => [{ role: 'assistant', content }];

async function failure(promise: Promise<unknown>): Promise<PluralignError> {
  const error = await promise.then(
    () => undefined,
    (reason) => reason,
  );
  expect(error).toBeInstanceOf(PluralignError);
  return error;
}

/** Groups with ids spelt out: `prompt|completion|…`. */
async function spelt(rows: Row[], tokenizer = characterTokenizer(), maxLength = 1000) {
  const { groups } = await groupsOf(rows, tokenizer, { maxLength });
  return groups.map(({ prompt, completions }: Group) =>
    [prompt, ...completions].map((ids) => tokenizer.decode(ids)).join('|'),
  );
}

describe('splitRows', () => {
  const row = fc.record({
    annotator: fc.constantFrom('a', 'b', 'c', 'd', 'e', ' a', 'b\u00a0'),
    prompt: fc.constantFrom('p', 'q', 'r', 's'),
    chosen: fc.constantFrom('x', 'y', 'z'),
  });
  const rows = fc
    .array(row, { minLength: 2, maxLength: 40 })
    .map((all) =>
      all.map((one, index): PairRow => ({ ...pair(one.prompt, one.chosen, 'n', index), annotator: one.annotator })),
    );
  const by = fc.constantFrom<'annotator' | 'prompt' | 'row'>('annotator', 'prompt', 'row');
  const key = (one: PairRow, how: string) =>
    how === 'annotator'
      ? one.annotator?.replace(/\s/g, '')
      : how === 'prompt'
        ? one.prompt
        : [one.annotator, one.prompt, one.chosen].join('\0');

  it('is stable under shuffling, loses nothing and leaks nothing', () => {
    const shuffled = rows.chain((all) =>
      fc.tuple(fc.constant(all), fc.shuffledSubarray(all, { minLength: all.length, maxLength: all.length })),
    );
    fc.assert(
      fc.property(
        shuffled,
        by,
        fc.double({ min: 0.01, max: 0.99, noNaN: true }),
        fc.integer(),
        ([all, other], how, share, seed) => {
          const keys = new Set(all.map((one) => key(one, how)));
          const options = { by: how, eval: share, seed };
          if (keys.size < 2) {
            expect(() => splitRows(all, options)).toThrow(PluralignError);
            return;
          }
          const one = splitRows(all, options);
          const two = splitRows(other, options);
          const indices = (side: PairRow[]) => side.map(({ index }) => index).sort((a, b) => a - b);
          expect(indices(one.eval)).toEqual(indices(two.eval));
          expect(indices([...one.train, ...one.eval])).toEqual(all.map((_, i) => i));
          expect(one.train.map(({ index }) => index)).toEqual(indices(one.train));
          const held = new Set(one.eval.map((side) => key(side, how)));
          expect(one.train.some((side) => held.has(key(side, how)))).toBe(false);
          expect(held.size).toBe(Math.min(keys.size - 1, Math.max(1, Math.round(share * keys.size))));
        },
      ),
    );
  });

  it('depends on the seed', () => {
    const all = Array.from({ length: 100 }, (_, i) => pair(`p${i}`, 'a', 'b', i));
    const held = (seed: number) => splitRows(all, { by: 'row', eval: 0.1, seed }).eval.map(({ index }) => index);
    expect(held(0)).not.toEqual(held(1));
    expect(held(0)).toEqual(held(0));
    expect(splitRows(all, { by: 'row', eval: 0.1 }).eval.map(({ index }) => index)).toEqual(held(0));
  });

  it('refuses what it cannot split', () => {
    const all = [pair('p', 'a', 'b'), pair('p', 'a', 'c')];
    expect(() => splitRows(all, { by: 'annotator', eval: 0.5 })).toThrow(/rows\.jsonl, line 7: field "annotator"/);
    expect(() => splitRows(all, { by: 'prompt', eval: 0.5 })).toThrow(/only one prompt in 2 rows/);
    expect(() => splitRows([], { by: 'row', eval: 0.5 })).toThrow(/no rows/);
    for (const share of [0, 1, Number.NaN, '0.1' as never]) {
      expect(() => splitRows(all, { by: 'row', eval: share })).toThrow(/expected a share/);
    }
    expect(() => splitRows(all, { by: 'user' as never, eval: 0.5 })).toThrow(/expected annotator, prompt or row/);
    expect(() => splitRows(all, { by: 'row', eval: 0.5, seed: 0.5 })).toThrow(/expected an integer/);
  });
});

describe('groupsOf', () => {
  it('tokenises plain text apart, BOS and EOS once', async () => {
    const ranking: Row = { ...base, kind: 'ranking', prompt: 'p', responses: ['a', 'b', 'c'], ranking: [2, 0] };
    const unpaired: Row = { ...base, kind: 'unpaired', prompt: 'p', completion: 'a', label: true };
    const rows = [
      pair('p', ' a', ''),
      pair('<s>p', 'a</s>', 'b'),
      pair('', '<s>a', 'b'),
      ranking,
      unpaired,
      { ...base, kind: 'text' as const, prompt: '', completion: 'text' },
    ];
    expect(await spelt(rows)).toEqual([
      '<s>p| a</s>|</s>',
      '<s>p|a</s>|b</s>',
      '<s>|a</s>|b</s>',
      '<s>p|a</s>|b</s>|c</s>',
      '<s>p|a</s>',
      '<s>|text</s>',
    ]);
    const { groups } = await groupsOf(
      [{ ...rows[0], margin: 2, annotator: 'u', group: 'g', index: 5 } as Row, ranking, unpaired],
      characterTokenizer(),
      {
        maxLength: 10,
      },
    );
    expect(groups[0]).toMatchObject({
      index: 5,
      kind: 'pair',
      ranking: [0, 1],
      margin: 2,
      annotator: 'u',
      group: 'g',
      weight: 1,
      origin,
    });
    expect(groups[1].ranking).toEqual([2, 0]);
    expect(groups[2]).toMatchObject({ label: true });
    expect(groups[2].ranking).toBeUndefined();
  });

  it('needs something that predicts the first token', async () => {
    const bare = characterTokenizer({ bos: false, eos: false });
    expect(await spelt([pair('p', 'a', 'b')], bare)).toEqual(['p|a|b']);
    expect(await spelt([{ ...base, kind: 'text', prompt: '', completion: 'text' }], bare)).toEqual(['t|ext']);
    expect((await failure(groupsOf([pair('', 'a', 'b')], bare, { maxLength: 9 }))).message).toMatch(
      /rows\.jsonl, line 7: the prompt has no tokens/,
    );
    const { groups, report } = await groupsOf([pair('p', 'a', ''), pair('p', 'a', 'b', 1)], bare, { maxLength: 9 });
    expect(groups.map(({ index }) => index)).toEqual([1]);
    expect(report).toMatchObject({ rows: 2, groups: 1, noTokens: 1 });
  });

  it('renders conversations through the template, BOS once and no EOS of its own', async () => {
    const row = pair(user('q'), assistant('a'), assistant('b'));
    const ends = '[assistant]|a</s>|b</s>';
    const expected = (prompt: string) => [`${prompt}${ends}`];
    const tokenizer = (start: string, bos = true) =>
      characterTokenizer({
        bos,
        template: (messages, generate) =>
          start +
          messages.map(({ role, content }) => `[${role}]${content}${role === 'assistant' ? '</s>' : ''}`).join('') +
          (generate ? '[assistant]' : ''),
      });
    expect(await spelt([row], tokenizer('<s>'))).toEqual(expected('<s>[user]q'));
    expect(await spelt([row], tokenizer(''))).toEqual(expected('<s>[user]q'));
    expect(await spelt([row], tokenizer('', false))).toEqual(expected('[user]q'));
    const shared = { ...base, kind: 'text' as const, prompt: [], completion: [...user('q'), ...assistant('a')] };
    expect(await spelt([shared], tokenizer('<s>'))).toEqual(['<s>|[user]q[assistant]a</s>']);
    expect(await spelt([shared], tokenizer('', false))).toEqual(['[|user]q[assistant]a</s>']);
    const ended = characterTokenizer({ template: appending('', '.') });
    expect(await spelt([row], ended)).toEqual(['<s>[user]q.[assistant]|a.|b.']);
  });

  it('refuses conversations that cannot be rendered so that the prompt is a prefix', async () => {
    const rows = [pair(user('q'), assistant('a'), assistant('b'))];
    const run = (template?: Parameters<typeof characterTokenizer>[0]) =>
      failure(groupsOf(rows, characterTokenizer(template), { maxLength: 99 }));
    expect((await run()).message).toMatch(/rows\.jsonl, line 7: .*no chat template/);
    const counting = await run({
      template: (messages, generate) => `${messages.length}${appending()(messages, generate)}`,
    });
    expect(counting.code).toBe('BAD_DATA');
    expect(counting.message).toMatch(/line 7: the chat template renders the prompt differently/);
    const throwing = await run({
      template: () => {
        throw new Error('roles must alternate');
      },
    });
    expect(throwing.message).toMatch(/line 7: the chat template refuses .*user: roles must alternate/);
  });

  it('keeps, cuts, leaves out or refuses over-length rows, and counts', async () => {
    const rows = [
      pair('pp', 'a', 'b', 0),
      pair('pp', 'aaaa', 'b', 1),
      pair('ppppp', 'a', 'b', 2),
      pair('pp', 'abcd', 'abce', 3),
    ];
    const tokenizer = characterTokenizer();
    const drop = await groupsOf(rows, tokenizer, { maxLength: 6 });
    expect(drop.groups.map(({ index }) => index)).toEqual([0]);
    expect(drop.report).toMatchObject({
      rows: 4,
      groups: 1,
      overLength: 2,
      promptTooLong: 1,
      truncated: 0,
      longest: 8,
    });
    expect(drop.report.dropped[0].reason).toMatch(
      /rows\.jsonl, line 7: the prompt has 3 tokens and the longest completion 5/,
    );
    const cut = await groupsOf(rows, tokenizer, { maxLength: 6, overLength: 'keep_start' });
    expect(
      cut.groups.map(({ index, completions }) => [index, ...completions.map((ids) => tokenizer.decode(ids))]),
    ).toEqual([
      [0, 'a</s>', 'b</s>'],
      [1, 'aaa', 'b</s>'],
      [3, 'abc', 'abc'],
    ]);
    expect(cut.report).toMatchObject({
      promptTooLong: 1,
      overLength: 0,
      truncated: 2,
      truncatedCompletions: 3,
      identicalAfterTruncation: 1,
    });
    expect(tokenNotes(cut.report, 6)).toHaveLength(3);
    expect(tokenNotes((await groupsOf(rows, tokenizer, { maxLength: 9 })).report, 9)).toEqual([]);
    const error = await failure(groupsOf(rows, tokenizer, { maxLength: 6, overLength: 'error' }));
    expect(error.message).toMatch(/rows\.jsonl, line 7: the prompt has 3 tokens.*max_length 6/);
    expect((await failure(groupsOf(rows, tokenizer, { maxLength: 2 }))).message).toMatch(/none of 4 rows is left/);
    expect((await failure(groupsOf(rows, tokenizer, { maxLength: 1 }))).code).toBe('BAD_ARGUMENT');
    expect((await failure(groupsOf(rows, tokenizer, { maxLength: 9, signal: AbortSignal.abort() }))).code).toBe(
      'ABORTED',
    );
  });
});
