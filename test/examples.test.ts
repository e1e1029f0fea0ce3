import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { beforeAll, expect, it } from 'vitest';
import { Random } from '../lib/base/random.js';
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

it('examples/voter-policies takes nothing from a folder that was made with other settings', async () => {
  const output = mkdtempSync(join(tmpdir(), 'pluralign-seed-'));
  const seed = (...argv: string[]) =>
    promisify(execFile)(
      process.execPath,
      ['examples/voter-policies/seed.mjs', '--seed', '0', '--output', output, '--text', 'missing', ...argv],
      { cwd: root },
    );
  await expect(seed()).rejects.toThrow(/missing/);
  await expect(seed('--pairs', 'alike')).rejects.toThrow(/--pairs: found alike, but .* is of random; give another/);
  rmSync(join(output, 'seed-0/settings.json'));
  writeFileSync(join(output, 'seed-0/items.jsonl'), '');
  await expect(seed()).rejects.toThrow(/no settings.json that says of what/);
  rmSync(output, { recursive: true });
});

it('examples/voter-policies finds the reward of a confidence set under which the best policy gains least', async () => {
  const { fitted, leastOf, tableOf } = await import(
    new URL('../examples/voter-policies/choices.mjs', import.meta.url).href
  );
  const random = new Random(8);
  const features = Array.from({ length: 24 }, () => Array.from({ length: 8 }, () => random.normal()));
  const votes = Array.from({ length: 24 }, (_, v) => ({
    u: v % 2,
    chosen: random.below(12),
    rejected: 12 + random.below(12),
  }));
  const table = tableOf(features);
  const population = await fitted(table, votes, 2, 'local, l2 4');
  const groups = [0, 1, 2, 3].map((g) => [0, 1, 2, 3, 4, 5].map((i) => 6 * g + i));
  const w = population.own(1) as Float64Array;
  const beta = 0.1;
  // β log E exp(reward / β) beside the base's mean, mean over prompts.
  const gain = (shift: ArrayLike<number>) => {
    const sum = groups.map((group) => {
      const r = group.map((i) => features[i].reduce((total, x, c) => total + x * (w[c] - shift[c]), 0));
      const middle = r.reduce((a, b) => a + b, 0) / r.length;
      return beta * Math.log(r.reduce((total, v) => total + Math.exp((v - middle) / beta), 0) / r.length);
    });
    return sum.reduce((a, b) => a + b, 0) / sum.length;
  };
  const { factor } = population.posterior(1) as { factor: Float64Array };
  /** L⁻ᵀ s: a member of the set of radius ‖s‖, as its difference from the mode. */
  const member = (s: number[]) => {
    const x = [...s];
    for (let i = 7; i >= 0; i--) {
      for (let p = i + 1; p < 8; p++) x[i] -= factor[p * 8 + i] * x[p];
      x[i] /= factor[i * 8 + i];
    }
    return x;
  };
  expect(Array.from(leastOf(population, table, groups, 1, 0), Math.abs)).toEqual(new Array(8).fill(0));
  for (const radius of [0.5, 2]) {
    const shift = leastOf(population, table, groups, 1, radius);
    // ‖Lᵀ shift‖ ≤ radius: it is a member.
    const s = shift.map((_: number, i: number) => {
      let sum = 0;
      for (let p = i; p < 8; p++) sum += factor[p * 8 + i] * shift[p];
      return sum;
    });
    expect(Math.hypot(...s)).toBeLessThan(radius * (1 + 1e-9));
    const least = gain(shift);
    expect(least).toBeLessThan(gain(new Float64Array(8)));
    for (let draw = 0; draw < 400; draw++) {
      const direction = Array.from({ length: 8 }, () => random.normal());
      const size = Math.hypot(...direction);
      expect(gain(member(direction.map((x) => (radius * x) / size)))).toBeGreaterThan(least);
    }
  }
});
