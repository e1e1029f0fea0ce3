// Merging adapters: every method against a dense float64 reference of its formula, truncation, and what is refused.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openExpert } from '../lib/merge/expert.js';
import { type MergeOptions, mergeExperts, methodNames } from '../lib/merge/index.js';
import { mergeMethods } from '../lib/merge/methods.js';
import {
  all,
  type Expert,
  expert,
  merged,
  modules,
  one,
  path,
  settings,
  shapes,
  two,
  updates,
  weights,
} from './support/merge-experts.js';
import { combination, type Dense, distance, formulas, norm, reference } from './support/merge-reference.js';

describe('every method, before truncation, is its formula in float64', () => {
  it('has a reference for each', () => {
    expect([...Object.keys(formulas), 'factor_average'].sort()).toEqual([...methodNames].sort());
  });

  it.each(Object.keys(formulas))('%s', async (method) => {
    const { experts: count, unweighted, keep, combine } = mergeMethods[method];
    const folders = (await all).slice(0, count ?? 3);
    const given = unweighted
      ? undefined
      : Object.fromEntries(folders.map(({ name }) => [name, weights[name as 'one']]));
    // A rank that leaves nothing out where the result is of full rank; the exact one elsewhere.
    const rank = keep !== 'all' || combine === 'elect' ? 20 : method === 'svd' ? 10 : undefined;
    const report = await merged(folders, method, { weights: given, rank });
    const taus = await Promise.all(folders.map(({ dir }) => updates(dir)));
    const got = await updates(report.output);
    const lambda = mergeMethods[method].uses.includes('lambda') ? settings.lambda : 1;
    for (const module of modules) {
      const w = folders.map(({ name }) => (given ? given[name] : 1));
      const expected = reference(
        method,
        taus.map((t) => t.get(module)!),
        w,
        { ...settings, lambda },
        module,
      );
      expect(distance(got.get(module)!, expected), module).toBeLessThan(1e-6);
      expect(report.tensors.find((t) => t.name === module)!.norm / norm(expected)).toBeCloseTo(1, 6);
    }
    expect(report.kind).toBe('adapter');
    expect(report.error / report.norm).toBeLessThan(1e-7);
  });

  it('two experts are all that slerp needs, and multi_slerp walks the same arc', async () => {
    // Equal norms, so that the two differ in nothing else.
    const pair = [await one, await expert('equal', { r: 2, alpha: 3 }, { seed: 3 })];
    const taus = await Promise.all(pair.map(({ dir }) => updates(dir)));
    for (const module of modules) {
      const [a, b] = taus.map((t) => t.get(module)!);
      const scaled = { ...b, x: b.x.map((v) => (v * norm(a)) / norm(b)) };
      const w = [0.3, 0.7];
      const arc = reference('slerp', [a, scaled], w, settings, module);
      expect(distance(reference('multi_slerp', [a, scaled], w, settings, module), arc)).toBeLessThan(1e-9);
    }
  });
});

describe('the true average of updates', () => {
  it('is what concatenation and full-rank SVD write, with rsLoRA as without', async () => {
    const experts = await all;
    const taus = await Promise.all(experts.map(({ dir }) => updates(dir)));
    for (const [method, rank] of [
      ['cat', undefined],
      ['svd', 12],
      ['linear', undefined],
    ] as const) {
      const report = await merged(experts, method, { rank });
      const got = await updates(report.output);
      for (const module of modules) {
        const truth = combination(
          taus.map((t) => t.get(module)!),
          [1 / 3, 1 / 3, 1 / 3],
        );
        expect(distance(got.get(module)!, truth), `${method} ${module}`).toBeLessThan(1e-6);
      }
    }
  });

  it('is missed by factor_average, which says by how much', async () => {
    const pair = [await expert('plain', { r: 2, alpha: 4 }), await expert('other', { r: 2, alpha: 4 })];
    const warnings: string[] = [];
    const report = await merged(pair, 'factor_average', { onWarning: (text) => warnings.push(text) });
    expect(warnings).toHaveLength(1);
    const taus = await Promise.all(pair.map(({ dir }) => updates(dir)));
    const got = await updates(report.output);
    for (const { name, norm: size, error } of report.tensors) {
      const truth = combination(
        taus.map((t) => t.get(name)!),
        [0.5, 0.5],
      );
      expect(error / size).toBeGreaterThan(0.3);
      expect(error / size).toBeCloseTo(distance(got.get(name)!, truth), 5);
      expect(size).toBeCloseTo(norm(truth), 4);
    }
    await expect(merged(await all, 'factor_average')).rejects.toThrow(/rank 2 and scale 1.5 in 'one', 3 and/);
  });

  it('of one expert at weight one is that expert', async () => {
    const report = await merged([await two], 'cat');
    const [got, own] = await Promise.all([updates(report.output), updates((await two).dir)]);
    for (const module of modules) expect(distance(got.get(module)!, own.get(module)!)).toBeLessThan(2e-7);
    const hot = await merged(await all, 'cat', { weights: { one: 0, two: 1, three: 0 }, output: path('one-hot') });
    expect(hot.tensors.every((t) => t.rank === 3)).toBe(true);
    for (const [module, tau] of await updates(hot.output)) expect(distance(tau, own.get(module)!)).toBeLessThan(2e-7);
  });
});

/** Singular values by Jacobi rotations of the columns: another way than the one under test. */
function singularValues({ rows, cols, x }: Dense): number[] {
  const a = Array.from({ length: cols }, (_, j) => Float64Array.from({ length: rows }, (_, i) => x[i * cols + j]));
  const dot = (p: Float64Array, q: Float64Array) => p.reduce((sum, v, i) => sum + v * q[i], 0);
  for (let sweep = 0; sweep < 30; sweep++)
    for (let p = 0; p < cols; p++)
      for (let q = p + 1; q < cols; q++) {
        const g = dot(a[p], a[q]);
        if (g === 0) continue;
        const zeta = (dot(a[q], a[q]) - dot(a[p], a[p])) / (2 * g);
        const t = Math.sign(zeta || 1) / (Math.abs(zeta) + Math.hypot(1, zeta));
        const c = 1 / Math.hypot(1, t);
        for (let i = 0; i < rows; i++) {
          const [u, v] = [a[p][i], a[q][i]];
          a[p][i] = c * (u - t * v);
          a[q][i] = c * (t * u + v);
        }
      }
  return a.map((column) => Math.sqrt(dot(column, column))).sort((u, v) => v - u);
}

describe('the best rank', () => {
  it.each([
    'svd',
    'linear',
    'cat',
    'ties',
    'breadcrumbs',
  ])('%s loses exactly the small singular values', async (method) => {
    const experts = await all;
    const taus = await Promise.all(experts.map(({ dir }) => updates(dir)));
    const report = await merged(experts, method, { rank: 2 });
    const got = await updates(report.output);
    const lambda = mergeMethods[method].uses.includes('lambda') ? settings.lambda : 1;
    let [total, lost] = [0, 0];
    for (const { name, rank, norm: size, error } of report.tensors) {
      const full = reference(
        method,
        taus.map((t) => t.get(name)!),
        [1 / 3, 1 / 3, 1 / 3],
        { ...settings, lambda },
        name,
      );
      const tail = Math.hypot(...singularValues(full).slice(2));
      expect(rank).toBe(2);
      expect(size / norm(full)).toBeCloseTo(1, 6);
      expect(error / tail).toBeCloseTo(1, 6);
      expect((distance(got.get(name)!, full) * norm(full)) / tail).toBeCloseTo(1, 5);
      total += size ** 2;
      lost += error ** 2;
    }
    expect(report.norm).toBeCloseTo(Math.sqrt(total), 6);
    expect(report.error).toBeCloseTo(Math.sqrt(lost), 6);
  });

  it('of svd is the largest of the experts, as in PEFT, and a sum of ranks over the width is held in as few', async () => {
    const experts = await all;
    const ranks = (await merged(experts, 'svd')).tensors.map((t) => [t.name, t.rank]);
    expect(Object.fromEntries(ranks)).toEqual({ [modules[0]]: 3, [modules[1]]: 4, [modules[2]]: 3 });
    const many = await Promise.all([1, 2, 3, 4, 5].map((i) => expert(`many${i}`, { r: 3, alpha: 3 }, { seed: i })));
    const report = await merged(many, 'cat');
    expect(report.tensors.map((t) => t.rank)).toEqual([9, 9, 9]);
    const taus = await Promise.all(many.map(({ dir }) => updates(dir)));
    for (const [module, tau] of await updates(report.output))
      expect(
        distance(
          tau,
          combination(
            taus.map((t) => t.get(module)!),
            [0.2, 0.2, 0.2, 0.2, 0.2],
          ),
        ),
      ).toBeLessThan(1e-6);
  });

  it('of an update that is zero is a factor of zeros', async () => {
    const zero = await expert(
      'zero',
      { r: 2 },
      {
        spoil: (t) => {
          for (const module of modules) t.get(`${module}.lora_B`)!.data.fill(0);
        },
      },
    );
    for (const method of ['svd', 'ties']) {
      const report = await merged(
        [zero, zero].map((e, i) => ({ ...e, name: `z${i}` })),
        method,
        { rank: 2 },
      );
      expect(report.norm).toBe(0);
      for (const tau of (await updates(report.output)).values()) expect(norm(tau)).toBe(0);
    }
  });
});

describe('random methods', () => {
  it('draw by seed, expert and tensor', async () => {
    const experts = await all;
    const of = async (seed: number, output: string) => {
      const { output: dir } = await merged(experts, 'dare_linear', { rank: 9, seed, output: path(output) });
      return readFileSync(join(dir, 'adapter_model.safetensors')).toString('latin1');
    };
    const [a, again, b] = [await of(1, 'seed-a'), await of(1, 'seed-again'), await of(2, 'seed-b')];
    expect(again === a).toBe(true);
    expect(b === a).toBe(false);
  });
});

describe('refusals', () => {
  const refuse = async (options: Partial<MergeOptions> & { experts: Expert[] }, code: string, text: RegExp) =>
    await expect(mergeExperts({ method: 'cat', output: path('refused'), ...options })).rejects.toMatchObject({
      code,
      message: expect.stringMatching(text),
    });

  it('weights', async () => {
    const experts = await all;
    const bad = (w: Record<string, unknown>, text: RegExp) =>
      refuse({ experts, weights: w as Record<string, number> }, 'BAD_ARGUMENT', text);
    await bad({ ...weights, four: 1 }, /no expert 'four'; the experts are one, two, three/);
    await bad({ one: 1, two: 1 }, /'three' has none/);
    await bad({ ...weights, two: Number.NaN }, /'two' is null|'two' is NaN/);
    await bad({ ...weights, two: 'x' }, /'two' is "x", expected a number/);
    await bad({ one: 0, two: 0, three: 0 }, /all are zero/);
    await refuse({ experts, method: 'linear', weights: { one: 1, two: -1, three: 0 } }, 'BAD_ARGUMENT', /add up to 0/);
  });

  it('methods and settings', async () => {
    const experts = await all;
    await refuse({ experts, method: 'dareties' }, 'BAD_ARGUMENT', /did you mean dare_ties/);
    await refuse({ experts, method: 'ties' }, 'BAD_ARGUMENT', /not of low rank; give --rank R .* or --model/);
    await refuse({ experts, density: 0.5 }, 'BAD_ARGUMENT', /--density: cat does not take it/);
    await refuse({ experts, method: 'ties', density: 1.5 }, 'BAD_ARGUMENT', /--density: found 1.5/);
    await refuse({ experts, method: 'della', density: 0.95 }, 'BAD_ARGUMENT', /--epsilon/);
    await refuse({ experts, method: 'slerp' }, 'BAD_ARGUMENT', /between two experts, found 3/);
    await refuse({ experts, method: 'model_stock', weights }, 'BAD_ARGUMENT', /counts all experts alike/);
    await refuse({ experts, rank: 0 }, 'BAD_ARGUMENT', /--rank/);
    await refuse({ experts, as: 'model' }, 'BAD_ARGUMENT', /needs its base/);
    await refuse({ experts: [] }, 'BAD_ARGUMENT', /at least one/);
    await refuse({ experts: [experts[0], experts[0]] }, 'BAD_ARGUMENT', /two experts are named 'one'/);
    await refuse({ experts, output: experts[1].dir }, 'BAD_ARGUMENT', /which is merged/);
  });

  it('adapters of other bases, targets or shapes, by name', async () => {
    const first = await expert('on-a', {}, { base: 'owner/model-a' });
    await refuse(
      { experts: [first, await expert('on-b', {}, { base: 'owner/model-b' })] },
      'BAD_ARGUMENT',
      /'on-a' and 'on-b' are of different bases: owner\/model-a and owner\/model-b/,
    );
    const { 'model.layers.1.self_attn.q_proj': _, ...fewer } = shapes;
    await refuse(
      { experts: [await one, await expert('fewer', {}, { shapes: fewer })] },
      'BAD_SHAPE',
      /only 'one' adapts model.layers.1.self_attn.q_proj/,
    );
    const wider = { ...shapes, 'model.layers.0.mlp.down_proj': [9, 21] as [number, number] };
    await refuse(
      { experts: [await one, await expert('wider', {}, { shapes: wider })] },
      'BAD_SHAPE',
      /'one' and 'wider' differ in shape: model.layers.0.mlp.down_proj is \[9, 20\] and \[9, 21\]/,
    );
  });

  it('broken files', async () => {
    const broken = await expert('broken', { r: 2 });
    const file = join(broken.dir, 'adapter_model.safetensors');
    const bytes = readFileSync(file);
    bytes.writeFloatLE(Number.NaN, bytes.length - 4);
    writeFileSync(file, bytes);
    await refuse(
      { experts: [await one, broken] },
      'BAD_FILE',
      /q_proj.lora_B.weight has NaN at row 11, column 1; nothing was merged/,
    );
    const config = join((await expert('rank', { r: 2 })).dir, 'adapter_config.json');
    writeFileSync(config, readFileSync(config, 'utf8').replace('"r": 2', '"r": 3'));
    await expect(openExpert({ name: 'rank', dir: path('rank') })).rejects.toThrow(
      /lora_A.weight has shape \[2, \d+\]; adapter_config.json says rank 3/,
    );
    mkdirSync(path('empty'), { recursive: true });
    await refuse({ experts: [{ name: 'empty', dir: path('empty') }] }, 'NOT_FOUND', /neither an adapter/);
  });
});
