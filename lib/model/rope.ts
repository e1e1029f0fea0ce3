import { Fields } from './fields.js';
import { describe, isObject } from './folder.js';

/** Rotary position embedding: base wavelength and how its frequencies are scaled. */
export type Rope =
  | { type: 'default'; theta: number }
  | { type: 'linear'; theta: number; factor: number }
  | {
      type: 'llama3';
      theta: number;
      factor: number;
      lowFreqFactor: number;
      highFreqFactor: number;
      originalMaxPositions: number;
    };

/**
 * Reads `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (older files). Scalings other than linear
 * and llama3 are refused by name (`UNSUPPORTED`).
 */
export function readRope(fields: Fields, maxPositions: number): Rope {
  const { json } = fields;
  const key = json.rope_scaling != null ? 'rope_scaling' : 'rope_parameters';
  const block = json[key] ?? {};
  if (!isObject(block)) return fields.bad(key, `expected an object, found ${describe(block)}`);
  const nested = Object.keys(block).find((name) => isObject(block[name]));
  if (nested !== undefined) fields.refuse(`${key}.${nested}`, 'rotary parameters of their own for kinds of layers');
  const inner = new Fields({ ...block, rope_theta: block.rope_theta ?? json.rope_theta }, `${fields.where}: ${key}`);
  const partial = block.partial_rotary_factor ?? json.partial_rotary_factor ?? 1;
  if (partial !== 1) fields.refuse('partial_rotary_factor', `${String(partial)} is not implemented; expected 1`);
  const theta = inner.positive('rope_theta', 10000);
  const type = block.rope_type ?? block.type ?? 'default';
  if (type === 'default') return { type, theta };
  if (type === 'linear') return { type, theta, factor: inner.positive('factor') };
  if (type === 'llama3') {
    const lowFreqFactor = inner.positive('low_freq_factor');
    const highFreqFactor = inner.positive('high_freq_factor');
    if (highFreqFactor <= lowFreqFactor) {
      inner.bad('high_freq_factor', `${highFreqFactor} must be greater than low_freq_factor (${lowFreqFactor})`);
    }
    const originalMaxPositions =
      fields.optionalSize('original_max_position_embeddings') ??
      inner.optionalSize('original_max_position_embeddings') ??
      maxPositions;
    return { type, theta, factor: inner.positive('factor'), lowFreqFactor, highFreqFactor, originalMaxPositions };
  }
  return fields.refuse(`${key}.rope_type`, `${String(type)} is not implemented; supported are default, linear, llama3`);
}

const f = Math.fround;

/**
 * Inverse frequencies θ^(−2i/d), [headDim / 2], with the scaling applied: divided by `factor` (linear), or by wavelength
 * as Llama 3.1 does. Rounded to float32 at every step as transformers does, since weights were trained with those values.
 */
export function inverseFrequencies(rope: Rope, headDim: number): Float64Array {
  return Float64Array.from({ length: headDim / 2 }, (_, i) => {
    const frequency = f(1 / f(rope.theta ** f((2 * i) / headDim)));
    if (rope.type === 'default') return frequency;
    if (rope.type === 'linear') return f(frequency / f(rope.factor));
    return llama3(rope, frequency);
  });
}

/** Long waves are divided by the factor, short ones kept, those between mixed linearly in (context / wavelength). */
function llama3(rope: Rope & { type: 'llama3' }, frequency: number): number {
  const context = rope.originalMaxPositions;
  const wavelength = f(f(2 * Math.PI) / frequency);
  if (wavelength < f(context / rope.highFreqFactor)) return frequency;
  if (wavelength > f(context / rope.lowFreqFactor)) return f(frequency / f(rope.factor));
  const smooth = f(f(f(context / wavelength) - f(rope.lowFreqFactor)) / f(rope.highFreqFactor - rope.lowFreqFactor));
  return f(f(f(f(1 - smooth) * frequency) / f(rope.factor)) + f(smooth * frequency));
}
