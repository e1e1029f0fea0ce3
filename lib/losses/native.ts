import { PluralignError } from '../native/errors.js';
import { addon } from '../native/loader.js';

/** The kernels of native/ops/preference as `addon.preference` offers them (native/bindings/preference.cc). */
interface NativePreference {
  pair(
    scores: object,
    options: object,
  ): { loss: number; rowLosses: Float64Array; dChosen: Float64Array; dRejected: Float64Array };
  reward(
    scores: object,
    options: object,
  ): { loss: number; rowLosses: Float64Array; dChosen: Float64Array; dRejected: Float64Array };
  ties(
    scores: object,
    options: object,
  ): { loss: number; rowLosses: Float64Array; dDifferences: Float64Array; dLogNu: number };
  ranking(scores: object, options: object): { loss: number; rowLosses: Float64Array; dScores: Float64Array };
  unpaired(scores: object, options: object): { loss: number; rowLosses: Float64Array; dLogps: Float64Array };
  sft(scores: object, options: object): { loss: number; rowLosses: Float64Array; dLogps: Float64Array };
}

export function kernels(): NativePreference {
  return (addon() as unknown as { preference: NativePreference }).preference;
}

function refuse(message: string): never {
  throw new PluralignError('BAD_ARGUMENT', message);
}

/** Throws `BAD_ARGUMENT` unless `value` is finite and at least `low` (or above it where `open`) and below `high`. */
export function checkNumber(
  name: string,
  value: number,
  low: number,
  high = Number.POSITIVE_INFINITY,
  open = false,
): void {
  if (Number.isFinite(value) && (open ? value > low : value >= low) && value < high) return;
  const bound = `${open ? 'above' : 'at least'} ${low}${high === Number.POSITIVE_INFINITY ? '' : ` and below ${high}`}`;
  refuse(`${name} is ${value}; expected a finite number ${bound}`);
}

/** An explicit normaliser is a positive sum of weights over the whole step. */
export function checkNormaliser(name: string, value: number | undefined): void {
  if (value !== undefined) checkNumber(name, value, 0, undefined, true);
}

/** Throws `BAD_SHAPE` unless every array that is given has `length` elements. */
export function checkLengths(length: number, arrays: Record<string, ArrayLike<number> | undefined>): void {
  for (const [name, array] of Object.entries(arrays))
    if (array && array.length !== length)
      throw new PluralignError('BAD_SHAPE', `${name} has ${array.length} elements, expected one per row: ${length}`);
}

/** Row weights are finite and not negative. */
export function checkWeights(name: string, weights: Float64Array | undefined): void {
  const row = weights?.findIndex((w) => !(w >= 0 && w < Number.POSITIVE_INFINITY)) ?? -1;
  if (row >= 0) refuse(`${name}[${row}] is ${weights![row]}; expected a finite number of at least 0`);
}
