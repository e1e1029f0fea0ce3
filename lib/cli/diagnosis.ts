import { realpathSync } from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import { packageVersion } from '../base/version.js';
import type { Addon } from '../native/addon.js';
import { type CudaDescription, describeCuda } from '../native/device.js';
import { exitCode } from '../native/errors.js';
import { addon, candidates } from '../native/loader.js';

/** What `doctor` found; the object of `doctor --json`. Memory in bytes. */
export interface Diagnosis {
  version: string;
  node: string;
  modules: string;
  napi: string;
  platform: string;
  arch: string;
  libc: string | null;
  /** `path` is null where the binary did not load; `candidates` are the paths that are tried, best first. */
  binary: { loaded: boolean; path: string | null; candidates: string[] };
  /** null where the binary cannot tell. */
  isa: {
    used: string;
    forced: string | null;
    supported: string[];
    unsupported: { name: string; why: string }[];
  } | null;
  cpu: { model: string; threads: number; features: string[] };
  memory: { total: number; available: number };
  /** What `device: auto` means here. */
  device: 'cpu';
  /** `reason`: why there is none; empty where there is one. `library`: which was found. */
  cuda: { available: boolean; reason: string; library: string | null; description: CudaDescription | null };
  errors: string[];
  /** Exit status: 0 where everything that a run on the CPU needs is there. */
  status: 0 | 1 | 2;
}

function libc(): string | null {
  if (process.platform !== 'linux') return null;
  const report = process.report?.getReport() as { header?: { glibcVersionRuntime?: string } } | undefined;
  const version = report?.header?.glibcVersionRuntime;
  return version ? `glibc ${version}` : 'musl';
}

/** The loader keeps no record, but Node's module cache does. */
function loadedPath(): string | null {
  const cache = createRequire(import.meta.url).cache;
  for (const path of candidates()) {
    try {
      if (cache[realpathSync(path)]) return path;
    } catch {
      // not there, so not loaded
    }
  }
  return null;
}

/** Looks at the machine and loads the addon as any command would; never throws. */
export function diagnose(load: () => Addon = addon): Diagnosis {
  const available = process.availableMemory?.() ?? os.freemem();
  const limit = process.constrainedMemory?.() ?? 0;
  const diagnosis: Diagnosis = {
    version: packageVersion(),
    node: process.versions.node,
    modules: process.versions.modules,
    napi: process.versions.napi ?? 'unknown',
    platform: process.platform,
    arch: process.arch,
    libc: libc(),
    binary: { loaded: false, path: null, candidates: candidates() },
    isa: null,
    cpu: { model: os.cpus()[0]?.model ?? '', threads: os.availableParallelism(), features: [] },
    memory: { total: limit > 0 ? Math.min(limit, os.totalmem()) : os.totalmem(), available },
    device: 'cpu',
    cuda: { available: false, reason: 'the addon did not load', library: null, description: null },
    errors: [],
    status: 0,
  };
  try {
    const native = load();
    diagnosis.binary = { ...diagnosis.binary, loaded: true, path: loadedPath() };
    const cuda = describeCuda();
    diagnosis.cuda = { available: cuda.reason === '', ...cuda };
    const cpu = native.cpu();
    diagnosis.cpu.features = cpu.features;
    diagnosis.isa = {
      used: cpu.isa,
      forced: process.env.PLURALIGN_ISA || null,
      supported: cpu.supported,
      unsupported: cpu.unsupported,
    };
  } catch (error) {
    diagnosis.errors.push((error as Error).message);
    diagnosis.status = diagnosis.binary.loaded ? exitCode(error) : 1;
  }
  return diagnosis;
}
