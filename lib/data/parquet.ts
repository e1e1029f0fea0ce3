import { type FileHandle, open } from 'node:fs/promises';
import * as zlib from 'node:zlib';
import {
  type AsyncBuffer,
  type Compressors,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
} from 'hyparquet';
import { PluralignError } from '../native/errors.js';
import type { RawRecord, RecordOptions } from './readers.js';
import { fileError } from './text-file.js';

/** More rows in one group than any writer puts there; a damaged count must not exhaust the memory. */
const maxGroupRows = 2 ** 22;

/** Records of a Parquet file, one row group in memory at a time. Numbers of 64 bits come as `bigint`. */
export async function* readParquet(file: string, options: RecordOptions = {}): AsyncGenerator<RawRecord> {
  let handle: FileHandle;
  try {
    handle = await open(file, 'r');
  } catch (error) {
    throw fileError(file, error);
  }
  try {
    const buffer = await bufferOf(file, handle);
    const metadata = await guarded(file, () => parquetMetadataAsync(buffer));
    const names = checkMetadata(file, metadata);
    const columns = options.fields ? names.filter((name) => options.fields?.has(name)) : names;
    const ignored = names.filter((name) => !columns.includes(name));
    let rowStart = 0;
    for (const group of metadata.row_groups) {
      const rowEnd = rowStart + Number(group.num_rows);
      const records =
        columns.length === 0
          ? Array.from({ length: rowEnd - rowStart }, () => ({}))
          : await guarded(file, () =>
              parquetReadObjects({ file: buffer, metadata, columns, rowStart, rowEnd, compressors }),
            );
      for (const [i, value] of records.entries()) {
        yield { origin: { file, line: rowStart + i + 1 }, value, ignored };
      }
      rowStart = rowEnd;
    }
  } finally {
    await handle.close();
  }
}

/** The file as hyparquet reads it. Always a promise: an error thrown at once would leave its sibling reads unheard. */
async function bufferOf(file: string, handle: FileHandle): Promise<AsyncBuffer> {
  let byteLength: number;
  try {
    const info = await handle.stat();
    if (info.isDirectory()) throw Object.assign(new Error('is a folder'), { code: 'EISDIR' });
    byteLength = info.size;
  } catch (error) {
    throw fileError(file, error);
  }
  return {
    byteLength,
    async slice(start, end = byteLength) {
      if (!(start >= 0 && start <= end && end <= byteLength)) {
        throw new Error(`bytes ${start} to ${end} lie outside the file of ${byteLength} bytes`);
      }
      const bytes = new Uint8Array(end - start);
      let done = 0;
      while (done < bytes.length) {
        const { bytesRead } = await handle.read(bytes, done, bytes.length - done, start + done);
        if (bytesRead === 0) throw new Error('the file ends early');
        done += bytesRead;
      }
      return bytes.buffer;
    },
  };
}

/** Names of the top-level columns, once the counts are known to fit together. */
function checkMetadata(file: string, metadata: FileMetaData): string[] {
  const fail = (message: string): never => {
    throw new PluralignError('BAD_DATA', `${file}: damaged Parquet file: ${message}`);
  };
  if (!Array.isArray(metadata.schema) || !Array.isArray(metadata.row_groups)) fail('no schema or row groups');
  let total = 0;
  for (const [i, group] of metadata.row_groups.entries()) {
    const rows = Number(group.num_rows);
    if (!(rows >= 0 && rows <= maxGroupRows)) {
      fail(`row group ${i} says ${group.num_rows} rows, expected at most ${maxGroupRows}`);
    }
    for (const column of group.columns) {
      const values = Number(column.meta_data?.num_values ?? -1);
      if (!(values >= rows && values <= 64 * maxGroupRows)) {
        fail(`row group ${i} has ${rows} rows and a column of ${values} values`);
      }
    }
    total += rows;
  }
  if (total !== Number(metadata.num_rows)) fail(`row groups hold ${total} rows, the file says ${metadata.num_rows}`);
  const names: string[] = [];
  const root = metadata.schema[0];
  let at = 1;
  const skip = (depth: number): void => {
    const children = metadata.schema[at++]?.num_children ?? 0;
    if (depth > 64 || children > metadata.schema.length) fail('the schema does not fit together');
    for (let i = 0; i < children; i++) skip(depth + 1);
  };
  for (let i = 0; i < (root?.num_children ?? 0); i++) {
    const element = metadata.schema[at];
    if (typeof element?.name !== 'string') fail('the schema ends early');
    names.push(element.name);
    skip(0);
  }
  if (new Set(names).size !== names.length) fail('two columns have one name');
  return names;
}

/** Any failure inside the decoder is damage (or a codec) that the caller should hear of as such. */
async function guarded<T>(file: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    if (error instanceof PluralignError) throw error;
    const message = error instanceof Error ? error.message : String(error);
    const hint = /codec/.test(message) ? '; write the file with snappy, gzip or no compression' : '';
    throw new PluralignError('BAD_DATA', `${file}: cannot be read as Parquet: ${message}${hint}`, { cause: error });
  }
}

/** Codecs of Node's zlib beside snappy; zstd only where this Node has it. */
const compressors: Compressors = {
  GZIP: (input, maxOutputLength) => zlib.gunzipSync(input, { maxOutputLength: Math.max(1, maxOutputLength) }),
  BROTLI: (input, maxOutputLength) =>
    zlib.brotliDecompressSync(input, { maxOutputLength: Math.max(1, maxOutputLength) }),
};
const { zstdDecompressSync } = zlib as { zstdDecompressSync?: (input: Uint8Array, options: object) => Buffer };
if (zstdDecompressSync) {
  compressors.ZSTD = (input, maxOutputLength) =>
    zstdDecompressSync(input, { maxOutputLength: Math.max(1, maxOutputLength) });
}
