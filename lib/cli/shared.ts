import { basename, resolve } from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { type DeviceName, isDeviceName } from '../native/device.js';
import { isAborted, PluralignError } from '../native/errors.js';
import type { StopRequest } from '../training/signals.js';
import { printable } from './format.js';

/** An adapter folder and the name it goes by in results. */
export interface AdapterReference {
  name: string;
  dir: string;
}

/** Where a model runs; the meaning is that of the configuration's `train` block. */
export interface RuntimeOptions {
  dtype: 'auto' | 'bf16' | 'float32';
  device: DeviceName;
  threads: number | 'auto';
}

/** What every command that runs a model passes on. Exactly one of `model` and `run` is set. */
export interface ModelOptions extends RuntimeOptions {
  model?: string;
  run?: string;
  adapters: AdapterReference[];
  /** Raised by the first SIGINT or SIGTERM. */
  stop: StopRequest;
}

/** Ends the program with this status after the command has printed what it had to say. */
export class ExitStatus extends Error {
  constructor(readonly status: number) {
    super(`exit ${status}`);
  }
}

export function integer(minimum: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^[+-]?\d+$/.test(text.trim()) || !Number.isSafeInteger(value) || value < minimum) {
      throw new InvalidArgumentError(`Expected a whole number of at least ${minimum}.`);
    }
    return value;
  };
}

export function real(minimum: number, maximum = Number.POSITIVE_INFINITY): (text: string) => number {
  return (text) => {
    const value = text.trim() === '' ? Number.NaN : Number(text);
    if (!Number.isFinite(value) || value < minimum || value > maximum) {
      const range = maximum === Number.POSITIVE_INFINITY ? `of at least ${minimum}` : `from ${minimum} to ${maximum}`;
      throw new InvalidArgumentError(`Expected a number ${range}.`);
    }
    return value;
  };
}

/** A number or -inf: α of an aggregation. */
export function alphaOf(text: string): number {
  const value = /^[-−](inf|infinity|∞)$/i.test(text.trim()) ? Number.NEGATIVE_INFINITY : Number(text);
  if (text.trim() === '' || Number.isNaN(value)) throw new InvalidArgumentError('Expected a number or -inf.');
  return value;
}

/** `DIR`, or `NAME=DIR` where NAME has no path separator; the name else is the folder's. */
export function parseAdapter(text: string): AdapterReference {
  const named = /^([^=/\\]*)=(.*)$/s.exec(text);
  const dir = named ? named[2] : text;
  const name = named ? named[1] : basename(resolve(text));
  if (dir === '' || name === '') throw new InvalidArgumentError('Expected DIR or NAME=DIR.');
  if (name === 'base') {
    throw new InvalidArgumentError("'base' names the model without an adapter; give another name as NAME=DIR.");
  }
  return { name, dir };
}

/** Collector of `--adapter`: names must differ. */
export function collectAdapter(text: string, before: AdapterReference[]): AdapterReference[] {
  const adapter = parseAdapter(text);
  const same = before.find((a) => a.name === adapter.name);
  if (same) {
    throw new InvalidArgumentError(
      `Two adapters are named '${adapter.name}' (${same.dir} and ${adapter.dir}); tell them apart with NAME=DIR.`,
    );
  }
  return [...before, adapter];
}

/** `NAME=w,NAME=w`, in the order given. */
export function parseWeights(text: string): Record<string, number> {
  const weights = new Map<string, number>();
  for (const part of text.split(',')) {
    const at = part.lastIndexOf('=');
    const name = part.slice(0, at).trim();
    const value = part.slice(at + 1).trim();
    if (at < 1 || name === '' || value === '' || !Number.isFinite(Number(value))) {
      throw new InvalidArgumentError(`Expected NAME=w,NAME=w,… with finite weights, found '${part}'.`);
    }
    if (weights.has(name)) throw new InvalidArgumentError(`'${name}' has two weights.`);
    weights.set(name, Number(value));
  }
  return Object.fromEntries(weights);
}

export function addJsonOption(command: Command): Command {
  return command.option('--json', 'print exactly one JSON object on stdout');
}

/** `usual`: where the values come from that are not given. */
export function addRuntimeOptions(command: Command, usual = 'auto'): Command {
  const device = usual === 'auto' ? 'auto, the CPU' : usual;
  return command
    .addOption(
      new Option('--dtype <dtype>', `weights and activations; auto: the weights' own (default: ${usual})`).choices([
        'auto',
        'bf16',
        'float32',
      ]),
    )
    .option('--device <device>', `where to run: auto, cpu, cuda or cuda:N (default: ${device})`, (name) => {
      if (!isDeviceName(name)) throw new InvalidArgumentError('expected auto, cpu, cuda or cuda:N.');
      return name;
    })
    .option('--threads <n>', `threads, or 'auto' (default: ${usual})`, (text) =>
      text === 'auto' ? text : integer(1)(text),
    );
}

export function addModelOptions(command: Command): Command {
  command
    .option('--model <dir>', 'Hugging Face model folder, or hf:owner/name')
    .option('--adapter <[name=]dir>', 'adapter (PEFT files); may be given several times', collectAdapter, [])
    .option('--run <run>', 'run folder of `train`, which knows its own model and adapter');
  return addRuntimeOptions(command);
}

type Parsed = Record<string, unknown>;

export function runtimeOptions(options: Parsed): RuntimeOptions {
  const { dtype = 'auto', device = 'auto', threads = 'auto' } = options as Partial<RuntimeOptions>;
  return { dtype, device, threads };
}

/** Checks and gathers what `addModelOptions` read. Throws `BAD_ARGUMENT` unless exactly one of --model and --run is there. */
export function modelOptions(options: Parsed, stop: StopRequest): ModelOptions {
  const { model, run, adapter = [] } = options as { model?: string; run?: string; adapter?: AdapterReference[] };
  if ((model === undefined) === (run === undefined)) {
    const found = model === undefined ? 'neither' : 'both';
    throw new PluralignError('BAD_ARGUMENT', `expected --model DIR or --run RUN, found ${found}`);
  }
  return { model, run, adapters: adapter, stop, ...runtimeOptions(options) };
}

/**
 * Runs `work` under a stop request that the first SIGINT or SIGTERM raises; a second one ends the process. A command
 * that was stopped ends with 128 + the signal's number, as a shell expects, whether or not it had something to print.
 */
export async function withStop<T>(work: (stop: StopRequest) => Promise<T>, done: (result: T) => void): Promise<void> {
  const { handleStopSignals } = await import('../training/signals.js');
  const { say } = await import('../training/progress.js');
  const stop = handleStopSignals((name) => say(`${name}: stopping; once more to stop at once`));
  try {
    done(await work(stop));
  } catch (error) {
    if (stop.exitCode === 0 || !isAborted(error)) throw error;
    const message = printable((error as Error).message);
    say(/^stopped\b/.test(message) ? message : `stopped: ${message}`);
  } finally {
    stop.dispose();
  }
  if (stop.exitCode !== 0) throw new ExitStatus(stop.exitCode);
}
