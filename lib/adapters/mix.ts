import type { NativeModelConfig } from '../native/addon.js';
import { PluralignError } from '../native/errors.js';
import type { Bank } from './bank.js';
import { adapterConfig, type Target } from './config.js';
import type { Layout } from './factors.js';
import { checkLayerRuns } from './layers.js';
import type { PeftAdapter } from './peft.js';

/** Several adapters as one, without merging them: Σ w ΔW through the low-rank products. */
export interface AdapterMix {
  name: string;
  /** Of each adapter of the bank, in their order; 0 leaves one out. */
  weights: readonly number[];
  /** Other weights in some layers. */
  blocks?: readonly LayerBlock[];
}

/** Weights from one layer to another, both counted in, from 0; adapters act on both, and no block has a layer of another. */
export interface LayerBlock {
  first: number;
  last: number;
  weights: readonly number[];
}

/** The layer that a tensor of a decoder belongs to, such as `model.layers.3.mlp.up_proj`; null: to none. */
export function layerOf(tensor: string): number | null {
  const found = /(?:^|\.)layers\.(\d+)\./.exec(tensor);
  return found ? Number(found[1]) : null;
}

function weightsAt({ weights, blocks = [] }: AdapterMix, tensor: string): readonly number[] {
  const layer = layerOf(tensor);
  return blocks.find(({ first, last }) => layer !== null && first <= layer && layer <= last)?.weights ?? weights;
}

interface Part {
  adapter: PeftAdapter;
  /** Its place among the adapters, and its rank and scale in this linear. */
  index: number;
  r: number;
  scale: number;
}

/**
 * Adds mixes to a layout: all share one concatenation of the adapters' factors, A = [A₁; …], B = [s₁B₁ …], and each owns a
 * vector on its coordinates that holds the weights, so that a mix costs Σ r numbers a linear. Gives what fills them.
 */
export function layMixes(
  layout: Layout,
  adapters: readonly PeftAdapter[],
  mixes: readonly AdapterMix[],
  model: NativeModelConfig,
): (bank: Bank) => void {
  const given = (mix: AdapterMix) => [mix.weights, ...(mix.blocks ?? []).map((block) => block.weights)];
  for (const mix of mixes)
    if (!given(mix).every((weights) => weights.length === adapters.length && weights.every(Number.isFinite)))
      throw new PluralignError(
        'BAD_ARGUMENT',
        `mix ${mix.name}: expected ${adapters.length} finite weights, one an adapter`,
      );
  const adapted = new Set(adapters.flatMap((adapter) => adapter.targets.map(({ layer }) => layer)));
  for (const { name, blocks = [] } of mixes)
    checkLayerRuns(
      blocks.map(({ first, last }) => [first, last] as const),
      adapted,
      ([first, last], message) => {
        throw new PluralignError('BAD_ARGUMENT', `mix ${name}, layers ${first} to ${last}: ${message}`);
      },
    );
  const targets = new Map<string, { target: Target; parts: Part[] }>();
  adapters.forEach((adapter, index) => {
    if (mixes.every((mix) => given(mix).every((weights) => weights[index] === 0))) return;
    if (adapter.tensors.has('score'))
      throw new PluralignError('BAD_ARGUMENT', 'a reward model cannot speak in a mix of adapters');
    for (const target of adapter.targets) {
      const { r, scale, name } = target;
      const known = targets.get(name);
      if (known) {
        known.parts.push({ adapter, index, r, scale });
        known.target.r += r;
      } else targets.set(name, { target: { ...target, scale: 1 }, parts: [{ adapter, index, r, scale }] });
    }
  });
  const all = [...targets.values()];
  const config = adapterConfig({ share: 'vector' });
  const own = all.map(({ target }) => target);
  for (const { name } of mixes) layout.adapter(name, config, own, model, 'none');
  return (bank) => {
    for (const { target, parts } of all) {
      const a = bank.values(bank.factorIndex(`${target.name}.lora_A`));
      const b = bank.values(bank.factorIndex(`${target.name}.lora_B`));
      let at = 0;
      for (const { adapter, r, scale } of parts) {
        a.set(adapter.tensors.get(`${target.name}.lora_A`)!.data, at * target.in);
        const from = adapter.tensors.get(`${target.name}.lora_B`)!.data;
        for (let o = 0; o < target.out; o++)
          for (let k = 0; k < r; k++) b[o * target.r + at + k] = scale * from[o * r + k];
        at += r;
      }
      for (const mix of mixes) {
        const core = bank.values(bank.factorIndex(`${target.name}.lora_core@${mix.name}`));
        const weights = weightsAt(mix, target.name);
        at = 0;
        for (const { index, r } of parts) {
          core.fill(weights[index], at, at + r);
          at += r;
        }
      }
    }
  };
}
