import * as fsp from 'node:fs/promises';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { makeFolder } from '../lib/base/files.js';
import { loadConfig, resolveConfig } from '../lib/config/index.js';
import { saveCheckpoint } from '../lib/training/checkpoint.js';
import { lockRun } from '../lib/training/lock.js';
import { inspectRunFolder, openRunFolder, requireRun } from '../lib/training/run-folder.js';
import { run, transpile } from './support/child.js';

let dir: string;
let output: string;
beforeEach(async () => {
  dir = await fsp.mkdtemp(join(tmpdir(), 'pluralign-run-'));
  output = join(dir, 'runs', 'one');
});
afterEach(() => fsp.rm(dir, { recursive: true, force: true }));

const config = (sets: string[] = []) =>
  resolveConfig({ method: 'dpo', model: 'm', data: { train: 'x.jsonl' } }, { base: '/data', output, sets });

/** A run that has made a step. */
async function trained() {
  const folder = await openRunFolder(config());
  await saveCheckpoint(folder.dir, 1, [], {});
  await folder.release();
}

describe('run folder', () => {
  test('is made, locked, described and released', async () => {
    const folder = await openRunFolder(config());
    expect(folder).toMatchObject({ dir: output, resumed: false });
    expect(loadConfig(folder.paths.config)).toEqual(config());
    await expect(openRunFolder(config())).rejects.toMatchObject({ code: 'BUSY' });
    await folder.writeSummary({ a: 1 });
    expect(JSON.parse(await fsp.readFile(folder.paths.summary, 'utf8'))).toEqual({ a: 1 });
    await folder.release();
    expect((await fsp.readdir(output)).sort()).toEqual(['config.yaml', 'summary.json']);
  });

  test('folders that cannot be made are refused with the reason', async () => {
    await makeFolder(join(dir, 'a', 'b', 'c'));
    await makeFolder(join(dir, 'a', 'b', 'c'));
    expect((await fsp.stat(join(dir, 'a', 'b', 'c'))).isDirectory()).toBe(true);
    await fsp.symlink(join(dir, 'nowhere', 'there'), join(dir, 'link'));
    await expect(makeFolder(join(dir, 'link', 'x'))).rejects.toMatchObject({ code: 'EEXIST' });
    // Read-only, and a file system such as /proc, which has the folder above and takes none.
    for (const code of ['EROFS', 'ENOENT']) {
      const mkdir = async () => {
        throw Object.assign(new Error(code), { code });
      };
      const fs = { stat: fsp.stat, mkdir: mkdir as unknown as typeof fsp.mkdir };
      await expect(makeFolder(join(dir, 'new', 'er'), fs)).rejects.toMatchObject({ code });
    }
  });

  test('a folder that is no run is refused and left alone', async () => {
    await fsp.mkdir(output, { recursive: true });
    await fsp.writeFile(join(output, 'thesis.tex'), 'x');
    for (const resume of [false, true]) {
      await expect(openRunFolder(config(), { resume })).rejects.toMatchObject({
        code: 'BAD_CONFIG',
        message: expect.stringContaining(`${output} exists and is no run`),
      });
    }
    expect(await fsp.readdir(output)).toEqual(['thesis.tex']);
    await expect(requireRun(output)).rejects.toMatchObject({ code: 'BAD_CONFIG' });
    await expect(requireRun(join(dir, 'none'))).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });

  test("a person's config.yaml is not taken for a run's", async () => {
    await fsp.mkdir(output, { recursive: true });
    await fsp.writeFile(join(output, 'config.yaml'), 'method: dpo\n');
    await expect(openRunFolder(config())).rejects.toMatchObject({ code: 'BAD_CONFIG' });
    expect(await fsp.readFile(join(output, 'config.yaml'), 'utf8')).toBe('method: dpo\n');
  });

  test('a file in its place is refused', async () => {
    await fsp.mkdir(join(dir, 'runs'));
    await fsp.writeFile(output, '');
    await expect(openRunFolder(config())).rejects.toMatchObject({ code: 'BAD_CONFIG' });
  });

  test('an empty folder and a run without a step may be used', async () => {
    await fsp.mkdir(output, { recursive: true });
    await (await openRunFolder(config())).release();
    expect(await inspectRunFolder(output)).toBe('fresh');
    const again = await openRunFolder(config(['train.learning_rate=1']));
    expect(again.resumed).toBe(false);
    await again.release();
    expect(loadConfig(again.paths.config).train.learning_rate).toBe(1);
  });

  test('a run with steps needs --resume', async () => {
    await trained();
    await expect(openRunFolder(config())).rejects.toMatchObject({
      code: 'BAD_CONFIG',
      message: expect.stringContaining('--resume'),
    });
    const folder = await openRunFolder(config(['train.log_every=1']), { resume: true });
    expect(folder).toMatchObject({ resumed: true, changes: [{ path: 'train.log_every', was: 10, now: 1 }] });
    await folder.release();
  });

  test('a resumed run keeps its settings', async () => {
    await trained();
    const before = await fsp.readFile(join(output, 'config.yaml'), 'utf8');
    await expect(openRunFolder(config(['train.seed=1']), { resume: true })).rejects.toMatchObject({
      code: 'BAD_CONFIG',
      message: expect.stringContaining('train.seed: was 0, now 1'),
    });
    expect(await fsp.readFile(join(output, 'config.yaml'), 'utf8')).toBe(before);
    await (await openRunFolder(config(), { resume: true })).release();
  });

  test('--resume without a run starts one', async () => {
    const folder = await openRunFolder(config(), { resume: true });
    expect(folder.resumed).toBe(false);
    await folder.release();
  });
});

describe('lock', () => {
  const dead = { pid: 2 ** 22 + 1, started: '1 x', host: hostname(), token: 't' };
  const write = (holder: unknown) => fsp.writeFile(join(dir, '.lock'), JSON.stringify(holder));

  test('of a process that was killed is taken over', async () => {
    const code = join(dir, 'code');
    transpile(code, ['base/files', 'native/errors', 'training/lock']);
    const script = `
      import { lockRun } from './training/lock.js';
      await lockRun(process.argv[1]);
      console.log('locked');
      setInterval(() => {}, 1000);`;
    const child = run(code, script, [dir]);
    await child.printed('locked');
    await expect(lockRun(dir)).rejects.toMatchObject({
      code: 'BUSY',
      message: expect.stringContaining(`process ${child.process.pid}`),
    });
    child.process.kill('SIGKILL');
    await child.ended;
    await (await lockRun(dir)).release();
  });

  test.runIf(process.platform === 'linux')('of an earlier process with the same number is taken over', async () => {
    await write({ ...dead, pid: process.pid });
    await (await lockRun(dir)).release();
  });

  test('of another machine is respected', async () => {
    await write({ ...dead, host: 'elsewhere' });
    await expect(lockRun(dir)).rejects.toMatchObject({
      code: 'BUSY',
      message: expect.stringContaining('on elsewhere'),
    });
  });

  test('that is dead goes to exactly one of many', async () => {
    for (let round = 0; round < 5; round++) {
      await write(dead);
      const taken = await Promise.allSettled(Array.from({ length: 8 }, () => lockRun(dir)));
      const winners = taken.filter((result) => result.status === 'fulfilled');
      expect(winners).toHaveLength(1);
      for (const result of taken) if (result.status === 'rejected') expect(result.reason.code).toBe('BUSY');
      await winners[0].value.release();
      expect(await fsp.readdir(dir)).toEqual([]);
    }
  });

  test('that is dead is not touched while another process is about to take it', async () => {
    await write(dead);
    await fsp.writeFile(join(dir, '.lock.turn'), '');
    const taken = lockRun(dir);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(JSON.parse(await fsp.readFile(join(dir, '.lock'), 'utf8'))).toEqual(dead);
    await fsp.rm(join(dir, '.lock.turn'));
    await (await taken).release();
  });

  test('is only released by its owner', async () => {
    const lock = await lockRun(dir);
    await write({ ...dead, host: 'elsewhere' });
    await lock.release();
    expect(await fsp.readdir(dir)).toEqual(['.lock']);
  });
});
