import { existsSync } from 'node:fs';
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Bank } from '../adapters/bank.js';
import { savePeft } from '../adapters/peft.js';
import { savePopulation } from '../adapters/population.js';
import { ioError, makeFolder, writeFileAtomic } from '../base/files.js';
import type { ResolvedConfig } from '../config/index.js';
import { tokenizerFiles } from '../model/folder.js';
import type { Model } from '../model/model.js';
import { writeSafetensors } from '../model/safetensors.js';
import { adapterName } from './setup.js';

/** Everyone's adapters, where a run trained one for each annotator. */
export function populationPath(run: string): string {
  return join(run, 'population.safetensors');
}

/**
 * Writes what a run has learned: `RUN/adapter` (PEFT files), or `RUN/model` where all weights were trained. With
 * `annotators` `RUN/adapter` is the generic adapter and `RUN/population.safetensors` has everyone's.
 */
export async function saveResult(
  config: ResolvedConfig,
  model: Model,
  bank: Bank,
  annotators: readonly string[] | null = null,
): Promise<{ adapter?: string; model?: string; population?: string }> {
  if (config.adapter !== 'full') {
    const dir = join(config.output, 'adapter');
    await savePeft(bank, adapterName, dir, { baseModel: config.model?.replace(/^hf:/, '') });
    if (annotators === null) return { adapter: dir };
    const population = populationPath(config.output);
    await savePopulation(population, bank, annotators);
    return { adapter: dir, population };
  }
  const dir = join(config.output, 'model');
  await saveModel(dir, model, bank, model.dir ?? config.pretrain!.tokenizer);
  return { model: dir };
}

/** A whole Hugging Face folder from a bank of base weights; bfloat16 where the run computed in it, else float32. */
export async function saveModel(dir: string, model: Model, bank: Bank, tokenizerDir: string): Promise<void> {
  await makeFolder(dir).catch((error: unknown) => {
    throw ioError('make', dir, error);
  });
  const dtype = model.dtype === 'bfloat16' ? 'BF16' : 'F32';
  const tensors = bank.factors.flatMap((factor, i) => {
    if (factor.role !== 'weight' && factor.role !== 'head') return [];
    const name = factor.role === 'head' ? 'score.weight' : factor.name;
    const shape = factor.rows === 1 && factor.role === 'weight' ? [factor.cols] : [factor.rows, factor.cols];
    return [{ name, shape, data: bank.values(i), dtype: dtype as 'BF16' | 'F32' }];
  });
  await writeSafetensors(join(dir, 'model.safetensors'), tensors, { format: 'pt' });
  const reward = bank.adapters[0].head !== -1;
  const json: Record<string, unknown> = { ...model.config.json, dtype: model.dtype, torch_dtype: model.dtype };
  if (reward) {
    json.architectures = [model.config.architecture.replace('ForCausalLM', 'ForSequenceClassification')];
    json.num_labels = 1;
    json.id2label = { 0: 'LABEL_0' };
    json.label2id = { LABEL_0: 0 };
  }
  await writeFileAtomic(join(dir, 'config.json'), `${JSON.stringify(json, null, 2)}\n`);
  for (const name of tokenizerFiles) {
    const from = join(tokenizerDir, name);
    if (!existsSync(from)) continue;
    await copyFile(from, join(dir, name)).catch((error: unknown) => {
      throw ioError('copy', from, error);
    });
  }
}
