import { afterAll, describe, expect, it } from 'vitest';
import { readRows } from '../lib/data/index.js';
import { itemNotes, readItems } from '../lib/features/items.js';
import { votesByAnnotator, votesOf } from '../lib/features/votes.js';
import { writeSafetensors } from '../lib/model/safetensors.js';
import { Folder, jsonl } from './data-rows.js';

const folder = new Folder();
afterAll(() => folder.remove());

const items = [
  { id: 'a', features: [1, 0, 2] },
  { id: 'b', features: [0.5, 0, -1] },
  { id: 7, features: [3, 0, 0] },
];
const table = () => readItems(folder.write('items.jsonl', jsonl(...items)));

describe('item tables', () => {
  it('reads ids and features, and says which columns are constant', async () => {
    const read = await table();
    expect(read.ids).toEqual(['a', 'b', '7']);
    expect([...read.features]).toEqual([1, 0, 2, 0.5, 0, -1, 3, 0, 0]);
    expect(read).toMatchObject({ n: 3, d: 3, constantColumns: [1] });
    expect(itemNotes(read)[0]).toContain('columns 1');
  });

  it('reads the same table from safetensors', async () => {
    const path = folder.write('items.safetensors', '');
    const data = Float32Array.from(items.flatMap((item) => item.features));
    await writeSafetensors(path, [{ name: 'features', shape: [3, 3], data }], { ids: '["a","b","7"]' });
    const [one, two] = [await table(), await readItems(path)];
    expect(two.ids).toEqual(one.ids);
    expect(two.features).toEqual(one.features);
    await writeSafetensors(path, [{ name: 'features', shape: [3, 3], data }], { ids: '["a","b"]' });
    await expect(readItems(path)).rejects.toThrow(/"ids": found an array of 2, expected a JSON array of 3 names/);
  });

  it.each([
    [{ id: 'b', features: [1, 2] }, /line 2: field "features" of "b": found 2 numbers, expected 3/],
    [{ id: 'a', features: [1, 2, 3] }, /line 2: found the id "a" a second time \(first at 1\)/],
    [{ id: 'b', features: [1, null, 3] }, /line 2: field "features\[1\]" of "b": found null, expected a finite number/],
    [{ id: 'b', features: [1, 1e300, 3] }, /line 2: field "features\[1\]"/],
    [{ id: 'b' }, /line 2: field "features": found nothing/],
    [{ features: [1, 2, 3] }, /line 2: field "id": found nothing/],
  ])('refuses %j', async (bad, message) => {
    await expect(readItems(folder.write('bad.jsonl', jsonl(items[0], bad)))).rejects.toMatchObject({
      code: 'BAD_DATA',
      message: expect.stringMatching(message),
    });
  });

  it('refuses a NaN in a tensor and an unknown extension', async () => {
    const path = folder.write('nan.safetensors', '');
    const data = Float32Array.of(1, Number.NaN);
    await writeSafetensors(path, [{ name: 'features', shape: [2, 1], data }], { ids: '["x","y"]' });
    await expect(readItems(path)).rejects.toThrow(/row 2 \("y"\): features\[0\]: found NaN/);
    await expect(readItems('items.txt')).rejects.toThrow(/\.jsonl, \.parquet or \.safetensors/);
  });
});

describe('votes', () => {
  const rows = [
    { chosen: 'b', rejected: 7, annotator: 'u', margin: 0.5 },
    { responses: ['a', 'b', '7'], ranking: [2, 0], annotator: 'v', weight: 2 },
    { responses: ['a', 'b', '7'], ranking: [1, 2, 0], annotator: 'u' },
    { chosen: 'a', rejected: 'b' },
  ];
  const read = async (...given: unknown[]) =>
    (await readRows(folder.write('votes.jsonl', jsonl(...given)), { items: true })).rows;

  it('puts every vote in the order of its choice', async () => {
    const votes = votesOf(await read(...rows), await table());
    expect(votes.annotators).toEqual(['u', 'v']);
    expect([...votes.annotator]).toEqual([0, 1, 0, -1]);
    expect([...votes.offsets]).toEqual([0, 2, 5, 8, 10]);
    expect([...votes.items]).toEqual([1, 2, 2, 0, 1, 1, 2, 0, 0, 1]);
    expect([...votes.stages]).toEqual([1, 2, 2, 1]);
    expect([...votes.weights]).toEqual([1, 2, 1, 1]);
    expect([...votes.margins]).toEqual([0.5, 0, 0, 0]);
    const by = votesByAnnotator(votes);
    expect([...by.offsets]).toEqual([0, 2, 3]);
    expect([...by.votes]).toEqual([0, 2, 1]);
  });

  it('keeps the index of known annotators', async () => {
    const votes = votesOf(await read(...rows), await table(), { annotators: ['w', 'v'] });
    expect(votes.annotators).toEqual(['w', 'v', 'u']);
    expect([...votes.annotator]).toEqual([2, 1, 2, -1]);
  });

  it('refuses an unknown item, or leaves its row out', async () => {
    const given = await read(rows[0], { chosen: 'a', rejected: 'nobody', annotator: 'u' });
    const items = await table();
    expect(() => votesOf(given, items)).toThrow(
      /line 2: field "rejected": found "nobody", expected the id of one of the 3/,
    );
    const bad: number[] = [];
    expect(votesOf(given, items, { onBadRow: (row) => bad.push(row.index) }).m).toBe(1);
    expect(bad).toEqual([1]);
    expect(() => votesOf([{ ...given[0], annotator: undefined }], items, { named: true })).toThrow(/"annotator"/);
  });
});
