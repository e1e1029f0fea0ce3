import { realpath } from 'node:fs/promises';
import type { ResolvedConfig } from '../config/index.js';
import type { generate } from '../generation/engine.js';
import { weightFiles } from '../model/folder.js';
import { resolveModel } from '../model/hub.js';
import { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';

/** What runs of one process have in common: the base, and who samples for them. */
export interface SharedBase {
  readonly model: Model;
  readonly generate: typeof generate;
}

/** Throws `BAD_ARGUMENT` unless the base that a run shares is its configuration's model in its dtype. */
export async function checkShared(config: ResolvedConfig, { model }: SharedBase): Promise<void> {
  const found = `beside has ${model.dir ?? 'a model without a folder'} in ${model.dtype}`;
  const refuse = (what: string) => {
    throw new PluralignError('BAD_ARGUMENT', `${found}, but the run is of ${what}`);
  };
  if (config.model === null || model.dir === null) return refuse(config.model ?? 'a new model');
  const dir = await resolveModel(config.model);
  if ((await realpath(dir)) !== (await realpath(model.dir))) refuse(dir);
  const dtype = Model.dtypeOf(config.train.dtype, model.config, weightFiles(dir));
  if (dtype !== model.dtype) refuse(dtype);
}
