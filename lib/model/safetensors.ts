import type * as fsp from 'node:fs/promises';
import { type FileSystem, writeAtomic } from '../base/files.js';
import type { SafetensorsInfo } from '../native/addon.js';
import { PluralignError } from '../native/errors.js';
import { addon } from '../native/loader.js';

/** Row-major float32 values; `shape` is [] for a scalar. */
export interface Tensor {
  shape: number[];
  data: Float32Array;
}

export interface NamedTensor {
  name: string;
  shape: number[];
  /**
   * The values, or what makes them when their turn to be written comes: then one tensor at a time is in memory; or bytes in
   * the file's type, piece by piece.
   */
  data: Float32Array | (() => Promise<Float32Array> | Iterable<Uint8Array>);
  /** Type in the file; BF16 rounds to nearest, ties to even. F32 unless given. */
  dtype?: 'F32' | 'BF16';
}

export interface Safetensors {
  metadata: Record<string, string>;
  /** In the order of their data in the file. */
  tensors: Map<string, Tensor>;
}

const maxHeader = 100_000_000;
const maxRank = 32;
const maxChunk = 1 << 26;

/**
 * All tensors of a safetensors file as float32 (from F32, BF16, F16 or F64). Throws `NOT_FOUND`, `IO`, `BAD_FILE` for a
 * file that is malformed in any way, and `UNSUPPORTED` for a tensor of another type.
 */
export function readSafetensors(path: string): Safetensors {
  const { metadata, tensors } = addon().safetensorsRead(path);
  return { metadata, tensors: new Map(tensors.map(({ name, shape, data }) => [name, { shape, data }])) };
}

/** The header of a safetensors file: metadata, and each tensor's name, dtype and shape. Validated against the file. */
export function safetensorsInfo(path: string): SafetensorsInfo {
  return addon().safetensorsInfo(path);
}

interface Planned extends Required<NamedTensor> {
  bytes: number;
}

function checkText(what: string, text: unknown, path: string): void {
  if (typeof text !== 'string' || /\p{Surrogate}/u.test(text)) {
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${path}: ${what} ${JSON.stringify(text)} must be a string without lone surrogates`,
    );
  }
}

function plan(path: string, tensors: Iterable<NamedTensor>): Planned[] {
  const names = new Set<string>();
  const planned = Array.from(tensors, ({ name, shape, data, dtype = 'F32' }): Planned => {
    checkText('tensor name', name, path);
    const fail = (code: string, message: string) => new PluralignError(code, `${path}: tensor "${name}" ${message}`);
    if (name === '__metadata__') throw fail('BAD_ARGUMENT', 'has a name that the format reserves');
    if (names.has(name)) throw fail('BAD_ARGUMENT', 'is given twice');
    names.add(name);
    if (dtype !== 'F32' && dtype !== 'BF16') throw fail('BAD_ARGUMENT', `has dtype ${dtype}; expected F32 or BF16`);
    if (!(data instanceof Float32Array) && typeof data !== 'function')
      throw fail('BAD_ARGUMENT', 'needs its data as a Float32Array');
    if (shape.length > maxRank) throw fail('BAD_SHAPE', `has ${shape.length} dimensions, more than ${maxRank}`);
    const elements = shape.reduce((product, size) => product * size, 1);
    const count = typeof data === 'function' ? elements : data.length;
    if (!shape.every((size) => Number.isSafeInteger(size) && size >= 0) || elements !== count) {
      throw fail('BAD_SHAPE', `of shape [${shape.join(', ')}] has ${count} values, expected ${elements}`);
    }
    return { name, shape: [...shape], data, dtype, bytes: elements * (dtype === 'F32' ? 4 : 2) };
  });
  const key = (t: Planned) => Buffer.from(t.name);
  // The order of the reference writer: widest type first, then names by their UTF-8 bytes.
  return planned.sort((a, b) => (a.dtype === b.dtype ? Buffer.compare(key(a), key(b)) : a.dtype === 'F32' ? -1 : 1));
}

function headerOf(path: string, tensors: Planned[], metadata: Record<string, string>): Buffer {
  // Assembled from pairs: an object would move keys that look like numbers to the front.
  const pair = (key: string, value: unknown) => `${JSON.stringify(key)}:${JSON.stringify(value)}`;
  const members: string[] = [];
  const entries = Object.entries(metadata);
  for (const [key, value] of entries) {
    checkText('metadata key', key, path);
    checkText(`metadata value of "${key}"`, value, path);
  }
  if (entries.length > 0) members.push(`"__metadata__":{${entries.map(([k, v]) => pair(k, v)).join(',')}}`);
  let offset = 0;
  for (const { name, dtype, shape, bytes } of tensors) {
    members.push(pair(name, { dtype, shape, data_offsets: [offset, offset + bytes] }));
    offset += bytes;
  }
  const json = Buffer.from(`{${members.join(',')}}`);
  const padded = Math.ceil(json.length / 8) * 8;
  if (padded > maxHeader) {
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${path}: the header would take ${padded} bytes, the format allows ${maxHeader}; write several files`,
    );
  }
  const header = Buffer.alloc(8 + padded, ' ');
  header.writeBigUInt64LE(BigInt(padded));
  json.copy(header, 8);
  return header;
}

/** bf16 bit patterns, rounded to nearest, ties to even; NaN stays NaN. */
export function toBf16(values: Float32Array): Uint16Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const out = new Uint16Array(values.length);
  for (let i = 0; i < bits.length; i++) {
    const u = bits[i]!;
    const nan = (u & 0x7fffffff) > 0x7f800000;
    out[i] = nan ? (u >>> 16) | 64 : (u + 0x7fff + ((u >>> 16) & 1)) >>> 16;
  }
  return out;
}

async function writeAll(handle: fsp.FileHandle, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await handle.write(bytes, done, Math.min(bytes.length - done, maxChunk));
    done += bytesWritten;
  }
}

async function writeTensor(handle: fsp.FileHandle, { name, shape, data: given, dtype, bytes }: Planned): Promise<void> {
  const data = typeof given === 'function' ? await given() : given;
  if (!(data instanceof Float32Array)) {
    let written = 0;
    for (const piece of data) {
      await writeAll(handle, piece);
      written += piece.length;
    }
    if (written !== bytes)
      throw new PluralignError('BAD_SHAPE', `tensor "${name}" was made with ${written} bytes, expected ${bytes}`);
    return;
  }
  if (data.length !== shape.reduce((product, size) => product * size, 1))
    throw new PluralignError('BAD_SHAPE', `tensor "${name}" was made with ${data.length} values for [${shape}]`);
  const chunk = dtype === 'F32' ? data.length : 1 << 20;
  for (let start = 0; start < data.length; start += chunk) {
    const part = data.subarray(start, start + chunk);
    const raw = dtype === 'F32' ? part : toBf16(part);
    await writeAll(handle, new Uint8Array(raw.buffer, raw.byteOffset, raw.byteLength));
  }
}

/**
 * Writes tensors as the reference implementation lays them out: F32 before BF16, then by name, header padded with spaces
 * to 8 bytes, so that all data is aligned. The file appears whole or not at all: temporary name in the same folder, fsync,
 * rename. Tensors are written from their own memory; leave it unchanged until the promise resolves. Throws
 * `BAD_ARGUMENT` or `BAD_SHAPE` before anything is written, `IO` with nothing left behind.
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<NamedTensor>,
  metadata: Record<string, string> = {},
  options: { fs?: FileSystem } = {},
): Promise<void> {
  const planned = plan(path, tensors);
  const header = headerOf(path, planned, metadata);
  await writeAtomic(
    path,
    async (handle) => {
      await writeAll(handle, header);
      for (const tensor of planned) await writeTensor(handle, tensor);
    },
    options,
  );
}
