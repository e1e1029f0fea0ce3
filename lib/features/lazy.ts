import { closeSync, openSync, readSync } from 'node:fs';
import { ioError } from '../base/files.js';
import { readSafetensors, type Safetensors, safetensorsInfo } from '../model/safetensors.js';
import { PluralignError } from '../native/errors.js';
import { addon } from '../native/loader.js';

/**
 * Some rows of a float32 tensor [N, width] of a safetensors file, without reading the others: [rows, width].
 *
 * @throws PluralignError `IO`, `BAD_FILE` where the header does not hold, `BAD_SHAPE` where a row is not there
 */
export function readTensorRows(path: string, name: string, rows: readonly number[]): Float32Array {
  // The header is checked whole against the file's size before an offset of it is believed.
  const tensor = safetensorsInfo(path).tensors.find((t) => t.name === name);
  if (tensor?.dtype !== 'F32' || tensor.shape.length !== 2) {
    throw new PluralignError('BAD_FILE', `${path}: expected a float32 tensor "${name}" of two dimensions`);
  }
  const [count, width] = tensor.shape;
  const file = openSync(path, 'r');
  try {
    const read = (bytes: Uint8Array, at: number) => {
      for (let done = 0; done < bytes.length; ) {
        const got = readSync(file, bytes, done, bytes.length - done, at + done);
        if (got === 0) throw new PluralignError('BAD_FILE', `${path}: ends early`);
        done += got;
      }
    };
    const size = new BigUint64Array(1);
    read(new Uint8Array(size.buffer), 0);
    const header = new Uint8Array(Number(size[0]));
    read(header, 8);
    const from = 8 + header.length + JSON.parse(new TextDecoder().decode(header))[name].data_offsets[0];
    const out = new Float32Array(rows.length * width);
    for (const [i, row] of rows.entries()) {
      if (!(row >= 0 && row < count)) throw new PluralignError('BAD_SHAPE', `${path}: "${name}" has no row ${row}`);
      read(new Uint8Array(out.buffer, 4 * i * width, 4 * width), from + 4 * row * width);
    }
    return out;
  } catch (error) {
    if (error instanceof PluralignError) throw error;
    throw ioError('read', path, error);
  } finally {
    closeSync(file);
  }
}

/** As `readSafetensors`, but of tensors by annotator only the rows of some, and the metadata names no others. */
export function partOf(path: string, names: Iterable<string>): Pick<Safetensors, 'metadata' | 'tensors'> {
  const { metadata, tensors: found } = safetensorsInfo(path);
  let annotators: unknown;
  try {
    annotators = JSON.parse(metadata.annotators);
  } catch {
    annotators = null;
  }
  if (!Array.isArray(annotators)) return readSafetensors(path);
  const wanted = new Set(names);
  const rows = [...annotators.keys()].filter((u) => wanted.has(annotators[u]));
  const tensors: Safetensors['tensors'] = new Map();
  for (const { name, shape } of found) {
    const own = name === 'own' || name === 'posterior';
    const data = own ? readTensorRows(path, name, rows) : addon().safetensorsTensor(path, name);
    tensors.set(name, { shape: own ? [rows.length, shape[1]] : shape, data });
  }
  return { metadata: { ...metadata, annotators: JSON.stringify(rows.map((u) => annotators[u])) }, tensors };
}
