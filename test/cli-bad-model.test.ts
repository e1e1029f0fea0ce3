// Damaged, hostile and unfit models and adapters, given to `pluralign train`.
import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'vitest';
import { readSafetensors, writeSafetensors } from '../lib/model/safetensors.js';
import { expectBad, f, path } from './support/refusals.js';
import { fixture } from './support/runs.js';

/** A copy of the model folder. */
function model(change: (folder: string) => void): string {
  const folder = path('model');
  cpSync(f.model, folder, { recursive: true });
  change(folder);
  return folder;
}

function editJson(file: string, change: (json: Record<string, unknown>) => void): void {
  const json = JSON.parse(readFileSync(file, 'utf8'));
  change(json);
  writeFileSync(file, JSON.stringify(json));
}

const weights = (folder: string) => join(folder, 'model.safetensors');

/** Replaces the header of a model's weights, the data staying as they are. */
function editHeader(folder: string, change: (text: string) => string, length?: bigint): void {
  const bytes = readFileSync(weights(folder));
  const end = 8 + Number(bytes.readBigUInt64LE(0));
  const text = Buffer.from(change(bytes.toString('utf8', 8, end)));
  const head = Buffer.alloc(8);
  head.writeBigUInt64LE(length ?? BigInt(text.length));
  writeFileSync(weights(folder), Buffer.concat([head, text, bytes.subarray(end)]));
}

async function editTensors(file: string, change: (name: string, data: Float32Array, shape: number[]) => void) {
  const tensors = [...readSafetensors(file).tensors].map(([name, { shape, data }]) => {
    const tensor = { name, shape: [...shape], data: data.slice() };
    change(name, tensor.data, tensor.shape);
    return tensor;
  });
  await writeSafetensors(file, tensors, { format: 'pt' });
}

describe('a model', () => {
  it('that is not there', () => expectBad({ model: path('nowhere') }, /nowhere/));
  it('without weights', () =>
    expectBad(
      { model: model((m) => rmSync(weights(m))) },
      /model: .*(model\.safetensors|no weights)|model\.safetensors/,
    ));
  it('without a tokenizer', () =>
    expectBad({ model: model((m) => rmSync(join(m, 'tokenizer.json'))) }, /model\/tokenizer\.json/));

  it.each<[string, (folder: string) => void, RegExp]>([
    ['cut short', (m) => writeFileSync(weights(m), readFileSync(weights(m)).subarray(0, -100)), /byte|end|size/],
    ['empty', (m) => writeFileSync(weights(m), ''), /is empty/],
    [
      'with more behind',
      (m) => writeFileSync(weights(m), Buffer.concat([readFileSync(weights(m)), Buffer.alloc(9)])),
      /byte|end/,
    ],
    ['with a header of 2^60 bytes', (m) => editHeader(m, (t) => t, 2n ** 60n), /header/],
    ['with a header of no bytes', (m) => editHeader(m, (t) => t, 0n), /header/],
    ['with a header that is no JSON', (m) => editHeader(m, (t) => t.replace('{', '[')), /header|JSON/],
    [
      'with a header that is no UTF-8',
      (m) => {
        editHeader(m, (t) => t);
        const bytes = readFileSync(weights(m));
        bytes[20] = 0xff;
        writeFileSync(weights(m), bytes);
      },
      /UTF-8/,
    ],
    [
      'with a name twice',
      (m) => editHeader(m, (t) => t.replace('model.layers.1.input_layernorm', 'model.layers.0.input_layernorm')),
      /input_layernorm.*twice|duplicate/i,
    ],
    [
      'with a shape whose product overflows',
      (m) => editHeader(m, (t) => t.replace(/"shape":\[\d+,\d+\]/, '"shape":[4294967296,4294967296,4294967296]')),
      /shape|overflow|large|bytes/,
    ],
    [
      'with offsets outside',
      (m) => editHeader(m, (t) => t.replace(/"data_offsets":\[(\d+),\d+\]/, '"data_offsets":[$1,99999999999]')),
      /offsets|bytes|end/,
    ],
    [
      'with offsets that overlap',
      (m) =>
        editHeader(m, (t) => {
          const [, a, b] = /"data_offsets":\[0,(\d+)\].*"data_offsets":\[(\d+),/.exec(t) ?? [];
          return t.replace(`[${b},`, `[${Number(b) - Math.min(4, Number(a))},`);
        }),
      /offsets|overlap|bytes|hole|contiguous/,
    ],
  ])('%s', (_, change, message) =>
    expectBad({ model: model(change) }, new RegExp(`model/model\\.safetensors.*(${message.source})`, 'i')));

  it('of another shape than its configuration says', () =>
    expectBad(
      { model: model((m) => editJson(join(m, 'config.json'), (c) => Object.assign(c, { intermediate_size: 40 }))) },
      /model\.safetensors: model\.layers\.0\.mlp\.\w+_proj\.weight has shape \[.*\], the configuration says \[.*40.*\]/,
    ));

  it('of an architecture that is not supported', () =>
    expectBad(
      {
        model: model((m) =>
          editJson(join(m, 'config.json'), (c) =>
            Object.assign(c, { architectures: ['GPT2LMHeadModel'], model_type: 'gpt2' }),
          ),
        ),
      },
      /config\.json.*gpt2/i,
    ));

  it('whose tokenizer has more ids than its embedding has rows', () =>
    expectBad(
      {
        model: model((m) =>
          editJson(join(m, 'tokenizer.json'), (t) => {
            const extra = {
              id: 5000,
              content: '<far>',
              single_word: false,
              lstrip: false,
              rstrip: false,
              normalized: false,
              special: true,
            };
            (t.added_tokens as object[]).push(extra);
          }),
        ),
      },
      /the tokenizer has 5001 ids, the embedding 280 rows/,
    ));

  it('with a NaN', async () => {
    const folder = model(() => {});
    await editTensors(weights(folder), (name, data) => {
      if (name.includes('layers.1.mlp.up_proj')) data[17] = Number.NaN;
    });
    await expectBad({ model: folder }, /model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight has a NaN/);
  });

  it('on a device that there is not', () => expectBad({ train: { device: 'cuda' } }, /device: cuda/));
});

describe('an adapter', () => {
  it('of another base', () =>
    expectBad(
      { adapter: { init_from: fixture('qwen3').adapter } },
      /adapter_model\.safetensors.*is this an adapter of another base/s,
    ));
  it('that is not there', () => expectBad({ adapter: { init_from: path('nowhere') } }, /nowhere.*is no PEFT adapter/));
  it('that is cut short', () => {
    cpSync(f.adapter, path('adapter'), { recursive: true });
    const name = path('adapter/adapter_model.safetensors');
    writeFileSync(name, readFileSync(name).subarray(0, -8));
    return expectBad({ adapter: { init_from: path('adapter') } }, /adapter\/adapter_model\.safetensors/);
  });
  it('with a NaN', async () => {
    cpSync(f.adapter, path('adapter'), { recursive: true });
    await editTensors(path('adapter/adapter_model.safetensors'), (name, data) => {
      if (name.includes('layers.0.self_attn.q_proj.lora_B')) data.fill(Number.NaN);
    });
    await expectBad({ adapter: { init_from: path('adapter') } }, /q_proj\.lora_B\.weight has NaN at row 0, column 0/);
  });
  it('whose mathematics is not implemented', () => {
    cpSync(f.adapter, path('adapter'), { recursive: true });
    editJson(path('adapter/adapter_config.json'), (c) => Object.assign(c, { use_dora: true }));
    return expectBad({ adapter: { init_from: path('adapter') } }, /adapter_config\.json.*use_dora/);
  });
  it('that targets nothing', () => expectBad({ adapter: { targets: ['c_attn'] } }, /c_attn/));
});
