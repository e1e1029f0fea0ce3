import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  nativeConfig,
  newConfig,
  parseModelConfig,
  readModelConfig,
  supportedArchitectures,
  weightFiles,
} from '../lib/model/config.js';
import type { Json } from '../lib/model/folder.js';

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'pluralign-config-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const llama: Json = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: 320,
  hidden_size: 64,
  intermediate_size: 160,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 256,
  rms_norm_eps: 1e-5,
};
const qwen = (more: Json): Json => ({ ...llama, architectures: ['Qwen2ForCausalLM'], model_type: 'qwen2', ...more });
const mistral = (more: Json): Json => ({ ...llama, architectures: ['MistralForCausalLM'], ...more });

const parse = (json: Json, generation: Json | null = null) => parseModelConfig(json, 'm/config.json', generation);
/** The error of a configuration that must be refused, as `CODE message`. */
function refusal(json: Json): string {
  try {
    parse(json);
  } catch (error) {
    return `${(error as { code: string }).code} ${(error as Error).message}`;
  }
  throw new Error('was accepted');
}

describe('keys', () => {
  test('a Llama in the old and in the new spelling is the same model', () => {
    const old = parse({ ...llama, torch_dtype: 'bfloat16', rope_theta: 5e5, rope_scaling: null });
    const now = parse({ ...llama, dtype: 'bfloat16', rope_parameters: { rope_theta: 5e5, rope_type: 'default' } });
    expect({ ...old, json: 0 }).toEqual({ ...now, json: 0 });
    expect(now).toMatchObject({ dtype: 'bfloat16', rope: { type: 'default', theta: 5e5 }, headDim: 16, tied: false });
    const scaling = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 };
    const scaled = {
      type: 'llama3',
      theta: 5e5,
      factor: 8,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositions: 64,
    };
    expect(parse({ ...llama, rope_theta: 5e5, rope_scaling: { type: 'llama3', ...scaling } }).rope).toEqual(scaled);
    expect(parse({ ...llama, rope_parameters: { rope_type: 'llama3', rope_theta: 5e5, ...scaling } }).rope).toEqual(
      scaled,
    );
    expect(parse({ ...llama, rope_scaling: { type: 'linear', factor: 2 } }).rope).toEqual({
      type: 'linear',
      theta: 10000,
      factor: 2,
    });
  });

  test('defaults are those of transformers, by architecture', () => {
    const { num_key_value_heads: _, max_position_embeddings: __, ...bare } = llama;
    expect(parse(bare)).toMatchObject({ kvHeads: 4, maxPositions: 2048, slidingWindow: 0, eosIds: [], bosId: null });
    expect(parse({ ...bare, num_key_value_heads: null }).kvHeads).toBe(4);
    const wide = { ...bare, num_attention_heads: 32, hidden_size: 256 };
    expect(
      parse(mistral({ ...wide, num_key_value_heads: undefined, architectures: ['MistralForCausalLM'] })),
    ).toMatchObject({
      kvHeads: 8,
      slidingWindow: 4096,
    });
    expect(parse(mistral({ sliding_window: null })).slidingWindow).toBe(0);
    expect(parse(mistral({ sliding_window: 5 })).slidingWindow).toBe(5);
    const qwen3 = parse({ ...llama, architectures: ['Qwen3ForCausalLM'], model_type: 'qwen3' });
    expect(qwen3.headDim).toBe(128);
    expect(nativeConfig(qwen3).qkNorm).toBe(true);
    expect(nativeConfig(parse(qwen({}))).qkNorm).toBe(false);
  });

  test('an architecture from the model type where none is listed', () => {
    const { architectures: _, ...bare } = llama;
    expect(parse(bare).architecture).toBe('LlamaForCausalLM');
    expect(refusal({ ...bare, model_type: 'gemma' })).toMatch(/^UNSUPPORTED .*model_type gemma/);
  });

  test('ends of text come from generation_config.json first, as a number or a list', () => {
    expect(parse({ ...llama, eos_token_id: 2 }).eosIds).toEqual([2]);
    expect(parse({ ...llama, eos_token_id: 2 }, { eos_token_id: [7, 8] }).eosIds).toEqual([7, 8]);
    expect(parse({ ...llama, eos_token_id: [3], bos_token_id: 1 }, { bos_token_id: 1 })).toMatchObject({
      eosIds: [3],
      bosId: 1,
    });
    expect(refusal({ ...llama, eos_token_id: 'x' })).toMatch(/^BAD_FILE m\/config.json: eos_token_id: .*"x"/);
  });

  test('windows: one for all layers or none', () => {
    const types = (...names: string[]) => names.map((name) => `${name}_attention`);
    expect(parse(qwen({ sliding_window: 8 })).slidingWindow).toBe(0);
    expect(parse(qwen({ sliding_window: 8, use_sliding_window: true, max_window_layers: 3 })).slidingWindow).toBe(0);
    expect(parse(qwen({ sliding_window: 8, use_sliding_window: true, max_window_layers: 0 })).slidingWindow).toBe(8);
    expect(refusal(qwen({ sliding_window: 8, use_sliding_window: true, max_window_layers: 1 }))).toMatch(
      /^UNSUPPORTED .*max_window_layers: 2 of 3 layers/,
    );
    expect(parse(qwen({ layer_types: types('full', 'full', 'full') })).slidingWindow).toBe(0);
    const all = { layer_types: types('sliding', 'sliding', 'sliding'), sliding_window: 8, use_sliding_window: true };
    expect(parse(qwen(all)).slidingWindow).toBe(8);
    expect(refusal(qwen({ ...all, layer_types: types('full', 'sliding', 'full') }))).toMatch(/layer_types: 1 of 3/);
    expect(refusal(qwen({ ...all, layer_types: types('chunked', 'full', 'full') }))).toMatch(/chunked_attention/);
    expect(refusal(qwen({ ...all, layer_types: types('full') }))).toMatch(/^BAD_FILE .*list of 3/);
    expect(refusal(qwen({ ...all, use_sliding_window: false }))).toMatch(/^BAD_FILE .*no sliding_window/);
  });

  test('a reward model has one label and no head of its own', () => {
    const json = { ...llama, architectures: ['LlamaForSequenceClassification'], id2label: { 0: 'LABEL_0' } };
    expect(parse(json).head).toBe('reward');
    expect(nativeConfig(parse(json)).tied).toBe(true);
    expect(refusal({ ...json, id2label: { 0: 'a', 1: 'b' } })).toMatch(/^UNSUPPORTED .*num_labels/);
  });
});

describe('refusals name the key', () => {
  test.each<[string, Json, RegExp]>([
    ['another architecture', { ...llama, architectures: ['GPT2LMHeadModel'] }, /^UNSUPPORTED .*GPT2LMHeadModel/],
    ['an object method as a name', { ...llama, architectures: ['constructorForCausalLM'] }, /^UNSUPPORTED/],
    ['yarn', { ...llama, rope_scaling: { type: 'yarn', factor: 2 } }, /^UNSUPPORTED .*rope_type: yarn/],
    ['dynamic', { ...llama, rope_parameters: { rope_type: 'dynamic', factor: 2 } }, /^UNSUPPORTED .*dynamic/],
    ['longrope', { ...llama, rope_scaling: { rope_type: 'longrope' } }, /^UNSUPPORTED .*longrope/],
    [
      'llama3 without factor',
      { ...llama, rope_scaling: { rope_type: 'llama3', low_freq_factor: 1, high_freq_factor: 4 } },
      /^BAD_FILE .*rope_scaling: factor/,
    ],
    ['part of the head rotated', { ...llama, partial_rotary_factor: 0.5 }, /^UNSUPPORTED .*partial_rotary_factor/],
    ['gelu', { ...llama, hidden_act: 'gelu' }, /^UNSUPPORTED .*hidden_act: gelu/],
    ['quantised', { ...llama, quantization_config: { quant_method: 'awq' } }, /^UNSUPPORTED .*awq/],
    ['no width', { ...llama, hidden_size: undefined }, /^BAD_FILE .*hidden_size: .*nothing/],
    ['text for a number', { ...llama, vocab_size: '320' }, /^BAD_FILE .*vocab_size: .*"320"/],
    ['no layers', { ...llama, num_hidden_layers: 0 }, /^BAD_FILE .*num_hidden_layers/],
    ['a fraction', { ...llama, intermediate_size: 1.5 }, /^BAD_FILE .*intermediate_size/],
    ['absurd size', { ...llama, vocab_size: 2 ** 40 }, /^BAD_FILE .*vocab_size/],
    ['kv heads', { ...llama, num_key_value_heads: 3 }, /^BAD_FILE .*num_key_value_heads: 3/],
    ['odd head', { ...llama, head_dim: 15 }, /^BAD_FILE .*head_dim: 15/],
    ['heads that do not fit', { ...llama, num_attention_heads: 6 }, /^BAD_FILE .*hidden_size/],
    ['eps', { ...llama, rms_norm_eps: -1 }, /^BAD_FILE .*rms_norm_eps/],
    ['tied as text', { ...llama, tie_word_embeddings: 'yes' }, /^BAD_FILE .*tie_word_embeddings/],
  ])('%s', (_, json, expected) => {
    expect(refusal(json)).toMatch(expected);
  });

  test('the supported architectures are listed', () => {
    const message = refusal({ ...llama, architectures: ['MixtralForCausalLM'] });
    for (const name of supportedArchitectures) expect(message).toContain(name);
    expect(supportedArchitectures).toHaveLength(8);
  });
});

test('rotary frequencies equal those of transformers in float32', () => {
  const cases = JSON.parse(readFileSync(new URL('fixtures/model-config/rope.json', import.meta.url), 'utf8')) as {
    name: string;
    head_dim: number;
    rope_parameters: Json;
    frequencies: number[];
  }[];
  for (const { name, head_dim, rope_parameters, frequencies } of cases) {
    const native = nativeConfig(parse({ ...llama, head_dim, rope_parameters }));
    expect(native.ropeInverseFrequencies).toHaveLength(head_dim / 2);
    frequencies.forEach((expected, i) => {
      const relative = Math.abs(native.ropeInverseFrequencies[i] / expected - 1);
      // The C library's powf is not correctly rounded everywhere: two units in the last place.
      expect(relative, `${name}[${i}]`).toBeLessThan(2.5e-7);
    });
  }
});

describe('files', () => {
  const write = (name: string, value: unknown) =>
    writeFileSync(join(dir, name), typeof value === 'string' ? value : JSON.stringify(value));

  test('a folder is read with its generation_config.json', () => {
    write('config.json', llama);
    write('generation_config.json', { eos_token_id: [1, 2] });
    expect(readModelConfig(dir)).toMatchObject({ eosIds: [1, 2], architecture: 'LlamaForCausalLM' });
  });

  test('missing, malformed and adapter folders', () => {
    expect(() => readModelConfig(dir)).toThrow(expect.objectContaining({ code: 'NOT_FOUND' }));
    write('adapter_config.json', {});
    expect(() => readModelConfig(dir)).toThrow(/holds an adapter/);
    write('config.json', '{"a":');
    expect(() => readModelConfig(dir)).toThrow(expect.objectContaining({ code: 'BAD_FILE' }));
    write('config.json', '[]');
    expect(() => readModelConfig(dir)).toThrow(/config.json: expected a JSON object, found a list/);
  });

  test('weights: one file, shards once each, and what is refused', () => {
    const code = (expected: string) => expect.objectContaining({ code: expected });
    expect(() => weightFiles(dir)).toThrow(code('NOT_FOUND'));
    write('pytorch_model.bin', '');
    expect(() => weightFiles(dir)).toThrow(code('UNSUPPORTED'));
    expect(() => weightFiles(dir)).toThrow(/save_pretrained/);
    const index = (map: unknown) => write('model.safetensors.index.json', { weight_map: map });
    index({ a: 'model-1.safetensors', b: 'model-2.safetensors', c: 'model-1.safetensors' });
    write('model-1.safetensors', '');
    expect(() => weightFiles(dir)).toThrow(/model-2.safetensors: this shard is missing/);
    mkdirSync(join(dir, 'model-2.safetensors'));
    expect(() => weightFiles(dir)).toThrow(code('NOT_FOUND'));
    rmSync(join(dir, 'model-2.safetensors'), { recursive: true });
    write('model-2.safetensors', '');
    expect(weightFiles(dir)).toEqual([join(dir, 'model-1.safetensors'), join(dir, 'model-2.safetensors')]);
    for (const evil of [
      '../model-1.safetensors',
      '/etc/x.safetensors',
      'sub/x.safetensors',
      '..\\x.safetensors',
      'x.bin',
      3,
    ]) {
      index({ a: evil });
      expect(() => weightFiles(dir), String(evil)).toThrow(code('BAD_FILE'));
    }
    index({});
    expect(() => weightFiles(dir)).toThrow(code('BAD_FILE'));
    write('model.safetensors', '');
    expect(weightFiles(dir)).toEqual([join(dir, 'model.safetensors')]);
  });
});

test('a new model is a valid one', () => {
  const json = newConfig({ vocabSize: 512, hiddenSize: 96, layers: 2, heads: 6, kvHeads: 2, bosId: 0, eosId: 1 });
  expect(parse(json)).toMatchObject({
    headDim: 16,
    kvHeads: 2,
    intermediateSize: 256,
    tied: true,
    eosIds: [1],
    bosId: 0,
  });
  expect(() => newConfig({ vocabSize: 512, hiddenSize: 96, layers: 2, heads: 5 })).toThrow(/head_dim/);
});

const reference = new URL('../../shared/reference/parity-llama/model', import.meta.url).pathname;
test.skipIf(!existsSync(reference))('the reference fixture of ../shared reads (skipped where it is absent)', () => {
  expect(readModelConfig(reference)).toMatchObject({
    vocabSize: 320,
    kvHeads: 2,
    tied: true,
    eosIds: [257],
    bosId: 256,
  });
});
