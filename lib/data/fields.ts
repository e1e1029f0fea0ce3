import type { PluralignError } from '../native/errors.js';
import type { Message, Origin, Text } from './types.js';
import { badData, describe, describeName } from './where.js';

/** Reads a record's fields, each with an error that names file, line, field, what was found and what was expected. */
export class Fields {
  readonly #record: Record<string, unknown>;
  readonly #origin: Origin;
  /** Fields of messages that a chat template will not see. */
  readonly ignored: string[] = [];

  constructor(value: unknown, origin: Origin) {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw badData(origin, `found ${describe(value)}, expected an object with the fields of a row`);
    }
    this.#record = value as Record<string, unknown>;
    this.#origin = origin;
  }

  /** Null counts as absent: tables have a null wherever a column does not apply. */
  has(field: string): boolean {
    return this.get(field) !== null && this.get(field) !== undefined;
  }

  get(field: string): unknown {
    return Object.hasOwn(this.#record, field) ? this.#record[field] : undefined;
  }

  /** Names of the fields that hold something. */
  names(): string[] {
    return Object.keys(this.#record).filter((name) => this.has(name));
  }

  fail(field: string, found: unknown, expected: string): never {
    throw this.error(`field ${describeName(field)}: found ${describe(found)}, expected ${expected}`);
  }

  error(message: string): PluralignError {
    return badData(this.#origin, message);
  }

  text(field: string): Text {
    return this.#text(field, this.get(field));
  }

  textArray(field: string): Text[] {
    const value = this.get(field);
    const expected = 'an array of texts or conversations (in CSV: JSON in the cell)';
    if (!Array.isArray(value)) return this.fail(field, value, expected);
    return value.map((item, i) => this.#text(`${field}[${i}]`, item));
  }

  /** An item's name or an annotator: text, or a whole number that was not rounded on the way. */
  name(field: string): string | undefined {
    if (!this.has(field)) return undefined;
    return this.#name(field, this.get(field));
  }

  nameArray(field: string): string[] {
    const value = this.get(field);
    if (!Array.isArray(value)) return this.fail(field, value, 'an array of names');
    return value.map((item, i) => this.#name(`${field}[${i}]`, item));
  }

  number(field: string, expected: string, valid: (value: number) => boolean = () => true): number | undefined {
    if (!this.has(field)) return undefined;
    const found = this.get(field);
    const value = typeof found === 'bigint' ? Number(found) : found;
    if (typeof value !== 'number' || !Number.isFinite(value) || !valid(value)) return this.fail(field, found, expected);
    return value;
  }

  boolean(field: string): boolean {
    const found = this.get(field);
    const value = typeof found === 'bigint' ? Number(found) : found;
    if (value === true || value === 1) return true;
    if (value === false || value === 0) return false;
    return this.fail(field, found, 'true or false (or 1 or 0)');
  }

  /** Indices into `count` responses, best first, each at most once. */
  ranking(field: string, count: number): number[] {
    const value = this.get(field);
    const expected = `indices from 0 to ${count - 1}, best first, each at most once (in CSV: JSON in the cell)`;
    if (!Array.isArray(value) || value.length === 0) return this.fail(field, value, `an array of ${expected}`);
    const seen = new Set<number>();
    return value.map((found, i) => {
      const index = typeof found === 'bigint' ? Number(found) : found;
      if (typeof index !== 'number' || !Number.isInteger(index) || index < 0 || index >= count) {
        return this.fail(`${field}[${i}]`, found, expected);
      }
      if (seen.has(index)) {
        throw this.error(`field ${describeName(`${field}[${i}]`)}: found ${index} a second time, expected ${expected}`);
      }
      seen.add(index);
      return index;
    });
  }

  #text(field: string, value: unknown): Text {
    if (typeof value === 'string') return this.#wellFormed(field, value);
    if (!Array.isArray(value)) return this.fail(field, value, 'a text or an array of messages');
    if (value.length === 0) return this.fail(field, value, 'a text or at least one message');
    return value.map((turn, i) => this.#message(`${field}[${i}]`, turn));
  }

  #message(field: string, value: unknown): Message {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      return this.fail(field, value, 'a message {"role": …, "content": …}');
    }
    const { role, content, ...others } = value as Record<string, unknown>;
    for (const [name, other] of Object.entries(others)) {
      if (other !== null && other !== undefined) this.ignored.push(`messages.${name}`);
    }
    if (typeof role !== 'string' || role === '') return this.fail(`${field}.role`, role, 'a role such as "user"');
    return { role: this.#wellFormed(`${field}.role`, role), content: this.#content(`${field}.content`, content) };
  }

  /** Text, or parts that are all text; an image that the model would never see is refused. */
  #content(field: string, value: unknown): string {
    if (typeof value === 'string') return this.#wellFormed(field, value);
    if (!Array.isArray(value)) return this.fail(field, value, 'a text');
    return value
      .map((part, i) => {
        const { type, text } = (part ?? {}) as { type?: unknown; text?: unknown };
        if (type !== 'text' || typeof text !== 'string') {
          return this.fail(`${field}[${i}]`, part, 'a part {"type": "text", "text": …}; other parts are not supported');
        }
        return this.#wellFormed(`${field}[${i}].text`, text);
      })
      .join('');
  }

  #name(field: string, value: unknown): string {
    if (typeof value === 'bigint') return String(value);
    if (typeof value === 'string' && value.trim() !== '') return this.#wellFormed(field, value);
    if (typeof value === 'number' && Number.isFinite(value)) {
      if (Number.isInteger(value) && !Number.isSafeInteger(value)) {
        return this.fail(
          field,
          value,
          'a name in quotes; a number this large has lost digits, which would mix names up',
        );
      }
      return String(value);
    }
    return this.fail(field, value, 'a name: text that is not blank, or a number');
  }

  /** Half a surrogate pair has no UTF-8 form: a tokenizer would see other text than the file has. */
  #wellFormed(field: string, value: string): string {
    if (/\p{Surrogate}/u.test(value))
      return this.fail(field, value, 'text without halves of surrogate pairs (\\ud800 …)');
    return value;
  }
}
