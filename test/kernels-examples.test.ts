import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { beforeAll, expect, it } from 'vitest';
import { buildIfStale } from './support/built.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const example = async (name: string, env: Record<string, string> = {}) => {
  const { stdout } = await promisify(execFile)(process.execPath, [`examples/kernels/${name}.mjs`], {
    cwd: root,
    env: { ...process.env, ...env },
  });
  return stdout;
};

beforeAll(() => buildIfStale(['kernels', 'losses', 'native']));

it.each(['generic', undefined])('grouped-lora learns every wish (PLURALIGN_ISA=%s)', async (isa) => {
  const out = await example('grouped-lora', isa ? { PLURALIGN_ISA: isa } : {});
  const losses = Array.from(out.matchAll(/loss (\S+)/g), (match) => Number(match[1]));
  expect(losses).toHaveLength(4);
  expect(losses[0]).toBeGreaterThan(0.1);
  expect(losses.at(-1)).toBeLessThan(1e-3 * losses[0]);
});

it('losses prints every loss and its gradient', async () => {
  const out = await example('losses', { PLURALIGN_ISA: 'reference' });
  expect(out).toContain('kernels run on reference');
  expect(out.match(/loss \d+\.\d{4}/g)).toHaveLength(5);
  expect(out).not.toContain('NaN');
});
