import { PluralignError } from '../native/errors.js';
import { describe, type Json } from './folder.js';

/** Checked access to the keys of a configuration; errors name the file and the key. */
export class Fields {
  constructor(
    readonly json: Json,
    readonly where: string,
  ) {}

  bad(key: string, why: string): never {
    throw new PluralignError('BAD_FILE', `${this.where}: ${key}: ${why}`);
  }

  refuse(key: string, why: string): never {
    throw new PluralignError('UNSUPPORTED', `${this.where}: ${key}: ${why}`);
  }

  /** A positive integer below 2^31. */
  size(key: string): number {
    return this.optionalSize(key) ?? this.bad(key, 'expected a positive integer, found nothing');
  }

  /** `size`, or undefined where the key is absent or null. */
  optionalSize(key: string): number | undefined {
    const value = this.json[key];
    if (value == null) return undefined;
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 1 || value >= 2 ** 31) {
      return this.bad(key, `expected a positive integer below 2^31, found ${describe(value)}`);
    }
    return value;
  }

  /** A whole number, 0 included. */
  count(key: string, fallback: number): number {
    const value = this.json[key] ?? fallback;
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 0) {
      return this.bad(key, `expected a whole number, found ${describe(value)}`);
    }
    return value;
  }

  /** A finite number above 0. */
  positive(key: string, fallback?: number): number {
    const value = this.json[key] ?? fallback;
    if (typeof value !== 'number' || !Number.isFinite(value) || value <= 0) {
      return this.bad(key, `expected a positive number, found ${describe(value)}`);
    }
    return value;
  }

  flag(key: string, fallback: boolean): boolean {
    const value = this.json[key] ?? fallback;
    return typeof value === 'boolean' ? value : this.bad(key, `expected true or false, found ${describe(value)}`);
  }

  /** Token ids: a number, a list of numbers, or nothing. */
  ids(key: string): number[] {
    const value = this.json[key];
    const list = value == null ? [] : Array.isArray(value) ? value : [value];
    for (const id of list) {
      if (typeof id !== 'number' || !Number.isInteger(id) || id < -1 || id >= 2 ** 31) {
        this.bad(key, `expected a token id or a list of them, found ${describe(id)}`);
      }
    }
    // Some writers put -1 for "none".
    return (list as number[]).filter((id) => id >= 0);
  }
}
