// Whole runs on the parity fixtures: the golden numbers of PyTorch, every kind of row, loss and adapter.
import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it, vi } from 'vitest';
import { loadPeft } from '../lib/adapters/peft.js';
import { nativeConfig, readModelConfig } from '../lib/model/config.js';
import {
  buildProgram,
  child,
  type Fixture,
  fixture,
  type Golden,
  goldenConfig,
  type Ran,
  resultOf,
  root,
  scratch,
  trained,
  writeConfig,
  writeRows,
} from './support/runs.js';

const { path } = scratch();
const relative = (a: number, b: number) => Math.abs(a - b) / Math.abs(b);

async function expectGolden(ran: Ran, golden: Pick<Golden, 'losses' | 'grad_norms'>, f: Fixture, expected = 'trained') {
  expect(ran.steps).toHaveLength(golden.losses.length);
  golden.losses.forEach((loss, i) => {
    expect(Math.abs(ran.steps[i].loss - loss)).toBeLessThan(1e-5);
    expect(relative(ran.steps[i].grad_norm, golden.grad_norms[i])).toBeLessThan(1e-3);
  });
  await expectAdapter(join(ran.output, 'adapter'), join(f.dir, expected), f);
}

/** Within 1e-6 RMS per tensor and 1e-4 for any one element. */
async function expectAdapter(found: string, expected: string, f: Fixture, rms = 1e-6) {
  const shape = nativeConfig(readModelConfig(f.model));
  const [mine, theirs] = [await loadPeft(found, shape), await loadPeft(expected, shape)];
  expect([...mine.tensors.keys()].sort()).toEqual([...theirs.tensors.keys()].sort());
  for (const [name, { data }] of mine.tensors) {
    const other = theirs.tensors.get(name)!.data;
    const differences = data.map((x, i) => Math.abs(x - other[i]));
    expect(Math.max(...differences), name).toBeLessThan(1e-4);
    expect(Math.sqrt(differences.reduce((s, d) => s + d * d, 0) / data.length), name).toBeLessThan(rms);
  }
}

describe('three steps give the numbers of PyTorch', () => {
  const names = readdirSync(join(root, 'test/fixtures')).flatMap((n) => /^parity-(.*)/.exec(n)?.[1] ?? []);
  it.each(names.filter((n) => n !== 'reward'))('dpo on %s', async (name) => {
    const f = fixture(name);
    const ran = await trained(goldenConfig(f, path(`dpo-${name}`)));
    await expectGolden(ran, f.golden, f);
    expect(ran.summary).toMatchObject({ method: 'dpo', steps: 3, finished: true, train: { loss: ran.steps[2].loss } });
    expect(ran.steps.map((s) => s.learning_rate)).toEqual([1e-3, 1e-3, 1e-3]);
  });

  it('reward, with the head of the adapter', async () => {
    const f = fixture('reward');
    await expectGolden(await trained(goldenConfig(f, path('reward'), { method: 'reward' })), f.golden, f);
  });

  it('sft', async () => {
    const f = fixture('llama3-rope');
    const rows = f.rows.map(({ prompt, chosen }) => ({ prompt, completion: chosen }));
    const data = { train: writeRows(path('sft.jsonl'), rows) };
    const { sft } = f.golden;
    const config = goldenConfig(f, path('sft'), { method: 'sft', data, train: { learning_rate: sft.lr } });
    await expectGolden(await trained(config), sft, f, 'trained-sft');
  });

  it('from the command line', async () => {
    buildProgram();
    const f = fixture('qwen3');
    const output = path('cli');
    const file = writeConfig(path('cli.yaml'), goldenConfig(f, output));
    const { status, stdout } = await child('train', file, '--json').ended;
    expect(status).toBe(0);
    const summary = JSON.parse(stdout);
    expect(summary.paths).toEqual({ run: output, adapter: join(output, 'adapter') });
    expect(Object.keys(summary)).toEqual(expect.arrayContaining(['method', 'steps', 'train', 'paths']));
    const ran = resultOf(output, summary);
    await expectGolden(ran, f.golden, f);
    for (const name of ['config.yaml', 'summary.json', 'report.html', 'checkpoints/step-3/manifest.json'])
      expect(existsSync(join(output, name)), name).toBe(true);
    expect(readdirSync(output).some((n) => n.startsWith('events.out.tfevents.'))).toBe(true);
  });
});

describe('on the Mistral fixture', () => {
  const f = fixture('mistral');
  let plain: Ran;
  let count = 0;
  const next = () => path(`run-${count++}`);
  const run = (changes: Parameters<typeof goldenConfig>[2] = {}) => trained(goldenConfig(f, next(), changes));
  beforeAll(async () => {
    plain = await run();
  });
  const expectSameSteps = (a: Ran, b: Ran, tolerance = 1e-5) => {
    expect(a.steps).toHaveLength(b.steps.length);
    a.steps.forEach((line, i) => {
      expect(Object.keys(line)).toEqual(Object.keys(b.steps[i]));
      for (const [name, value] of Object.entries(line))
        expect(Math.abs(value - b.steps[i][name]), `${name} of step ${i + 1}`).toBeLessThan(
          tolerance * Math.max(1, Math.abs(value)),
        );
    });
  };

  it.each([
    ['sigmoid', { type: 'sigmoid' }],
    ['aot', { type: 'aot' }],
    ['aot_unpaired', { type: 'aot_unpaired' }],
    ['bco_pair', { type: 'bco_pair' }],
    ['kto', { type: 'kto' }],
    ['apo_zero_unpaired', { type: 'apo_zero_unpaired' }],
    ['sigmoid + sft', { type: ['sigmoid', { type: 'sft', weight: 0.5 }] }],
    ['WPO', { type: 'sigmoid', use_weighting: true }],
    ['a reference scored anew', { type: 'aot', cache_reference: false }],
  ] as const)('several packs are one pack within rounding: %s', async (_, loss) => {
    const changes = { loss: loss as never, adapter: { init_from: f.adapter, dropout: 0.2 }, data: { eval: f.prefs } };
    const one = await run(changes);
    const many = await run({ ...changes, train: { max_tokens_per_pack: 40 } });
    expectSameSteps(many, one);
    await expectAdapter(join(many.output, 'adapter'), join(one.output, 'adapter'), f);
    expect(many.summary.eval!.overall.loss).toBeCloseTo(one.summary.eval!.overall.loss!, 5);
  });

  it('dropout changes the steps, and the same way each time', async () => {
    const adapter = { init_from: f.adapter, dropout: 0.3 };
    const [a, b] = [await run({ adapter }), await run({ adapter })];
    expect(a.bytes).toEqual(b.bytes);
    expect(a.steps[0].loss).not.toBe(plain.steps[0].loss);
    const other = await run({ adapter, train: { seed: 1 } });
    expect(other.steps[0].loss).not.toBe(a.steps[0].loss);
  });

  it('gradient checkpointing gives the same bits', async () => {
    const adapter = { init_from: f.adapter, dropout: 0.3 };
    const kept = await run({ adapter });
    expect((await run({ adapter, train: { gradient_checkpointing: true } })).bytes).toEqual(kept.bytes);
  });

  it('two threads give the bits of one', async () => {
    expect((await run({ train: { threads: 2 } })).bytes).toEqual(plain.bytes);
  });

  describe('the reference', () => {
    it('scored anew gives the bits of the one kept', async () => {
      expect((await run({ loss: { cache_reference: false } })).bytes).toEqual(plain.bytes);
    });

    it('kept on disk gives the same bits, and later runs read it', async () => {
      const cache = path('reference-cache');
      vi.stubEnv('PLURALIGN_CACHE', cache);
      const loss = { cache_reference: 'disk' } as const;
      expect((await run({ loss })).bytes).toEqual(plain.bytes);
      const [file, ...others] = readdirSync(join(cache, 'reference')).map((name) => join(cache, 'reference', name));
      expect(others).toEqual([]);
      const kept = readFileSync(file, 'utf8');
      // A line that an interrupt cut off, and one that is no line of ours.
      writeFileSync(file, `${kept}\n${kept.trim().split('\n')[0].slice(0, 40)}\nnothing`);
      expect((await run({ loss })).bytes).toEqual(plain.bytes);
      expect(readFileSync(file, 'utf8').length, 'nothing was scored again').toBe(kept.length + 41 + 8);
      // Sums that are not of this reference: what is read is used, whole lines only.
      writeFileSync(file, kept.replace(/ -\d+/g, ' -1'));
      expect((await run({ loss })).bytes).not.toEqual(plain.bytes);
      // Other ways of adding up, and other contents of the model, are other entries.
      writeFileSync(file, kept);
      await run({ loss: { ...loss, ld_alpha: 0.5 } });
      expect(readFileSync(file, 'utf8').length).toBeGreaterThan(1.9 * kept.length);
      await run({ loss: { ...loss, reference: 'init_from' } });
      expect(readdirSync(join(cache, 'reference'))).toHaveLength(2);
      // The same name with one weight changed is another model.
      const changed = path('changed');
      cpSync(f.model, changed, { recursive: true });
      const weights = join(changed, 'model.safetensors');
      const bytes = readFileSync(weights);
      bytes[bytes.length - 2] ^= 1;
      writeFileSync(weights, bytes);
      await trained({ ...goldenConfig(f, next(), { loss }), model: changed });
      expect(readdirSync(join(cache, 'reference'))).toHaveLength(3);
      vi.unstubAllEnvs();
    });

    it('init_from starts at log 2 and is the folder by its name', async () => {
      const start = await run({ loss: { reference: 'init_from' } });
      expect(start.steps[0].loss).toBeCloseTo(Math.log(2), 10);
      expect(start.steps[2].loss).toBeLessThan(Math.log(2));
      expect((await run({ loss: { reference: f.adapter } })).bytes).toEqual(start.bytes);
      expect(start.bytes).not.toEqual(plain.bytes);
    });

    it('another model folder: the base itself, then a trained one', async () => {
      expect((await run({ loss: { reference: f.model } })).bytes).toEqual(plain.bytes);
      const full = await run({ adapter: 'full' });
      const far = await run({ loss: { reference: full.summary.paths.model! } });
      expect(far.steps[0].loss).not.toBe(plain.steps[0].loss);
    });
  });

  describe('rows', () => {
    it('of two responses ranked are pairs', async () => {
      const rows = f.rows.map(({ prompt, chosen, rejected }) => ({
        prompt,
        responses: [rejected, chosen],
        ranking: [1, 0],
      }));
      const ranked = await run({ data: { train: writeRows(path('two.jsonl'), rows) } });
      ranked.steps.forEach((step, i) => {
        expect(step.loss).toBeCloseTo(plain.steps[i].loss, 6);
        expect(relative(step.grad_norm, plain.steps[i].grad_norm)).toBeLessThan(1e-5);
        expect(step['rewards/accuracies']).toBe(plain.steps[i]['rewards/accuracies']);
      });
      await expectAdapter(join(ranked.output, 'adapter'), join(plain.output, 'adapter'), f);
    });

    it('that weigh double count twice, and weightless ones not at all', async () => {
      const weighted = f.rows.map((row, i) => ({ ...row, weight: [2, 1, 1, 1, 1, 0][i] }));
      const doubled = [f.rows[0], ...f.rows.slice(0, 5)];
      const a = await run({ data: { train: writeRows(path('weighted.jsonl'), weighted) } });
      const b = await run({ data: { train: writeRows(path('doubled.jsonl'), doubled) } });
      a.steps.forEach((step, i) => {
        expect(step.loss).toBeCloseTo(b.steps[i].loss, 6);
        expect(relative(step.grad_norm, b.steps[i].grad_norm)).toBeLessThan(1e-5);
      });
      await expectAdapter(join(a.output, 'adapter'), join(b.output, 'adapter'), f);
    });

    it('that all weigh nothing teach nothing', async () => {
      const rows = f.rows.map((row) => ({ ...row, weight: 0 }));
      const ran = await run({ data: { train: writeRows(path('nothing.jsonl'), rows) } });
      expect(ran.steps.map((s) => [s.loss, s.grad_norm])).toEqual(Array(3).fill([0, 0]));
    });

    it('by epochs: the last batch is smaller, none is dropped', async () => {
      const ran = await run({ train: { epochs: 2, batch_size: 4, shuffle: true } });
      expect(ran.steps.map((s) => s.epoch)).toEqual([4 / 6, 1, 1 + 4 / 6, 2]);
      expect(new Set(ran.steps.map((s) => s.loss)).size).toBe(4);
    });
  });

  describe('all weights', () => {
    it('are trained and saved as a model', async () => {
      const full = await run({ adapter: 'full', data: { eval: f.prefs } });
      expect(full.steps[0].loss).toBeCloseTo(Math.log(2), 10);
      expect(full.steps[2].loss).toBeLessThan(full.steps[0].loss);
      expect(full.summary.paths).toEqual({ run: full.output, model: join(full.output, 'model') });
      expect(readdirSync(full.summary.paths.model!).sort()).toEqual(
        expect.arrayContaining(['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']),
      );
      const again = await trained(
        goldenConfig({ ...f, model: full.summary.paths.model! }, next(), { adapter: 'full', data: { eval: f.prefs } }),
      );
      expect(again.summary.eval_before!.overall.accuracy).toBeDefined();
      expect(again.steps[0].loss).toBeCloseTo(Math.log(2), 10);
      expect(again.steps[0]['logps/chosen']).not.toBe(full.steps[0]['logps/chosen']);
    });
  });

  describe('one adapter that shares its', () => {
    it.each(['a', 'b'] as const)('%s is a plain one', async (share) => {
      expect((await run({ adapter: { init_from: f.adapter, share, per: 'all' } })).bytes).toEqual(plain.bytes);
    });

    it.each(['core', 'vector'] as const)('factors but a %s starts where a plain one does', async (share) => {
      const ran = await run({ adapter: { init_from: f.adapter, share, per: 'all' } });
      expect(ran.steps[0].loss).toBe(plain.steps[0].loss);
      expect(ran.steps[0].grad_norm).toBeGreaterThan(plain.steps[0].grad_norm);
      expect(ran.steps[2].loss).toBeLessThan(ran.steps[0].loss);
      // Written out as plain LoRA, it starts again where it ended.
      const on = await trained(goldenConfig({ ...f, adapter: join(ran.output, 'adapter') }, next()));
      expect(on.steps[0].loss).toBeLessThan(ran.steps[2].loss);
    });
  });

  it('a new adapter starts at log 2 and follows its settings', async () => {
    const fresh = await run({ adapter: { r: 4, alpha: 8, targets: ['q_proj', 'v_proj'], rslora: true } });
    expect(fresh.steps[0].loss).toBeCloseTo(Math.log(2), 10);
    expect(fresh.steps[2].loss).toBeLessThan(fresh.steps[0].loss);
    const shape = nativeConfig(readModelConfig(f.model));
    const { config, tensors } = await loadPeft(join(fresh.output, 'adapter'), shape);
    expect(config).toMatchObject({ r: 4, alpha: 8, rslora: true });
    expect(tensors.size).toBe(8);
  });

  it('what init_from has too may be said again, all-linear for a folder that lists every linear', async () => {
    const adapter = { r: 2, alpha: 4, targets: 'all-linear', dropout: 0, init_from: f.adapter, share: 'none' as const };
    expect((await run({ adapter })).bytes).toEqual(plain.bytes);
  });

  it.each([
    ['r', { r: 7 }],
    ['targets', { targets: ['q_proj'] }],
    ['rank_pattern', { rank_pattern: { q_proj: 3 } }],
    ['rslora', { rslora: true }],
  ])('%s other than that of init_from is refused', async (key, more) => {
    const adapter = { init_from: f.adapter, ...more };
    await expect(run({ adapter })).rejects.toMatchObject({
      code: 'BAD_CONFIG',
      message: expect.stringMatching(new RegExp(`adapter\\.${key}: found .*has .*leave it out`)),
    });
  });
});
