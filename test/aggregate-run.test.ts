// From a run over types to one policy: sampled once, every rule, the trained policy, and what the report then shows.
import { existsSync, readFileSync, statSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { fixture, program, scratch, trained, writeRows } from './support/runs.js';

const { path } = scratch();
const f = fixture('llama-old');
const runtime = ['--dtype', 'float32', '--threads', '1'];
const quick = ['--max-new-tokens', '6', '--samples', '2'];
const json = async (...argv: string[]) => {
  const { status, stdout, stderr } = await program(...argv, ...runtime, '--json');
  expect(stderr).toBe('');
  expect(status).toBe(0);
  return JSON.parse(stdout);
};
const run = path('run');
const aggregate = (...argv: string[]) => json('aggregate', run, ...quick, ...argv);

beforeAll(async () => {
  // Half of the annotators vote the other way round.
  const rows = f.rows.flatMap((row, i) => [
    { ...row, annotator: `a${i % 3}` },
    { ...row, chosen: row.rejected, rejected: row.chosen, annotator: `b${i % 3}` },
  ]);
  await trained({
    method: 'em-dpo',
    model: f.model,
    data: { train: writeRows(path('rows.jsonl'), rows) },
    adapter: { r: 2 },
    em: { types: 2, rounds: 2, restarts: 1, init: 'random', compare_one: false },
    train: { learning_rate: 0.02, batch_size: 4, dtype: 'float32', threads: 1, save_every: null },
    output: run,
  });
});

describe('aggregate RUN', () => {
  it('weighs the policies of the run by every rule, on one set of samples', async () => {
    const first = await aggregate('--output', path('mix'));
    expect(first.types).toEqual(['type_1', 'type_2']);
    expect(first.rule).toBe('min-max-regret');
    expect(first.sampling).toMatchObject({ per_prompt: 2, max_new_tokens: 6, seed: 0 });
    expect(existsSync(path('mix', 'type_1', 'adapter_model.safetensors'))).toBe(true);
    const least = Math.min(...first.rules.map((rule: { worst_regret: number }) => rule.worst_regret));
    expect(first.worst_regret).toBeLessThanOrEqual(least + 1e-9);

    // Files that are newer than the samples, but the same, are no reason to sample again: what is kept is read.
    const kept = JSON.parse(readFileSync(join(run, 'aggregation.json'), 'utf8'));
    utimesSync(join(run, 'adapter/type_1/adapter_model.safetensors'), new Date(), new Date());
    const mean = await aggregate('--rule', 'mean');
    expect(mean.L).toEqual(first.L);
    expect(JSON.parse(readFileSync(join(run, 'aggregation.json'), 'utf8')).key).toBe(kept.key);
    expect((await aggregate('--seed', '5')).L).not.toEqual(first.L);

    const page = readFileSync(join(run, 'report.html'), 'utf8');
    expect(page).toContain('One policy for all types');
    const scored = await json('score', '--run', run, '--adapter', path('mix'), '--data', f.prefs);
    expect(scored.policies).toEqual(['base', 'type_1', 'type_2', 'mix']);
    const [w] = first.weights;
    for (const { logps } of scored.rows) {
      const both = w * Math.exp(logps.type_1[0]) + (1 - w) * Math.exp(logps.type_2[0]);
      expect(logps.mix[0]).toBeCloseTo(Math.log(both), 6);
    }
  });

  it('trains one policy for the worst type', async () => {
    const argv = ['--rule', 'trained', '--rounds', '3', '--steps', '2', '--output', path('trained')];
    const found = await aggregate(...argv);
    expect(found.rule).toBe('trained');
    expect(found.others.map((other: { name: string }) => other.name)).toEqual(['trained']);
    expect(found.regrets).toEqual(found.others[0].regrets);
    expect(found.weights.reduce((a: number, b: number) => a + b)).toBeCloseTo(1, 9);
    const { rounds } = JSON.parse(readFileSync(path('trained', 'rounds.json'), 'utf8'));
    expect(rounds).toHaveLength(3);
    expect(rounds[0].weights).toEqual([0.5, 0.5]);
    // The second round leans to whom the first left worse off.
    const worse = rounds[0].regrets[0] > rounds[0].regrets[1] ? 0 : 1;
    expect(rounds[1].weights[worse]).toBeGreaterThan(0.5);
    const before = statSync(path('trained', 'adapter_model.safetensors')).size;
    expect(before).toBeGreaterThan(0);
    const scored = await json('score', '--model', f.model, '--adapter', path('trained'), '--data', f.prefs);
    expect(scored.rows[0].logps.trained).not.toEqual(scored.rows[0].logps.base);
  });

  it('says what it needs', async () => {
    const fail = async (...argv: string[]) => {
      const { status, stderr } = await program('aggregate', ...argv, ...runtime);
      expect(status).toBe(2);
      return stderr;
    };
    expect(await fail(run, '--rule', 'trained')).toContain('into --output DIR; give both');
    expect(await fail('--matrix', 'm.json', '--rule', 'trained')).toContain('needs policies that can be sampled');
    expect(await fail(run, ...quick, '--output', f.model)).toContain('is not empty and no mixture');
    expect(await fail(path('nowhere'))).toContain('nowhere');
    expect(await fail('--run', path('nowhere'))).toContain('nowhere');
    expect(await fail(run, '--run', run)).toContain('expected one run');
  });
});
