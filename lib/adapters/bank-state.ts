import { PluralignError } from '../native/errors.js';
import type { Factor } from './factors.js';

/** What a checkpoint needs to go on to the bit. The arrays are the bank's own: copy them to keep them past a step. */
export interface BankState {
  parameters: Float32Array;
  /** AdamW's moments in the order of `parameters`; null before the first step. */
  m: Float32Array | null;
  v: Float32Array | null;
  /** Steps that each factor has taken, in the order of `factors`. */
  steps: Int32Array;
  factors: { name: string; rows: number; cols: number }[];
}

/** Throws `BAD_SHAPE` where a state is not of a bank with these factors, in this order, over `elements` values. */
export function checkState(state: BankState, factors: readonly Factor[], elements: number): void {
  const fail = (what: string) => {
    throw new PluralignError('BAD_SHAPE', `the saved state is of other adapters: ${what}`);
  };
  factors.forEach(({ name, rows, cols }, i) => {
    const saved = state.factors[i];
    if (saved?.name === name && saved.rows === rows && saved.cols === cols) return;
    const found = saved ? `${saved.name} [${saved.rows}, ${saved.cols}]` : 'nothing';
    fail(`factor ${i} is ${found}, expected ${name} [${rows}, ${cols}]`);
  });
  if (state.factors.length > factors.length) fail(`${state.factors.length} factors, expected ${factors.length}`);
  if (state.steps.length !== factors.length) fail(`${state.steps.length} step counts, expected ${factors.length}`);
  for (const what of ['parameters', 'm', 'v'] as const) {
    const length = state[what]?.length ?? elements;
    if (length !== elements) fail(`${what} has ${length} values, expected ${elements}`);
  }
  if ((state.m === null) !== (state.v === null)) fail('only one of m and v is there');
}
