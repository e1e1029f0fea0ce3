import * as fsp from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { errnoOf, ioError, makeFolder, writeFileAtomic } from '../base/files.js';
import { type ConfigDifference, configDifferences, mayChangeOnResume } from '../config/compare.js';
import { configToYaml, isRunConfig, loadConfig } from '../config/load.js';
import type { ResolvedConfig } from '../config/schema.js';
import { PluralignError } from '../native/errors.js';
import { cleanCheckpoints } from './checkpoint.js';
import { lockName, lockRun, type RunLock } from './lock.js';

/** Where a run keeps what. */
export interface RunPaths {
  config: string;
  metrics: string;
  checkpoints: string;
  adapter: string;
  summary: string;
  report: string;
}

export function runPaths(dir: string): RunPaths {
  return {
    config: join(dir, 'config.yaml'),
    metrics: join(dir, 'metrics.jsonl'),
    checkpoints: join(dir, 'checkpoints'),
    adapter: join(dir, 'adapter'),
    summary: join(dir, 'summary.json'),
    report: join(dir, 'report.html'),
  };
}

/** An open run folder, held against other processes until `release`. */
export interface RunFolder {
  dir: string;
  paths: RunPaths;
  /** True where the folder held a run that goes on. */
  resumed: boolean;
  /** Settings that differ from those the run was started with and may. */
  changes: ConfigDifference[];
  /** Writes summary.json in one replacement. */
  writeSummary(summary: unknown): Promise<void>;
  release(): Promise<void>;
  /** Releases it and takes back what opening made, where no run was there before; for a run that could not begin. */
  discard(): Promise<void>;
}

/** What stands in a folder: nothing that matters, a run, a run that has not made a step, or something else. */
export type FolderState = 'absent' | 'empty' | 'fresh' | 'run' | 'foreign';

export async function inspectRunFolder(dir: string): Promise<FolderState> {
  let names: string[];
  try {
    names = await fsp.readdir(dir);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return 'absent';
    if (errnoOf(error) === 'ENOTDIR') return 'foreign';
    throw ioError('read', dir, error);
  }
  // The lock, and temporary files of a process that died while making the folder.
  const names2 = names.filter((name) => !name.startsWith(lockName) && !/^\..+\.tmp$/.test(name));
  if (names2.length === 0) return 'empty';
  if (!names2.includes('config.yaml')) return 'foreign';
  const text = await fsp.readFile(join(dir, 'config.yaml'), 'utf8').catch(() => '');
  if (!isRunConfig(text)) return 'foreign';
  const size = async (name: string) => (await fsp.stat(join(dir, name)).catch(() => null))?.size ?? 0;
  const started =
    names2.includes('summary.json') ||
    names2.includes('adapter') ||
    (names2.includes('checkpoints') && (await fsp.readdir(join(dir, 'checkpoints'))).length > 0) ||
    (names2.includes('metrics.jsonl') && (await size('metrics.jsonl')) > 0);
  return started ? 'run' : 'fresh';
}

/** Throws BAD_CONFIG unless the folder is a run; for commands that read one. */
export async function requireRun(dir: string): Promise<RunPaths> {
  const state = await inspectRunFolder(dir);
  if (state === 'run' || state === 'fresh') return runPaths(dir);
  throw state === 'absent'
    ? new PluralignError('NOT_FOUND', `${dir}: no such folder; expected the output folder of a run`)
    : new PluralignError('BAD_CONFIG', `${dir} is no run: it has no config.yaml written by a run`);
}

function refuse(dir: string, state: FolderState, resume: boolean): void {
  if (state === 'foreign') {
    throw new PluralignError(
      'BAD_CONFIG',
      `output: ${dir} exists and is no run of this program; choose another output`,
    );
  }
  if (state === 'run' && !resume) {
    throw new PluralignError(
      'BAD_CONFIG',
      `output: ${dir} holds a run; continue it with --resume, or choose another output`,
    );
  }
}

async function compareWithStart(paths: RunPaths, config: ResolvedConfig): Promise<ConfigDifference[]> {
  const differences = configDifferences(loadConfig(paths.config), config);
  const forbidden = differences.filter((difference) => !mayChangeOnResume(difference, config));
  if (forbidden.length > 0) {
    const lines = forbidden.map(
      ({ path, was, now }) => `  ${path}: was ${JSON.stringify(was)}, now ${JSON.stringify(now)}`,
    );
    throw new PluralignError(
      'BAD_CONFIG',
      `--resume: the run was started with other settings (${paths.config}):\n${lines.join('\n')}\n` +
        'restore them, or choose another output',
    );
  }
  return differences;
}

/**
 * Makes or opens the run folder `config.output`, locks it and writes config.yaml.
 *
 * - A folder that is something else is refused (BAD_CONFIG), and so is one that another process is training in (BUSY).
 * - A run that has made steps needs `resume`; its settings must be those it was started with, but for a few that do not
 *   touch the mathematics (see `mayChangeOnResume`).
 * - `resume` without a run starts one: a job that is started again and again may always say it.
 */
export async function openRunFolder(config: ResolvedConfig, options: { resume?: boolean } = {}): Promise<RunFolder> {
  const dir = resolve(config.output);
  const resume = options.resume ?? false;
  const paths = runPaths(dir);
  const before = await inspectRunFolder(dir);
  if (before === 'foreign') refuse(dir, 'foreign', resume);
  try {
    await makeFolder(dir);
  } catch (error) {
    throw ioError('make the run folder', dir, error);
  }
  const lock: RunLock = await lockRun(dir);
  try {
    // Only the holder of the lock may trust what it sees.
    const state = await inspectRunFolder(dir);
    refuse(dir, state, resume);
    const resumed = state === 'run';
    const changes = resumed ? await compareWithStart(paths, config) : [];
    await writeFileAtomic(paths.config, configToYaml(config));
    if (resumed) await cleanCheckpoints(dir);
    return {
      dir,
      paths,
      resumed,
      changes,
      writeSummary: (summary) => writeFileAtomic(paths.summary, `${JSON.stringify(summary, null, 2)}\n`),
      release: () => lock.release(),
      discard: async () => {
        const made = before === 'absent' || before === 'empty';
        if (made) await fsp.rm(paths.config, { force: true });
        await lock.release();
        if (before === 'absent') await fsp.rmdir(dir).catch(() => {});
      },
    };
  } catch (error) {
    await lock.release();
    throw error;
  }
}
