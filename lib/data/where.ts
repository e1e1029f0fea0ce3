import { extname } from 'node:path';
import { PluralignError } from '../native/errors.js';
import type { Origin } from './types.js';

/** `rows.jsonl, line 3`, or `record 3` in formats without lines of their own. */
export function where(origin: Origin): string {
  const extension = extname(origin.file).toLowerCase();
  const unit = extension === '.json' || extension === '.parquet' ? 'record' : 'line';
  return `${origin.file}, ${unit} ${origin.line}`;
}

/** A short picture of a value for a message. Shallow, so that no hostile nesting overflows the stack. */
export function describe(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'null';
  if (typeof value === 'string') {
    return value.length > 40 ? `the text ${JSON.stringify(value.slice(0, 40))}…` : `the text ${JSON.stringify(value)}`;
  }
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === 'object') {
    const keys = Object.keys(value).slice(0, 5);
    return keys.length > 0 ? `an object with ${keys.map((key) => describeName(key)).join(', ')}` : 'an empty object';
  }
  return String(value);
}

/** A field name in quotes, cut where it is absurdly long. */
export function describeName(name: string): string {
  return JSON.stringify(name.length > 60 ? `${name.slice(0, 60)}…` : name);
}

export function badData(origin: Origin, message: string, options?: ErrorOptions): PluralignError {
  return new PluralignError('BAD_DATA', `${where(origin)}: ${message}`, options);
}
