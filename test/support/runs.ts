// What the tests of training runs share: configurations on the parity fixtures, the program in this process and as a child.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, vi } from 'vitest';
import { run as runProgram } from '../../lib/cli/program.js';
import type { Config } from '../../lib/config/index.js';
import { type TrainOptions, type TrainSummary, train } from '../../lib/training/train.js';

export const root = fileURLToPath(new URL('../..', import.meta.url));

/** A folder for one test file, in memory where the system offers that (checkpoints are fsynced), gone afterwards. */
export function scratch(): { dir: string; path(...parts: string[]): string } {
  const dir = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'pluralign-runs-'));
  afterAll(() => rmSync(dir, { recursive: true, force: true }));
  return { dir, path: (...parts) => join(dir, ...parts) };
}

interface GoldenSteps {
  lr: number;
  steps: number;
  losses: number[];
  grad_norms: number[];
}

export interface Golden extends GoldenSteps {
  rows: Record<string, number>[];
  beta: number;
  /** parity-llama3-rope only. */
  sft: GoldenSteps;
}

export interface Fixture {
  dir: string;
  model: string;
  adapter: string;
  prefs: string;
  golden: Golden;
  rows: { prompt: string; chosen: string; rejected: string; annotator: string }[];
}

export function fixture(name: string): Fixture {
  const dir = join(root, 'test/fixtures', `parity-${name}`);
  const prefs = join(dir, 'prefs.jsonl');
  return {
    dir,
    model: join(dir, 'model'),
    adapter: join(dir, 'adapter'),
    prefs,
    golden: JSON.parse(readFileSync(join(dir, 'golden.json'), 'utf8')),
    rows: readRowsOf(prefs) as Fixture['rows'],
  };
}

const readRowsOf = (file: string): unknown[] =>
  readFileSync(file, 'utf8')
    .split('\n')
    .filter((line) => line.trim() !== '')
    .map((line) => JSON.parse(line));

export function writeRows(path: string, rows: readonly unknown[]): string {
  writeFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  return path;
}

/** Sections that a test changes; a section is laid over the fixture's own, `adapter: 'full'` and `null` stand for themselves. */
export interface Changes {
  method?: Config['method'];
  data?: Partial<Config['data']>;
  adapter?: Config['adapter'];
  loss?: Config['loss'];
  train?: Config['train'];
}

/** The run of a fixture's golden numbers: all six rows at once, from its adapter. */
export function goldenConfig(f: Fixture, output: string, changes: Changes = {}): Config {
  const { method = 'dpo', data, adapter = { init_from: f.adapter }, loss, train: changed } = changes;
  return {
    method,
    model: f.model,
    data: { train: f.prefs, ...data },
    adapter,
    loss,
    train: {
      ...(changed?.epochs === undefined ? { steps: f.golden.steps } : {}),
      batch_size: 6,
      learning_rate: f.golden.lr,
      schedule: 'constant',
      shuffle: false,
      max_grad_norm: null,
      log_every: 1,
      save_every: null,
      dtype: 'float32',
      threads: 1,
      ...changed,
    },
    output,
  };
}

export interface Ran {
  summary: TrainSummary;
  /** What the lines of metrics.jsonl say of training, and of evaluation. */
  steps: Record<string, number>[];
  evaluations: Record<string, number>[];
  /** adapter_model.safetensors; empty where a whole model was trained. */
  bytes: Buffer;
  output: string;
}

const pick = (line: Record<string, number>, keep: (key: string) => boolean) =>
  Object.fromEntries(Object.entries(line).filter(([key]) => keep(key)));

export function resultOf(output: string, summary: TrainSummary): Ran {
  const lines = readRowsOf(join(output, 'metrics.jsonl')) as Record<string, number>[];
  const file = join(output, 'adapter/adapter_model.safetensors');
  return {
    summary,
    steps: lines.map((line) => pick(line, (key) => !key.startsWith('eval_'))),
    evaluations: lines
      .filter((line) => Object.keys(line).some((key) => key.startsWith('eval_')))
      .map((line) => pick(line, (key) => key === 'step' || key === 'epoch' || key.startsWith('eval_'))),
    bytes: existsSync(file) ? readFileSync(file) : Buffer.alloc(0),
    output,
  };
}

export async function trained(config: Config, options: TrainOptions = {}): Promise<Ran> {
  return resultOf(config.output as string, await train(config, { quiet: true, ...options }));
}

export interface Ended {
  status: number | null;
  stdout: string;
  stderr: string;
}

/** The command line in this process. */
export async function program(...argv: string[]): Promise<Ended> {
  const out = { stdout: '', stderr: '' };
  const spies = (['stdout', 'stderr'] as const).map((name) =>
    vi.spyOn(process[name], 'write').mockImplementation((text) => {
      out[name] += text;
      return true;
    }),
  );
  try {
    return { status: await runProgram(argv), ...out };
  } finally {
    for (const spy of spies) spy.mockRestore();
  }
}

function newest(folder: string, ending: string): number {
  const files = readdirSync(folder, { withFileTypes: true, recursive: true }).filter(
    (e) => e.isFile() && e.name.endsWith(ending),
  );
  return Math.max(0, ...files.map((e) => statSync(join(e.parentPath, e.name)).mtimeMs));
}

/** Builds dist/ where lib/ is newer. Types are another check's business: tsc writes its files all the same. */
export function buildProgram(): void {
  const main = join(root, 'dist/cli/main.js');
  if (!existsSync(main) || newest(join(root, 'dist'), '.js') < newest(join(root, 'lib'), '.ts'))
    spawnSync('npm', ['run', 'build:ts'], { cwd: root });
}

export interface Child {
  process: ChildProcess;
  ended: Promise<Ended & { signal: NodeJS.Signals | null }>;
}

/** The program as it is installed; `buildProgram` first. */
export function child(...argv: string[]): Child {
  const started = spawn(process.execPath, [join(root, 'dist/cli/main.js'), ...argv]);
  const out = { stdout: '', stderr: '' };
  started.stdout.on('data', (data) => {
    out.stdout += data;
  });
  started.stderr.on('data', (data) => {
    out.stderr += data;
  });
  const ended = new Promise<Ended & { signal: NodeJS.Signals | null }>((done) => {
    started.on('close', (status, signal) => done({ status, signal, ...out }));
  });
  return { process: started, ended };
}

/** A configuration file; JSON is YAML. */
export function writeConfig(path: string, config: unknown): string {
  writeFileSync(path, JSON.stringify(config, null, 1));
  return path;
}
