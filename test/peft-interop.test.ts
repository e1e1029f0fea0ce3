// Adapters that are trained here, loaded and scored by PyTorch with PEFT. Needs a Python that has bench/peers/requirements.txt,
// named in PLURALIGN_PYTHON; skipped without one.
import { spawnSync } from 'node:child_process';
import { cpSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { fixture, goldenConfig, program, root, scratch, trained } from './support/runs.js';

const python = process.env.PLURALIGN_PYTHON;
const { path } = scratch();

interface Scored {
  policies: string[];
  rows: Record<'logps' | 'rewards', Record<string, number[]>>[];
}

function ofPeft(model: string, adapter: string, rows: string): Scored {
  const script = join(root, 'bench/peers/check_adapter.py');
  const { status, stdout, stderr } = spawnSync(python!, [script, model, adapter, rows], { encoding: 'utf8' });
  // transformers reports a base without a reward head; PEFT would warn of keys that it lacks or does not know.
  expect(stderr).not.toMatch(/adapter keys/i);
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout.slice(stdout.indexOf('{"policies"')));
}

async function ofOurs(model: string, adapter: string, rows: string): Promise<Scored> {
  const argv = ['--model', model, '--adapter', adapter, '--data', rows, '--dtype', 'float32', '--json'];
  const { status, stdout, stderr } = await program('score', ...argv);
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout);
}

function expectSame(ours: Scored, theirs: Scored): void {
  expect(ours.policies).toEqual(theirs.policies);
  expect(ours.rows).toHaveLength(theirs.rows.length);
  ours.rows.forEach((row, i) => {
    expect(Object.keys(row)).toEqual(Object.keys(theirs.rows[i]));
    for (const [key, policies] of Object.entries(row))
      for (const [policy, values] of Object.entries(policies))
        values.forEach((value, c) => {
          const expected = theirs.rows[i][key as 'logps'][policy][c];
          expect(Math.abs(value - expected), `row ${i}, ${policy}, completion ${c}`).toBeLessThan(1e-4);
        });
  });
}

describe.skipIf(!python)('PEFT scores what was trained here alike (PLURALIGN_PYTHON)', () => {
  it.each([
    ['llama-old', 'dpo', { r: 4, alpha: 8 }],
    ['llama3-rope', 'dpo', null],
    ['qwen3', 'dpo', { r: 3, targets: ['q_proj', 'down_proj'], rslora: true, rank_pattern: { q_proj: 5 } }],
    ['patterns', 'dpo', null],
    ['mistral', 'dpo', { share: 'core' as const, per: 'all' as const, r: 4 }],
    ['reward', 'reward', null],
    ['reward', 'reward', { r: 4 }],
  ] as const)('%s, %s, %j', async (name, method, settings) => {
    const f = fixture(name);
    const adapter = settings
      ? { ...settings, targets: 'targets' in settings ? [...settings.targets] : undefined }
      : undefined;
    // A model folder without a path of this machine in its name, as a user would move it.
    const model = path(`model-${name}`);
    cpSync(f.model, model, { recursive: true });
    const { output } = await trained(
      goldenConfig({ ...f, model }, path(`${name}-${method}-${settings ? 'new' : 'on'}`), {
        method,
        ...(adapter ? { adapter } : {}),
        train: { steps: 4, learning_rate: 0.01 },
      }),
    );
    const saved = join(output, 'adapter');
    const ours = await ofOurs(model, saved, f.prefs);
    expectSame(ours, ofPeft(model, saved, f.prefs));
    // It has learnt something, so that the comparison is not one of bases.
    if (method === 'dpo') expect(ours.rows[0].logps.adapter).not.toEqual(ours.rows[0].logps.base);
  });

  it.each([
    ['reward', 'reward', 'b'],
    ['reward', 'reward', 'vector'],
    ['qwen3', 'dpo', 'core'],
    ['mistral', 'dpo', 'a'],
  ] as const)('%s, %s: an annotator’s adapter, share %s', async (name, method, share) => {
    const f = fixture(name);
    const model = path(`model-${name}`);
    cpSync(f.model, model, { recursive: true });
    const { output } = await trained(
      goldenConfig({ ...f, model }, path(`voters-${name}-${share}`), {
        method,
        adapter: { share, r: 4 },
        train: { steps: 6, learning_rate: 0.02 },
      }),
    );
    const saved = path(`u1-${name}-${share}`, 'adapter');
    const { status, stderr } = await program('export', '--run', output, '--annotator', 'u1', '--output', saved);
    expect(status, stderr).toBe(0);
    const theirs = ofPeft(model, saved, f.prefs);
    expectSame(await ofOurs(model, saved, f.prefs), theirs);
    // The run itself says the same of this annotator's rows, from the shared factors.
    const ran = await program('score', '--run', output, '--data', f.prefs, '--dtype', 'float32', '--json');
    const key = method === 'dpo' ? 'logps' : 'rewards';
    (JSON.parse(ran.stdout) as Scored).rows.forEach((row, i) => {
      if (f.rows[i].annotator !== 'u1') return;
      row[key].adapter.forEach((value, c) => {
        expect(Math.abs(value - theirs.rows[i][key].adapter[c])).toBeLessThan(1e-4);
      });
    });
  });
});
