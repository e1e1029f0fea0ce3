import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { dataNotes, type RawRecord, readRecords, readRows } from '../lib/data/index.js';
import { extractPrompt } from '../lib/data/prompt.js';
import { PluralignError } from '../lib/native/errors.js';
import { Folder, jsonl } from './data-rows.js';

const folder = new Folder();
afterAll(() => folder.remove());
const fixture = (name: string) => join(import.meta.dirname, 'fixtures', 'rows', name);

async function records(path: string | string[]): Promise<RawRecord[]> {
  const all: RawRecord[] = [];
  for await (const record of readRecords(path)) all.push(record);
  return all;
}

async function failure(promise: Promise<unknown>): Promise<PluralignError> {
  try {
    await promise;
  } catch (error) {
    expect(error).toBeInstanceOf(PluralignError);
    return error as PluralignError;
  }
  throw new Error('expected a failure');
}

/** The message for one bad record in a .jsonl file, on line 2. */
async function refused(row: unknown): Promise<string> {
  const path = folder.write('bad.jsonl', jsonl({ text: 'good' }, row));
  const error = await failure(readRows(path));
  expect(error.code).toBe('BAD_DATA');
  expect(error.message).toContain(`${path}, line 2: `);
  return error.message;
}

async function accepted(...rows: unknown[]) {
  return (await readRows(folder.write('good.jsonl', jsonl(...rows)))).rows;
}

describe('readers', () => {
  it('reads lines with byte order mark, CRLF, blank lines and no last line end', async () => {
    const path = folder.write('lines.jsonl', '\ufeff{"a":1}\r\n\r\n  \n{"a":"é\u2028"}\n{"a":3}');
    expect(await records(path)).toEqual([
      { origin: { file: path, line: 1 }, value: { a: 1 } },
      { origin: { file: path, line: 4 }, value: { a: 'é\u2028' } },
      { origin: { file: path, line: 5 }, value: { a: 3 } },
    ]);
  });

  it('keeps characters whole over the borders of chunks', async () => {
    const texts = Array.from({ length: 3 }, (_, i) => '😀é'.repeat(40_000 + i));
    const path = folder.write('long.jsonl', jsonl(...texts.map((text) => ({ text }))));
    expect((await records(path)).map(({ value }) => (value as { text: string }).text)).toEqual(texts);
    const csv = folder.write('long.csv', `text\n${texts.join('\n')}\n`);
    expect((await records(csv)).map(({ value }) => (value as { text: string }).text)).toEqual(texts);
  });

  it('reads several files in order, by extension', async () => {
    const a = folder.write('a.json', '\ufeff[{"text":"1"}]');
    const b = folder.write('b.JSON', '{"version":"x","data":[{"text":"2"}]}');
    const c = folder.write('c.json', '{"rows":[{"text":"3"}]}');
    const { rows } = await readRows([a, b, c]);
    expect(rows.map((row) => [row.index, row.kind === 'text' && row.completion, row.origin.file])).toEqual([
      [0, '1', a],
      [1, '2', b],
      [2, '3', c],
    ]);
  });

  it('names file and line of malformed JSON', async () => {
    const lines = await failure(readRows(folder.write('cut.jsonl', '{"text":"a"}\n{"text":\n')));
    expect(lines.code).toBe('BAD_DATA');
    expect(lines.message).toMatch(/cut\.jsonl, line 2: malformed JSON/);
    const whole = await failure(readRows(folder.write('cut.json', '[\n{"text":"a"},\n{"text" 1}\n]')));
    expect(whole.message).toMatch(/cut\.json, line 3: malformed JSON/);
    const jsonLines = await failure(readRows(folder.write('lines.json', jsonl({ text: 'a' }, { text: 'b' }))));
    expect(jsonLines.message).toContain('ends with .jsonl');
  });

  it('refuses other encodings, unknown extensions, folders, and files that are not there', async () => {
    const latin = await failure(
      readRows(folder.write('latin.jsonl', Buffer.from('{"text":"a"}\n{"text":"\xe9"}\n', 'latin1'))),
    );
    expect(latin.message).toMatch(/latin\.jsonl, line 2: .*not UTF-8/);
    const latinCsv = await failure(readRows(folder.write('latin.csv', Buffer.from('text\na\n\xe9\n', 'latin1'))));
    expect(latinCsv.message).toMatch(/latin\.csv, line 3: .*not UTF-8/);
    const wide = await failure(readRows(folder.write('wide.csv', Buffer.from('\ufefftext\na\n', 'utf16le'))));
    expect(wide.message).toContain('UTF-16');
    const unknown = await failure(readRows(folder.write('rows.txt', '')));
    expect(unknown.message).toMatch(/\.txt.*\.jsonl, \.json, \.csv, \.parquet/);
    expect((await failure(readRows(join(folder.path, 'absent.jsonl')))).code).toBe('NOT_FOUND');
    for (const name of ['absent.csv', 'absent.json', 'absent.parquet']) {
      expect((await failure(readRows(join(folder.path, name)))).code).toBe('NOT_FOUND');
    }
  });

  it('reads CSV by the name of each column', async () => {
    const path = folder.write(
      'rows.csv',
      '\ufeffprompt,chosen,rejected,responses,ranking,completion,label,annotator,weight,margin\r\n' +
        '"Q, ""x""\nline", yes,no,,,,,007,0.5,-1e-1\r\n' +
        '\r\n' +
        ',a,,,,,,,,\r\n',
    );
    const { rows } = await readRows(path);
    expect(rows).toEqual([
      {
        kind: 'pair',
        index: 0,
        origin: { file: path, line: 2 },
        annotator: '007',
        weight: 0.5,
        prompt: 'Q, "x"\nline',
        chosen: ' yes',
        rejected: 'no',
        margin: -0.1,
      },
      { kind: 'pair', index: 1, origin: { file: path, line: 5 }, weight: 1, prompt: '', chosen: 'a', rejected: '' },
    ]);
    const ranked = folder.write('ranked.csv', 'prompt,responses,ranking\nq,"[""a"",""b"",""c""]","[2,0]"\n');
    expect((await readRows(ranked)).rows[0]).toMatchObject({ responses: ['a', 'b', 'c'], ranking: [2, 0] });
    const labels = folder.write('labels.csv', 'prompt,completion,label\nq,a,True\nq,b,0\nq,c,false\nq,[x],1\n');
    expect((await readRows(labels)).rows).toMatchObject([
      { label: true },
      { label: false },
      { label: false },
      { label: true, completion: '[x]' },
    ]);
    const turns = '"[{""role"":""user"",""content"":""hi""}]"';
    const talk = folder.write('talk.csv', `prompt,completion\n${turns},${turns}\n`);
    expect((await readRows(talk)).rows[0].prompt).toEqual([{ role: 'user', content: 'hi' }]);
  });

  it('names line and field of bad CSV', async () => {
    const cells = await failure(readRows(folder.write('cells.csv', 'text,annotator\na,u\nb\n')));
    expect(cells.message).toMatch(/cells\.csv, line 3: found 1 cells, expected 2/);
    const label = await failure(readRows(folder.write('label.csv', 'prompt,completion,label\nq,a,yes\n')));
    expect(label.message).toMatch(/label\.csv, line 2: field "label": found the text "yes"/);
    const weight = await failure(readRows(folder.write('weight.csv', 'text,weight\na,heavy\n')));
    expect(weight.message).toMatch(/field "weight": found the text "heavy"/);
    const quote = await failure(readRows(folder.write('quote.csv', 'text\n"open\n')));
    expect(quote.message).toMatch(/quote\.csv: malformed CSV/);
    const header = await failure(readRows(folder.write('header.csv', 'text,text\na,b\n')));
    expect(header.message).toContain('twice');
  });

  it('reads Parquet: row groups, lists, structs, 64-bit integers, nulls', async () => {
    const file = fixture('mixed.parquet');
    const { rows, report } = await readRows(file);
    expect(rows).toEqual([
      {
        kind: 'pair',
        index: 0,
        origin: { file, line: 1 },
        annotator: '7',
        weight: 0.5,
        prompt: 'The sky is',
        chosen: ' blue.',
        rejected: ' green.',
      },
      {
        kind: 'pair',
        index: 1,
        origin: { file, line: 2 },
        annotator: '9007199254740993',
        weight: 1,
        prompt: 'Grass is',
        chosen: ' green.',
        rejected: ' blue.',
      },
      {
        kind: 'ranking',
        index: 2,
        origin: { file, line: 3 },
        weight: 2,
        prompt: rows[2].prompt,
        responses: ['a', 'b', 'c'],
        ranking: [2, 0],
      },
    ]);
    expect(rows[2].prompt).toBe('');
    expect(report.ignoredFields).toEqual({ extra: 3 });
    expect((await readRows(fixture('conversation.parquet'))).rows[0]).toMatchObject({
      prompt: [{ role: 'user', content: 'hi' }],
      chosen: [{ role: 'assistant', content: 'yes' }],
    });
  });

  it('refuses damaged Parquet and codecs that it lacks', async () => {
    const bytes = readFileSync(fixture('mixed.parquet'));
    for (const length of [0, 5, 100, bytes.length - 1]) {
      const error = await failure(readRows(folder.write('cut.parquet', bytes.subarray(0, length))));
      expect(error.code).toBe('BAD_DATA');
      expect(error.message).toContain('cut.parquet');
    }
    // Found by the fuzzer: these three bytes sent the decoder's search for geometry columns round in circles.
    const circling = Buffer.from(bytes);
    for (const [at, value] of [
      [978, 3],
      [1855, 255],
      [1856, 254],
    ])
      circling[at] = value;
    expect((await failure(readRows(folder.write('circling.parquet', circling)))).code).toBe('BAD_DATA');
    const zstd = readRows(fixture('zstd.parquet'));
    if ('zstdDecompressSync' in process.getBuiltinModule('node:zlib')) await zstd;
    else expect((await failure(zstd)).message).toMatch(/ZSTD.*write the file with snappy.*Node 22/);
  });

  it('throws nothing but PluralignError on arbitrary bytes', async () => {
    const json = fc.json().map((text) => Buffer.from(text));
    const csv = fc
      .string({ unit: fc.constantFrom('"', ',', '\n', '\r', 'a', 'text', '[', '{"') })
      .map((text) => Buffer.from(text));
    const bytes = fc.oneof(fc.uint8Array({ maxLength: 200 }), json, csv);
    await fc.assert(
      fc.asyncProperty(bytes, fc.constantFrom('jsonl', 'json', 'csv', 'parquet'), async (contents, extension) => {
        const path = folder.write(`any.${extension}`, contents);
        await readRows(path, { onBadRow: 'skip' }).catch((error) => expect(error).toBeInstanceOf(PluralignError));
      }),
      { numRuns: 400 },
    );
  });
});

describe('rows', () => {
  it('reads every format', async () => {
    const user = [{ role: 'user', content: 'hi' }];
    const a = [{ role: 'assistant', content: 'a' }];
    const b = [{ role: 'assistant', content: 'b' }];
    const rows = await accepted(
      { prompt: 'The sky is', chosen: ' blue.', rejected: ' green.', annotator: 'u7', group: 3, margin: 2 },
      { chosen: 'The sky is blue.', rejected: 'The sky is green.', annotator: 7 },
      { prompt: user, chosen: a, rejected: b },
      { chosen: [...user, ...a], rejected: [...user, ...b] },
      { prompt: 'hi', chosen: [...user, ...a], rejected: [...user, ...b] },
      { prompt: 'p', responses: ['a', 'b', 'c'], ranking: [2, 0, 1], weight: 0 },
      { prompt: user, responses: [a, b], ranking: [1] },
      { prompt: 'p', completion: ' c', label: false },
      { prompt: 'p', completion: '' },
      { text: 't', annotator: null },
      {
        messages: [
          ...user,
          {
            role: 'assistant',
            content: [
              { type: 'text', text: 'x' },
              { type: 'text', text: 'y' },
            ],
          },
        ],
      },
    );
    const stripped = rows.map(({ origin: _origin, index: _index, ...row }) => row);
    expect(stripped).toEqual([
      {
        kind: 'pair',
        weight: 1,
        prompt: 'The sky is',
        chosen: ' blue.',
        rejected: ' green.',
        annotator: 'u7',
        group: '3',
        margin: 2,
      },
      { kind: 'pair', weight: 1, prompt: 'The sky is', chosen: ' blue.', rejected: ' green.', annotator: '7' },
      { kind: 'pair', weight: 1, prompt: user, chosen: a, rejected: b },
      { kind: 'pair', weight: 1, prompt: user, chosen: a, rejected: b },
      { kind: 'pair', weight: 1, prompt: user, chosen: a, rejected: b },
      { kind: 'ranking', weight: 0, prompt: 'p', responses: ['a', 'b', 'c'], ranking: [2, 0, 1] },
      { kind: 'ranking', weight: 1, prompt: user, responses: [a, b], ranking: [1] },
      { kind: 'unpaired', weight: 1, prompt: 'p', completion: ' c', label: false },
      { kind: 'text', weight: 1, prompt: 'p', completion: '' },
      { kind: 'text', weight: 1, prompt: '', completion: 't' },
      { kind: 'text', weight: 1, prompt: [], completion: [...user, { role: 'assistant', content: 'xy' }] },
    ]);
    expect(rows.map(({ index }) => index)).toEqual(rows.map((_, i) => i));
  });

  it('names field, what was found and what was expected', async () => {
    expect(await refused([1])).toContain('found an array of 1, expected an object');
    expect(await refused({})).toContain('found no fields, expected {"chosen","rejected"}');
    expect(await refused({ question: 'x' })).toContain('only the fields "question"');
    expect(await refused({ chosen: 'a' })).toContain('field "rejected": found nothing');
    expect(await refused({ prompt: 'p', chosen: 'a', rejected: 5 })).toContain('field "rejected": found 5');
    expect(await refused({ prompt: 'p', chosen: 'a', rejected: [{ role: 'user', content: 'b' }] })).toContain(
      'field "rejected": found an array of 1, expected a text',
    );
    expect(
      await refused({ prompt: 'p', chosen: [{ role: 'a', content: '' }], rejected: [{ role: 'a', content: '' }] }),
    ).toContain('field "chosen"');
    expect(await refused({ chosen: [], rejected: [] })).toContain('at least one message');
    expect(await refused({ messages: [{ role: 'user' }] })).toContain('field "messages[0].content": found nothing');
    expect(await refused({ messages: [{ role: 'user', content: [{ type: 'image' }] }] })).toContain(
      'other parts are not supported',
    );
    expect(await refused({ text: '' })).toContain('not empty');
    expect(await refused({ text: 'a\ud800' })).toContain('surrogate');
    expect(await refused({ text: 'a', weight: -1 })).toContain(
      'field "weight": found -1, expected a finite number of 0 or more',
    );
    expect(await refused({ text: 'a', annotator: ' ' })).toContain('field "annotator": found the text " "');
    expect(await refused({ text: 'a', annotator: 1e20 })).toContain('lost digits');
    expect(await refused({ text: 'a', annotator: { id: 1 } })).toContain('an object with "id"');
    expect(await refused({ prompt: 'p', completion: 'a', label: 'good' })).toContain('field "label"');
    expect(await refused({ prompt: 'p', label: true })).toContain('field "completion": found nothing');
    expect(await refused({ chosen: 'a', rejected: 'b', margin: '1' })).toContain('field "margin"');
    expect(await refused({ chosen: 'a', rejected: 'b', responses: ['a', 'b'], ranking: [0] })).toContain('found both');
  });

  it('refuses rankings that rank nothing', async () => {
    const row = (responses: unknown, ranking: unknown) => refused({ prompt: 'p', responses, ranking });
    expect(await row(['a'], [0])).toContain('at least 2 responses');
    expect(await row(['a', 'b'], [])).toContain('field "ranking"');
    expect(await row(['a', 'b'], undefined)).toContain('field "ranking": found nothing');
    expect(await row(['a', 'b'], [0, 0])).toContain('field "ranking[1]": found 0 a second time');
    expect(await row(['a', 'b'], [0, 2])).toContain('field "ranking[1]": found 2, expected indices from 0 to 1');
    expect(await row(['a', 'b'], [-1])).toContain('found -1');
    expect(await row(['a', 'b'], [0.5])).toContain('found 0.5');
    expect(await row(['a', 'b'], '1,0')).toContain('found the text "1,0"');
    expect(await row(['a', 3], [0])).toContain('field "responses[1]": found 3');
  });

  it('takes names of items as they stand', async () => {
    const path = folder.write(
      'items.jsonl',
      jsonl({ chosen: 'item 17', rejected: 'item 3' }, { responses: [1, 2], ranking: [1] }),
    );
    const { rows } = await readRows(path, { items: true });
    expect(rows).toMatchObject([
      { prompt: '', chosen: 'item 17', rejected: 'item 3' },
      { prompt: '', responses: ['1', '2'], ranking: [1] },
    ]);
  });

  it('extracts the prompt that texts share without cutting a word', () => {
    const cut = (...texts: string[]) => {
      const { prompt, rest } = extractPrompt(texts);
      return [prompt, ...rest];
    };
    expect(cut('The sky is blue.', 'The sky is black.')).toEqual(['The sky is', ' blue.', ' black.']);
    expect(cut('The sky', 'The sky is blue')).toEqual(['The', ' sky', ' sky is blue']);
    expect(cut('same text', 'same text')).toEqual(['same', ' text', ' text']);
    expect(cut("It isn't", "It isn't so")).toEqual(['It', " isn't", " isn't so"]);
    expect(cut('Q\nyes', 'Q\nno')).toEqual(['Q\n', 'yes', 'no']);
    expect(cut('yes', 'no')).toEqual(['', 'yes', 'no']);
    expect(cut('', 'no')).toEqual(['', '', 'no']);
    expect(cut('天空是蓝', '天空是绿')).toEqual(['天空是', '蓝', '绿']);
    expect(cut('x 😀', 'x 😁')).toEqual(['x', ' 😀', ' 😁']);
    expect(cut('x e\u0301', 'x e\u0300')).toEqual(['x', ' e\u0301', ' e\u0300']);
    expect(cut('a b c', 'a b d', 'a e')).toEqual(['a', ' b c', ' b d', ' e']);
  });

  it('extracts a prompt that gives every text back', () => {
    const unit = fc.constantFrom('a', 'b', ' ', '\n', '.', '😀', '蓝', '\u0301', "'");
    const text = fc.string({ unit, minLength: 1, maxLength: 8 });
    fc.assert(
      fc.property(text, fc.array(text, { minLength: 2, maxLength: 3 }), (start, ends) => {
        const texts = ends.map((end) => start + end);
        const { prompt, rest } = extractPrompt(texts);
        expect(rest.map((end) => prompt + end)).toEqual(texts);
        expect(rest.every((end) => end.length > 0)).toBe(true);
        expect(rest.every((end) => !/\p{Surrogate}/u.test(end))).toBe(true);
      }),
    );
  });
});

describe('readRows', () => {
  it('counts what it leaves out and what it finds odd', async () => {
    const pair = { prompt: 'p', chosen: 'a', rejected: 'b', annotator: 'Zoë' };
    const path = folder.write(
      'odd.jsonl',
      `${jsonl(pair, { ...pair, id: 4 }, { ...pair, annotator: 'Zoe\u0308 ' }, { ...pair, chosen: 'b' })}{"cut\n${jsonl({ nothing: 1 }, { text: 't', id: 5 })}`,
    );
    const { rows, report } = await readRows(path, { onBadRow: 'skip' });
    expect(report).toMatchObject({
      read: 7,
      kept: 5,
      bad: 2,
      duplicates: 1,
      removedDuplicates: 0,
      identical: 1,
      kinds: { pair: 4, ranking: 0, unpaired: 0, text: 1 },
      annotators: 2,
      withoutAnnotator: 1,
      similarNames: [['Zoë', 'Zoe\u0308 ']],
      ignoredFields: { id: 2 },
    });
    expect(report.badRows.map(({ origin }) => origin.line)).toEqual([5, 6]);
    expect(report.badRows[1].reason).toContain('"nothing"');
    expect(rows.map(({ index }) => index)).toEqual([0, 1, 2, 3, 4]);
    expect(dataNotes(report).join('\n')).toMatch(/2 of 7 rows were left out as malformed/);
    const deduped = await readRows(path, { onBadRow: 'skip', dedupe: true });
    expect(deduped.report).toMatchObject({ kept: 4, duplicates: 1, removedDuplicates: 1 });
    expect(deduped.rows.map(({ origin }) => origin.line)).toEqual([1, 3, 4, 7]);
  });

  it('says where a vote names its voter, when another field may be meant', async () => {
    const told = async (row: object) =>
      dataNotes(
        (await readRows(folder.write('named.jsonl', JSON.stringify({ chosen: 'a', rejected: 'b', ...row })))).report,
      );
    for (const field of ['user_id', 'Worker', 'voter name', 'labeller'])
      expect(await told({ [field]: 'u1' })).toEqual([
        expect.stringContaining('not used; rows say who voted in "annotator"'),
      ]);
    expect(await told({ annotator: 'a', user_id: 'u1' })).toEqual([expect.stringMatching(/not used$/)]);
    expect(await told({ username_length: 3 })).toEqual([expect.stringMatching(/not used$/)]);
  });

  it('refuses data without rows, and kinds that the caller cannot use', async () => {
    for (const [name, text] of [
      ['none.jsonl', '\n\n'],
      ['none.json', '[]'],
      ['none.csv', 'text\n'],
      ['nothing.csv', ''],
    ]) {
      const error = await failure(readRows(folder.write(name, text)));
      expect(error.code).toBe('BAD_DATA');
      expect(error.message).toContain('expected at least one row');
    }
    const bad = await failure(readRows(folder.write('allbad.jsonl', jsonl({ x: 1 })), { onBadRow: 'skip' }));
    expect(bad.message).toContain('all 1 rows are malformed');
    const kind = await failure(
      readRows(folder.write('kind.jsonl', jsonl({ text: 'a' })), { kinds: ['pair', 'ranking'] }),
    );
    expect(kind.message).toMatch(/line 1: found a text row.*expected a pair .* or a ranking/);
    const tied = folder.write(
      'tied.jsonl',
      jsonl(
        { prompt: 'p', chosen: 'a', rejected: 'b', tie: true },
        { prompt: 'p', chosen: 'a', rejected: 'b', tie: 0 },
      ),
    );
    expect((await failure(readRows(tied))).message).toMatch(/line 1: field "tie": found true.*leave them out/);
    const { rows, report } = await readRows(tied, { ties: true });
    expect(rows.map((row) => row.kind === 'pair' && row.tie)).toEqual([true, undefined]);
    expect([report.ties, report.duplicates]).toEqual([1, 0]);
    const both = folder.write('both.jsonl', jsonl({ prompt: 'p', chosen: 'a', rejected: 'b', tie: true, margin: 1 }));
    expect((await failure(readRows(both, { ties: true }))).message).toMatch(/field "margin": found 1, expected none/);
    expect(
      (await failure(readRows(folder.write('s.jsonl', jsonl({ text: 'a' })), { signal: AbortSignal.abort() }))).code,
    ).toBe('ABORTED');
  });

  const votes = join(import.meta.dirname, '../../shared/reference/parity-llama/prefs.jsonl');
  it.skipIf(!existsSync(votes))('reads the parity rows (skipped where ../shared is absent)', async () => {
    const { rows, report } = await readRows(votes, { kinds: ['pair'] });
    expect(rows.length).toBe(report.read);
    expect(report).toMatchObject({ bad: 0, withoutAnnotator: 0, ignoredFields: {} });
  });
});
