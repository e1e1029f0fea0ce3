import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { savePeft } from '../adapters/peft.js';
import { AdapterPopulation } from '../adapters/population.js';
import { voterAdapter } from '../adapters/voters.js';
import { loadConfig, runConfigPath } from '../config/index.js';
import { nativeConfig, readModelConfig } from '../model/config.js';
import { resolveModel } from '../model/hub.js';
import { PluralignError } from '../native/errors.js';
import { requireRun } from '../training/run-folder.js';
import { populationPath } from '../training/save.js';

export interface ExportResult {
  /** PEFT folder of each annotator. */
  adapters: Record<string, string>;
}

/**
 * `pluralign export`: annotators' adapters of a run as PEFT files, their factors written out as plain LoRA. One annotator
 * goes to `output` itself, several to a folder each, named by the annotator (percent-encoded).
 */
export async function exportCommand(options: {
  run: string;
  annotators: string[];
  output: string;
}): Promise<ExportResult> {
  const { run, output } = options;
  await requireRun(run);
  const config = loadConfig(runConfigPath(run));
  const path = populationPath(run);
  if (!existsSync(path))
    throw new PluralignError('NOT_FOUND', `${path} is not there: expected a finished run with adapter.per: annotator`);
  const population = AdapterPopulation.open(path);
  const annotators = [...new Set(options.annotators)];
  for (const name of annotators) population.require(name);
  const shape = nativeConfig(readModelConfig(await resolveModel(config.model!)));
  const { bank } = population.bank(shape, annotators);
  const adapters: Record<string, string> = {};
  for (const name of annotators) {
    const dir = annotators.length === 1 ? output : join(output, folderName(name));
    await savePeft(bank, voterAdapter(name), dir, { baseModel: config.model!.replace(/^hf:/, '') });
    adapters[name] = dir;
  }
  return { adapters };
}

/** A name that every file system takes, and that differs where the annotators' names do. */
function folderName(annotator: string): string {
  return encodeURIComponent(annotator).replace(/[.!'()*~]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}
