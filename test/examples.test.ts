import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { beforeAll, expect, it } from 'vitest';
import { buildIfStale } from './support/built.js';

const root = fileURLToPath(new URL('..', import.meta.url));

beforeAll(() => buildIfStale(['training', 'model', 'adapters', 'data', 'losses', 'native', 'features']));

it('examples/train-from-script.mjs trains in one call and by parts', async () => {
  const { stdout } = await promisify(execFile)(process.execPath, ['examples/train-from-script.mjs'], { cwd: root });
  const losses = Array.from(stdout.matchAll(/step \d: loss (\S+),/g), (match) => Number(match[1]));
  expect(losses).toHaveLength(5);
  expect(losses[0]).toBeCloseTo(Math.LN2, 4);
  expect(losses[4]).toBeLessThan(0.5 * losses[0]);
});

it('examples/p-share-lora finds the planted subspace, as fast in N as the theory says, and beats one for all and one for each', async () => {
  const simulate = async (...argv: string[]) =>
    (await promisify(execFile)(process.execPath, ['examples/p-share-lora/simulate.mjs', ...argv], { cwd: root }))
      .stdout;
  const ratio = /shared \/ better of local and global: (\S+)/.exec(await simulate('compare', '1'));
  expect(Number(ratio?.[1])).toBeLessThan(0.3);
  const slope = /^slope (\S+)/m.exec(await simulate('slope', '2'));
  expect(Number(slope?.[1])).toBeGreaterThan(-0.6);
  expect(Number(slope?.[1])).toBeLessThan(-0.4);
}, 180_000);
