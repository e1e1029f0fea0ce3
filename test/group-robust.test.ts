// Training for the worst of known groups, and for several wishes at once: the formulas, and runs that use them.
import { readFileSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { resolveConfig, resolveLoss } from '../lib/config/index.js';
import { pack } from '../lib/data/pack.js';
import type { Group } from '../lib/data/types.js';
import { evaluateModel, Model, savePeft } from '../lib/index.js';
import { sumTokens } from '../lib/losses/index.js';
import { DpoObjective } from '../lib/methods/dpo.js';
import { GroupRobustObjective } from '../lib/methods/group-robust.js';
import { objectiveOf } from '../lib/methods/index.js';
import type { Scores } from '../lib/methods/objective.js';
import { MarginReference } from '../lib/training/modpo.js';
import { openReference } from '../lib/training/setup.js';
import { evaluateGroups } from '../lib/training/step.js';
import { randomBank, randomGroups } from './support/engine.js';
import { fixture, goldenConfig, scratch, trained, writeRows } from './support/runs.js';

const { path } = scratch();
const f = fixture('llama-old');

/** Pairs of one-token completions whose log-ratios differ by `margins`. */
function scoresOf(margins: number[], groups: (string | undefined)[], weights = margins.map(() => 1)): Scores {
  const all = margins.map(
    (_, index): Group => ({
      index,
      kind: 'pair',
      prompt: Int32Array.of(1),
      completions: [Int32Array.of(2), Int32Array.of(3)],
      ranking: [0, 1],
      group: groups[index],
      weight: weights[index],
      origin: { file: 'rows.jsonl', line: index + 1 },
    }),
  );
  return {
    groups: all,
    groupOffsets: Int32Array.from({ length: margins.length + 1 }, (_, i) => 2 * i),
    offsets: Int32Array.from({ length: 2 * margins.length + 1 }, (_, i) => i),
    values: Float32Array.from(margins.flatMap((m) => [m, 0])),
    reference: new Float64Array(2 * margins.length),
  };
}

const inner = (type: 'sigmoid' | 'ipo' | 'aot' = 'sigmoid') =>
  new DpoObjective(resolveLoss({ type, beta: 0.5 }, 'dpo'));
const sigmoidLoss = (margin: number) => Math.log1p(Math.exp(-0.5 * margin));

describe('group-robust losses', () => {
  const options = { step_size: 0.7, adjustment: 0.4 };
  const names = ['a', 'a', 'a', 'b'];
  const margins = [1, 2, 3, -2];

  it('weigh groups by exponentiated gradient, from step to step', () => {
    const scores = scoresOf(margins, names);
    const robust = new GroupRobustObjective(inner(), options);
    robust.check(scores.groups);
    const totals = robust.totals(scores.groups);
    const expected = { a: 0.5, b: 0.5 };
    for (let step = 0; step < 3; step++) {
      const { metrics, loss, gradient } = robust.loss(scores, totals, true);
      const L = { a: (sigmoidLoss(1) + sigmoidLoss(2) + sigmoidLoss(3)) / 3, b: sigmoidLoss(-2) };
      const a = expected.a * Math.exp(0.7 * (L.a + 0.4 / Math.sqrt(3)));
      const b = expected.b * Math.exp(0.7 * (L.b + 0.4));
      expected.a = a / (a + b);
      expected.b = b / (a + b);
      expect(metrics['group_loss/a']).toBeCloseTo(L.a, 6);
      expect(metrics['group_loss/b']).toBeCloseTo(L.b, 6);
      expect(metrics['group_weight/b']).toBeCloseTo(expected.b, 6);
      expect(loss).toBeCloseTo(expected.a * L.a + expected.b * L.b, 6);
      // d(α_a L_a)/d margin of a row of a is α_a/3 · −β σ(−β m).
      expect(gradient[0]).toBeCloseTo(((expected.a / 3) * -0.5) / (1 + Math.exp(0.5)), 6);
      expect(gradient[6]).toBeCloseTo((expected.b * -0.5) / (1 + Math.exp(-1)), 6);
    }
    expect(expected.b).toBeGreaterThan(0.7);
  });

  it('estimate a group by its share of the data, so that steps agree with the whole on average', () => {
    const whole = scoresOf(margins, names);
    const robust = new GroupRobustObjective(inner('ipo'), { step_size: 1e-9, adjustment: 0 });
    robust.check(whole.groups);
    const all = robust.loss(whole, robust.totals(whole.groups), true);
    const sum = new Float64Array(8);
    for (const i of names.keys()) {
      const one = scoresOf([margins[i]], [names[i]]);
      const { gradient } = robust.loss(one, robust.totals(one.groups), true);
      sum[2 * i] += gradient[0] / 4;
      sum[2 * i + 1] += gradient[1] / 4;
    }
    sum.forEach((g, i) => {
      expect(g).toBeCloseTo(all.gradient[i], 6);
    });
  });

  it('estimate a group by what its rows weigh, not by how many they are', () => {
    const heavy = scoresOf([1, 1, 1, 1, 1], ['a', 'a', 'a', 'a', 'b'], [0.5, 0.5, 0.5, 0.5, 8]);
    const robust = new GroupRobustObjective(inner(), options);
    robust.check(heavy.groups);
    const { metrics } = robust.loss(heavy, robust.totals(heavy.groups), true);
    expect(metrics['group_loss/a']).toBeCloseTo(sigmoidLoss(1), 6);
    expect(metrics['group_loss/b']).toBeCloseTo(sigmoidLoss(1), 6);
  });

  it('leave evaluation and the rows as they are, and come back from their state', () => {
    const scores = scoresOf(margins, names, [1, 2, 1, 1]);
    const robust = new GroupRobustObjective(inner(), options);
    robust.check(scores.groups);
    robust.check(scoresOf([1], [undefined]).groups);
    const totals = robust.totals(scores.groups);
    const { rows } = robust.loss(scores, totals, true);
    expect(rows.map((r) => r.group)).toEqual(scores.groups);
    expect(robust.loss(scores, totals, false)).toEqual(inner().loss(scores, totals, false));
    const state = JSON.parse(JSON.stringify(robust.state()));
    const next = robust.loss(scores, totals, true);
    robust.loss(scores, totals, true);
    robust.restore(state);
    expect(robust.loss(scores, totals, true)).toEqual(next);
  });

  it('refuse rows without a group, losses that couple rows, and other methods', () => {
    const robust = new GroupRobustObjective(inner(), options);
    expect(() => robust.check(scoresOf([1, 1], ['a', undefined]).groups)).toThrow('rows.jsonl:2: found no "group"');
    expect(() => new GroupRobustObjective(inner('aot'), options)).toThrow('needs a loss of single rows');
    const config = { method: 'sft' as const, model: 'm', data: { train: 'r.jsonl' }, output: 'o' };
    expect(() => resolveConfig({ ...config, loss: { group_robust: {} } })).toThrow(
      'loss.group_robust: belongs to methods dpo and reward',
    );
    const modpo = { rewards: [{ adapter: 'x', weight: 1 }] };
    expect(() => resolveConfig({ ...config, loss: { modpo } })).toThrow('loss.modpo: belongs to method dpo');
    expect(() => resolveConfig({ ...config, method: 'dpo', loss: { modpo: { rewards: [] } } })).toThrow('at least one');
    expect(() => objectiveOf({ method: 'dpo', loss: resolveLoss({ type: 'simpo', modpo }, 'dpo') })).toThrow(
      'needs a loss with a reference',
    );
  });

  it('train and log what groups weigh, whatever packs a step is split into', async () => {
    const rows = f.rows.map((row, i) => ({ ...row, group: i % 3 === 0 ? 'few' : 'many' }));
    const data = { train: writeRows(path('groups.jsonl'), rows) };
    const train = { steps: 4, batch_size: 2, save_every: 2, shuffle: true };
    const loss = { beta: 0.1, group_robust: { step_size: 0.5 } };
    const whole = await trained(goldenConfig(f, path('whole'), { data, train, loss }));
    expect(whole.steps[3]['group_weight/few'] + whole.steps[3]['group_weight/many']).toBeCloseTo(1, 9);
    expect(whole.steps[3]['group_weight/few']).not.toBe(whole.steps[0]['group_weight/few']);
    const split = await trained(
      goldenConfig(f, path('split'), { data, train: { ...train, max_tokens_per_pack: 1 }, loss }),
    );
    whole.steps.forEach((step, i) => {
      expect(split.steps[i].loss).toBeCloseTo(step.loss, 5);
    });
  });
});

describe('MODPO', () => {
  beforeAll(async () => {
    using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    await savePeft(randomBank(model, ['p']), 'p', path('policy'));
    await savePeft(randomBank(model, ['r'], { modulesToSave: ['score'] }), 'r', path('reward'));
  });

  it('is DPO with the other wishes taken out of the implicit reward', async () => {
    using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    const bank = randomBank(model, ['mine', 'p', 'r'], { modulesToSave: ['score'] });
    for (const [i, name] of ['policy', 'reward'].entries()) {
      const { loadPeft } = await import('../lib/adapters/peft.js');
      const { tensors } = await loadPeft(path(name), model.shape);
      const score = bank.materialise(['p', 'r'][i]).get('score')!;
      bank.setAdapter(['p', 'r'][i], new Map([...tensors, ['score', tensors.get('score') ?? score]]));
    }
    const groups = randomGroups(5, model.config.vocabSize);
    const [beta, weight, w] = [0.3, 0.6, [0.25, 0.15]];
    const modpo = {
      weight,
      rewards: [
        { adapter: path('policy'), weight: w[0] },
        { adapter: path('reward'), weight: w[1] },
      ],
    };
    const objective = objectiveOf({ method: 'dpo', loss: resolveLoss({ beta, modpo }, 'dpo') });
    const base = await openReference('base', model, 8192, true, {});
    using reference = await MarginReference.open(base, model, modpo.rewards, beta, 40);
    const { rows } = await evaluateGroups(groups, objective, { model, bank, adapter: 0 }, reference, { maxTokens: 60 });

    const logps = async (adapter: number) => {
      const p = pack(groups, { policies: [{ adapter, grad: false }], read: 'logps' });
      return sumTokens((await model.score(p, bank, 'logps')).values, p.offsets);
    };
    const p = pack(groups, { policies: [{ adapter: 2, grad: false }], read: 'reward' });
    const rewards = (await model.score(p, bank, 'reward')).values;
    const [mine, other, ref] = [await logps(0), await logps(1), await logps(-1)];
    const reward = (c: number) =>
      (beta * (mine[c] - ref[c]) - w[0] * beta * (other[c] - ref[c]) - w[1] * rewards[c]) / weight;
    rows.forEach((row, g) => {
      expect(row.margin).toBeCloseTo(reward(2 * g) - reward(2 * g + 1), 4);
      expect(Math.abs(row.margin)).toBeGreaterThan(1e-3);
    });
  });

  it('trains from a configuration', async () => {
    const modpo = { weight: 0.5, rewards: [{ adapter: path('policy'), weight: 0.5 }] };
    const plain = await trained(goldenConfig(f, path('plain'), {}));
    const run = await trained(goldenConfig(f, path('modpo'), { loss: { beta: f.golden.beta, modpo } }));
    expect(run.steps[0].loss).not.toBeCloseTo(plain.steps[0].loss, 3);
    const evaluated = await evaluateModel({ run: run.output, data: [f.prefs], dtype: 'float32', threads: 1 });
    const own = await trained(
      goldenConfig(f, path('modpo-eval'), { data: { eval: f.prefs }, loss: { beta: f.golden.beta, modpo } }),
    );
    expect(evaluated.overall.log_likelihood).toBeCloseTo(own.summary.eval!.overall.log_likelihood, 6);
    expect(evaluated.overall.margin).toBeCloseTo(own.summary.eval!.overall.margin, 6);
    expect(readFileSync(path('modpo', 'config.yaml'), 'utf8')).toContain(path('policy'));
    await expect(
      trained(
        goldenConfig(f, path('none'), { loss: { modpo: { rewards: [{ adapter: path('nowhere'), weight: 1 }] } } }),
      ),
    ).rejects.toThrow('is no PEFT folder');
  });
});
