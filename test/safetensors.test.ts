import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import * as fsp from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { type NamedTensor, readSafetensors, safetensorsInfo, writeSafetensors } from '../lib/model/safetensors.js';
import { addon } from '../lib/native/loader.js';

const folder = mkdtempSync(join(tmpdir(), 'pluralign-safetensors-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const path = join(folder, 'm.safetensors');

/** A file with this header text and `bytes` zero bytes of data. */
function put(header: string, bytes = 0, length = Buffer.byteLength(header)): string {
  const head = Buffer.alloc(8);
  head.writeBigUInt64LE(BigInt(length));
  return putBytes(Buffer.concat([head, Buffer.from(header), Buffer.alloc(bytes)]));
}

function putBytes(bytes: Buffer): string {
  const file = join(folder, 'bad.safetensors');
  writeFileSync(file, bytes);
  return file;
}

function headerOf(file: string): { text: string; data: number } {
  const bytes = readFileSync(file);
  const length = Number(bytes.readBigUInt64LE(0));
  return { text: bytes.toString('utf8', 8, 8 + length), data: 8 + length };
}

const bits = (values: Float32Array) => Array.from(new Uint32Array(values.slice().buffer));
/** bf16 of a finite float by number arithmetic, as an oracle. */
function roundBf16(value: number): number {
  const size = Math.abs(value);
  if (size === 0 || size === Number.POSITIVE_INFINITY) return value;
  const unit = 2 ** (Math.max(Math.floor(Math.log2(size)), -126) - 7);
  const below = Math.floor(size / unit);
  const rest = size / unit - below;
  const rounded = (rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below) * unit;
  const limited = rounded >= 2 ** 128 ? Number.POSITIVE_INFINITY : rounded;
  return value < 0 ? -limited : limited;
}

describe('writing', () => {
  test('lays the file out as the reference writer does', async () => {
    await writeSafetensors(
      path,
      [
        { name: 'z', shape: [2], data: new Float32Array([1, 2]), dtype: 'BF16' },
        { name: 'b', shape: [], data: new Float32Array([3]) },
        { name: '\u{1f600}', shape: [1], data: new Float32Array([4]) },
        { name: '\uffee', shape: [1], data: new Float32Array([5]) },
        { name: '10', shape: [1, 1], data: new Float32Array([6]) },
        { name: 'empty', shape: [0, 7], data: new Float32Array(0) },
      ],
      { format: 'pt' },
    );
    const { text, data } = headerOf(path);
    expect(data % 8).toBe(0);
    expect(text).toMatch(/^\{.*\} {0,7}$/);
    expect(text.trimEnd()).toBe(
      '{"__metadata__":{"format":"pt"},"10":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},' +
        '"b":{"dtype":"F32","shape":[],"data_offsets":[4,8]},"empty":{"dtype":"F32","shape":[0,7],"data_offsets":[8,8]},' +
        '"\uffee":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},' +
        '"\u{1f600}":{"dtype":"F32","shape":[1],"data_offsets":[12,16]},"z":{"dtype":"BF16","shape":[2],"data_offsets":[16,20]}}',
    );
    expect([...readSafetensors(path).tensors.keys()]).toEqual(['10', 'b', 'empty', '\uffee', '\u{1f600}', 'z']);
    expect(safetensorsInfo(path).tensors.at(-1)).toEqual({ name: 'z', dtype: 'BF16', shape: [2] });
    expect(Array.from(addon().safetensorsTensor(path, 'z'))).toEqual([1, 2]);
  });

  test('writes what a view shows, not the buffer behind it', async () => {
    const whole = Float32Array.from({ length: 100 }, (_, i) => i);
    await writeSafetensors(path, [
      { name: 'a', shape: [3], data: whole.subarray(10, 13) },
      { name: 'b', shape: [3], data: whole.subarray(20, 23), dtype: 'BF16' },
    ]);
    const { tensors } = readSafetensors(path);
    expect(Array.from(tensors.get('a')!.data)).toEqual([10, 11, 12]);
    expect(Array.from(tensors.get('b')!.data)).toEqual([20, 21, 22]);
  });

  test('keeps every bit of a float32, and NaN in bf16', async () => {
    const special = new Float32Array([Number.NaN, Number.POSITIVE_INFINITY, -0, 1e-45, -3.4e38, 1.17e-38]);
    const lowNan = new Float32Array(new Uint32Array([0x7f800001, 0xff800001]).buffer);
    await writeSafetensors(path, [
      { name: 'a', shape: [6], data: special },
      { name: 'n', shape: [2], data: lowNan, dtype: 'BF16' },
    ]);
    const { tensors } = readSafetensors(path);
    expect(bits(tensors.get('a')!.data)).toEqual(bits(special));
    expect(Array.from(tensors.get('n')!.data)).toEqual([Number.NaN, Number.NaN]);
  });

  test('rounds to bf16 with ties to even', async () => {
    const float = (...patterns: number[]) => new Float32Array(new Uint32Array(patterns).buffer);
    const data = float(0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff, 0xbf808000, 0x7f7fffff);
    await writeSafetensors(path, [{ name: 'a', shape: [6], data, dtype: 'BF16' }]);
    const rounded = [0x3f800000, 0x3f820000, 0x3f810000, 0x3f800000, 0xbf800000, 0x7f800000];
    expect(bits(readSafetensors(path).tensors.get('a')!.data)).toEqual(rounded);
  });

  test('splits long tensors into parts without a seam', async () => {
    const data = Float32Array.from({ length: (1 << 21) + 3 }, (_, i) => (i % 251) - 125);
    await writeSafetensors(path, [{ name: 'long', shape: [data.length], data, dtype: 'BF16' }]);
    expect(
      Buffer.compare(Buffer.from(readSafetensors(path).tensors.get('long')!.data.buffer), Buffer.from(data.buffer)),
    ).toBe(0);
  });

  test('refuses what it could not write correctly, and leaves the old file', async () => {
    await writeSafetensors(path, [{ name: 'a', shape: [1], data: new Float32Array([7]) }]);
    const one = new Float32Array(1);
    const cases: [string, NamedTensor[], Record<string, string>?][] = [
      ['BAD_SHAPE', [{ name: 'a', shape: [2], data: one }]],
      ['BAD_SHAPE', [{ name: 'a', shape: [-1, -1], data: one }]],
      ['BAD_SHAPE', [{ name: 'a', shape: [0.5, 2], data: one }]],
      ['BAD_SHAPE', [{ name: 'a', shape: Array(33).fill(1), data: one }]],
      ['BAD_ARGUMENT', [{ name: '__metadata__', shape: [1], data: one }]],
      ['BAD_ARGUMENT', [{ name: '\ud800', shape: [1], data: one }]],
      ['BAD_ARGUMENT', [{ name: 'a', shape: [1], data: [1] as unknown as Float32Array }]],
      ['BAD_ARGUMENT', [{ name: 'a', shape: [1], data: one, dtype: 'F16' as 'F32' }]],
      [
        'BAD_ARGUMENT',
        [
          { name: 'a', shape: [1], data: one },
          { name: 'a', shape: [1], data: one },
        ],
      ],
      ['BAD_ARGUMENT', [], { a: 1 as unknown as string }],
    ];
    for (const [code, tensors, metadata] of cases) {
      await expect(writeSafetensors(path, tensors, metadata)).rejects.toMatchObject({ code });
    }
    expect(Array.from(readSafetensors(path).tensors.get('a')!.data)).toEqual([7]);
  });

  test('a disk that fills up leaves the old file and no temporary one', async () => {
    await writeSafetensors(path, [{ name: 'a', shape: [1], data: new Float32Array([7]) }]);
    const before = readdirSync(folder).sort();
    const full = async (...args: Parameters<typeof fsp.open>) => {
      const handle = await fsp.open(...args);
      let writes = 0;
      const write = handle.write.bind(handle) as (...rest: unknown[]) => Promise<unknown>;
      handle.write = (async (...rest: unknown[]) => {
        if (++writes > 1) throw Object.assign(new Error('disk full'), { code: 'ENOSPC' });
        return write(...rest);
      }) as typeof handle.write;
      return handle;
    };
    const data = new Float32Array(10);
    const promise = writeSafetensors(
      path,
      [{ name: 'b', shape: [10], data }],
      {},
      { fs: { ...fsp, open: full as typeof fsp.open } },
    );
    await expect(promise).rejects.toMatchObject({ code: 'IO', message: expect.stringContaining('no space left') });
    expect(readdirSync(folder).sort()).toEqual(before);
    expect(readSafetensors(path).tensors.has('a')).toBe(true);
    await expect(writeSafetensors(join(folder, 'none', 'x'), [])).rejects.toMatchObject({ code: 'IO' });
  });

  test('a write that is cut short is continued', async () => {
    const short = async (...args: Parameters<typeof fsp.open>) => {
      const handle = await fsp.open(...args);
      const write = handle.write.bind(handle) as (b: Uint8Array, o: number, n: number) => Promise<unknown>;
      handle.write = ((b: Uint8Array, o: number, n: number) => write(b, o, Math.min(n, 5))) as typeof handle.write;
      return handle;
    };
    const data = Float32Array.from({ length: 9 }, (_, i) => i);
    await writeSafetensors(
      path,
      [{ name: 'a', shape: [9], data }],
      {},
      { fs: { ...fsp, open: short as typeof fsp.open } },
    );
    expect(readSafetensors(path).tensors.get('a')!.data).toEqual(data);
  });
});

describe('reading', () => {
  const tensor = (fields: object) =>
    JSON.stringify({ a: { dtype: 'F32', shape: [1], data_offsets: [0, 4], ...fields } });

  test.each<[string, () => string, RegExp]>([
    ['empty file', () => putBytes(Buffer.alloc(0)), /empty/],
    ['a folder', () => folder, /not a regular file/],
    ['header too large', () => put('{}', 0, 100_000_001), /over the limit/],
    ['header longer than the file', () => put('{}', 0, 50), /truncated/],
    ['header too small', () => put('', 0), /too small/],
    ['not JSON', () => put('{nope}'), /byte 1: expected a string/],
    ['duplicate key', () => put(`${tensor({}).slice(0, -1)},${tensor({}).slice(1)}`, 4), /overlaps|duplicate/],
    ['shape overflow', () => put(tensor({ shape: [2 ** 32, 2 ** 32] }), 4), /overflows/],
    ['bytes unlike the shape', () => put(tensor({ shape: [2] }), 4), /needs 8 bytes/],
    ['offsets beyond the file', () => put(tensor({}), 3), /beyond the 3 bytes.*truncated/],
    ['trailing bytes', () => put(tensor({}), 5), /belong to no tensor/],
    ['absurd rank', () => put(tensor({ shape: Array(1000).fill(1) }), 4), /dimensions/],
    ['unknown dtype', () => put(tensor({ dtype: 'F31' }), 4), /unknown dtype "F31"/],
  ])('refuses %s', (_, make, message) => {
    const file = make();
    for (const read of [readSafetensors, safetensorsInfo, (p: string) => addon().safetensorsTensor(p, 'a')]) {
      expect(() => read(file)).toThrowError(
        expect.objectContaining({ code: 'BAD_FILE', message: expect.stringMatching(message) }) as Error,
      );
      expect(() => read(file)).toThrowError(file);
    }
  });

  test('names what is missing or of the wrong kind', () => {
    const none = join(folder, 'none.safetensors');
    expect(() => readSafetensors(none)).toThrowError(expect.objectContaining({ code: 'NOT_FOUND' }) as Error);
    const integers = put(tensor({ dtype: 'I32' }), 4);
    expect(safetensorsInfo(integers).tensors[0]!.dtype).toBe('I32');
    expect(() => readSafetensors(integers)).toThrowError(expect.objectContaining({ code: 'UNSUPPORTED' }) as Error);
    expect(() => addon().safetensorsTensor(integers, 'b')).toThrowError(
      expect.objectContaining({ code: 'NOT_FOUND' }) as Error,
    );
    expect(() => readSafetensors(1 as unknown as string)).toThrowError(
      expect.objectContaining({ code: 'BAD_ARGUMENT' }) as Error,
    );
    expect(() => readSafetensors('a\0b')).toThrowError(expect.objectContaining({ code: 'BAD_ARGUMENT' }) as Error);
  });

  const golden = join(import.meta.dirname, '../../shared/reference/parity-llama/adapter/adapter_model.safetensors');
  // Third-party reference files are not part of a plain clone.
  test.skipIf(!existsSync(golden))('writes a PEFT file back byte by byte (needs ../shared/reference)', async () => {
    const { metadata, tensors } = readSafetensors(golden);
    await writeSafetensors(path, Array.from(tensors, ([name, tensor]) => ({ name, ...tensor })).reverse(), metadata);
    expect(Buffer.compare(readFileSync(path), readFileSync(golden))).toBe(0);
  });
});

test('property: what is written is read', async () => {
  // noNaN: the payload of a NaN need not survive bf16.
  const float = fc.float({ noNaN: true, noDefaultInfinity: false });
  const tensor = fc
    .record({
      name: fc.string({ unit: 'binary' }).filter((s) => s !== '__metadata__'),
      shape: fc.array(fc.nat({ max: 4 }), { maxLength: 4 }),
      dtype: fc.constantFrom('F32' as const, 'BF16' as const, undefined),
    })
    .chain(({ shape, ...rest }) => {
      const length = shape.reduce((a, b) => a * b, 1);
      return fc.record({
        ...Object.fromEntries(Object.entries(rest).map(([k, v]) => [k, fc.constant(v)])),
        shape: fc.constant(shape),
        data: fc.array(float, { minLength: length, maxLength: length }).map((v) => Float32Array.from(v)),
      }) as fc.Arbitrary<NamedTensor>;
    });
  const text = fc.string({ unit: 'binary' });
  await fc.assert(
    fc.asyncProperty(
      fc.uniqueArray(tensor, { selector: (t) => t.name, maxLength: 6 }),
      fc.uniqueArray(fc.tuple(fc.oneof(text, fc.constant('__proto__')), text), { selector: ([k]) => k, maxLength: 4 }),
      async (tensors, metadata) => {
        await writeSafetensors(path, tensors, Object.fromEntries(metadata));
        const read = readSafetensors(path);
        expect(new Map(Object.entries(read.metadata))).toEqual(new Map(metadata));
        expect(new Set(read.tensors.keys())).toEqual(new Set(tensors.map((t) => t.name)));
        for (const { name, shape, data: given, dtype } of tensors) {
          const data = given as Float32Array;
          const back = read.tensors.get(name)!;
          expect(back.shape).toEqual(shape);
          expect(bits(back.data)).toEqual(bits(dtype === 'BF16' ? data.map(roundBf16) : data));
        }
      },
    ),
    { numRuns: 150 },
  );
});

test('a tensor may come as bytes, piece by piece, and must come whole', async () => {
  const file = join(folder, 'pieces.safetensors');
  const whole = Float32Array.of(1, 2, 3, 4, 5, 6);
  const bytes = new Uint8Array(whole.buffer);
  const pieces = (...at: number[]) => ({
    name: 'a',
    shape: [2, 3],
    *data() {
      for (let i = 1; i < at.length; i++) yield bytes.subarray(at[i - 1], at[i]);
    },
  });
  await writeSafetensors(file, [pieces(0, 5, 20, 24)]);
  const pieced = readFileSync(file);
  await writeSafetensors(file, [{ name: 'a', shape: [2, 3], data: whole }]);
  expect(pieced.equals(readFileSync(file))).toBe(true);
  const part = join(folder, 'part.safetensors');
  await expect(writeSafetensors(part, [pieces(0, 5, 20)])).rejects.toMatchObject({ code: 'BAD_SHAPE' });
  await expect(writeSafetensors(part, [{ ...pieces(0, 24), shape: [5] }])).rejects.toMatchObject({ code: 'BAD_SHAPE' });
  expect(existsSync(part)).toBe(false);
});
