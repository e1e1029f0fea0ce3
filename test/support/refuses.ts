import { expect } from 'vitest';
import { PluralignError } from '../../lib/native/errors.js';

/** Expects a call to throw, or its promise to reject with, a PluralignError of this code and a message that matches. */
export async function refuses(call: () => unknown, code: string, message: RegExp = /./) {
  let error: unknown;
  try {
    await call();
  } catch (e) {
    error = e;
  }
  expect(error).toBeInstanceOf(PluralignError);
  expect(error).toMatchObject({ name: 'PluralignError', code, message: expect.stringMatching(message) });
}
