// Experts with random factors for the tests of merging, and merges of them.
import { join } from 'node:path';
import { type AdapterConfig, adapterConfig } from '../../lib/adapters/config.js';
import { loadPeftConfig, writePeft } from '../../lib/adapters/peft.js';
import { Random } from '../../lib/base/random.js';
import { type MergeOptions, mergeExperts } from '../../lib/merge/index.js';
import { mergeMethods } from '../../lib/merge/methods.js';
import { readSafetensors, type Tensor } from '../../lib/model/safetensors.js';
import { type Dense, update } from './merge-reference.js';
import { scratch } from './runs.js';

export const { path } = scratch();
export const shapes: Record<string, [number, number]> = {
  'model.layers.0.self_attn.q_proj': [12, 9],
  'model.layers.0.mlp.down_proj': [9, 20],
  'model.layers.1.self_attn.q_proj': [12, 9],
};
export const modules = Object.keys(shapes);

export interface Expert {
  name: string;
  dir: string;
}

/** A PEFT folder with random factors. */
export async function expert(
  name: string,
  given: Partial<AdapterConfig>,
  options: { base?: string; seed?: number; shapes?: typeof shapes; spoil?: (t: Map<string, Tensor>) => void } = {},
): Promise<Expert> {
  const random = new Random(options.seed ?? name.length * 7 + name.charCodeAt(0));
  const config = adapterConfig({ targets: ['q_proj', 'down_proj'], ...given });
  const tensors = new Map<string, Tensor>();
  for (const [module, [rows, cols]] of Object.entries(options.shapes ?? shapes)) {
    const r = Object.entries(config.rankPattern).find(([key]) => module.endsWith(key))?.[1] ?? config.r;
    const values = (n: number) => Float32Array.from({ length: n }, () => random.normal());
    tensors.set(`${module}.lora_A`, { shape: [r, cols], data: values(r * cols) });
    tensors.set(`${module}.lora_B`, { shape: [rows, r], data: values(rows * r) });
  }
  options.spoil?.(tensors);
  const dir = path(name);
  await writePeft(
    dir,
    { config, taskType: 'CAUSAL_LM', baseModel: options.base ?? null, revision: null },
    tensors,
    name,
  );
  return { name, dir };
}

/** The update of every module, straight from the files and PEFT's rules of scaling. */
export async function updates(dir: string): Promise<Map<string, Dense>> {
  const { config } = await loadPeftConfig(dir);
  const { tensors } = readSafetensors(join(dir, 'adapter_model.safetensors'));
  return new Map(
    modules.map((module) => {
      const a = tensors.get(`base_model.model.${module}.lora_A.weight`)!;
      const b = tensors.get(`base_model.model.${module}.lora_B.weight`)!;
      const r = a.shape[0];
      const alpha = Object.entries(config.alphaPattern).find(([key]) => module.endsWith(key))?.[1] ?? config.alpha;
      const scale = alpha / (config.rslora ? Math.sqrt(r) : r);
      return [module, update(b.data, a.data, b.shape[0], a.shape[1], r, scale)];
    }),
  );
}

// Unequal ranks, alphas and scalings, with patterns.
export const one = expert('one', { r: 2, alpha: 3 });
export const two = expert('two', { r: 3, alpha: 16, rslora: true });
export const three = expert('three', {
  r: 1,
  alpha: 5,
  rankPattern: { down_proj: 4 },
  alphaPattern: { 'layers.1.self_attn.q_proj': 7 },
});
export const all = Promise.all([one, two, three]);
export const weights = { one: 0.5, two: 0.2, three: 0.6 };
export const settings = { density: 0.6, epsilon: 0.3, gamma: 0.1, lambda: 1.3, seed: 11 };

export function merged(experts: Expert[], method: string, options: Partial<MergeOptions> = {}) {
  const { uses = [], random = false } = mergeMethods[method] ?? {};
  const own = Object.fromEntries(uses.map((key) => [key, settings[key]]));
  return mergeExperts({
    experts,
    method,
    output: path(`out-${method}-${experts.length}-${options.rank ?? 0}`),
    ...own,
    ...(random ? { seed: 11 } : {}),
    ...options,
  });
}
