import { existsSync } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { errnoOf, ioError } from '../base/files.js';
import { readResponsibilities, responsibilitiesPath } from '../em/files.js';
import type { VoterMap } from '../evaluation/plane.js';
import { PluralignError } from '../native/errors.js';
import type { SoupsResult } from '../soups/train.js';

export type Metrics = Record<string, unknown>;

/** One section of `eval`: overall, and by annotator. Other sections (types …) have the shape of `annotators`. */
export interface Evaluation {
  overall?: Metrics;
  annotators?: Record<string, Metrics>;
  [section: string]: unknown;
}

/** What summary.json may hold; every key is optional, for the page shows what there is. */
export interface Summary {
  method?: string;
  steps?: number;
  seconds?: number;
  train?: Metrics;
  eval?: Evaluation;
  eval_before?: Evaluation;
  /** The rows of `eval` all under the generic adapter. */
  eval_generic?: Evaluation;
  data?: Metrics;
  paths?: Metrics;
  /** With `features.choose`: the settings, likeliest first. */
  tried?: Metrics[];
  samples?: Record<string, unknown>[];
}

/** A policy's regrets by type, with their 95 % intervals. */
export interface PolicyRegrets {
  regrets: number[];
  regret_intervals: [number, number][];
  worst_regret: number;
  worst_regret_interval: [number, number];
}

export interface Aggregation {
  types: string[];
  sampling: { prompts: number; per_prompt: number };
  rules: (PolicyRegrets & { rule: string; weights: number[] })[];
  others: (PolicyRegrets & { name: string })[];
}

export interface VotersFile {
  /** Rewards on features of items, or adapters. */
  kind: 'items' | 'adapters';
  map: VoterMap | null;
}

/** A run folder, read. */
export interface RunData {
  dir: string;
  /** One object per step, ascending; the last line of a step wins, key by key (a resumed run logs some steps again). */
  metrics: Metrics[];
  summary: Summary | null;
  config: string | null;
  /** What `aggregate` found of a run over types: aggregation.json. */
  aggregation: Aggregation | null;
  /** What a run of soups found: soups.json. */
  soups: SoupsResult | null;
  /** Of a run over types: each annotator's probability of each. */
  responsibilities: ReadonlyMap<string, readonly number[]> | null;
  /** Of a run with something of every annotator's: what that is, and a map of them (voters.json). */
  voters: VotersFile | null;
  /** Things a reader should know, in plain words. */
  notes: string[];
}

async function readOptional(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return null;
    throw ioError('read', path, error);
  }
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Parses metrics.jsonl. A last line without its newline that does not parse is a write in progress, and is noted. */
export function parseMetrics(text: string, file: string, notes: string[]): Metrics[] {
  const steps = new Map<number, Metrics>();
  const lines = text.split('\n');
  for (const [index, line] of lines.entries()) {
    if (line.trim() === '') continue;
    let row: unknown;
    try {
      row = JSON.parse(line);
    } catch (error) {
      if (index === lines.length - 1) {
        notes.push(`The last line of metrics.jsonl (${index + 1}) is cut off and was left out.`);
        continue;
      }
      throw new PluralignError('BAD_DATA', `${file}:${index + 1}: expected a JSON object: ${(error as Error).message}`);
    }
    if (!isRecord(row) || typeof row.step !== 'number' || !Number.isFinite(row.step)) {
      throw new PluralignError('BAD_DATA', `${file}:${index + 1}: expected a JSON object with a number under 'step'`);
    }
    steps.set(row.step, { ...steps.get(row.step), ...row });
  }
  return [...steps.values()].sort((a, b) => (a.step as number) - (b.step as number));
}

/**
 * Reads what `report` shows of a run. Throws `NOT_FOUND` where the folder or its metrics.jsonl is missing, and `BAD_DATA`
 * with file and line where one does not parse; a missing summary.json or config.yaml is noted instead.
 */
export async function readRun(runDir: string): Promise<RunData> {
  const dir = resolve(runDir);
  const found = await stat(dir).catch(() => null);
  if (!found?.isDirectory()) {
    throw new PluralignError('NOT_FOUND', `${runDir}: ${found ? 'not a folder' : 'not there'}; expected a run folder`);
  }
  const metricsFile = join(dir, 'metrics.jsonl');
  const [metricsText, summaryText, config, aggregationText, votersText] = await Promise.all([
    readOptional(metricsFile),
    readOptional(join(dir, 'summary.json')),
    readOptional(join(dir, 'config.yaml')),
    readOptional(join(dir, 'aggregation.json')),
    readOptional(join(dir, 'voters.json')),
  ]);
  if (metricsText === null) {
    throw new PluralignError('NOT_FOUND', `${metricsFile}: not there; expected the run folder that \`train\` wrote`);
  }
  const notes: string[] = [];
  const metrics = parseMetrics(metricsText, metricsFile, notes);
  let summary: Summary | null = null;
  if (summaryText === null) notes.push('The run has no summary.json: it has not finished, or was stopped.');
  else {
    const file = join(dir, 'summary.json');
    let value: unknown;
    try {
      value = JSON.parse(summaryText);
    } catch (error) {
      throw new PluralignError('BAD_DATA', `${file}: expected JSON: ${(error as Error).message}`);
    }
    if (!isRecord(value)) throw new PluralignError('BAD_DATA', `${file}: expected a JSON object`);
    summary = value as Summary;
  }
  if (config === null) notes.push('The run has no config.yaml.');
  const aggregation = aggregationText === null ? null : (JSON.parse(aggregationText).shown as Aggregation);
  const responsibilities = existsSync(responsibilitiesPath(dir))
    ? await readResponsibilities(responsibilitiesPath(dir))
    : null;
  const soupsText = await readOptional(join(dir, 'soups.json'));
  const soups = soupsText === null ? null : (JSON.parse(soupsText) as SoupsResult);
  const voters = votersText === null ? null : (JSON.parse(votersText) as VotersFile);
  return { dir, metrics, summary, config, aggregation, soups, responsibilities, voters, notes };
}
