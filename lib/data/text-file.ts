import { isUtf8 } from 'node:buffer';
import { createReadStream } from 'node:fs';
import { ioError } from '../base/files.js';
import { PluralignError } from '../native/errors.js';
import { badData } from './where.js';

/** A line or record longer than this is taken for damage (an unclosed quote, a binary file). */
export const maxRecordBytes = 64 * 1024 * 1024;

/** Maps a failure of the file system: `NOT_FOUND`, `BAD_DATA` (a folder) or `IO`. */
export function fileError(file: string, error: unknown): PluralignError {
  if (error instanceof PluralignError) return error;
  const { code } = error as NodeJS.ErrnoException;
  if (code === 'ENOENT' || code === 'ENOTDIR') {
    return new PluralignError('NOT_FOUND', `${file}: no such file; check the path under data`, { cause: error });
  }
  if (code === 'EISDIR') {
    return new PluralignError('BAD_DATA', `${file}: found a folder, expected a file of rows`, { cause: error });
  }
  return ioError('read', file, error);
}

/** Refuses what Windows tools write where UTF-8 is expected, before it shows up as a puzzling syntax error. */
export function refuseUtf16(file: string, start: Uint8Array): void {
  if ((start[0] === 0xff && start[1] === 0xfe) || (start[0] === 0xfe && start[1] === 0xff)) {
    throw badData({ file, line: 1 }, 'found UTF-16 text, expected UTF-8; save the file as UTF-8');
  }
}

/** Decodes strictly: a replacement character in the place of bad bytes would change the data in silence. */
export function decodeUtf8(file: string, line: number, bytes: Uint8Array): string {
  if (!isUtf8(bytes)) {
    throw badData({ file, line }, 'found bytes that are not UTF-8, expected UTF-8 text; save the file as UTF-8');
  }
  // From a Buffer view, since TextDecoder would strip a byte order mark inside the file too.
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8');
}

export interface Line {
  /** 1-based. */
  line: number;
  /** Without its line end and, on the first line, without a byte order mark. Throws where the bytes are not UTF-8. */
  text: () => string;
}

/** A file's lines (LF or CRLF), one at a time in constant memory. */
export async function* readLines(file: string): AsyncGenerator<Line> {
  let line = 0;
  let pending: Buffer[] = [];
  let pendingBytes = 0;
  const take = (last: Buffer): Line => {
    const bytes = pending.length > 0 ? Buffer.concat([...pending, last]) : last;
    pending = [];
    pendingBytes = 0;
    line += 1;
    const at = line;
    if (at === 1) refuseUtf16(file, bytes);
    return {
      line: at,
      text: () => {
        const text = decodeUtf8(file, at, bytes);
        const start = at === 1 && text.charCodeAt(0) === 0xfeff ? 1 : 0;
        const end = text.endsWith('\r') ? text.length - 1 : text.length;
        return text.slice(start, end);
      },
    };
  };
  try {
    for await (const chunk of createReadStream(file) as AsyncIterable<Buffer>) {
      let from = 0;
      for (let to = chunk.indexOf(10); to >= 0; to = chunk.indexOf(10, from)) {
        yield take(chunk.subarray(from, to));
        from = to + 1;
      }
      if (from < chunk.length) {
        pending.push(chunk.subarray(from));
        pendingBytes += chunk.length - from;
      }
      if (pendingBytes > maxRecordBytes) {
        throw badData(
          { file, line: line + 1 },
          `found a line of more than ${maxRecordBytes} bytes, expected one row on each line`,
        );
      }
    }
  } catch (error) {
    throw fileError(file, error);
  }
  if (pendingBytes > 0) yield take(Buffer.alloc(0));
}
