import { createHash } from 'node:crypto';
import type { Bank } from '../adapters/bank.js';
import type { PolicyMethod } from '../methods/policy.js';
import { PluralignError } from '../native/errors.js';
import type { RewardScale } from '../rewards/compose.js';
import { type Checkpoint, type CheckpointFile, saveCheckpoint } from '../training/checkpoint.js';
import { RunningMeans } from '../training/metrics.js';
import type { PolicyScores } from './evaluate.js';
import type { Prompt } from './prompts.js';

/** All that a run needs to go on to the bit, besides its configuration and prompts. */
export interface RlState {
  /** Steps done. */
  step: number;
  means: RunningMeans;
  seconds: number;
  stepSeconds: number;
  /** Answers and their tokens so far. */
  samples: number;
  tokens: number;
  records: number;
  /** The last step whose evaluation is done. */
  evaluated: number;
  last: Record<string, number>;
  evalBefore: PolicyScores | null;
  /** Of the rewards, from samples of the reference. */
  scale: RewardScale | null;
}

export function freshRlState(): RlState {
  return {
    step: 0,
    means: new RunningMeans(),
    seconds: 0,
    stepSeconds: 0,
    samples: 0,
    tokens: 0,
    records: 0,
    evaluated: 0,
    last: {},
    evalBefore: null,
    scale: null,
  };
}

/** SHA-256 over the prompts, who gave them and what they weigh. */
export function promptsFingerprint(prompts: readonly Prompt[]): string {
  const hash = createHash('sha256');
  for (const { prompt, annotator, weight } of prompts)
    hash.update(JSON.stringify([prompt.length, annotator ?? null, weight])).update(prompt);
  return hash.digest('hex');
}

/** The trained banks by name. */
export type Banks = Readonly<Record<string, Bank>>;

/** Writes RUN/checkpoints/step-N. Throws NON_FINITE, with nothing written, where a parameter is not finite. */
export async function saveRlState(
  run: string,
  state: RlState,
  banks: Banks,
  method: PolicyMethod,
  prompts: string,
): Promise<void> {
  const files: CheckpointFile[] = [];
  const layouts: Record<string, unknown> = {};
  for (const [name, bank] of Object.entries(banks)) {
    const { parameters, m, v, steps, factors } = bank.state();
    if (!parameters.every(Number.isFinite))
      throw new PluralignError(
        'NON_FINITE',
        `parameters are no longer finite after step ${state.step}; no checkpoint was written. Lower the learning rate`,
      );
    files.push({ name: `${name}.f32`, data: parameters }, { name: `${name}.steps.i32`, data: steps });
    if (m && v) files.push({ name: `${name}.m.f32`, data: m }, { name: `${name}.v.f32`, data: v });
    layouts[name] = factors;
  }
  const meta = { ...state, means: state.means.state(), method: method.state(), layouts, prompts };
  await saveCheckpoint(run, state.step, files, meta);
}

/** Fills banks, method and state from a checkpoint. Throws BAD_SHAPE for other adapters, BAD_DATA for other prompts. */
export async function loadRlState(
  checkpoint: Checkpoint,
  banks: Banks,
  method: PolicyMethod,
  prompts: string,
): Promise<RlState> {
  const meta = checkpoint.meta as Record<string, unknown>;
  if (meta.prompts !== prompts)
    throw new PluralignError(
      'BAD_DATA',
      `--resume: the prompts (or the tokenizer) are not those that ${checkpoint.dir} was trained on; restore them, or ` +
        'choose another output',
    );
  for (const [name, bank] of Object.entries(banks)) {
    const read = async (file: string) => {
      const out = new Float32Array(bank.parameters.length);
      await checkpoint.readInto(file, out);
      return out;
    };
    const steps = new Int32Array(bank.steps.length);
    await checkpoint.readInto(`${name}.steps.i32`, steps);
    const moments = checkpoint.has(`${name}.m.f32`);
    bank.restore({
      parameters: await read(`${name}.f32`),
      m: moments ? await read(`${name}.m.f32`) : null,
      v: moments ? await read(`${name}.v.f32`) : null,
      steps,
      factors: (meta.layouts as Record<string, { name: string; rows: number; cols: number }[]>)[name],
    });
  }
  method.restore(meta.method);
  const { means, method: _, layouts: __, prompts: ___, ...rest } = meta;
  return { ...(rest as unknown as RlState), means: new RunningMeans(means as Record<string, [number, number]>) };
}
