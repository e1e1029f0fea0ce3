import { availableParallelism } from 'node:os';
import { PluralignError } from '../native/errors.js';

/** How an operator runs. */
export interface RunOptions {
  /** Threads; `auto` (the default): as many as the processor has. The result does not depend on it. */
  threads?: number | 'auto';
  /** Rejects with `ABORTED` while the call waits behind others; one that has begun runs to its end. */
  signal?: AbortSignal;
}

export function bad(message: string): never {
  throw new PluralignError('BAD_ARGUMENT', message);
}

function kind(value: unknown): string {
  if (value === null || typeof value !== 'object') return String(value);
  return `a ${(value as object).constructor?.name ?? 'bare object'}`;
}

/** A whole number of at least `least`. */
export function whole(name: string, value: unknown, least: number): number {
  if (!Number.isSafeInteger(value) || (value as number) < least || (value as number) >= 2 ** 31)
    bad(`${name} is ${kind(value)}; expected a whole number of at least ${least}`);
  return value as number;
}

export function finite(name: string, value: unknown): number {
  if (!Number.isFinite(value)) bad(`${name} is ${kind(value)}; expected a finite number`);
  return value as number;
}

/** A Float32Array; `shape` says in words what its number of elements is made of. */
export function floats(name: string, value: unknown, length?: number, shape?: string): Float32Array {
  if (!(value instanceof Float32Array)) bad(`${name} is ${kind(value)}; expected a Float32Array`);
  if (length !== undefined && value.length !== length)
    throw new PluralignError('BAD_SHAPE', `${name} has ${value.length} elements; expected ${length} (${shape})`);
  return value;
}

export function indices(name: string, value: unknown): Int32Array {
  if (!(value instanceof Int32Array)) bad(`${name} is ${kind(value)}; expected an Int32Array`);
  return value;
}

/** A list of `count` entries; a copy, so that the caller may change its own while the call runs. */
export function entries<T>(name: string, value: ArrayLike<T>, count: number, per: string): T[] {
  if (typeof value?.length !== 'number') bad(`${name} is ${kind(value)}; expected a list with one entry for ${per}`);
  if (value.length !== count)
    throw new PluralignError('BAD_SHAPE', `${name} has ${value.length} entries; expected one for ${per}: ${count}`);
  return Array.from(value);
}

/** What is written must not lie in what is read. */
export function apart(written: [string, Float32Array], read: [string, Float32Array][]): void {
  const [name, w] = written;
  for (const [other, r] of read) {
    const overlap =
      w.buffer === r.buffer && w.byteOffset < r.byteOffset + r.byteLength && r.byteOffset < w.byteOffset + w.byteLength;
    if (overlap) bad(`${name} and ${other} share memory; give ${name} an array of its own`);
  }
}

/** Checks threads and turns an AbortSignal into the flag that native jobs read. */
export async function launch(
  options: RunOptions,
  call: (threads: number, abort: Int32Array | undefined) => Promise<void>,
): Promise<void> {
  const { threads = 'auto', signal } = options;
  const count = threads === 'auto' ? availableParallelism() : whole('threads', threads, 1);
  if (!signal) return call(count, undefined);
  if (signal.aborted) throw new PluralignError('ABORTED', 'stopped on request', { cause: signal.reason });
  const flag = new Int32Array(1);
  const raise = () => Atomics.store(flag, 0, 1);
  signal.addEventListener('abort', raise, { once: true });
  try {
    await call(count, flag);
  } finally {
    signal.removeEventListener('abort', raise);
  }
}
