import { createHash } from 'node:crypto';
import { createReadStream, existsSync } from 'node:fs';
import { appendFile, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { cacheFolder } from '../base/cache.js';
import { errnoOf, ioError, makeFolder } from '../base/files.js';
import { packageVersion } from '../base/version.js';
import type { Group } from '../data/types.js';
import { weightFiles } from '../model/config.js';
import type { Model } from '../model/model.js';
import { cudaLibraries } from '../native/device.js';
import { addon, addonFile } from '../native/loader.js';

async function addFile(hash: ReturnType<typeof createHash>, path: string): Promise<void> {
  if (!existsSync(path)) return;
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer);
}

const kernelFiles = new Map<string, Promise<string>>();

/** What is in a file of kernels, hashed once: they may change while the version stays. */
function kernelsIn(path: string): Promise<string> {
  let found = kernelFiles.get(path);
  if (!found) {
    const hash = createHash('sha256');
    found = addFile(hash, path).then(() => hash.digest('hex'));
    kernelFiles.set(path, found);
  }
  return found;
}

/** What log-probabilities of a policy depend on: the contents of its files, the type it is computed in, the kernels. */
async function identity(model: Model, adapter: string | null): Promise<string> {
  const kernels = `${packageVersion()} ${process.arch} ${addon().cpu().isa} ${model.device}`;
  const library = model.device === 'cpu' ? undefined : cudaLibraries().find(existsSync);
  const binaries = await Promise.all([addonFile(), ...(library ? [library] : [])].map(kernelsIn));
  const hash = createHash('sha256').update(`${model.dtype} ${kernels} ${binaries.join(' ')}\n`);
  const dir = model.dir!;
  const files = [join(dir, 'config.json'), ...weightFiles(dir)];
  if (adapter !== null)
    files.push(...['adapter_config.json', 'adapter_model.safetensors'].map((f) => join(adapter, f)));
  for (const file of files) await addFile(hash.update('\0'), file);
  return hash.digest('hex').slice(0, 32);
}

/**
 * Log-probabilities of rows under one fixed policy, in a file that later runs read too. A line a row: a hash of its tokens
 * and of how they are summed, one number a completion, and a mark that the line is whole; lines are only ever added, so that
 * runs may share the file and an interrupt costs at most a line.
 */
export class ReferenceStore {
  readonly #known = new Map<string, Float64Array>();

  private constructor(readonly path: string) {}

  /** Null where the model is in no folder: it has no contents to go by. */
  static async open(model: Model, adapter: string | null): Promise<ReferenceStore | null> {
    if (model.dir === null) return null;
    const store = new ReferenceStore(join(cacheFolder(), 'reference', `${await identity(model, adapter)}.txt`));
    await store.#read();
    return store;
  }

  get size(): number {
    return this.#known.size;
  }

  async #read(): Promise<void> {
    let text: string;
    try {
      await makeFolder(dirname(this.path));
      text = await readFile(this.path, 'utf8');
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return;
      throw ioError('read', this.path, error);
    }
    for (const line of text.split('\n')) {
      const parts = line.split(' ');
      if (parts.length < 3 || parts[0].length !== 32 || parts[parts.length - 1] !== '.') continue;
      const sums = Float64Array.from(parts.slice(1, -1), Number);
      if (sums.every(Number.isFinite)) this.#known.set(parts[0], sums);
    }
  }

  #key(group: Group, kind: string): string {
    const hash = createHash('sha256').update(`${kind}\n`);
    for (const ids of [group.prompt, ...group.completions])
      hash.update(`${ids.length}\n`).update(new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength));
    return hash.digest('hex').slice(0, 32);
  }

  /** A row's sums, [completions], if they are known. `kind`: how its tokens are summed. */
  get(group: Group, kind: string): Float64Array | undefined {
    const sums = this.#known.get(this.#key(group, kind));
    return sums?.length === group.completions.length ? sums : undefined;
  }

  /** Keeps rows' sums. Throws `IO`; sums that are not finite are not kept. */
  async add(rows: ReadonlyMap<Group, Float64Array>, kind: string): Promise<void> {
    let lines = '';
    for (const [group, sums] of rows) {
      if (!sums.every(Number.isFinite)) continue;
      const key = this.#key(group, kind);
      this.#known.set(key, sums);
      lines += `\n${key} ${sums.join(' ')} .`;
    }
    if (lines === '') return;
    try {
      await appendFile(this.path, lines);
    } catch (error) {
      throw ioError('write', this.path, error);
    }
  }
}
