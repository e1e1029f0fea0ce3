import { type FileHandle, open } from 'node:fs/promises';
import * as zlib from 'node:zlib';
import {
  type AsyncBuffer,
  type Compressors,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
  type SchemaTree,
} from 'hyparquet';
import { PluralignError } from '../native/errors.js';
import type { RawRecord, RecordOptions } from './readers.js';
import { fileError } from './text-file.js';

/** More rows in one group than any writer puts there; a damaged count must not exhaust the memory. */
const maxGroupRows = 2 ** 22;
const maxGroupValues = 64 * maxGroupRows;

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
    const metadata = await guarded(file, () => parquetMetadataAsync(buffer, { geoparquet: false }));
    const names = await guarded(file, async () => checkMetadata(metadata, buffer.byteLength));
    const columns = options.fields ? names.filter((name) => options.fields?.has(name)) : names;
    const ignored = names.filter((name) => !columns.includes(name));
    let rowStart = 0;
    for (const group of metadata.row_groups) {
      const rowEnd = rowStart + Number(group.num_rows);
      const records =
        columns.length === 0
          ? Array.from({ length: rowEnd - rowStart }, () => ({}))
          : await guarded(file, () =>
              parquetReadObjects({ file: buffer, metadata, columns, rowStart, rowEnd, compressors, geoparquet: false }),
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

/** The file as hyparquet reads it. It may drop a read that it began: a failure of such a read must not end the process. */
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
    slice(start, end = byteLength) {
      const bytes = read(start, end);
      bytes.catch(() => {});
      return bytes;
    },
  };
  async function read(start: number, end: number): Promise<ArrayBuffer> {
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
  }
}

/**
 * Names of the top-level columns, once counts, paths and byte ranges are known to fit together: the decoder trusts them,
 * and what it throws between two of its reads would go unheard.
 */
function checkMetadata(metadata: FileMetaData, fileBytes: number): string[] {
  const schema = parquetSchema(metadata);
  let total = 0;
  for (const [i, group] of metadata.row_groups.entries()) {
    const rows = Number(group.num_rows);
    if (!(rows >= 0 && rows <= maxGroupRows)) {
      throw new Error(`row group ${i} says ${group.num_rows} rows, expected at most ${maxGroupRows}`);
    }
    for (const [j, { meta_data: column, file_path }] of group.columns.entries()) {
      const name = `column ${j} of row group ${i}`;
      if (!column || file_path) throw new Error(`${name} lies in another file`);
      const values = Number(column.num_values);
      if (!(values >= rows && values <= maxGroupValues))
        throw new Error(`${name} has ${values} values in ${rows} rows`);
      const start = Number(column.dictionary_page_offset || column.data_page_offset);
      const bytes = Number(column.total_compressed_size);
      if (!(start >= 4 && bytes >= 0 && start + bytes <= fileBytes)) throw new Error(`${name} lies outside the file`);
      let node: SchemaTree | undefined = schema;
      for (const part of column.path_in_schema) node = node?.children.find((child) => child.element.name === part);
      if (!node || node === schema) throw new Error(`${name} is not in the schema`);
    }
    total += rows;
  }
  if (total !== Number(metadata.num_rows)) {
    throw new Error(`row groups hold ${total} rows, the file says ${metadata.num_rows}`);
  }
  const names = schema.children.map(({ element }) => element.name);
  if (new Set(names).size !== names.length) throw new Error('two columns have one name');
  return names;
}

/** Any failure inside the decoder is damage (or a codec) that the caller should hear of as such. */
async function guarded<T>(file: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    if (error instanceof PluralignError || (error instanceof Error && 'syscall' in error)) throw fileError(file, error);
    const message = error instanceof Error ? error.message : String(error);
    const newer = /codec: ZSTD/.test(message) ? ', or read it with Node 22.15 or newer' : '';
    const hint = /codec/.test(message) ? `; write the file with snappy, gzip, brotli or no compression${newer}` : '';
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
