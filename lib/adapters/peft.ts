import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf, ioError, makeFolder, writeFileAtomic } from '../base/files.js';
import { readSafetensors, type Tensor, writeSafetensors } from '../model/safetensors.js';
import type { NativeModelConfig } from '../native/addon.js';
import { PluralignError } from '../native/errors.js';
import type { Bank } from './bank.js';
import { type Target, targetsOf } from './config.js';
import { type PeftConfig, parsePeftConfig, peftConfigText, type TaskType } from './peft-config.js';

export const configName = 'adapter_config.json';
export const weightsName = 'adapter_model.safetensors';
export const prefix = 'base_model.model.';

/** A PEFT folder that was checked against a model. */
export interface PeftAdapter extends PeftConfig {
  targets: Target[];
  /** `model.layers.0.self_attn.q_proj.lora_A` [r, in], `….lora_B` [out, r]; `score` [1, hidden] for a reward model. */
  tensors: Map<string, Tensor>;
}

async function missing(path: string): Promise<boolean> {
  try {
    await stat(path);
    return false;
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(errnoOf(error))) return true;
    throw ioError('read', path, error);
  }
}

/** Reads the configuration of a PEFT folder alone. Throws what `loadPeft` throws of it. */
export async function loadPeftConfig(dir: string): Promise<PeftConfig> {
  const file = join(dir, configName);
  if (await missing(file)) {
    throw new PluralignError(
      'NOT_FOUND',
      `${file} is not there: ${dir} is no PEFT adapter (a folder with ${configName} and ${weightsName})`,
    );
  }
  const text = await readFile(file, 'utf8').catch((error: unknown) => {
    throw ioError('read', file, error);
  });
  return parsePeftConfig(text, file);
}

/**
 * Reads a LoRA adapter in PEFT's format and checks every tensor against the model.
 *
 * Throws `NOT_FOUND` where a file is missing; what `parsePeftConfig` and `targetsOf` throw; `BAD_SHAPE` where a tensor is
 * missing, superfluous or of another shape than the model and the rank ask for; `BAD_FILE` where a value is not finite.
 */
export async function loadPeft(dir: string, model: NativeModelConfig): Promise<PeftAdapter> {
  const peft = await loadPeftConfig(dir);
  const file = join(dir, weightsName);
  if (await missing(file)) {
    const old = (await missing(join(dir, 'adapter_model.bin')))
      ? ''
      : ' (adapter_model.bin is a pickle; save it as safetensors in PEFT)';
    throw new PluralignError('NOT_FOUND', `${file} is not there${old}`);
  }
  const targets = targetsOf(peft.config, model, { where: join(dir, configName), everyTarget: false });
  const expected = new Map<string, [number, number]>();
  for (const target of targets) {
    expected.set(`${target.name}.lora_A`, [target.r, target.in]);
    expected.set(`${target.name}.lora_B`, [target.out, target.r]);
  }
  const { tensors: found } = readSafetensors(file);
  const hasHead = peft.taskType === 'SEQ_CLS' || found.has(`${prefix}score.weight`);
  if (hasHead) expected.set('score', [1, model.hiddenSize]);

  const base = peft.baseModel ? ` (it names ${peft.baseModel})` : '';
  const otherBase = `is this an adapter of another base${base}, or was ${configName} changed?`;
  for (const name of found.keys()) {
    const plain = name.startsWith(prefix) ? name.slice(prefix.length).replace(/\.weight$/, '') : '';
    if (expected.has(plain) && name === `${prefix}${plain}.weight`) continue;
    throw new PluralignError(
      'BAD_SHAPE',
      `${file}: found ${name}, which ${configName} does not target in this model (${model.layers} layers); ${otherBase}`,
    );
  }
  const tensors = new Map<string, Tensor>();
  for (const [plain, [rows, cols]] of expected) {
    const name = `${prefix}${plain}.weight`;
    const tensor = found.get(name);
    if (!tensor) {
      const lost = plain === 'score' ? 'the reward head was not saved with the adapter' : otherBase;
      throw new PluralignError('BAD_SHAPE', `${file}: ${name} [${rows}, ${cols}] is missing; ${lost}`);
    }
    if (tensor.shape.length !== 2 || tensor.shape[0] !== rows || tensor.shape[1] !== cols) {
      const shape = `[${tensor.shape.join(', ')}]`;
      const why = plain === 'score' && tensor.shape[0] !== 1 ? 'a reward model has one label' : otherBase;
      throw new PluralignError('BAD_SHAPE', `${file}: ${name} has shape ${shape}, expected [${rows}, ${cols}]; ${why}`);
    }
    const bad = tensor.data.findIndex((value) => !Number.isFinite(value));
    if (bad !== -1) {
      const at = `row ${Math.floor(bad / cols)}, column ${bad % cols}`;
      throw new PluralignError('BAD_FILE', `${file}: ${name} has ${tensor.data[bad]} at ${at}; the adapter is broken`);
    }
    tensors.set(plain, tensor);
  }
  return { ...peft, targets, tensors };
}

export interface SavePeftOptions {
  /** Name or folder of the base model, for PEFT to find it. */
  baseModel?: string | null;
  revision?: string | null;
  /** `SEQ_CLS` by default where the adapter has a reward head, else `CAUSAL_LM`. */
  taskType?: TaskType;
}

/**
 * Writes one adapter of a bank as a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`, float32. Shared
 * factors are written out and a core or vector is multiplied into B, so that the files are plain LoRA. A reward head makes
 * it a sequence classifier with `score`, to be loaded with `num_labels=1`; serving engines refuse such an adapter and many
 * cap the rank at 16.
 *
 * Throws `NOT_FOUND` for an unknown adapter, `BAD_ARGUMENT` where the bank holds base weights or the task does not fit the
 * head, `NON_FINITE` rather than writing values that are not, `IO` where writing fails.
 */
export async function savePeft(bank: Bank, name: string, dir: string, options: SavePeftOptions = {}): Promise<void> {
  const { config, head } = bank.adapters[bank.adapterIndex(name)];
  if (config === null)
    throw new PluralignError('BAD_ARGUMENT', `${name} trains base weights: save it as a model, not as an adapter`);
  const taskType = options.taskType ?? (head === -1 ? 'CAUSAL_LM' : 'SEQ_CLS');
  if ((taskType === 'SEQ_CLS') !== (head !== -1)) {
    throw new PluralignError(
      'BAD_ARGUMENT',
      `adapter ${name} has ${head === -1 ? 'no' : 'a'} reward head: it cannot be saved as ${taskType}`,
    );
  }
  const { baseModel = null, revision = null } = options;
  await writePeft(dir, { config, taskType, baseModel, revision }, bank.materialise(name), `adapter ${name}`);
}

/**
 * Writes a PEFT folder of `adapter` and its tensors under their plain names (as in `PeftAdapter.tensors`). `what` names it
 * in errors. Throws `NON_FINITE` rather than writing values that are not, `IO` where writing fails.
 */
export async function writePeft(
  dir: string,
  adapter: PeftConfig,
  plain: ReadonlyMap<string, Tensor>,
  what: string,
): Promise<void> {
  const tensors = [...plain].map(([name, tensor]) => ({ name: `${prefix}${name}.weight`, ...tensor }));
  for (const tensor of tensors) {
    if (tensor.data.every(Number.isFinite)) continue;
    throw new PluralignError(
      'NON_FINITE',
      `${tensor.name} of ${what} has values that are not finite; nothing was written`,
    );
  }
  await makeFolder(dir).catch((error: unknown) => {
    throw ioError('make', dir, error);
  });
  await writeSafetensors(join(dir, weightsName), tensors, { format: 'pt' });
  await writeFileAtomic(join(dir, configName), peftConfigText(adapter));
}
