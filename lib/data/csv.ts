import { createReadStream } from 'node:fs';
import { Readable } from 'node:stream';
import { CsvError, type Info, parse } from 'csv-parse';
import { PluralignError } from '../native/errors.js';
import type { RawRecord, RecordOptions } from './readers.js';
import { decodeUtf8, fileError, maxRecordBytes, refuseUtf16 } from './text-file.js';
import { badData, describeName } from './where.js';

/**
 * Records of a CSV file with a header line (RFC 4180: comma, double quotes, quotes doubled inside quotes).
 * A record's line is the one on which it starts. Cells are cast by their column's name, see `castCell`.
 */
export async function* readCsv(file: string, _options: RecordOptions = {}): AsyncGenerator<RawRecord> {
  const parser = parse({
    bom: true,
    info: true,
    relax_column_count: true,
    skip_empty_lines: true,
    max_record_size: maxRecordBytes,
  });
  const source = Readable.from(utf8Chunks(file));
  source.once('error', (error) => parser.destroy(error));
  source.pipe(parser);
  let header: string[] | undefined;
  let lines = 0;
  let emptyLines = 0;
  try {
    for await (const { record, info } of parser as AsyncIterable<{ record: string[]; info: Info }>) {
      const origin = { file, line: lines + 1 + info.empty_lines - emptyLines };
      lines = info.lines;
      emptyLines = info.empty_lines;
      if (header === undefined) {
        header = checkHeader(file, record);
      } else if (record.length !== header.length) {
        const problem = badData(
          origin,
          `found ${record.length} cells, expected ${header.length} as in the header; quote cells that hold commas`,
        );
        yield { origin, problem };
      } else {
        yield { origin, value: Object.fromEntries(header.map((name, i) => [name, castCell(name, record[i])])) };
      }
    }
  } catch (error) {
    if (error instanceof CsvError) {
      throw new PluralignError('BAD_DATA', `${file}: malformed CSV: ${error.message}`, { cause: error });
    }
    throw fileError(file, error);
  } finally {
    source.destroy();
    parser.destroy();
  }
}

/**
 * A cell by its column: numbers in `weight` and `margin`, true, false, 0 or 1 in `label`, JSON in `responses`,
 * `ranking` and `messages`; in the text columns a JSON array of messages is a conversation and anything else is text. An empty
 * cell is absent, but empty text in a text column. What does not parse stays text for the row's validation to refuse.
 */
export function castCell(column: string, cell: string): unknown {
  switch (column) {
    case 'prompt':
    case 'chosen':
    case 'rejected':
    case 'completion': {
      const value = /^\s*\[\s*\{/.test(cell) ? parseJson(cell) : cell;
      return isConversation(value) ? value : cell;
    }
    case 'text':
      return cell;
    case 'responses':
    case 'ranking':
    case 'messages':
      return cell === '' ? undefined : parseJson(cell);
    case 'weight':
    case 'margin': {
      const text = cell.trim();
      if (text === '') return undefined;
      return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : cell;
    }
    case 'label': {
      const text = cell.trim().toLowerCase();
      if (text === '') return undefined;
      if (text === 'true' || text === '1') return true;
      return text === 'false' || text === '0' ? false : cell;
    }
    default:
      return cell === '' ? undefined : cell;
  }
}

function checkHeader(file: string, names: string[]): string[] {
  const repeated = names.find((name, i) => names.indexOf(name) !== i);
  if (repeated !== undefined) {
    throw badData({ file, line: 1 }, `the header names the column ${describeName(repeated)} twice; rename one`);
  }
  return names;
}

function parseJson(cell: string): unknown {
  try {
    return JSON.parse(cell);
  } catch {
    return cell;
  }
}

function isConversation(value: unknown): boolean {
  return (
    Array.isArray(value) &&
    value.length > 0 &&
    value.every((turn) => typeof turn === 'object' && turn !== null && 'role' in turn && 'content' in turn)
  );
}

/** Whole lines as strictly decoded text, so that a character is never cut and bad bytes name their line. */
async function* utf8Chunks(file: string): AsyncGenerator<string> {
  let line = 1;
  let rest: Buffer = Buffer.alloc(0);
  let first = true;
  const decode = (bytes: Buffer): string => {
    if (first && bytes.length > 0) {
      refuseUtf16(file, bytes);
      first = false;
    }
    let text: string;
    try {
      text = decodeUtf8(file, line, bytes);
    } catch {
      for (let from = 0; from < bytes.length; line++) {
        const end = bytes.indexOf(10, from);
        const to = end < 0 ? bytes.length : end + 1;
        decodeUtf8(file, line, bytes.subarray(from, to));
        from = to;
      }
      throw new PluralignError('INTERNAL', `${file}: bad UTF-8 found and lost again`);
    }
    for (let at = bytes.indexOf(10); at >= 0; at = bytes.indexOf(10, at + 1)) line += 1;
    return text;
  };
  for await (const chunk of createReadStream(file) as AsyncIterable<Buffer>) {
    const end = chunk.lastIndexOf(10) + 1;
    if (end === 0) {
      rest = Buffer.concat([rest, chunk]);
      if (rest.length > maxRecordBytes)
        throw badData({ file, line }, `found a line of more than ${maxRecordBytes} bytes`);
      continue;
    }
    yield decode(Buffer.concat([rest, chunk.subarray(0, end)]));
    rest = chunk.subarray(end);
  }
  if (rest.length > 0) yield decode(rest);
}
