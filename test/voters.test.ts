// An adapter for each annotator: who is trained when, what they share, how they start, and what a run writes.
import { cpSync, existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { adapterConfig } from '../lib/adapters/config.js';
import { AdapterPopulation } from '../lib/adapters/population.js';
import { voterAdapters } from '../lib/adapters/voters.js';
import { resolveLoss } from '../lib/config/index.js';
import type { Group } from '../lib/data/types.js';
import { objectiveOf } from '../lib/methods/index.js';
import { evaluateGroups, lossStep } from '../lib/training/step.js';
import { train } from '../lib/training/train.js';
import { annotatorsOf, balanced, Voters } from '../lib/training/voters.js';
import { directional, norm, randomBank, randomGroups, tinyModel } from './support/engine.js';
import { scratch, trained, writeRows } from './support/runs.js';
import { opposed, votersConfig } from './support/voters.js';

const { path } = scratch();
let count = 0;
const next = () => path(`run-${count++}`);
const shares = ['none', 'a', 'b', 'core', 'vector'] as const;
const names = ['u', 'v', 'w'];
const settings = { init: 'shared', init_share: null, generic: 0.1, penalty: 0, seed: 1 } as const;
const stepOptions = { maxTokens: 60, checkpoint: false, dropoutSeed: 0 };

/** Random pairs, in turn of nobody, u, v and w. */
function namedGroups(vocabulary: number, length = 8): Group[] {
  return randomGroups(length, vocabulary).map((group, i) =>
    i % 4 ? { ...group, annotator: names[(i % 4) - 1], weight: 1 + (i % 3) } : group,
  );
}

/** The same, every third a ranking of three of its four responses. */
function rankedGroups(vocabulary: number): Group[] {
  return namedGroups(vocabulary).map((group, i) => {
    if (i % 3) return group;
    const completions = [...group.completions, group.prompt.slice().reverse(), group.completions[0].slice(0, 1)];
    return { ...group, kind: 'ranking', completions, ranking: [2, 0, 1] };
  });
}

describe('a step over rows of several annotators', () => {
  it.each(['reward', 'dpo'] as const)('%s: gradients match finite differences, whatever is shared', async (method) => {
    using model = await tinyModel('reward');
    const objective = objectiveOf({ method, loss: resolveLoss({ beta: 0.5 }, method) });
    const groups = rankedGroups(model.config.vocabSize);
    const reference = {
      sums: async (some: readonly Group[]) => new Float64Array(some.reduce((n, g) => n + g.completions.length, 0)),
    };
    for (const share of shares) {
      const modulesToSave = method === 'reward' ? ['score'] : [];
      const bank = randomBank(model, voterAdapters(names), { share, modulesToSave, targets: ['q_proj', 'up_proj'] });
      const adapter = ({ annotator }: Group) => (annotator === undefined ? 0 : names.indexOf(annotator) + 1);
      const policy = { model, bank, adapter };
      bank.zeroGrad();
      await lossStep(groups, objective, policy, reference, stepOptions);
      const gradient = bank.gradients.slice();
      const loss = async () => (await evaluateGroups(groups, objective, policy, reference, stepOptions)).loss;
      for (let i = 0; i < bank.factors.length; i++) {
        const { error } = await directional(bank, i, gradient, loss);
        expect(error, `${share}: ${bank.factors[i].name}`).toBeLessThan(1e-2);
      }
    }
  });

  it.each(shares)('share %s: moves what is theirs and what is shared, nothing of anyone else', async (share) => {
    using model = await tinyModel('reward');
    const objective = objectiveOf({ method: 'reward', loss: resolveLoss({}, 'reward') });
    const bank = randomBank(model, voterAdapters(names), { share, modulesToSave: ['score'] });
    const before = bank.parameters.slice();
    const groups = namedGroups(model.config.vocabSize).filter(({ annotator }) => annotator !== 'v');
    const voters = new Voters(bank, names, { ...settings, generic: 0 }, groups, 10);
    // Voters start alike; shaken again, so that each has values of its own.
    bank.parameters.set(before);
    const active = new Set(groups.map(voters.training(0)));
    expect([...active].sort()).toEqual([0, 1, 3]);
    bank.zeroGrad(active);
    await lossStep(groups, objective, { model, bank, adapter: voters.training(0) }, null, stepOptions);
    const step = { learningRate: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-8, weightDecay: 0, maxGradNorm: null, active };
    await bank.step(step);
    bank.factors.forEach(({ name, owner, offset, rows, cols }, i) => {
      const moved = !bank.values(i).every((x, k) => x === before[offset + k]);
      expect(moved, name).toBe(owner !== 2);
      expect(bank.steps[i], name).toBe(owner === 2 ? 0 : 1);
      expect(bank.values(i).length).toBe(rows * cols);
    });
  });

  it('the pull towards the generic adapter has its gradient, and an epoch sums to it once', async () => {
    using model = await tinyModel('reward');
    const groups = namedGroups(model.config.vocabSize);
    for (const share of shares) {
      const bank = randomBank(model, voterAdapters(names), { share, modulesToSave: ['score'] });
      const values = bank.parameters.slice();
      const voters = new Voters(bank, names, { ...settings, penalty: 0.7, generic: 0 }, groups, 10);
      bank.parameters.set(values);
      const adapters = groups.map(voters.training(0));
      const weight = groups.reduce((sum, { weight: w }) => sum + w, 0);
      bank.zeroGrad();
      const whole = voters.pull(groups, adapters, weight);
      let expected = 0;
      for (const u of [1, 2, 3])
        bank.own(u).forEach((factor, k) => {
          const generic = bank.values(bank.own(0)[k]);
          bank.values(factor).forEach((x, i) => {
            expected += (0.35 * (x - generic[i]) ** 2) / weight;
          });
        });
      expect(whole / expected).toBeCloseTo(1, 5);
      const gradient = bank.gradients.slice();
      for (const factor of bank.own(2)) {
        const { offset } = bank.factors[factor];
        const [g, h] = [gradient[offset], 1e-3];
        bank.parameters[offset] += h;
        const up = voters.pull(groups, adapters, weight);
        bank.parameters[offset] -= 2 * h;
        const down = voters.pull(groups, adapters, weight);
        bank.parameters[offset] += h;
        expect((up - down) / (2 * h)).toBeCloseTo(g, 4);
      }
      // Two halves of an epoch, each divided by its own weight, weigh together as the whole.
      const halves = [groups.slice(0, 4), groups.slice(4)].map((half) => {
        const w = half.reduce((sum, g) => sum + g.weight, 0);
        return w * voters.pull(half, half.map(voters.training(0)), w);
      });
      expect((halves[0] + halves[1]) / weight).toBeCloseTo(whole, 6);
    }
  });
});

describe('a start', () => {
  it.each(shares)('share %s: every A within the standard bound 1/√in, everyone alike, B zero', async (share) => {
    using model = await tinyModel('reward');
    const bank = Bank.create(model.shape, adapterConfig({ r: 16, share }), voterAdapters(names), { seed: 3 });
    new Voters(bank, names, settings, [], 10);
    bank.factors.forEach(({ name, role, cols }, i) => {
      const values = bank.values(i);
      const largest = values.reduce((a, x) => Math.max(a, Math.abs(x)), 0);
      if (role === 'A') {
        expect(largest, name).toBeLessThanOrEqual(1 / Math.sqrt(cols));
        expect(largest, name).toBeGreaterThan(0.9 / Math.sqrt(cols));
      } else if (role === 'B') expect(largest, name).toBe(0);
      else expect(norm(values), name).toBe(4);
    });
    for (const u of [1, 2, 3])
      bank.own(u).forEach((factor, k) => {
        expect(bank.values(factor)).toEqual(bank.values(bank.own(0)[k]));
      });
  });

  it('costs each annotator no more than what is the annotator’s own', async () => {
    using model = await tinyModel('reward');
    const size = (share: (typeof shares)[number], n: number) => {
      const people = Array.from({ length: n }, (_, i) => `p${i}`);
      return Bank.create(model.shape, adapterConfig({ r: 4, share }), voterAdapters(people), { seed: 1 }).parameters
        .length;
    };
    const linears = model.config.layers * 7;
    expect(size('vector', 1000) - size('vector', 0)).toBe(1000 * linears * 4);
    expect(size('core', 1000) - size('core', 0)).toBe(1000 * linears * 16);
  });
});

describe('phases', () => {
  const make = async (init: 'shared' | 'warm-up' | 'global', init_share: number | null) => {
    using model = await tinyModel('reward');
    const bank = randomBank(model, voterAdapters(names), { share: 'b' });
    const groups = namedGroups(model.config.vocabSize, 400);
    return { bank, groups, voters: new Voters(bank, names, { ...settings, init, init_share }, groups, 10) };
  };

  it('the global one trains the generic adapter on every row, then everyone gets a copy', async () => {
    const { bank, groups, voters } = await make('warm-up', 0.4);
    expect(voters.globalSteps).toBe(4);
    expect(new Set(groups.map(voters.training(3)))).toEqual(new Set([0]));
    expect(new Set(groups.map(voters.judging(4)))).toEqual(new Set([0]));
    expect(new Set(groups.map(voters.judging(5)))).toEqual(new Set([0, 1, 2, 3]));
    for (const factor of bank.own(0)) bank.values(factor).fill(7);
    voters.begin(3);
    expect(bank.values(bank.own(1)[0])[0]).not.toBe(7);
    voters.begin(4);
    for (const u of [1, 2, 3]) for (const f of bank.own(u)) expect(bank.values(f).every((x) => x === 7)).toBe(true);
  });

  it('parameters of a step in the global phase are everyone’s', async () => {
    const { bank, voters } = await make('global', 0.4);
    const differs = () => bank.own(2).some((f, k) => bank.values(f)[0] !== bank.values(bank.own(0)[k])[0]);
    for (const u of [0, 1, 2, 3]) for (const f of bank.own(u)) bank.values(f).fill(u);
    voters.settle(5);
    expect(differs()).toBe(true);
    voters.settle(4);
    expect(differs()).toBe(false);
  });

  it('a row is trained under the generic adapter as often as asked, drawn by seed, step and row', async () => {
    const { groups, voters } = await make('shared', null);
    const named = groups.filter((g) => g.annotator !== undefined);
    const share = (step: number) => named.filter((g) => voters.training(step)(g) === 0).length / named.length;
    const mean = Array.from({ length: 20 }, (_, step) => share(step)).reduce((a, b) => a + b, 0) / 20;
    expect(Math.abs(mean - 0.1)).toBeLessThan(4 * Math.sqrt(0.09 / (20 * named.length)));
    expect(named.map(voters.training(3))).toEqual(named.map(voters.training(3)));
    expect(named.map(voters.training(3))).not.toEqual(named.map(voters.training(4)));
    expect(
      groups
        .filter((g) => g.annotator === undefined)
        .map(voters.training(3))
        .every((a) => a === 0),
    ).toBe(true);
    expect(voters.judging(3)({ ...groups[1], annotator: 'never seen' })).toBe(0);
  });

  it('global is a run of its own: the schedule ends and starts anew', async () => {
    const { voters, bank } = await make('global', 0.4);
    expect([voters.schedule(3, 10), voters.schedule(4, 10)]).toEqual([
      [3, 4],
      [0, 6],
    ]);
    const { voters: warm, bank: kept } = await make('warm-up', 0.4);
    expect(warm.schedule(4, 10)).toEqual([4, 10]);
    for (const [who, of, steps] of [
      [voters, bank, 0],
      [warm, kept, 9],
    ] as const) {
      of.steps.fill(9);
      who.begin(3);
      expect(of.steps[0]).toBe(9);
      who.begin(4);
      expect(new Set(of.steps)).toEqual(new Set([steps]));
    }
  });

  it.each(shares)('share %s: the global one is the run with one adapter for all, to the bit', async (share) => {
    const file = writeRows(path('phase.jsonl'), opposed(['a', 'b', 'c']));
    const losses = async (adapter: Parameters<typeof votersConfig>[2]) =>
      (await trained(votersConfig(next(), { train: file }, { dropout: 0.1, ...adapter }))).steps.map((m) => m.loss);
    const all = await losses({ share, per: 'all' });
    const own = await losses({ share, per: 'annotator', init: 'warm-up', init_share: 0.5 });
    expect(own.slice(0, 5)).toEqual(all.slice(0, 5));
    expect(own.slice(5)).not.toEqual(all.slice(5));
  });

  it.each([
    ['shared', 'b', 'reward'],
    ['warm-up', 'a', 'reward'],
    ['global', 'vector', 'dpo'],
    ['global', 'none', 'reward'],
  ] as const)('%s, share %s, %s: a run resumed after any step writes the same bytes', async (init, share, method) => {
    const data = { train: writeRows(path('resume.jsonl'), opposed(['a', 'b', 'c'])), eval: path('resume.jsonl') };
    const config = (output: string) =>
      votersConfig(
        output,
        data,
        { share, per: 'annotator', init, dropout: 0.1, penalty: 0.01 },
        {
          method,
          train: { schedule: 'linear', save_every: 1, keep_checkpoints: 20, eval_every: 3 },
        },
      );
    const whole = await trained(config(next()));
    const bytes = readFileSync(join(whole.output, 'population.safetensors'));
    for (let step = 1; step < 8; step++) {
      const output = next();
      cpSync(whole.output, output, { recursive: true });
      for (const name of readdirSync(join(output, 'checkpoints')))
        if (Number(name.replace('step-', '')) > step) rmSync(join(output, 'checkpoints', name), { recursive: true });
      for (const name of ['adapter', 'population.safetensors', 'summary.json'])
        rmSync(join(output, name), { recursive: true });
      const again = await trained(config(output), { resume: true });
      expect(readFileSync(join(output, 'population.safetensors')).equals(bytes), `step ${step}`).toBe(true);
      expect(readFileSync(join(output, 'metrics.jsonl'), 'utf8')).toBe(
        readFileSync(join(whole.output, 'metrics.jsonl'), 'utf8'),
      );
      expect(again.summary.eval).toEqual(whole.summary.eval);
      expect(again.summary.eval_generic).toEqual(whole.summary.eval_generic);
    }
  });
});

describe('a run', () => {
  it.each([
    ['reward', 'none'],
    ['reward', 'a'],
    ['reward', 'b'],
    ['reward', 'core'],
    ['dpo', 'b'],
  ] as const)('%s, share %s: voters who want the opposite each get it, the generic one cannot', async (method, share) => {
    const file = writeRows(path(`opposed-${method}-${share}.jsonl`), opposed(['one', 'two']));
    const config = votersConfig(
      next(),
      { train: file, eval: file },
      { share, per: 'annotator', r: 4 },
      {
        method,
        train: { steps: 80, batch_size: 12 },
      },
    );
    const { summary } = await trained(config);
    expect(summary.eval!.overall.accuracy).toBe(1);
    expect(summary.eval!.voters!.seen.accuracy).toBe(1);
    expect(summary.eval_generic!.overall.accuracy).toBeLessThanOrEqual(0.5);
    const file2 = AdapterPopulation.open(join(config.output!, 'population.safetensors'));
    expect(file2.annotators).toEqual(['one', 'two']);
  });

  it.each(shares)('share %s: in bfloat16 follows float32', async (share) => {
    const file = writeRows(path('bf16.jsonl'), opposed(['one', 'two', 'three']));
    const losses = async (dtype: 'bf16' | 'float32') =>
      (
        await trained(
          votersConfig(next(), { train: file }, { share, per: 'annotator', r: 4 }, { train: { steps: 4, dtype } }),
        )
      ).steps.map((step) => step.loss);
    const [bf16, float32] = [await losses('bf16'), await losses('float32')];
    bf16.forEach((loss, i) => {
      expect(Math.abs(loss / float32[i] - 1)).toBeLessThan(0.02);
    });
  });

  it('unseen voters and rows without a name are judged by the generic adapter', async () => {
    const rows = opposed(['one', 'two']);
    const evalRows = [
      ...rows.map((row) => ({ ...row, annotator: 'stranger' })),
      ...rows.map(({ annotator: _, ...row }) => row),
      ...rows.slice(0, 6),
    ];
    const data = { train: writeRows(path('t.jsonl'), rows), eval: writeRows(path('e.jsonl'), evalRows) };
    const { summary } = await trained(
      votersConfig(next(), data, { share: 'b' }, { method: 'reward', train: { steps: 30 } }),
    );
    expect(Object.keys(summary.eval!.voters!)).toEqual(['seen', 'unseen']);
    expect(summary.eval!.voters!.unseen).toEqual(summary.eval_generic!.annotators.stranger);
    expect(summary.eval!.annotators.one).not.toEqual(summary.eval_generic!.annotators.one);
  });

  it('with everyone under one adapter is the run it was', async () => {
    const file = writeRows(path('plain.jsonl'), opposed(['one', 'two']));
    const { output, summary } = await trained(votersConfig(next(), { train: file, eval: file }, {}));
    expect(existsSync(join(output, 'population.safetensors'))).toBe(false);
    expect(summary.eval_generic).toBeUndefined();
  });

  it('is refused where no row names anyone', async () => {
    const file = writeRows(
      path('nameless.jsonl'),
      opposed(['x']).map(({ annotator: _, ...row }) => row),
    );
    await expect(train(votersConfig(next(), { train: file }, { share: 'b' }), { quiet: true })).rejects.toMatchObject({
      code: 'BAD_DATA',
      message: expect.stringMatching(/no row names an annotator.*adapter\.per: all/),
    });
  });
});

describe('weights', () => {
  it('balanced: every annotator weighs the same, the whole as before', () => {
    const groups = randomGroups(9, 50).map((g, i) => ({ ...g, annotator: i < 6 ? 'much' : 'little', weight: 1 }));
    const out = balanced(groups);
    const sum = (name: string) => out.reduce((s, g) => s + (g.annotator === name ? g.weight : 0), 0);
    expect(sum('much')).toBeCloseTo(sum('little'), 12);
    expect(sum('much') + sum('little')).toBeCloseTo(9, 12);
    expect(annotatorsOf(groups)).toEqual(['little', 'much']);
  });
});
