import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { type AdapterConfig, adapterConfig, sharings } from '../lib/adapters/config.js';
import { loadPeft, loadPeftConfig, savePeft } from '../lib/adapters/peft.js';
import { readSafetensors, writeSafetensors } from '../lib/model/safetensors.js';
import type { NativeModelConfig } from '../lib/native/addon.js';
import { errorOf, fill, tinyModel } from './adapters-model.js';

const model = tinyModel();
const q = 'base_model.model.model.layers.0.self_attn.q_proj';
const fixtures = fileURLToPath(new URL('fixtures', import.meta.url));

let root: string;
let good: string;
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), 'pluralign-peft-'));
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

let folders = 0;
const folder = () => join(root, `adapter-${folders++}`);

function create(given: Partial<AdapterConfig> = {}, names = ['u', 'v'], rewardHead = false): Bank {
  const bank = Bank.create(
    model,
    adapterConfig({ r: 3, alpha: 6, targets: ['q_proj', 'down_proj'], ...given }),
    names,
    {
      seed: 1,
      rewardHead,
    },
  );
  fill(bank.parameters, (i) => Math.sin(i * 1.7) * 0.3);
  return bank;
}

async function saved(given: Partial<AdapterConfig> = {}, rewardHead = false): Promise<string> {
  const dir = folder();
  await savePeft(create(given, ['u', 'v'], rewardHead), 'v', dir);
  return dir;
}

function editConfig(dir: string, change: object): string {
  const file = join(dir, 'adapter_config.json');
  writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, 'utf8')), ...change }));
  return dir;
}

async function editTensors(
  dir: string,
  change: (tensors: Map<string, { shape: number[]; data: Float32Array }>) => void,
) {
  const file = join(dir, 'adapter_model.safetensors');
  const { tensors } = readSafetensors(file);
  change(tensors);
  await writeSafetensors(
    file,
    [...tensors].map(([name, tensor]) => ({ name, ...tensor })),
  );
  return dir;
}

describe('an adapter saved and loaded', () => {
  test.each(sharings)('is the same to the bit under share %s', async (share) => {
    const dir = folder();
    const bank = create({ share });
    await savePeft(bank, 'v', dir, { baseModel: 'some/base' });
    const again = await Bank.fromPeft(model, [{ name: 'again', dir }]);
    expect(again.materialise('again')).toEqual(bank.materialise('v'));
    expect(again.adapters[0].modules.map((m) => m.scale)).toEqual(bank.adapters[1].modules.map((m) => m.scale));
    expect((await loadPeftConfig(dir)).baseModel).toBe('some/base');
    expect(readdirSync(dir).sort()).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
  });

  test('keeps patterns, rsLoRA, dropout and layers', async () => {
    const given = {
      rslora: true,
      dropout: 0.25,
      rankPattern: { 'layers\\.1\\.mlp\\.down_proj': 5 },
      alphaPattern: { q_proj: 7 },
      targets: ['q_proj', 'down_proj', 'model.layers.0.mlp.up_proj'],
      layersToTransform: [1],
      excludeModules: ['layers.1.self_attn.q_proj'],
    };
    const dir = await saved(given);
    const { config, targets, taskType } = await loadPeft(dir, model);
    expect(config).toEqual(adapterConfig({ r: 3, alpha: 6, ...given }));
    expect(taskType).toBe('CAUSAL_LM');
    expect(targets.map((t) => [t.name, t.r, t.scale])).toEqual([
      ['model.layers.0.mlp.up_proj', 3, 6 / Math.sqrt(3)],
      ['model.layers.1.mlp.down_proj', 5, 6 / Math.sqrt(5)],
    ]);
  });

  test('writes the list of names for all-linear and the keys of PEFT', async () => {
    const dir = await saved({ targets: 'all-linear' });
    const written = JSON.parse(readFileSync(join(dir, 'adapter_config.json'), 'utf8'));
    const peft = JSON.parse(readFileSync(join(fixtures, 'parity-patterns/adapter/adapter_config.json'), 'utf8'));
    expect(Object.keys(written)).toEqual(Object.keys(peft));
    expect(written.target_modules).toEqual([
      'q_proj',
      'k_proj',
      'v_proj',
      'o_proj',
      'gate_proj',
      'up_proj',
      'down_proj',
    ]);
    const names = [...readSafetensors(join(dir, 'adapter_model.safetensors')).tensors.keys()];
    expect(names).toHaveLength(28);
    expect(names).toContain(`${q}.lora_A.weight`);
  });

  test.each(['none', 'b'] as const)('keeps the reward head under share %s', async (share) => {
    const dir = await saved({ share }, true);
    const { tensors, taskType, config } = await loadPeft(dir, model);
    expect(taskType).toBe('SEQ_CLS');
    expect(config.modulesToSave).toEqual(['classifier', 'score']);
    expect(tensors.get('score')!.shape).toEqual([1, 8]);
    const bank = await Bank.fromPeft(model, [
      { name: 'a', dir },
      { name: 'frozen', dir, trainable: false },
    ]);
    expect([...bank.layout().rewardHeads]).toEqual([bank.factorIndex('score@a'), bank.factorIndex('score@frozen')]);
    expect(bank.values(bank.factorIndex('score@a'))).toEqual(tensors.get('score')!.data);
    expect(bank.factors.filter((factor) => factor.trainable).every((factor) => factor.owner === 0)).toBe(true);
    expect(bank.factors.filter((factor) => !factor.trainable)).toHaveLength(9);
  });

  test('may stand beside others of other ranks and targets', async () => {
    const dirs = [await saved(), await saved({ r: 2, targets: '.*\\.v_proj', rslora: true })];
    const bank = await Bank.fromPeft(
      model,
      dirs.map((dir, i) => ({ name: `n${i}`, dir })),
    );
    expect(bank.adapters.map((adapter) => adapter.targets.map((t) => [t.target, t.r]))).toEqual([
      [
        [0, 3],
        [6, 3],
        [0, 3],
        [6, 3],
      ],
      [
        [2, 2],
        [2, 2],
      ],
    ]);
    for (const [i, dir] of dirs.entries())
      expect(bank.materialise(`n${i}`)).toEqual((await loadPeft(dir, model)).tensors);
  });

  test('starts adapters that share factors', async () => {
    const dir = await saved();
    const { tensors, config } = await loadPeft(dir, model);
    const bank = Bank.create(model, { ...config, share: 'core' }, ['x', 'y'], { seed: 3 });
    bank.setAdapter('x', tensors);
    expect(bank.materialise('y')).toEqual(tensors);
  });
});

describe('what cannot be computed is refused by name', () => {
  beforeAll(async () => {
    good = await saved();
  });

  test.each<[string, unknown]>([
    ['peft_type', 'IA3'],
    ['peft_type', undefined],
    ['task_type', 'TOKEN_CLS'],
    ['use_dora', true],
    ['use_qalora', true],
    ['use_bdlora', { nblocks: 2 }],
    ['lora_bias', true],
    ['bias', 'lora_only'],
    ['fan_in_fan_out', true],
    ['alora_invocation_tokens', [1, 2]],
    ['layer_replication', [[0, 1]]],
    ['trainable_token_indices', [5]],
    ['target_parameters', ['mlp.experts']],
    ['megatron_config', { x: 1 }],
    ['arrow_config', { top_k: 3 }],
    ['kasa_config', { beta: 1 }],
    ['velora_config', { num_groups: 1 }],
    ['monteclora_config', { num_samples: 2 }],
    ['init_lora_weights', 'pissa'],
    ['init_lora_weights', 'pissa_niter_4'],
    ['init_lora_weights', 'olora'],
    ['init_lora_weights', 'corda'],
    ['init_lora_weights', 'loftq'],
    ['init_lora_weights', 'lora_ga'],
    ['init_lora_weights', 'mica'],
    ['modules_to_save', ['lm_head']],
    ['target_modules', ['q_proj', 'embed_tokens']],
    ['new_scaling_rule', 'cubic'],
  ])('%s = %j', async (key, value) => {
    const dir = folder();
    cpSync(good, dir, { recursive: true });
    editConfig(dir, { [key]: value });
    const shown = key === 'modules_to_save' ? 'modulesToSave' : key === 'target_modules' ? 'targets' : `${key} = `;
    await expect(loadPeft(dir, model)).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      message: expect.stringContaining(join(dir, 'adapter_config.json')),
    });
    await expect(loadPeft(dir, model)).rejects.toThrow(shown);
    if (typeof value === 'string') await expect(loadPeft(dir, model)).rejects.toThrow(JSON.stringify(value));
  });

  test.each<[string, unknown]>([
    ['use_dora', false],
    ['init_lora_weights', 'gaussian'],
    ['init_lora_weights', 'eva'],
    ['eva_config', { rho: 2 }],
    ['auto_mapping', { base_model_class: 'LlamaForCausalLM' }],
    ['peft_version', '9.9.9'],
    ['some_future_key', null],
    ['some_future_key', false],
    ['some_future_key', {}],
    ['target_modules', ['q_proj', 'down_proj', 'query_key_value']],
  ])('%s = %j is none of them', async (key, value) => {
    const dir = folder();
    cpSync(good, dir, { recursive: true });
    await expect(loadPeft(editConfig(dir, { [key]: value }), model)).resolves.toBeTruthy();
  });

  test("the least configuration has PEFT's defaults", async () => {
    const dir = await saved({ r: 8, alpha: 8, targets: ['q_proj'] });
    writeFileSync(join(dir, 'adapter_config.json'), '{"peft_type":"LORA","target_modules":["q_proj"]}');
    const { config, targets } = await loadPeft(dir, model);
    expect(config).toMatchObject({ r: 8, alpha: 8, dropout: 0, rslora: false });
    expect(targets[0].scale).toBe(1);
  });
});

describe('a broken adapter is refused', () => {
  test.each<[string, (dir: string) => unknown, string, RegExp]>([
    [
      'no folder',
      (dir) => rmSync(dir, { recursive: true }),
      'NOT_FOUND',
      /adapter_config\.json is not there.*no PEFT adapter/,
    ],
    [
      'no weights',
      (dir) => rmSync(join(dir, 'adapter_model.safetensors')),
      'NOT_FOUND',
      /adapter_model\.safetensors is not there$/,
    ],
    [
      'a pickle for weights',
      (dir) => {
        rmSync(join(dir, 'adapter_model.safetensors'));
        writeFileSync(join(dir, 'adapter_model.bin'), 'x');
      },
      'NOT_FOUND',
      /pickle/,
    ],
    [
      'a config that is no JSON',
      (dir) => writeFileSync(join(dir, 'adapter_config.json'), '{"r":'),
      'BAD_FILE',
      /not JSON/,
    ],
    [
      'a config that is a list',
      (dir) => writeFileSync(join(dir, 'adapter_config.json'), '[]'),
      'BAD_FILE',
      /found a list, expected an object/,
    ],
    ['no targets', (dir) => editConfig(dir, { target_modules: null }), 'BAD_CONFIG', /target_modules is missing/],
    ['truncated weights', (dir) => writeFileSync(join(dir, 'adapter_model.safetensors'), 'abc'), 'BAD_FILE', /./],
    ['a malformed rank', (dir) => editConfig(dir, { r: '3' }), 'BAD_CONFIG', /r: found "3"/],
    [
      'an absurd rank',
      (dir) => editConfig(dir, { r: 2 ** 40 }),
      'BAD_CONFIG',
      /rank 1099511627776 of .* is larger than the model's width/,
    ],
    [
      'another rank',
      (dir) => editConfig(dir, { r: 4 }),
      'BAD_SHAPE',
      /q_proj\.lora_A\.weight has shape \[3, 8\], expected \[4, 8\]/,
    ],
    [
      'a target that is not in the file',
      (dir) => editConfig(dir, { target_modules: ['q_proj', 'down_proj', 'v_proj'] }),
      'BAD_SHAPE',
      /v_proj\.lora_A\.weight \[3, 8\] is missing/,
    ],
    [
      'a tensor that is not targeted',
      (dir) => editConfig(dir, { target_modules: ['q_proj'] }),
      'BAD_SHAPE',
      /found .*down_proj.*does not target/,
    ],
    [
      'a reward model without head',
      (dir) => editConfig(dir, { task_type: 'SEQ_CLS' }),
      'BAD_SHAPE',
      /score\.weight \[1, 8\] is missing; the reward head was not saved/,
    ],
    [
      'a value that is not finite',
      (dir) => editTensors(dir, (tensors) => tensors.get(`${q}.lora_B.weight`)!.data.set([Number.NaN], 7)),
      'BAD_FILE',
      /q_proj\.lora_B\.weight has NaN at row 2, column 1/,
    ],
    [
      'another prefix',
      (dir) =>
        editTensors(dir, (tensors) => void tensors.set('lora_A.weight', { shape: [1], data: new Float32Array(1) })),
      'BAD_SHAPE',
      /found lora_A\.weight/,
    ],
    [
      'another order of dimensions',
      (dir) => editTensors(dir, (tensors) => void tensors.get(`${q}.lora_A.weight`)!.shape.reverse()),
      'BAD_SHAPE',
      /\[8, 3\], expected \[3, 8\]/,
    ],
  ])('with %s', async (_, damage, code, message) => {
    const dir = await saved();
    await damage(dir);
    await expect(loadPeft(dir, model)).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
  });

  test.each<[string, Partial<NativeModelConfig>, RegExp]>([
    [
      'fewer layers',
      { layers: 1 },
      /layers\.1\..*not target in this model \(1 layers\); is this an adapter of another base \(it names some\/base\)/,
    ],
    ['more layers', { layers: 3 }, /layers\.2\..* is missing; is this an adapter of another base/],
    ['another width', { hiddenSize: 4 }, /has shape \[3, 8\], expected \[3, 4\]; is this an adapter of another base/],
  ])('with %s than the base', async (_, change, message) => {
    const dir = folder();
    await savePeft(create(), 'u', dir, { baseModel: 'some/base' });
    const error = { code: 'BAD_SHAPE', message: expect.stringMatching(message) };
    await expect(loadPeft(dir, { ...model, ...change })).rejects.toMatchObject(error);
  });

  test('before it is written, what was there staying as it is', async () => {
    const dir = await saved();
    const before = readFileSync(join(dir, 'adapter_model.safetensors'));
    const bank = create();
    bank.parameters[bank.factors.at(-1)!.offset] = Number.POSITIVE_INFINITY;
    await expect(savePeft(bank, 'v', dir)).rejects.toMatchObject({
      code: 'NON_FINITE',
      message: expect.stringContaining('lora_B'),
    });
    await expect(savePeft(bank, 'u', dir, { taskType: 'SEQ_CLS' })).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
    await expect(savePeft(bank, 'x', dir)).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await expect(savePeft(bank, 'u', join(dir, 'adapter_config.json', 'x'))).rejects.toMatchObject({ code: 'IO' });
    expect(readFileSync(join(dir, 'adapter_model.safetensors'))).toEqual(before);
    expect(errorOf(() => bank.materialise('x')).code).toBe('NOT_FOUND');
  });
});

const shared = fileURLToPath(new URL('../../shared/reference/parity-llama', import.meta.url));
const written = [
  ...['parity-llama-old', 'parity-patterns', 'parity-qwen3', 'parity-reward'].map((name) => join(fixtures, name)),
  shared,
];

// The shared folder lies beside the repository, not in it, and may be absent.
describe.each(written.filter((dir) => existsSync(dir)))('an adapter that PEFT wrote: %s', (dir) => {
  test('loads, and its copy has the same bits', async () => {
    const json = JSON.parse(readFileSync(join(dir, 'model/config.json'), 'utf8'));
    const base: NativeModelConfig = {
      ...model,
      hiddenSize: json.hidden_size,
      intermediateSize: json.intermediate_size,
      layers: json.num_hidden_layers,
      heads: json.num_attention_heads,
      kvHeads: json.num_key_value_heads,
      headDim: json.head_dim ?? json.hidden_size / json.num_attention_heads,
    };
    for (const part of ['adapter', 'trained']) {
      const bank = await Bank.fromPeft(base, [{ name: 'a', dir: join(dir, part) }]);
      const copy = folder();
      await savePeft(bank, 'a', copy);
      const [before, after] = [join(dir, part), copy].map(
        (d) => readSafetensors(join(d, 'adapter_model.safetensors')).tensors,
      );
      expect([...after.keys()].sort()).toEqual([...before.keys()].sort());
      for (const [name, tensor] of before) expect(after.get(name)).toEqual(tensor);
      const configs = [join(dir, part), copy].map((d) =>
        JSON.parse(readFileSync(join(d, 'adapter_config.json'), 'utf8')),
      );
      for (const key of ['r', 'lora_alpha', 'rank_pattern', 'alpha_pattern', 'use_rslora', 'task_type']) {
        expect(configs[1][key]).toEqual(configs[0][key]);
      }
    }
  });
});
