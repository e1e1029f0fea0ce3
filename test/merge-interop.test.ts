// Merged adapters, loaded by PyTorch with PEFT: their update is the true one, also where PEFT's own merge is not. Needs a
// Python that has bench/peers/requirements.txt, named in PLURALIGN_PYTHON; skipped without one.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { savePeft } from '../lib/adapters/peft.js';
import { mergeExperts } from '../lib/merge/index.js';
import { fixtures, randomBank, shake, tinyModel } from './support/engine.js';
import { root, scratch } from './support/runs.js';

const python = process.env.PLURALIGN_PYTHON;
const { path } = scratch();

describe.skipIf(!python)('PEFT loads what was merged here (PLURALIGN_PYTHON)', () => {
  it.each([
    ['plain LoRA of one rank', { r: 4, alpha: 8 }, { r: 4, alpha: 8 }],
    ['rsLoRA of unequal rank and alpha', { r: 4, alpha: 8, rslora: true }, { r: 3, alpha: 5, rslora: true }],
    ['patterns', { r: 4, alpha: 8, rankPattern: { q_proj: 2 } }, { r: 2, alpha: 5, alphaPattern: { down_proj: 9 } }],
  ])('%s', async (name, first, second) => {
    using model = await tinyModel('llama-old');
    const experts = ['x', 'y'].map((n) => ({ name: n, dir: path(name, n) }));
    await savePeft(randomBank(model, ['x'], first), 'x', experts[0].dir);
    await savePeft(shake(randomBank(model, ['y'], second), 6), 'y', experts[1].dir);
    const weights = { x: 0.5, y: 0.5 };
    for (const [method, rank] of [['cat'], ['linear'], ['svd', 8]] as [string, number?][])
      await mergeExperts({ experts, weights, method, rank, output: path(name, method) });
    const script = join(root, 'bench/peers/check_merge.py');
    const argv = [script, join(fixtures, 'parity-llama-old/model'), '--weights', 'x=0.5,y=0.5', '--svd-rank', '8'];
    for (const e of experts) argv.push('--adapter', `${e.name}=${e.dir}`);
    for (const method of ['cat', 'linear', 'svd']) argv.push('--ours', `${method}=${path(name, method)}`);
    const { status, stdout, stderr } = spawnSync(python!, argv, { encoding: 'utf8' });
    if (status !== 0) throw new Error(stderr);
    expect(stderr).not.toMatch(/adapter keys/i);
    const result = JSON.parse(stdout.slice(stdout.indexOf('{"peft"')));
    console.log(name, JSON.stringify(result));
    for (const distance of Object.values(result.ours)) expect(distance).toBeLessThan(1e-6);
  });
});
