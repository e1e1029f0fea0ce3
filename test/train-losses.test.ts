// Every loss through a whole run, and the ones on rankings and single completions against a computation by hand.
import { beforeAll, describe, expect, it } from 'vitest';
import { scoreCommand } from '../lib/api/score.js';
import { type LossType, lossTypes } from '../lib/config/index.js';
import { unpairedLossTypes } from '../lib/losses/index.js';
import { fixture, goldenConfig, type Ran, scratch, trained, writeRows } from './support/runs.js';

const { path } = scratch();
const f = fixture('llama-old');
const reward = fixture('reward');
const beta = 0.1;
let count = 0;
const run = (changes: Parameters<typeof goldenConfig>[2]) => trained(goldenConfig(f, path(`run-${count++}`), changes));

const pairs = f.prefs;
const lists = path('lists.jsonl');
const tops = path('tops.jsonl');
const single = path('single.jsonl');

/** Every completion under base and adapter, row by row. */
async function scores(data: string): Promise<{ base: number[]; adapter: number[] }[]> {
  const stop = { signal: new AbortController().signal, flag: new Int32Array(1) };
  const adapters = [{ name: 'adapter', dir: f.adapter }];
  const { rows } = await scoreCommand({ model: f.model, adapters, data: [data], dtype: 'float32', threads: 1, stop });
  return rows.map(({ logps }) => logps as { base: number[]; adapter: number[] });
}

const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

beforeAll(() => {
  const responses = f.rows.map((row, i) => [
    row.rejected,
    row.chosen,
    f.rows[(i + 1) % 6].chosen,
    f.rows[(i + 2) % 6].rejected,
  ]);
  const ranking = (i: number) => [1, 3, 0, 2].map((r) => (r + (i % 2)) % 4);
  const list = (cut: number) =>
    f.rows.map(({ prompt }, i) => ({ prompt, responses: responses[i], ranking: ranking(i).slice(0, cut) }));
  writeRows(lists, list(4));
  writeRows(tops, list(2));
  writeRows(
    single,
    f.rows.map(({ prompt, chosen, rejected }, i) => ({
      prompt,
      completion: i % 2 ? chosen : rejected,
      label: i % 3 > 0,
    })),
  );
});

describe('every loss takes two steps', () => {
  const listwise = ['plackett_luce', 'best', 's_dpo', 'lipo'];
  const files: Record<string, [string, string][]> = {
    pairs: [['pairs', pairs]],
    lists: [
      ['pairs', pairs],
      ['rankings', lists],
      ['top-m rankings', tops],
    ],
    single: [
      ['labelled completions', single],
      ['pairs', pairs],
    ],
  };
  const dpo = lossTypes.filter((type) => type !== 'bradley_terry');
  const cases = dpo.flatMap((type) => {
    const kind = type in unpairedLossTypes ? 'single' : listwise.includes(type) ? 'lists' : 'pairs';
    return files[kind].map(([rows, file]) => [type, rows, file] as [LossType, string, string]);
  });
  const expectSteps = ({ steps, bytes }: Ran) => {
    expect(steps).toHaveLength(2);
    for (const line of steps)
      for (const [name, value] of Object.entries(line)) expect(value, name).toEqual(expect.any(Number));
    expect(steps[0].grad_norm).toBeGreaterThan(0);
    expect(steps[1].loss).not.toBe(steps[0].loss);
    expect(bytes.length).toBeGreaterThan(0);
  };

  it.each(cases)('%s on %s', async (type, _, train) => {
    const loss = { type, ...(type === 'exo_pair' ? { label_smoothing: 1e-3 } : {}) };
    expectSteps(await run({ loss, data: { train }, train: { steps: 2 } }));
  });

  it.each([
    'bradley_terry',
    'plackett_luce',
    'best',
    's_dpo',
    'lipo',
  ] as const)('%s of a reward model', async (type) => {
    for (const train of [reward.prefs, lists]) {
      const changes = { method: 'reward' as const, loss: { type }, data: { train }, train: { steps: 2 } };
      expectSteps(await trained(goldenConfig(reward, path(`run-${count++}`), changes)));
    }
  });

  it.each(['forward_kl', 'js_divergence', 'alpha_divergence'] as const)('sigmoid with %s', async (f_divergence) => {
    expectSteps(await run({ loss: { f_divergence }, train: { steps: 2 } }));
  });

  it('sigmoid, length desensitised', async () => {
    const loss = (ld_alpha: number) => run({ loss: { ld_alpha }, train: { steps: 2 } });
    const [cut, whole] = [await loss(0.3), await loss(1)];
    expectSteps(cut);
    const plain = await run({ train: { steps: 2 } });
    expect(whole.steps[0].loss).toBeCloseTo(plain.steps[0].loss, 10);
    expect(cut.steps[0].loss).not.toBe(plain.steps[0].loss);
  });
});

describe('by hand', () => {
  it.each([
    ['rankings', lists],
    ['top-m rankings', tops],
  ])('Plackett–Luce of %s', async (_, train) => {
    const { readFileSync } = await import('node:fs');
    const rankings = readFileSync(train, 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line).ranking as number[]);
    const losses = (await scores(train)).map(({ base, adapter }, i) => {
      const s = adapter.map((x, j) => beta * (x - base[j]));
      const left = new Set(s.keys());
      let loss = 0;
      for (const item of rankings[i]) {
        loss -= s[item] - Math.log([...left].reduce((sum, j) => sum + Math.exp(s[j]), 0));
        left.delete(item);
      }
      return loss;
    });
    const { steps } = await run({ loss: { type: 'plackett_luce' }, data: { train }, train: { steps: 1 } });
    expect(steps[0].loss).toBeCloseTo(mean(losses), 5);
  });

  it('KTO of labelled completions', async () => {
    const rho = (await scores(single)).map(({ base, adapter }) => adapter[0] - base[0]);
    const kl = Math.max(0, mean(rho));
    const losses = rho.map((r, i) => (i % 3 > 0 ? 1 - sigmoid(beta * (r - kl)) : 1 - sigmoid(beta * (kl - r))));
    const { steps } = await run({ loss: { type: 'kto' }, data: { train: single }, train: { steps: 1 } });
    expect(steps[0].loss).toBeCloseTo(mean(losses), 5);
    expect(steps[0].kl).toBeCloseTo(kl, 4);
  });

  it('BCO of labelled completions: the running mean moves on from step to step', async () => {
    const rewards = (await scores(single)).map(({ base, adapter }) => beta * (adapter[0] - base[0]));
    const loss = (rows: number[], delta: number) =>
      mean(rows.map((i) => -Math.log(sigmoid((i % 3 > 0 ? 1 : -1) * (rewards[i] - delta)))));
    const train = { steps: 2, batch_size: 3, learning_rate: 0 };
    const { steps } = await run({ loss: { type: 'bco' }, data: { train: single }, train });
    expect(steps[0].loss).toBeCloseTo(loss([0, 1, 2], mean(rewards.slice(0, 3))), 5);
    expect(steps[1].loss).toBeCloseTo(loss([3, 4, 5], mean(rewards)), 5);
  });
});

describe('pretrain', () => {
  it('makes a model from nothing, and goes on from one', async () => {
    const texts = f.rows.flatMap((row) => [{ text: `${row.prompt}${row.chosen}` }, { text: row.rejected }]);
    const data = { train: writeRows(path('text.jsonl'), texts) };
    const pretrain = { tokenizer: f.model, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2 };
    const settings = {
      steps: 12,
      batch_size: 6,
      learning_rate: 0.01,
      log_every: 1,
      schedule: 'constant' as const,
      threads: 1,
    };
    const base = { method: 'pretrain' as const, data, train: settings };
    const first = await trained({ ...base, pretrain, output: path('pretrained') });
    const vocabulary = 280;
    expect(Math.abs(first.steps[0].loss - Math.log(vocabulary))).toBeLessThan(0.2);
    expect(first.steps[11].loss).toBeLessThan(first.steps[0].loss - 1);
    const model = first.summary.paths.model!;
    const second = await trained({ ...base, model, output: path('pretrained-on') });
    expect(second.steps[0].loss).toBeLessThan(first.steps[10].loss);
  });
});

describe('rows that a loss cannot use are refused, naming the first', () => {
  it.each([
    ['sigmoid', single, /single\.jsonl:1: a completion with a label/],
    ['ipo', lists, /lists\.jsonl:1: a ranking, for which loss\.type must be one of sigmoid, plackett_luce/],
  ] as const)('%s', async (type, train, message) => {
    await expect(run({ loss: { type }, data: { train } })).rejects.toMatchObject({
      code: 'BAD_DATA',
      message: expect.stringMatching(message),
    });
  });

  it('kto with rankings', async () => {
    await expect(run({ loss: { type: 'kto' }, data: { train: lists } })).rejects.toMatchObject({ code: 'BAD_DATA' });
  });

  it('sums with a loss that stands alone', async () => {
    await expect(run({ loss: { type: ['kto', 'sigmoid'] } })).rejects.toMatchObject({ code: 'BAD_CONFIG' });
  });
});
