import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ioError } from '../base/files.js';
import { Random } from '../base/random.js';
import { PluralignError } from '../native/errors.js';

/** One policy of a mixture and the share of sequences that it speaks. */
export interface Component {
  /** Its folder of PEFT files stands beside mixture.json under this name. */
  name: string;
  /** Shares sum to 1. */
  weight: number;
}

export const mixtureName = 'mixture.json';

/** Whether a folder is a mixture of policies, which stands wherever an adapter's folder does. */
export function isMixture(dir: string): boolean {
  return existsSync(join(dir, mixtureName));
}

/**
 * The policies of a mixture that are ever drawn (weight above 0), with weights scaled to sum 1.
 * Throws `BAD_FILE` naming what is wrong with mixture.json, `NOT_FOUND` where a policy's folder is missing.
 */
export function readMixture(dir: string): (Component & { dir: string })[] {
  const path = join(dir, mixtureName);
  const bad = (message: string) => new PluralignError('BAD_FILE', `${path}: ${message}`);
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    throw ioError('read', path, error);
  }
  let file: { policies?: Component[] };
  try {
    file = JSON.parse(text);
  } catch (error) {
    throw bad(`is no JSON: ${(error as Error).message}`);
  }
  const { policies } = file;
  if (policies === undefined) throw bad('has weights but names no policies: it was made from a matrix, not from a run');
  const fine =
    Array.isArray(policies) &&
    policies.length > 0 &&
    policies.every((p) => typeof p?.name === 'string' && Number.isFinite(p.weight) && p.weight >= 0);
  if (!fine) throw bad('policies: expected a list of { name, weight }, weights of at least 0');
  const sum = policies.reduce((total, p) => total + p.weight, 0);
  if (!(sum > 0)) throw bad('policies: every weight is 0, expected shares that sum to 1');
  return policies
    .filter(({ weight }) => weight > 0)
    .map(({ name, weight }) => {
      const own = join(dir, name);
      if (!/^[^/\\]+$/.test(name) || name === '..' || !existsSync(own))
        throw new PluralignError('NOT_FOUND', `${path}: policy ${JSON.stringify(name)} has no folder ${own}`);
      return { name, weight: weight / sum, dir: own };
    });
}

/** log Σ_k w_k exp(logps_k): the log-probability of a completion under a sequence-level mixture. `logps`: K numbers. */
export function mixtureLogp(logps: readonly number[], weights: readonly number[]): number {
  const terms = logps.map((logp, k) => logp + Math.log(weights[k]));
  const most = Math.max(...terms);
  return most === Number.NEGATIVE_INFINITY
    ? most
    : most + Math.log(terms.reduce((sum, t) => sum + Math.exp(t - most), 0));
}

/** Which component speaks the sequence of this seed, drawn by the weights (which sum to 1). */
export function drawComponent(weights: readonly number[], seed: number): number {
  const point = new Random(seed, 0x3ea5).uniform();
  let sum = 0;
  const k = weights.findIndex((weight) => {
    sum += weight;
    return point < sum;
  });
  return k === -1 ? weights.length - 1 : k;
}
