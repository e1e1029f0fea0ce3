import * as fsp from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type FileSystem, writeFileAtomic } from '../lib/base/files.js';
import {
  checkpointSteps,
  checkpointsFolder,
  cleanCheckpoints,
  loadLatestCheckpoint,
  openCheckpoint,
  pruneCheckpoints,
  saveCheckpoint,
} from '../lib/training/checkpoint.js';
import { run, transpile } from './support/child.js';

let dir: string;
beforeEach(async () => {
  dir = await fsp.mkdtemp(join(tmpdir(), 'pluralign-checkpoint-'));
});
afterEach(() => fsp.rm(dir, { recursive: true, force: true }));

const weights = (step: number, n = 1000) => Float32Array.from({ length: n }, (_, i) => Math.sin(i + step));
const save = (step: number, options?: { fs?: FileSystem }) =>
  saveCheckpoint(dir, step, [{ name: 'parameters.f32', data: weights(step) }], { step, rate: 0.1 }, options);
const stray = async () => (await fsp.readdir(checkpointsFolder(dir))).filter((name) => name.startsWith('.'));

/** A file system whose handles run out of space after `budget` bytes, as a full disk does. */
function fullDisk(budget: number): FileSystem {
  let left = budget;
  const full = () => Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
  return {
    ...fsp,
    open: (async (...args: Parameters<typeof fsp.open>) => {
      const handle = await fsp.open(...args);
      return new Proxy(handle, {
        get(target, key) {
          if (key === 'write') {
            return (buffer: Buffer, offset: number, length: number) => {
              if (left === 0) throw full();
              const taken = Math.min(left, length);
              left -= taken;
              return target.write(buffer, offset, taken);
            };
          }
          if (key === 'writeFile') throw full();
          const value = Reflect.get(target, key);
          return typeof value === 'function' ? value.bind(target) : value;
        },
      });
    }) as typeof fsp.open,
  };
}

describe('saving and loading', () => {
  test('arrays, views, texts and writers come back as they were', async () => {
    const big = weights(1, 3_000_001);
    const path = await saveCheckpoint(
      dir,
      7,
      [
        { name: 'm.f32', data: big },
        { name: 'part.f32', data: big.subarray(5, 9) },
        { name: 'note.txt', data: 'päron' },
        { name: 'adapter/nested/a.bin', write: (file) => fsp.writeFile(file, 'abc') },
        { name: 'empty.i32', data: new Int32Array() },
      ],
      { steps: [1, 2], 10: null, 2: 'x' },
    );
    expect(path).toBe(join(dir, 'checkpoints', 'step-7'));
    const checkpoint = await loadLatestCheckpoint(dir);
    expect(checkpoint).toMatchObject({ step: 7, dir: path, meta: { steps: [1, 2], 10: null, 2: 'x' } });
    const back = new Float32Array(big.length);
    await checkpoint?.readInto('m.f32', back);
    expect(Buffer.from(back.buffer).equals(Buffer.from(big.buffer))).toBe(true);
    const part = new Float32Array(4);
    await checkpoint?.readInto('part.f32', part);
    expect(part).toEqual(big.slice(5, 9));
    expect(await checkpoint?.readText('note.txt')).toBe('päron');
    expect(await checkpoint?.readText('adapter/nested/a.bin')).toBe('abc');
    await checkpoint?.readInto('empty.i32', new Int32Array());
    await expect(checkpoint?.readInto('part.f32', new Float32Array(5))).rejects.toMatchObject({ code: 'BAD_SHAPE' });
    expect(() => checkpoint?.path('other')).toThrow(/no file other/);
    expect(await stray()).toEqual([]);
  });

  test('no checkpoint is null, not an error', async () => {
    expect(await loadLatestCheckpoint(dir)).toBeNull();
  });

  test('steps are compared as numbers', async () => {
    for (const step of [9, 10, 100]) await save(step);
    expect(await checkpointSteps(dir)).toEqual([100, 10, 9]);
    expect((await loadLatestCheckpoint(dir))?.step).toBe(100);
  });

  test('the same step can be saved again', async () => {
    await save(3);
    await saveCheckpoint(dir, 3, [{ name: 'other', data: 'x' }], 2);
    expect((await loadLatestCheckpoint(dir))?.meta).toBe(2);
    expect(await stray()).toEqual([]);
  });

  test.each(['../x', '/x', 'a/../../x', '', 'manifest.json', 'a\0b'])('the file name %j is refused', async (name) => {
    await expect(saveCheckpoint(dir, 1, [{ name, data: 'x' }], {})).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
  });
});

describe('damage', () => {
  const damages: [name: string, break_: (path: string) => Promise<unknown>, said: RegExp][] = [
    ['a flipped bit', (p) => flip(join(p, 'parameters.f32'), 2001), /parameters\.f32 does not match its SHA-256/],
    ['a cut file', (p) => fsp.truncate(join(p, 'parameters.f32'), 12), /has 12 bytes, 4000 expected/],
    ['a missing file', (p) => fsp.rm(join(p, 'parameters.f32')), /parameters\.f32 is missing/],
    ['a missing manifest', (p) => fsp.rm(join(p, 'manifest.json')), /manifest\.json is missing/],
    ['a cut manifest', (p) => fsp.truncate(join(p, 'manifest.json'), 40), /manifest\.json is not JSON/],
    ['another meta', (p) => replace(join(p, 'manifest.json'), '0.1', '0.2'), /does not match its checksum/],
    ['a renamed folder', (p) => fsp.rename(p, p.replace('step-20', 'step-30')), /the manifest is of step 20/],
  ];
  async function flip(path: string, at: number) {
    const bytes = await fsp.readFile(path);
    bytes[at] ^= 1;
    await fsp.writeFile(path, bytes);
  }
  async function replace(path: string, from: string, to: string) {
    const text = await fsp.readFile(path, 'utf8');
    expect(text).toContain(from);
    await fsp.writeFile(path, text.replace(from, to));
  }

  test.each(damages)('%s: the one before is loaded, and it is said why', async (_, damage, said) => {
    await save(10);
    await damage(await save(20));
    const problems: string[] = [];
    expect((await loadLatestCheckpoint(dir, (problem) => problems.push(problem)))?.step).toBe(10);
    expect(problems).toHaveLength(1);
    expect(problems[0]).toMatch(said);
  });

  test('all damaged is an error, not a new start', async () => {
    await flip(join(await save(1), 'parameters.f32'), 0);
    await expect(loadLatestCheckpoint(dir)).rejects.toMatchObject({ code: 'BAD_FILE' });
  });
});

describe('a full disk', () => {
  test.each([0, 1, 100, 3999, 4000, 4050])('after %i bytes leaves the checkpoint before intact', async (budget) => {
    await save(10);
    await expect(save(20, { fs: fullDisk(budget) })).rejects.toMatchObject({
      code: 'IO',
      message: expect.stringMatching(/step-20.*no space left.*ENOSPC.*Earlier checkpoints are intact/),
    });
    expect(await fsp.readdir(checkpointsFolder(dir))).toEqual(['step-10']);
    expect((await loadLatestCheckpoint(dir))?.step).toBe(10);
    await save(20, { fs: fullDisk(1e9) });
    expect((await loadLatestCheckpoint(dir))?.step).toBe(20);
  });

  test('an atomic write keeps the old file', async () => {
    const path = join(dir, 'summary.json');
    await writeFileAtomic(path, 'old');
    await expect(writeFileAtomic(path, 'new', { fs: fullDisk(1) })).rejects.toMatchObject({ code: 'IO' });
    expect(await fsp.readFile(path, 'utf8')).toBe('old');
    expect(await fsp.readdir(dir)).toEqual(['summary.json']);
  });
});

describe('pruning and cleaning', () => {
  test('the newest and the protected stay', async () => {
    for (const step of [1, 2, 3, 4, 5]) await save(step);
    expect(await pruneCheckpoints(dir, 2, [1])).toEqual([3, 2]);
    expect(await checkpointSteps(dir)).toEqual([5, 4, 1]);
    expect(await stray()).toEqual([]);
  });

  test('what a killed process left is removed, and a replaced checkpoint comes back', async () => {
    const folder = checkpointsFolder(dir);
    const path = await save(4);
    await fsp.mkdir(join(folder, '.staging-step-5-1'));
    await fsp.mkdir(join(folder, '.deleted-step-1-1'));
    await fsp.rename(path, join(folder, '.replaced-step-4'));
    expect((await loadLatestCheckpoint(dir))?.step).toBe(4);
    await cleanCheckpoints(dir);
    expect(await fsp.readdir(folder)).toEqual(['step-4']);
    await openCheckpoint(path);
  });
});

test('kill -9 at any moment leaves a whole checkpoint', async () => {
  const code = await fsp.mkdtemp(join(tmpdir(), 'pluralign-child-'));
  try {
    transpile(code, ['base/files', 'native/errors', 'training/checkpoint']);
    const script = `
      import { saveCheckpoint, pruneCheckpoints } from './training/checkpoint.js';
      const [dir, first] = process.argv.slice(1);
      for (let step = Number(first); ; step++) {
        const data = new Float32Array(200_000).fill(step);
        await saveCheckpoint(dir, step, [{ name: 'a.f32', data }, { name: 'b.f32', data }], { step });
        console.log('saved ' + step + '.');
        await pruneCheckpoints(dir, 2);
      }`;
    let first = 1;
    for (let round = 0; round < 8; round++) {
      const child = run(code, script, [dir, String(first)]);
      await child.printed(`saved ${first + 1}.`);
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 40));
      child.process.kill('SIGKILL');
      const { output } = await child.ended;
      const saved = Number([...output.matchAll(/saved (\d+)\./g)].at(-1)?.[1]);
      // At least what was reported; one more where the rename was done but not yet reported.
      const checkpoint = await loadLatestCheckpoint(dir, (problem) => {
        throw new Error(problem);
      });
      expect(checkpoint?.step).toBeGreaterThanOrEqual(saved);
      expect(checkpoint?.step).toBeLessThanOrEqual(saved + 1);
      const back = new Float32Array(200_000);
      await checkpoint?.readInto('b.f32', back);
      expect(back.every((value) => value === checkpoint?.step)).toBe(true);
      await cleanCheckpoints(dir);
      expect(await stray()).toEqual([]);
      first = (checkpoint?.step ?? 0) + 1;
    }
  } finally {
    await fsp.rm(code, { recursive: true, force: true });
  }
});
