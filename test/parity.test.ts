// The float32 path against float64 PyTorch: every log-probability, every tensor's gradient, three AdamW steps.
// More fixtures in the same layout can be named in PLURALIGN_FIXTURES (folders, separated by colons).
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { loadPeft } from '../lib/adapters/peft.js';
import { groupsOf, readRows } from '../lib/data/index.js';
import { pack } from '../lib/data/pack.js';
import { pairLoss, sftLoss, spreadGradient, sumTokens } from '../lib/losses/index.js';
import { rewardLoss } from '../lib/losses/reward.js';
import { Model } from '../lib/model/model.js';
import { testDevice } from './support/engine.js';

const fixtures = fileURLToPath(new URL('fixtures', import.meta.url));
const shared = fileURLToPath(new URL('../../shared/reference/parity-llama', import.meta.url));
const folders = [
  ...readdirSync(fixtures)
    .filter((f) => f.startsWith('parity-'))
    .map((f) => join(fixtures, f)),
  ...(existsSync(shared) ? [shared] : []),
  ...(process.env.PLURALIGN_FIXTURES?.split(':').filter(Boolean) ?? []),
];

async function open(dir: string, dtype: 'float32' | 'bf16' = 'float32', threads = 2) {
  const golden = JSON.parse(readFileSync(join(dir, 'golden.json'), 'utf8'));
  const model = await Model.load(join(dir, 'model'), { dtype, threads, device: testDevice });
  const bank = await Bank.fromPeft(model.shape, [{ name: 'adapter', dir: join(dir, 'adapter') }]);
  const { rows } = await readRows(join(dir, 'prefs.jsonl'));
  const { groups } = await groupsOf(rows, model.tokenizer, { maxLength: 256 });
  return { golden, model, bank, groups };
}

const both = [
  { adapter: 0, grad: true },
  { adapter: -1, grad: false },
];

async function compareTrained(bank: Bank, dir: string, model: Model, rmsLimit = 1e-6, worstLimit = 1e-4) {
  const trained = await loadPeft(dir, model.shape);
  let worst = 0;
  let worstRms = 0;
  for (const [name, mine] of bank.materialise('adapter')) {
    const theirs = trained.tensors.get(name)!;
    let squares = 0;
    for (let i = 0; i < mine.data.length; i++) {
      const d = Math.abs(mine.data[i] - theirs.data[i]);
      squares += d * d;
      worst = Math.max(worst, d);
    }
    worstRms = Math.max(worstRms, Math.sqrt(squares / mine.data.length));
  }
  expect(worstRms).toBeLessThan(rmsLimit);
  expect(worst).toBeLessThan(worstLimit);
}

const adamw = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: null };
const relative = (a: number, b: number) => Math.abs(a - b) / Math.abs(b);
const plain = (name: string) => name.replace('base_model.model.', '').replace('.weight', '');

function expectTensorNorms(bank: Bank, golden: Record<string, number>) {
  const mine = bank.gradNormsByTensor();
  const names = new Map([...mine].map(([name, norm]) => [name.split('@')[0], norm]));
  expect(names.size).toBe(Object.keys(golden).length);
  for (const [name, norm] of Object.entries(golden)) {
    const found = names.get(plain(name).replace('.modules_to_save', ''))!;
    expect(found, name).toBeGreaterThan(0);
    expect(relative(found, norm), name).toBeLessThan(1e-3);
  }
}

describe.each(folders.filter((d) => !basename(d).includes('reward')))('%s', (dir) => {
  it('scores every completion as PyTorch does, base and adapter', async () => {
    const { golden, model, bank, groups } = await open(dir);
    const p = pack(groups, { policies: both, read: 'logps' });
    const { values } = await model.score(p, bank, 'logps');
    const sums = sumTokens(values, p.offsets);
    const expected = ['logp_chosen', 'logp_rejected', 'ref_logp_chosen', 'ref_logp_rejected'];
    for (let i = 0; i < groups.length; i++)
      for (let j = 0; j < 4; j++) {
        const mine = sums[(j >> 1) * 2 * groups.length + 2 * i + (j & 1)];
        expect(Math.abs(mine - golden.rows[i][expected[j]])).toBeLessThan(1e-4);
      }
  });

  it('takes the same three DPO steps', async () => {
    const { golden, model, bank, groups } = await open(dir);
    for (let step = 0; step < golden.steps; step++) {
      const p = pack(groups, { policies: both, read: 'logps' });
      const { values } = await model.score(p, bank, 'logps', { keep: true });
      const sums = sumTokens(values, p.offsets);
      const n = groups.length;
      const at = (policy: number, c: number) =>
        Float64Array.from({ length: n }, (_, i) => sums[policy * 2 * n + 2 * i + c]);
      const loss = pairLoss(
        {
          chosen: at(0, 0),
          rejected: at(0, 1),
          refChosen: at(1, 0),
          refRejected: at(1, 1),
          chosenTokens: Float64Array.from(groups, (g) => g.completions[0].length),
          rejectedTokens: Float64Array.from(groups, (g) => g.completions[1].length),
        },
        { type: 'sigmoid', beta: golden.beta },
      );
      const dSums = new Float64Array(4 * n);
      for (let i = 0; i < n; i++) {
        dSums[2 * i] = loss.dChosen[i];
        dSums[2 * i + 1] = loss.dRejected[i];
      }
      bank.zeroGrad();
      await model.backward(p, bank, spreadGradient(dSums, p.offsets));
      expect(Math.abs(loss.loss - golden.losses[step])).toBeLessThan(1e-5);
      if (step === 0) expectTensorNorms(bank, golden.grad_norm_by_tensor);
      const norm = await bank.step({ ...adamw, learningRate: golden.lr });
      expect(relative(norm, golden.grad_norms[step])).toBeLessThan(1e-3);
    }
    await compareTrained(bank, join(dir, 'trained'), model);
  });

  it('follows PyTorch in bfloat16 within 1 %', async () => {
    const { golden, model, bank, groups } = await open(dir, 'bf16');
    const p = pack(groups, { policies: both, read: 'logps' });
    const sums = sumTokens((await model.score(p, bank, 'logps')).values, p.offsets);
    for (let i = 0; i < groups.length; i++)
      expect(relative(sums[2 * i], golden.rows[i].logp_chosen)).toBeLessThan(0.01);
  });

  it('gives the same bits with one thread, unshared prompts, other neighbours, and checkpointing', async () => {
    const { model, bank, groups } = await open(dir);
    const p = pack(groups, { policies: both, read: 'logps' });
    const { values } = await model.score(p, bank, 'logps', { keep: true });
    const gradient = Float32Array.from(values, (_, i) => (i < p.offsets[2 * groups.length] ? Math.sin(i) : 0));
    bank.zeroGrad();
    await model.backward(p, bank, gradient);
    const gradients = bank.gradients.slice();

    const apart = pack(groups, { policies: both, read: 'logps', sharePrompts: false });
    expect((await model.score(apart, bank, 'logps')).values).toEqual(values);
    for (const [i, group] of groups.entries()) {
      const alone = pack([group], { policies: [both[0]], read: 'logps' });
      const mine = (await model.score(alone, bank, 'logps')).values;
      expect(mine).toEqual(values.slice(p.offsets[2 * i], p.offsets[2 * i + 2]));
    }
    const serial = await open(dir, 'float32', 1);
    expect((await serial.model.score(p, serial.bank, 'logps', { keep: true, checkpoint: true })).values).toEqual(
      values,
    );
    serial.bank.zeroGrad();
    await serial.model.backward(p, serial.bank, gradient);
    expect(serial.bank.gradients).toEqual(gradients);
  });
});

describe.each(folders.filter((d) => existsSync(join(d, 'trained-sft'))))('%s, supervised', (dir) => {
  it('takes the same three steps', async () => {
    const { golden, model, bank, groups } = await open(dir);
    const chosen = groups.map((g) => ({ ...g, completions: [g.completions[0]] }));
    const { sft } = golden;
    for (let step = 0; step < (sft.steps ?? 3); step++) {
      const p = pack(chosen, { policies: [both[0]], read: 'logps' });
      const { values } = await model.score(p, bank, 'logps', { keep: true });
      const tokens = Float64Array.from(chosen, (g) => g.completions[0].length);
      const loss = sftLoss({ logps: sumTokens(values, p.offsets), tokens });
      bank.zeroGrad();
      await model.backward(p, bank, spreadGradient(loss.dLogps, p.offsets));
      expect(Math.abs(loss.loss - sft.losses[step])).toBeLessThan(1e-5);
      const norm = await bank.step({ ...adamw, learningRate: sft.lr ?? golden.lr });
      expect(relative(norm, sft.grad_norms[step])).toBeLessThan(1e-3);
    }
    await compareTrained(bank, join(dir, 'trained-sft'), model);
  });
});

describe.each(folders.filter((d) => basename(d).includes('reward')))('%s', (dir) => {
  it('takes the same rewards and the same three Bradley–Terry steps', async () => {
    const { golden, model, bank, groups } = await open(dir);
    for (let step = 0; step < golden.steps; step++) {
      const p = pack(groups, { policies: [both[0]], read: 'reward' });
      const { values } = await model.score(p, bank, 'reward', { keep: true });
      const chosen = Float64Array.from(groups, (_, i) => values[2 * i]);
      const rejected = Float64Array.from(groups, (_, i) => values[2 * i + 1]);
      if (step === 0)
        groups.forEach((_, i) => {
          expect(Math.abs(chosen[i] - golden.rows[i].reward_chosen)).toBeLessThan(1e-4);
          expect(Math.abs(rejected[i] - golden.rows[i].reward_rejected)).toBeLessThan(1e-4);
        });
      const loss = rewardLoss({ chosen, rejected });
      const gradient = new Float32Array(values.length);
      groups.forEach((_, i) => {
        gradient[2 * i] = loss.dChosen[i];
        gradient[2 * i + 1] = loss.dRejected[i];
      });
      bank.zeroGrad();
      await model.backward(p, bank, gradient);
      expect(Math.abs(loss.loss - golden.losses[step])).toBeLessThan(1e-5);
      if (step === 0) expectTensorNorms(bank, golden.grad_norm_by_tensor);
      const norm = await bank.step({ ...adamw, learningRate: golden.lr });
      expect(relative(norm, golden.grad_norms[step])).toBeLessThan(1e-3);
    }
    await compareTrained(bank, join(dir, 'trained'), model);
  });
});

// Generation runs on the CPU alone.
describe.skipIf(testDevice !== 'cpu')('generation', () => {
  it.each(
    folders.filter((d) => JSON.parse(readFileSync(join(d, 'golden.json'), 'utf8')).greedy),
  )('%s: greedy as transformers', async (dir) => {
    const { golden, model, bank } = await open(dir);
    for (const g of golden.greedy) {
      const { bosId } = model.tokenizer;
      const prompt = [...(bosId === null ? [] : [bosId]), ...model.tokenizer.encode(g.prompt)];
      const [mine] = await model.generate([Int32Array.from(prompt)], bank, {
        maxNewTokens: g.ids.length,
        adapter: 0,
      });
      expect([...mine]).toEqual(g.ids.slice(0, mine.length));
    }
  });

  const tiny = fileURLToPath(new URL('../../shared/models/tinystories-656k', import.meta.url));
  const golden = fileURLToPath(new URL('../../shared/reference/tinystories-656k.golden.json', import.meta.url));
  it.skipIf(!existsSync(tiny))(
    'tinystories-656k (third-party weights in ../shared): ids, log-probabilities, greedy text',
    async () => {
      const { cases } = JSON.parse(readFileSync(golden, 'utf8'));
      const model = await Model.load(tiny, { dtype: 'float32' });
      for (const c of cases) {
        const ids = [model.tokenizer.bosId!, ...model.tokenizer.encode(c.text)];
        expect(ids).toEqual(c.ids);
        const group = {
          index: 0,
          kind: 'text' as const,
          prompt: Int32Array.from(ids.slice(0, 1)),
          completions: [Int32Array.from(ids.slice(1))],
          weight: 1,
          origin: { file: '', line: 0 },
        };
        const p = pack([group], { policies: [{ adapter: -1, grad: false }], read: 'logps' });
        const { values } = await model.score(p, null, 'logps');
        for (const [i, v] of values.entries()) expect(Math.abs(v - c.token_logprobs[i])).toBeLessThan(1e-4);
        const [mine] = await model.generate([Int32Array.from(ids)], null, { maxNewTokens: c.greedy24.length });
        expect([...mine]).toEqual(c.greedy24);
        expect(model.tokenizer.decode(mine)).toBe(c.greedy24_text);
      }
    },
  );
});
