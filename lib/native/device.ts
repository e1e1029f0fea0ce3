import { execFile, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PluralignError } from './errors.js';

/** Where a model runs: `cuda` is `cuda:0`. */
export type DeviceName = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`;

/** A device of a library, for the addon; null: the CPU. */
export interface ChosenDevice {
  library: string;
  ordinal: number;
}

/** `cpu`, or as a configuration names it. */
export const deviceName = (chosen: ChosenDevice | null): string => (chosen ? `cuda:${chosen.ordinal}` : 'cpu');

/** What the library says of this machine; see `describe` in native/cuda/library.cu. */
export interface CudaDescription {
  /** CUDA version that the driver runs and that the library was built with, as 13000 for 13.0; 0: no driver. */
  driver: number;
  runtime: number;
  /** Why there is no device; empty where there is one. */
  obstacle: string;
  devices: { name: string; capability: string; memory: number }[];
  /** Where dense products are computed: cuBLASLt with its path, or own kernels and why. */
  products: string;
}

const root = fileURLToPath(new URL('../..', import.meta.url));
const require = createRequire(import.meta.url);
const fileName = process.platform === 'win32' ? 'pluralign_cuda.dll' : 'libpluralign_cuda.so';
const platformPackage = `pluralign-cuda-${process.platform}-${process.arch}`;

/** Where the CUDA library may lie, best first: as PLURALIGN_CUDA_LIBRARY says, else a local build, else the platform's package. */
export function cudaLibraries(): string[] {
  const named = process.env.PLURALIGN_CUDA_LIBRARY;
  if (named) return [named];
  const paths = [join(root, 'build/cuda', fileName)];
  try {
    paths.push(join(require.resolve(`${platformPackage}/package.json`), '..', fileName));
  } catch {
    // not installed
  }
  return paths;
}

const parse = /^cuda(?::(\d{1,4}))?$/;

export function isDeviceName(name: string): name is DeviceName {
  return name === 'auto' || name === 'cpu' || parse.test(name);
}

type Answer = { description: CudaDescription } | { code: string; message: string };
const answers = new Map<string, Answer>();
const patience = { encoding: 'utf8', timeout: 60_000, windowsHide: true } as const;

const keyOf = (library: string, ordinal: number | null) => `${library} ${ordinal}`;
const probe = (library: string, ordinal: number | null) => [
  join(root, 'dist/native/device-probe.js'),
  library,
  String(ordinal ?? ''),
];

function understand(library: string, ordinal: number | null, stdout: string, how: () => string): Answer {
  let answer: Answer;
  try {
    answer = JSON.parse(stdout) as Answer;
  } catch {
    answer = { code: 'UNSUPPORTED', message: `${library} did not answer: ${how()}` };
  }
  answers.set(keyOf(library, ordinal), answer);
  return answer;
}

/**
 * What the library says, and whether it opens the device (none: it is only asked what there is). In a process of its own: a
 * damaged driver may end it. Asked once.
 */
function askNow(library: string, ordinal: number | null): Answer {
  const known = answers.get(keyOf(library, ordinal));
  if (known) return known;
  const run = spawnSync(process.execPath, probe(library, ordinal), patience);
  const how = () => run.error?.message ?? (run.signal ? `it was ended by ${run.signal}` : `exit status ${run.status}`);
  return understand(library, ordinal, run.stdout, how);
}

async function ask(library: string, ordinal: number | null): Promise<Answer> {
  const known = answers.get(keyOf(library, ordinal));
  if (known) return known;
  return new Promise((resolve) => {
    execFile(process.execPath, probe(library, ordinal), patience, (error, stdout) => {
      resolve(understand(library, ordinal, stdout, () => error?.message ?? 'it said nothing'));
    });
  });
}

/** The library there is and what it says of this machine, or why there is none. Never throws. */
export function describeCuda(): { library: string | null; description: CudaDescription | null; reason: string } {
  const library = cudaLibraries().find((path) => existsSync(path));
  if (!library) return { library: null, description: null, reason: `no CUDA library: ${missing()}` };
  const answer = askNow(library, null);
  if ('message' in answer) return { library, description: null, reason: answer.message };
  const { description } = answer;
  return { library, description, reason: noDevice(description) };
}

const missing = () =>
  `${cudaLibraries().join(' and ')} ${cudaLibraries().length > 1 ? 'are' : 'is'} not there. Install ${platformPackage}, or build it with: node native/cuda/build.mjs`;

/** Why no device can be used; empty where one can. */
function noDevice({ driver, obstacle, devices }: CudaDescription): string {
  if (devices.some(({ capability }) => Number(capability) >= 8)) return '';
  if (driver === 0) return 'there is no NVIDIA driver';
  if (devices.length === 0) return `there is no CUDA device (${obstacle || 'none was found'})`;
  return `${devices.map((d) => `${d.name} has compute capability ${d.capability}`).join(', ')}; 8.0 or newer is needed`;
}

function refuse(name: DeviceName, code: string, why: string): never {
  throw new PluralignError(code, `device: ${name} cannot be had: ${why}; use device: cpu (or auto)`);
}

/** The device of a name and a library for it, not yet asked; null: the CPU. */
function wanted(name: DeviceName): ChosenDevice | null {
  if (name === 'auto' || name === 'cpu') return null;
  const match = parse.exec(name);
  if (!match)
    throw new PluralignError('BAD_ARGUMENT', `device must be auto, cpu, cuda or cuda:N, found ${JSON.stringify(name)}`);
  const library = cudaLibraries().find((path) => existsSync(path));
  return library
    ? { library, ordinal: Number(match[1] ?? 0) }
    : refuse(name, 'UNSUPPORTED', `no CUDA library: ${missing()}`);
}

function judged(name: DeviceName, device: ChosenDevice, answer: Answer): ChosenDevice {
  if ('message' in answer) refuse(name, answer.code, answer.message);
  return device;
}

/**
 * The device that a name means. `auto` is the CPU in this version: a GPU is used where it is asked for by name. Throws
 * `BAD_ARGUMENT` for another name and `UNSUPPORTED` with the reason where a CUDA device cannot be had: no library, one of
 * another version, no driver, one that is too old, no device.
 */
export async function chooseDevice(name: DeviceName = 'auto'): Promise<ChosenDevice | null> {
  const device = wanted(name);
  return device && judged(name, device, await ask(device.library, device.ordinal));
}

/** Likewise, waiting: the first time in a process takes as long as a driver takes to start. */
export function chooseDeviceNow(name: DeviceName = 'auto'): ChosenDevice | null {
  const device = wanted(name);
  return device && judged(name, device, askNow(device.library, device.ordinal));
}
