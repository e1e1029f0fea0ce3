import { existsSync, realpathSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { byPattern } from '../adapters/config.js';
import { configName, loadPeftConfig, prefix, weightsName } from '../adapters/peft.js';
import type { PeftConfig } from '../adapters/peft-config.js';
import { weightFiles } from '../model/folder.js';
import { safetensorsInfo } from '../model/safetensors.js';
import { PluralignError } from '../native/errors.js';
import { addon } from '../native/loader.js';

/** A folder to be merged and the name it goes by. */
export interface ExpertFolder {
  name: string;
  dir: string;
}

/** Tensors of a folder's safetensors files: shapes at once, values when asked for. */
export class TensorFiles {
  readonly shapes = new Map<string, number[]>();
  readonly dtypes = new Map<string, string>();
  readonly #files = new Map<string, string>();

  constructor(files: readonly string[]) {
    for (const file of files)
      for (const { name, shape, dtype } of safetensorsInfo(file).tensors) {
        if (this.#files.has(name)) continue;
        this.#files.set(name, file);
        this.shapes.set(name, shape);
        this.dtypes.set(name, dtype);
      }
  }

  file(name: string): string {
    return this.#files.get(name)!;
  }

  /** A tensor as float32. Throws `BAD_FILE` naming the first value that is not finite. */
  read(name: string): Float32Array {
    const file = this.file(name);
    const values = addon().safetensorsTensor(file, name);
    for (let i = 0; i < values.length; i++) {
      if (Number.isFinite(values[i])) continue;
      const cols = this.shapes.get(name)!.at(-1) ?? 1;
      const at = `row ${Math.floor(i / cols)}, column ${i % cols}`;
      throw new PluralignError('BAD_FILE', `${file}: ${name} has ${values[i]} at ${at}; nothing was merged`);
    }
    return values;
  }
}

/** One adapted linear of an adapter: ΔW = scale · B A. */
export interface ExpertModule {
  in: number;
  out: number;
  r: number;
  scale: number;
}

export interface AdapterExpert extends ExpertFolder {
  kind: 'adapter';
  peft: PeftConfig;
  /** By the linear's name, `model.layers.0.self_attn.q_proj`. */
  modules: Map<string, ExpertModule>;
  /** It has a reward head `score` [1, hidden]. */
  head: boolean;
  files: TensorFiles;
}

export interface ModelExpert extends ExpertFolder {
  kind: 'model';
  files: TensorFiles;
}

export type Expert = AdapterExpert | ModelExpert;

export const headTensor = `${prefix}score.weight`;
export const factorTensor = (module: string, factor: 'A' | 'B') => `${prefix}${module}.lora_${factor}.weight`;

/** Opens an adapter's or a model's folder. Reads headers only. Throws as `loadPeft` does, naming file and tensor. */
export async function openExpert({ name, dir }: ExpertFolder): Promise<Expert> {
  if (existsSync(join(dir, configName))) return openAdapter({ name, dir });
  if (existsSync(join(dir, 'config.json')))
    return { kind: 'model', name, dir, files: new TensorFiles(weightFiles(dir)) };
  throw new PluralignError(
    'NOT_FOUND',
    `${dir}: neither an adapter (${configName}) nor a model (config.json) is there`,
  );
}

async function openAdapter({ name, dir }: ExpertFolder): Promise<AdapterExpert> {
  const peft = await loadPeftConfig(dir);
  const file = join(dir, weightsName);
  if (!existsSync(file)) throw new PluralignError('NOT_FOUND', `${file} is not there`);
  const files = new TensorFiles([file]);
  const names = new Set<string>();
  for (const tensor of files.shapes.keys()) {
    const module = /^base_model\.model\.(.+)\.lora_[AB]\.weight$/.exec(tensor)?.[1];
    if (module !== undefined) names.add(module);
    else if (tensor !== headTensor)
      throw new PluralignError('UNSUPPORTED', `${file}: ${tensor} is no factor of a linear layer and cannot be merged`);
  }
  const linears = [...names];
  const ranks = byPattern(peft.config.rankPattern, linears, peft.config.r, `${dir}: rank_pattern`);
  const alphas = byPattern(peft.config.alphaPattern, linears, peft.config.alpha, `${dir}: alpha_pattern`);
  const modules = new Map<string, ExpertModule>();
  linears.forEach((module, i) => {
    const shape = (factor: 'A' | 'B') => {
      const tensor = factorTensor(module, factor);
      const found = files.shapes.get(tensor);
      if (found?.length === 2 && found[factor === 'A' ? 0 : 1] === ranks[i]) return found;
      const what = found ? `has shape [${found.join(', ')}]` : 'is missing';
      throw new PluralignError('BAD_SHAPE', `${file}: ${tensor} ${what}; ${configName} says rank ${ranks[i]}`);
    };
    const r = ranks[i];
    const scale = alphas[i] / (peft.config.rslora ? Math.sqrt(r) : r);
    modules.set(module, { in: shape('A')[1], out: shape('B')[0], r, scale });
  });
  if (modules.size === 0) throw new PluralignError('BAD_SHAPE', `${file}: it has no LoRA factors`);
  return { kind: 'adapter', name, dir, peft, modules, head: files.shapes.has(headTensor), files };
}

/** The base a PEFT folder names, so that two spellings of one place compare equal. */
function baseOf(expert: AdapterExpert): string | null {
  const named = expert.peft.baseModel?.replace(/^hf:/, '').replace(/\/+$/, '');
  if (!named) return null;
  return existsSync(named) ? realpathSync(resolve(named)) : named;
}

/**
 * Adapters of one base, with the same targets and shapes. Throws `BAD_ARGUMENT` or `BAD_SHAPE` naming the two that differ
 * and where. Folders that moved are known by their last name.
 */
export function checkAlike(experts: readonly AdapterExpert[]): void {
  const first = experts[0];
  for (const other of experts.slice(1)) {
    const fail = (code: string, what: string): never => {
      throw new PluralignError(code, `adapters '${first.name}' and '${other.name}' ${what}`);
    };
    const bases = [baseOf(first), baseOf(other)];
    const [mine, theirs] = bases.map((base) => base && basename(base));
    if (bases[0] !== null && bases[1] !== null && mine !== theirs)
      fail('BAD_ARGUMENT', `are of different bases: ${first.peft.baseModel} and ${other.peft.baseModel}`);
    for (const [a, b] of [
      [first, other],
      [other, first],
    ]) {
      const only = [...a.modules.keys()].find((module) => !b.modules.has(module));
      if (only !== undefined) fail('BAD_SHAPE', `have different targets: only '${a.name}' adapts ${only}`);
    }
    for (const [module, { in: cols, out: rows }] of first.modules) {
      const found = other.modules.get(module)!;
      if (found.in !== cols || found.out !== rows)
        fail('BAD_SHAPE', `differ in shape: ${module} is [${rows}, ${cols}] and [${found.out}, ${found.in}]`);
    }
    if (first.head !== other.head)
      fail('BAD_SHAPE', `differ: only '${first.head ? first.name : other.name}' has a reward head`);
    if (first.head && `${first.files.shapes.get(headTensor)}` !== `${other.files.shapes.get(headTensor)}`)
      fail('BAD_SHAPE', 'have reward heads of different shapes');
  }
}

/** The experts fit the base model. Throws `BAD_SHAPE` naming expert, tensor and both shapes. */
export function checkBase(experts: readonly Expert[], base: TensorFiles, dir: string): void {
  for (const expert of experts) {
    const fail = (what: string): never => {
      throw new PluralignError('BAD_SHAPE', `'${expert.name}' (${expert.dir}) is no expert on ${dir}: ${what}`);
    };
    const compare = (tensor: string, shape: readonly number[]) => {
      const name = storedName(tensor, base) ?? fail(`the base has no tensor ${tensor}`);
      const own = base.shapes.get(name)!;
      if (`${own}` !== `${shape}`) fail(`${tensor} is [${shape.join(', ')}], in the base [${own.join(', ')}]`);
    };
    if (expert.kind === 'adapter') for (const [name, m] of expert.modules) compare(`${name}.weight`, [m.out, m.in]);
    else {
      for (const [tensor, shape] of expert.files.shapes) compare(tensor, shape);
      const missing = [...base.shapes.keys()].find((tensor) => storedName(tensor, expert.files) === undefined);
      if (missing !== undefined) fail(`it has no tensor ${missing}`);
    }
  }
}

const tied = ['model.embed_tokens.weight', 'lm_head.weight'];

/** The name that a folder stores a tensor under: one tied matrix goes by either. Undefined where it has neither. */
export function storedName(tensor: string, files: TensorFiles): string | undefined {
  if (files.shapes.has(tensor)) return tensor;
  return tied.includes(tensor) ? tied.find((name) => files.shapes.has(name)) : undefined;
}
