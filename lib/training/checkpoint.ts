import { createHash, type Hash } from 'node:crypto';
import * as fsp from 'node:fs/promises';
import { basename, dirname, isAbsolute, join } from 'node:path';
import { errnoOf, type FileSystem, ioError, makeFolder, syncFolder } from '../base/files.js';
import { PluralignError } from '../native/errors.js';

/**
 * A checkpoint is a folder `checkpoints/step-N` with `manifest.json` (sizes and SHA-256 of every file, and `meta`). It is
 * written under another name, fsynced and renamed once, so that `step-N` is whole or absent.
 */
export type CheckpointFile =
  /** Raw bytes of the array in the machine's order (little-endian), written as they stand: no copy, so do not change them meanwhile. */
  | { name: string; data: NodeJS.ArrayBufferView | string }
  /** A writer of its own, such as the safetensors writer. */
  | { name: string; write: (path: string) => Promise<void> };

interface Manifest {
  version: number;
  step: number;
  files: { name: string; size: number; sha256: string }[];
  meta: unknown;
  /** SHA-256 of the JSON of the fields above: a flipped bit in `meta` is seen too. */
  checksum: string;
}

const chunk = 4 * 1024 * 1024;
const manifestName = 'manifest.json';
/** Also a checkpoint that another of the same step was about to replace when the process died. */
const folderPattern = /^(\.replaced-)?step-(\d+)$/;

export function checkpointsFolder(runDir: string): string {
  return join(runDir, 'checkpoints');
}

function sealed(manifest: Omit<Manifest, 'checksum'>): string {
  const { version, step, files, meta } = manifest;
  return createHash('sha256').update(JSON.stringify({ version, step, files, meta })).digest('hex');
}

async function writeView(path: string, data: NodeJS.ArrayBufferView | string, hash: Hash, fs: FileSystem) {
  const bytes =
    typeof data === 'string' ? Buffer.from(data) : Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  const handle = await fs.open(path, 'wx');
  try {
    for (let start = 0; start < bytes.length; ) {
      const part = bytes.subarray(start, start + chunk);
      // A nearly full disk may take only some of the bytes before it fails.
      const { bytesWritten } = await handle.write(part, 0, part.length);
      hash.update(part.subarray(0, bytesWritten));
      start += bytesWritten;
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
  return bytes.length;
}

async function hashFile(path: string, hash: Hash, fs: FileSystem, sync: boolean): Promise<number> {
  const handle = await fs.open(path, 'r');
  try {
    const buffer = Buffer.allocUnsafe(chunk);
    let size = 0;
    for (;;) {
      const { bytesRead } = await handle.read(buffer, 0, chunk, null);
      if (bytesRead === 0) break;
      hash.update(buffer.subarray(0, bytesRead));
      size += bytesRead;
    }
    if (sync) await handle.sync();
    return size;
  } finally {
    await handle.close();
  }
}

function checkName(name: string): void {
  if (name === '' || name === manifestName || isAbsolute(name) || /(^|[\\/])\.\.?([\\/]|$)|[\0\\]/.test(name)) {
    throw new PluralignError(
      'BAD_ARGUMENT',
      `checkpoint file name ${JSON.stringify(name)}: expected a relative name inside the folder`,
    );
  }
}

/** Puts the finished staging folder in its place; an older checkpoint of the same step is never missing for good. */
async function publish(staging: string, target: string, fs: FileSystem): Promise<void> {
  try {
    await fs.rename(staging, target);
  } catch (error) {
    if (!['ENOTEMPTY', 'EEXIST', 'EPERM'].includes(errnoOf(error))) throw error;
    const replaced = join(dirname(target), `.replaced-${basename(target)}`);
    await fs.rm(replaced, { recursive: true, force: true });
    await fs.rename(target, replaced);
    await fs.rename(staging, target);
    await fs.rm(replaced, { recursive: true, force: true });
  }
}

/**
 * Saves `files` and `meta` (JSON) as `RUN/checkpoints/step-N` and returns that path. A failure leaves no trace and no
 * earlier checkpoint is touched: code `IO` when the disk is full.
 */
export async function saveCheckpoint(
  runDir: string,
  step: number,
  files: CheckpointFile[],
  meta: unknown,
  options: { fs?: FileSystem } = {},
): Promise<string> {
  const fs = options.fs ?? fsp;
  const folder = checkpointsFolder(runDir);
  const target = join(folder, `step-${step}`);
  const staging = join(folder, `.staging-step-${step}-${process.pid}`);
  for (const { name } of files) checkName(name);
  try {
    await makeFolder(folder, fs);
    await fs.rm(staging, { recursive: true, force: true });
    await fs.mkdir(staging);
    const manifest: Omit<Manifest, 'checksum'> = { version: 1, step, files: [], meta };
    const folders = new Set<string>();
    for (const file of files) {
      const path = join(staging, file.name);
      const parent = dirname(path);
      if (parent !== staging) {
        await makeFolder(parent, fs);
        for (let at = parent; at !== staging; at = dirname(at)) folders.add(at);
      }
      const hash = createHash('sha256');
      let size: number;
      if ('data' in file) size = await writeView(path, file.data, hash, fs);
      else {
        await file.write(path);
        size = await hashFile(path, hash, fs, true);
      }
      manifest.files.push({ name: file.name, size, sha256: hash.digest('hex') });
    }
    const text = JSON.stringify({ ...manifest, checksum: sealed(manifest) }, null, 1);
    await writeView(join(staging, manifestName), text, createHash('sha256'), fs);
    for (const path of folders) await syncFolder(path, fs);
    await syncFolder(staging, fs);
    await publish(staging, target, fs);
    await syncFolder(folder, fs);
    return target;
  } catch (error) {
    await fs.rm(staging, { recursive: true, force: true }).catch(() => {});
    const failure = ioError('save the checkpoint', target, error);
    if (failure.code !== 'IO') throw failure;
    throw new PluralignError(
      'IO',
      `${failure.message}. Earlier checkpoints are intact: continue from them with --resume`,
      {
        cause: error,
      },
    );
  }
}

/** A checkpoint whose files have been checked against its manifest. */
export class Checkpoint {
  constructor(
    readonly step: number,
    readonly dir: string,
    readonly meta: unknown,
    /** Name → bytes. */
    readonly files: ReadonlyMap<string, number>,
  ) {}

  has(name: string): boolean {
    return this.files.has(name);
  }

  path(name: string): string {
    if (!this.files.has(name)) throw new PluralignError('BAD_FILE', `${this.dir} has no file ${name}`);
    return join(this.dir, name);
  }

  /** Fills `out` with a raw binary file; sizes must agree. */
  async readInto(name: string, out: NodeJS.ArrayBufferView): Promise<void> {
    const path = this.path(name);
    const size = this.files.get(name);
    if (size !== out.byteLength) {
      throw new PluralignError(
        'BAD_SHAPE',
        `${path} has ${size} bytes, expected ${out.byteLength}: it is from another model or adapter`,
      );
    }
    const bytes = Buffer.from(out.buffer, out.byteOffset, out.byteLength);
    const handle = await fsp.open(path, 'r');
    try {
      for (let start = 0; start < bytes.length; ) {
        const { bytesRead } = await handle.read(bytes, start, Math.min(chunk, bytes.length - start), start);
        if (bytesRead === 0) throw new PluralignError('BAD_FILE', `${path} ends early`);
        start += bytesRead;
      }
    } finally {
      await handle.close();
    }
  }

  async readText(name: string): Promise<string> {
    return fsp.readFile(this.path(name), 'utf8');
  }
}

/** Reads and checks one checkpoint folder: every size and SHA-256. BAD_FILE says what is wrong with it. */
export async function openCheckpoint(dir: string): Promise<Checkpoint> {
  const wrong = (what: string) => new PluralignError('BAD_FILE', `${dir}: ${what}`);
  let manifest: Manifest;
  try {
    manifest = JSON.parse(await fsp.readFile(join(dir, manifestName), 'utf8'));
  } catch (error) {
    if (error instanceof SyntaxError) throw wrong('manifest.json is not JSON');
    if (errnoOf(error) === 'ENOENT') throw wrong('manifest.json is missing');
    throw ioError('read', join(dir, manifestName), error);
  }
  if (manifest?.version !== 1) throw wrong(`manifest version ${manifest?.version} found, 1 expected`);
  if (!Array.isArray(manifest.files) || manifest.checksum !== sealed(manifest)) {
    throw wrong('manifest.json does not match its checksum');
  }
  const expected = Number(folderPattern.exec(basename(dir))?.[2] ?? manifest.step);
  if (manifest.step !== expected) throw wrong(`the manifest is of step ${manifest.step}`);
  const files = new Map<string, number>();
  for (const file of manifest.files) {
    checkName(file.name);
    const hash = createHash('sha256');
    let size: number;
    try {
      size = (await fsp.stat(join(dir, file.name))).size;
      if (size === file.size) size = await hashFile(join(dir, file.name), hash, fsp, false);
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') throw wrong(`${file.name} is missing`);
      throw ioError('read', join(dir, file.name), error);
    }
    if (size !== file.size) throw wrong(`${file.name} has ${size} bytes, ${file.size} expected`);
    if (hash.digest('hex') !== file.sha256) throw wrong(`${file.name} does not match its SHA-256`);
    files.set(file.name, size);
  }
  return new Checkpoint(manifest.step, dir, manifest.meta, files);
}

/** Checkpoint folders, newest first. */
async function list(runDir: string, fs: FileSystem = fsp): Promise<{ step: number; dir: string; replaced: boolean }[]> {
  let names: string[];
  try {
    names = await fs.readdir(checkpointsFolder(runDir));
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw ioError('read', checkpointsFolder(runDir), error);
  }
  return names
    .map((name) => ({ name, match: folderPattern.exec(name) }))
    .filter((entry) => entry.match !== null)
    .map(({ name, match }) => ({
      step: Number(match?.[2]),
      dir: join(checkpointsFolder(runDir), name),
      replaced: match?.[1] !== undefined,
    }))
    .sort((a, b) => b.step - a.step || Number(a.replaced) - Number(b.replaced));
}

/** Steps of the checkpoints that stand in the folder, newest first; not checked. */
export async function checkpointSteps(runDir: string): Promise<number[]> {
  return (await list(runDir)).filter((entry) => !entry.replaced).map((entry) => entry.step);
}

/**
 * The newest checkpoint that matches its manifest, or null where the run has none. Damaged ones are passed over and
 * reported through `onDamaged`; where all are damaged it throws BAD_FILE rather than start anew in silence.
 */
export async function loadLatestCheckpoint(
  runDir: string,
  onDamaged: (problem: string) => void = () => {},
): Promise<Checkpoint | null> {
  const problems: string[] = [];
  for (const { dir } of await list(runDir)) {
    try {
      return await openCheckpoint(dir);
    } catch (error) {
      if ((error as PluralignError).code === 'IO') throw error;
      const problem = (error as Error).message;
      problems.push(problem);
      onDamaged(problem);
    }
  }
  if (problems.length === 0) return null;
  throw new PluralignError('BAD_FILE', `no checkpoint of ${runDir} is whole:\n  ${problems.join('\n  ')}`);
}

/** Deletes all but the newest `keep` and those of the steps in `protect` (the best); returns the deleted steps. */
export async function pruneCheckpoints(runDir: string, keep: number, protect: number[] = []): Promise<number[]> {
  const entries = (await list(runDir)).filter((entry) => !entry.replaced);
  const doomed = entries.slice(Math.max(1, keep)).filter((entry) => !protect.includes(entry.step));
  for (const { dir } of doomed) {
    // Out of sight first: a half-deleted folder must not look like a checkpoint.
    const hidden = join(dirname(dir), `.deleted-${basename(dir)}-${process.pid}`);
    try {
      await fsp.rename(dir, hidden);
      await fsp.rm(hidden, { recursive: true, force: true });
    } catch (error) {
      throw ioError('delete', dir, error);
    }
  }
  return doomed.map((entry) => entry.step);
}

/** Removes what a killed process left half-written or half-deleted. Only for the holder of the run's lock. */
export async function cleanCheckpoints(runDir: string): Promise<void> {
  const folder = checkpointsFolder(runDir);
  const names = await fsp.readdir(folder).catch(() => [] as string[]);
  for (const name of names) {
    if (/^\.(staging|deleted)-step-/.test(name)) await fsp.rm(join(folder, name), { recursive: true, force: true });
    const replaced = /^\.replaced-(step-\d+)$/.exec(name);
    if (replaced === null) continue;
    const successor = join(folder, replaced[1]);
    const whole = await openCheckpoint(successor).then(
      () => true,
      (error) => (error.code === 'IO' ? null : false),
    );
    if (whole === null) continue;
    if (whole) await fsp.rm(join(folder, name), { recursive: true, force: true });
    else {
      await fsp.rm(successor, { recursive: true, force: true });
      await fsp.rename(join(folder, name), successor);
    }
  }
}
