import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RecordLog } from '../lib/base/record-log.js';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'pluralign-log-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

describe('a log of records', () => {
  it('is empty where there is no file, and holds what was appended, in order', async () => {
    const path = join(folder, 'deep', 'log.jsonl');
    const log = await RecordLog.open<{ n: number }>(path);
    expect(log.records).toEqual([]);
    await Promise.all(Array.from({ length: 20 }, (_, n) => log.append({ n })));
    expect((await RecordLog.open<{ n: number }>(path)).records.map(({ n }) => n)).toEqual([...Array(20).keys()]);
  });

  it('loses an unfinished last line and nothing after it', async () => {
    const path = join(folder, 'log.jsonl');
    writeFileSync(path, '{"n":1}\n{"n":2');
    const log = await RecordLog.open<{ n: number }>(path);
    expect(log.records).toEqual([{ n: 1 }]);
    await log.append({ n: 3 });
    await log.append({ n: 4 });
    expect((await RecordLog.open<{ n: number }>(path)).records).toEqual([{ n: 1 }, { n: 3 }, { n: 4 }]);
    expect(readFileSync(path, 'utf8')).toBe('{"n":1}\n{"n":2\n{"n":3}\n{"n":4}\n');
  });

  it('passes over lines of JSON that are no objects', async () => {
    const path = join(folder, 'log.jsonl');
    writeFileSync(path, 'null\n{"n":1}\n3\n"n"\n[1]\ntrue\n');
    expect((await RecordLog.open<{ n: number }>(path)).records).toEqual([{ n: 1 }]);
  });

  it('says so where it cannot be read or written', async () => {
    await expect(RecordLog.open(folder)).rejects.toMatchObject({ code: 'IO' });
    writeFileSync(join(folder, 'file'), '');
    await expect(RecordLog.open(join(folder, 'file', 'log.jsonl'))).rejects.toMatchObject({ code: 'IO' });
    const log = await RecordLog.open(join(folder, 'new', 'log.jsonl'));
    writeFileSync(join(folder, 'new'), '');
    await expect(log.append({ n: 1 })).rejects.toMatchObject({ code: 'IO' });
    rmSync(join(folder, 'new'));
    await log.append({ n: 2 });
    expect((await RecordLog.open(log.path)).records).toEqual([{ n: 2 }]);
  });
});
