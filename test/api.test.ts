// What a script can do in a few lines, and the JSON that score, eval and generate print of models, adapters and runs.
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import {
  adapterConfig,
  Bank,
  evaluateModel,
  generateText,
  groupsOf,
  Model,
  pack,
  pairLoss,
  readRows,
  savePeft,
  scoreRows,
  spreadGradient,
  sumTokens,
  train,
} from '../lib/index.js';
import { fixture, goldenConfig, program, type Ran, scratch, trained, writeRows } from './support/runs.js';

const { path } = scratch();
const f = fixture('llama-old');
const runtime = ['--dtype', 'float32', '--threads', '1'];
const json = async (...argv: string[]) => {
  const { status, stdout, stderr } = await program(...argv, ...runtime, '--json');
  expect(stderr).toBe('');
  expect(status).toBe(0);
  expect(stdout.trimEnd()).not.toContain('\n');
  return JSON.parse(stdout);
};

describe('a script', () => {
  it('scores, takes a loss, goes backward and steps, as train does', async () => {
    using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    const bank = await Bank.fromPeft(model.shape, [{ name: 'mine', dir: f.adapter }]);
    const { rows } = await readRows(f.prefs);
    const { groups } = await groupsOf(rows, model.tokenizer, { maxLength: 128 });
    const policies = [
      { adapter: bank.adapterIndex('mine'), grad: true },
      { adapter: -1, grad: false },
    ];
    const p = pack(groups, { policies, read: 'logps' });
    const pick = (values: Float64Array, policy: number, completion: number) =>
      Float64Array.from(groups, (_, i) => values[2 * (policy * groups.length + i) + completion]);
    for (let step = 0; step < 3; step++) {
      const { values } = await model.score(p, bank, 'logps', { keep: true });
      const logps = sumTokens(values, p.offsets);
      const tokens = (c: number) => Float64Array.from(groups, (g) => g.completions[c].length);
      const loss = pairLoss(
        {
          chosen: pick(logps, 0, 0),
          rejected: pick(logps, 0, 1),
          refChosen: pick(logps, 1, 0),
          refRejected: pick(logps, 1, 1),
          chosenTokens: tokens(0),
          rejectedTokens: tokens(1),
        },
        { type: 'sigmoid', beta: 0.1 },
      );
      const gradient = new Float64Array(logps.length);
      groups.forEach((_, i) => {
        gradient[2 * i] = loss.dChosen[i];
        gradient[2 * i + 1] = loss.dRejected[i];
      });
      bank.zeroGrad();
      await model.backward(p, bank, spreadGradient(gradient, p.offsets));
      const adamw = { learningRate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: null };
      await bank.step(adamw);
    }
    await savePeft(bank, 'mine', path('by-hand'), { baseModel: f.model });
    const { bytes } = await trained(goldenConfig(f, path('by-train')));
    expect(readFileSync(path('by-hand/adapter_model.safetensors')).equals(bytes)).toBe(true);
  });

  it('trains a configuration, evaluates and samples', async () => {
    const summary = await train(
      {
        method: 'dpo',
        model: f.model,
        data: { train: f.prefs, eval: f.prefs },
        adapter: { r: 4 },
        train: { epochs: 10, learning_rate: 1e-2, threads: 1 },
        output: path('script'),
      },
      { quiet: true },
    );
    expect(summary).toMatchObject({ method: 'dpo', finished: true, paths: { adapter: path('script/adapter') } });
    expect(summary.eval!.overall.accuracy).toBeGreaterThan(summary.eval_before!.overall.accuracy);
    const { overall } = await evaluateModel({ run: path('script'), data: [f.prefs], threads: 1 });
    expect(overall).toEqual(summary.eval!.overall);
    const { samples } = await generateText({
      run: path('script'),
      prompt: 'old',
      samples: 2,
      maxNewTokens: 5,
      threads: 1,
    });
    expect(samples).toHaveLength(2);
    const scored = await scoreRows({ run: path('script'), data: [f.prefs], threads: 1 });
    expect(scored.rows).toHaveLength(6);
  });

  it('makes a bank of its own', async () => {
    using model = await Model.load(f.model, { threads: 1 });
    const bank = Bank.create(model.shape, adapterConfig({ r: 2, share: 'a' }), ['one', 'two'], { seed: 0 });
    expect(bank.adapters.map((a) => a.name)).toEqual(['one', 'two']);
  });

  it('stops what takes long', async () => {
    const stopped = scoreRows({ model: f.model, data: [f.prefs], stop: AbortSignal.abort() });
    await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' });
  });
});

describe('score --json', () => {
  const close = (found: number[], expected: number[]) => {
    expect(found).toHaveLength(expected.length);
    found.forEach((x, i) => {
      expect(Math.abs(x - expected[i])).toBeLessThan(1e-4);
    });
  };
  const pairs = (prefix: string) => f.golden.rows.map((r) => [r[`${prefix}logp_chosen`], r[`${prefix}logp_rejected`]]);
  type Row = { logps: Record<string, number[]>; rewards?: Record<string, number[]> };

  it('of the base', async () => {
    const found = await json('score', '--model', f.model, '--data', f.prefs);
    expect(Object.keys(found)).toEqual(['policies', 'rows']);
    expect(found.policies).toEqual(['base']);
    expect(found.rows.map((r: Row) => Object.keys(r))).toEqual(Array(6).fill(['logps']));
    found.rows.forEach((r: Row, i: number) => {
      close(r.logps.base, pairs('ref_')[i]);
    });
  });

  it('of adapters, by their folders’ names or their own', async () => {
    const adapters = ['--adapter', f.adapter, '--adapter', `after=${join(f.dir, 'trained')}`];
    const found = await json('score', '--model', f.model, ...adapters, '--data', f.prefs);
    expect(found.policies).toEqual(['base', 'adapter', 'after']);
    found.rows.forEach((r: Row, i: number) => {
      expect(Object.keys(r.logps)).toEqual(['base', 'adapter', 'after']);
      close(r.logps.base, pairs('ref_')[i]);
      close(r.logps.adapter, pairs('')[i]);
    });
  });

  it('of rankings, single completions and text, completions in row order', async () => {
    const [a, b] = f.rows;
    const rows = [
      { prompt: a.prompt, responses: [a.rejected, b.chosen, a.chosen], ranking: [2, 0] },
      { prompt: a.prompt, completion: a.chosen, label: false },
      { prompt: a.prompt, completion: a.rejected },
    ];
    const found = await json('score', '--model', f.model, '--data', writeRows(path('mixed.jsonl'), rows));
    const [chosen, rejected] = pairs('ref_')[0];
    expect(found.rows[0].logps.base).toHaveLength(3);
    close(
      [0, 2].map((k) => found.rows[0].logps.base[k]),
      [rejected, chosen],
    );
    close(found.rows[1].logps.base, [chosen]);
    close(found.rows[2].logps.base, [rejected]);
  });

  it('of a reward model: rewards, and no base', async () => {
    const r = fixture('reward');
    const found = await json('score', '--model', r.model, '--adapter', `judge=${r.adapter}`, '--data', r.prefs);
    expect(found.policies).toEqual(['judge']);
    found.rows.forEach((row: Row, i: number) => {
      expect(Object.keys(row)).toEqual(['rewards']);
      close(row.rewards!.judge, [r.golden.rows[i].reward_chosen, r.golden.rows[i].reward_rejected]);
    });
  });

  it('of a policy and a reward model at once', async () => {
    const r = fixture('reward');
    const plain = await trained(
      goldenConfig({ ...f, model: r.model, prefs: r.prefs }, path('beside'), { adapter: { r: 2 } }),
    );
    const adapters = ['--adapter', `judge=${r.adapter}`, '--adapter', `policy=${plain.output}/adapter`];
    const found = await json('score', '--model', r.model, ...adapters, '--data', r.prefs);
    expect(found.policies).toEqual(['base', 'judge', 'policy']);
    found.rows.forEach((row: Row, i: number) => {
      expect(Object.keys(row.logps)).toEqual(['base', 'policy']);
      close(row.rewards!.judge, [r.golden.rows[i].reward_chosen, r.golden.rows[i].reward_rejected]);
    });
  });
});

describe('a run', () => {
  const runs: Record<string, Ran> = {};
  const reward = fixture('reward');
  beforeAll(async () => {
    const data = { eval: f.prefs };
    runs.dpo = await trained(goldenConfig(f, path('dpo'), { data, loss: { beta: 0.3 } }));
    runs.frozen = await trained(goldenConfig(f, path('frozen'), { data, loss: { reference: 'init_from' } }));
    runs.full = await trained(goldenConfig(f, path('full'), { data, adapter: 'full' }));
    const judged = { method: 'reward' as const, data: { eval: reward.prefs } };
    runs.reward = await trained(goldenConfig(reward, path('reward'), judged));
    runs.fullReward = await trained(goldenConfig(reward, path('full-reward'), { ...judged, adapter: 'full' }));
    const rows = f.rows.map((r) => ({ prompt: r.prompt, completion: r.chosen }));
    const sft = { method: 'sft' as const, data: { train: writeRows(path('sft.jsonl'), rows) } };
    runs.sft = await trained(goldenConfig(f, path('sft'), sft));
  });

  it.each([
    ['dpo', ['base', 'adapter'], 'logps'],
    ['frozen', ['base', 'adapter'], 'logps'],
    ['full', ['base'], 'logps'],
    ['sft', ['base', 'adapter'], 'logps'],
    ['reward', ['adapter'], 'rewards'],
    ['fullReward', ['base'], 'rewards'],
  ])('%s is scored under the policies it has', async (name, policies, key) => {
    const data = name.toLowerCase().includes('reward') ? reward.prefs : f.prefs;
    const found = await json('score', '--run', runs[name].output, '--data', data);
    expect(found.policies).toEqual(policies);
    for (const row of found.rows) {
      expect(Object.keys(row)).toEqual([key]);
      expect(Object.keys(row[key])).toEqual(policies);
      for (const values of Object.values<number[]>(row[key])) expect(values.filter(Number.isFinite)).toHaveLength(2);
    }
  });

  it.each(['dpo', 'frozen', 'full', 'reward', 'fullReward'])('%s is evaluated as it was in training', async (name) => {
    const data = name.toLowerCase().includes('reward') ? reward.prefs : f.prefs;
    const found = await json('eval', '--run', runs[name].output, '--data', data);
    const { overall, annotators, worst, reliability } = runs[name].summary.eval!;
    expect(found).toEqual({ overall, annotators, worst, reliability });
    expect(Object.keys(found.overall)).toEqual(
      expect.arrayContaining(['rows', 'accuracy', 'margin', 'log_likelihood', 'ece', 'brier']),
    );
  });

  it('generates greedily as the same adapter does, and a reward run does not', async () => {
    const greedy = ['--temperature', '0', '--max-new-tokens', '8', '--prompt', 'old'];
    const found = await json('generate', '--run', runs.dpo.output, ...greedy);
    expect(found).toEqual({
      prompt: 'old',
      samples: [{ policy: 'adapter', seed: 0, text: expect.any(String), tokens: 8 }],
    });
    expect(
      await json('generate', '--model', f.model, '--adapter', join(runs.dpo.output, 'adapter'), ...greedy),
    ).toEqual(found);
    const full = await json('generate', '--run', runs.full.output, ...greedy);
    expect(full.samples[0].policy).toBe('base');
    expect(await program('generate', '--run', runs.reward.output, '--prompt', 'x')).toMatchObject({ status: 2 });
  });
});

describe('eval --json', () => {
  it('of the base goes by its log-probabilities, of pairs and rankings', async () => {
    const list = f.rows.map((r) => ({ prompt: r.prompt, responses: [r.rejected, r.chosen], ranking: [1, 0] }));
    const [pairs, rankings] = [
      await json('eval', '--model', f.model, '--data', f.prefs),
      await json('eval', '--model', f.model, '--data', writeRows(path('list.jsonl'), list)),
    ];
    const right = f.golden.rows.filter((r) => r.ref_logp_chosen > r.ref_logp_rejected).length;
    expect(pairs.overall.accuracy).toBeCloseTo(right / 6, 12);
    expect(rankings.overall.accuracy).toBeCloseTo(right / 6, 12);
    expect(rankings.overall.log_likelihood).toBeCloseTo(pairs.overall.log_likelihood, 6);
    expect(rankings.overall).not.toHaveProperty('ece');
  });

  it('of several adapters has each', async () => {
    const adapters = ['--adapter', f.adapter, '--adapter', `after=${join(f.dir, 'trained')}`];
    const found = await json('eval', '--model', f.model, ...adapters, '--data', f.prefs);
    expect(Object.keys(found.policies)).toEqual(['adapter', 'after']);
    expect(found.overall).toEqual(found.policies.after.overall);
    expect(found.policies.adapter.overall.loss).toBeCloseTo(f.golden.losses[0], 5);
  });

  it('for people has a line for each annotator', async () => {
    const argv = ['eval', '--model', f.model, '--adapter', f.adapter, '--data', f.prefs, '--by', 'annotator'];
    const { stdout } = await program(...argv, ...runtime);
    expect(stdout).toMatch(/^rows 6 {2}accuracy /);
    for (const name of ['u0', 'u1', 'u2']) expect(stdout).toMatch(new RegExp(`^${name} +2 `, 'm'));
  });
});

describe('generate --json', () => {
  it('draws what its seed says, sample by sample', async () => {
    const argv = ['generate', '--model', f.model, '--adapter', f.adapter, '--prompt', 'old', '--max-new-tokens', '6'];
    const many = await json(...argv, '--samples', '3', '--seed', '5');
    expect(many.samples.map((s: { seed: number }) => s.seed)).toEqual([5, 6, 7]);
    expect(many.samples.map((s: { policy: string }) => s.policy)).toEqual(Array(3).fill('adapter'));
    const one = await json(...argv, '--seed', '6');
    expect(one.samples).toEqual([many.samples[1]]);
    expect(new Set(many.samples.map((s: { text: string }) => s.text)).size).toBe(3);
  });

  it('--chat puts a prompt through the chat template, and refuses a model without one', async () => {
    const ask = (...argv: string[]) =>
      json('generate', '--max-new-tokens', '6', '--temperature', '0', '--logps', ...argv);
    const model = path('chat-model');
    cpSync(f.model, model, { recursive: true });
    expect((await program('generate', '--model', model, '--prompt', 'old', '--chat')).stderr).toMatch(
      /no chat template/,
    );
    writeFileSync(
      join(model, 'chat_template.jinja'),
      '{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %} a:',
    );
    const told = await ask('--model', model, '--chat', '--prompt', 'old');
    const written = await ask('--model', model, '--prompt', 'user: old a:');
    expect(told.samples).toEqual(written.samples);
    expect((await ask('--model', model, '--prompt', 'old')).samples[0].logps).not.toEqual(written.samples[0].logps);
  });
});
