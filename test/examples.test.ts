import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { beforeAll, expect, it } from 'vitest';
import { buildIfStale } from './support/built.js';

const root = fileURLToPath(new URL('..', import.meta.url));

beforeAll(() => buildIfStale(['training', 'model', 'adapters', 'data', 'losses', 'native']));

it('examples/train-from-script.mjs trains in one call and by parts', async () => {
  const { stdout } = await promisify(execFile)(process.execPath, ['examples/train-from-script.mjs'], { cwd: root });
  const losses = Array.from(stdout.matchAll(/step \d: loss (\S+),/g), (match) => Number(match[1]));
  expect(losses).toHaveLength(5);
  expect(losses[0]).toBeCloseTo(Math.LN2, 4);
  expect(losses[4]).toBeLessThan(0.5 * losses[0]);
});
