import type { Tensor } from '../model/safetensors.js';
import { PluralignError } from '../native/errors.js';
import { type BankAdapter, type Factor, foldCore } from './factors.js';

/**
 * Where an adapter's tensors, by PEFT's names without prefix and suffix, stand in a bank: name → factor. Throws `BAD_SHAPE`
 * naming the tensor that is missing, has no place, or is of another shape.
 */
export function placesOf(
  { name, targets, modules, head }: BankAdapter,
  factors: readonly Factor[],
  tensors: ReadonlyMap<string, Tensor>,
): Map<string, number> {
  const places = new Map(
    targets.flatMap((target, i) => [
      [`${target.name}.lora_A`, modules[i].a],
      [`${target.name}.lora_B`, modules[i].b],
    ]),
  );
  if (head !== -1 && tensors.has('score')) places.set('score', head);
  for (const key of tensors.keys()) {
    if (places.has(key)) continue;
    throw new PluralignError(
      'BAD_SHAPE',
      `adapter ${name} has no place for ${key}: it targets other modules or has no reward head`,
    );
  }
  for (const [key, factor] of places) {
    const tensor = tensors.get(key);
    const { rows, cols } = factors[factor];
    if (tensor?.shape.length === 2 && tensor.shape[0] === rows && tensor.shape[1] === cols) continue;
    const found = tensor ? `[${tensor.shape.join(', ')}]` : 'nothing';
    throw new PluralignError('BAD_SHAPE', `${key} for adapter ${name}: found ${found}, expected [${rows}, ${cols}]`);
  }
  return places;
}

/** An adapter as plain LoRA, by the same names: cores and vectors are multiplied into B (float64 sums). Copies. */
export function plainLora(
  { targets, modules, head }: BankAdapter,
  factors: readonly Factor[],
  values: (factor: number) => Float32Array,
): Map<string, Tensor> {
  const out = new Map<string, Tensor>();
  targets.forEach((target, i) => {
    const { a, b, core } = modules[i];
    const up = values(b).slice();
    if (core !== -1) foldCore(up, target.out, target.r, values(core), factors[core].rows);
    out.set(`${target.name}.lora_A`, { shape: [target.r, target.in], data: values(a).slice() });
    out.set(`${target.name}.lora_B`, { shape: [target.out, target.r], data: up });
  });
  if (head !== -1) out.set('score', { shape: [1, factors[head].cols], data: values(head).slice() });
  return out;
}
