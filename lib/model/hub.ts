import { createHash } from 'node:crypto';
import { existsSync, statSync } from 'node:fs';
import { open, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type * as HubLibrary from '@huggingface/hub';
import { cacheFolder } from '../base/cache.js';
import { ioError, makeFolder, temporaryName, writeFileAtomic } from '../base/files.js';
import { PluralignError } from '../native/errors.js';

export interface DownloadProgress {
  /** The file that is being fetched. */
  file: string;
  /** Bytes of it so far, and its size. */
  fileReceived: number;
  fileSize: number;
  /** Bytes of all files so far (those already there count as received), and their sum. */
  received: number;
  size: number;
}

export interface ResolveOptions {
  onProgress?: (progress: DownloadProgress) => void;
  /** Told in one line when something other than a plain download happens (the copy in the cache is used while offline). */
  onNotice?: (message: string) => void;
  /** Where models are kept; default `PLURALIGN_CACHE`, else ~/.cache/pluralign. */
  cacheDir?: string;
  /** Another hub; default `HF_ENDPOINT`, else the library's. */
  hubUrl?: string;
  /** Another fetch (a proxy, a test). */
  fetch?: typeof fetch;
  signal?: AbortSignal;
  /** Another way to get the hub library; default `import('@huggingface/hub')`, whose types a user need not have. */
  importHub?: () => Promise<unknown>;
}

type Hub = Pick<typeof HubLibrary, 'modelInfo' | 'listFiles' | 'downloadFile'>;

interface RemoteFile {
  path: string;
  size: number;
  /** SHA-256 where the hub tells it (large files). */
  sha256?: string;
}

/** Written last into a snapshot: it is there only when all files are. */
const manifestName = '.pluralign-files.json';

const wanted = new Set([
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
]);

/**
 * The folder of a model. A path is returned as it is (`NOT_FOUND` where there is nothing). `hf:owner/name[@revision]` is
 * downloaded into the cache (configuration, tokenizer and safetensors only) through @huggingface/hub, an optional peer
 * dependency; files are written under a temporary name, checked and renamed, and an interrupted download goes on where
 * whole files are there. Without a network a complete copy in the cache is used; else `IO` says that it is offline. A token
 * for private models is taken from `HF_TOKEN`.
 */
export async function resolveModel(spec: string, options: ResolveOptions = {}): Promise<string> {
  if (!spec.startsWith('hf:')) return localModel(spec);
  const { name, revision } = parseSpec(spec);
  const cache = options.cacheDir ?? cacheFolder();
  const folder = join(cache, 'models', name.replace('/', '--'));
  const pinned = /^[0-9a-f]{40}$/.test(revision);
  const atRevision = pinned ? revision : await readText(refPath(folder, revision));
  const cached = atRevision && (await isComplete(join(folder, atRevision))) ? join(folder, atRevision) : null;
  // A commit does not change, so a whole copy of one needs no network.
  if (pinned && cached) return cached;
  try {
    return await download(spec, name, revision, folder, options);
  } catch (error) {
    const offline = offlineReason(error);
    if (offline === null) throw error;
    if (cached) {
      options.onNotice?.(`offline (${offline}): using the copy of ${spec} in ${cached}`);
      return cached;
    }
    throw new PluralignError(
      'IO',
      `${spec}: the hub cannot be reached (${offline}) and the cache (${folder}) has no complete copy. You are offline, or a ` +
        'proxy is in the way: connect and try again, or give the path of a model folder that is on this machine',
      { cause: error },
    );
  }
}

function localModel(path: string): string {
  if (existsSync(path)) {
    if (statSync(path).isDirectory()) return path;
    throw new PluralignError(
      'NOT_FOUND',
      `${path}: a file; expected a model folder (config.json, model.safetensors …)`,
    );
  }
  const hint = /^[\w.-]+\/[\w.-]+$/.test(path) ? `. For a model of the Hugging Face hub write hf:${path}` : '';
  throw new PluralignError(
    'NOT_FOUND',
    `${path}: no such folder; expected a model folder (config.json, model.safetensors …)${hint}`,
  );
}

function parseSpec(spec: string): { name: string; revision: string } {
  const match = /^hf:([\w][\w.-]*\/[\w][\w.-]*)(?:@([\w][\w./-]*))?$/.exec(spec);
  if (!match || spec.includes('..')) {
    throw new PluralignError('BAD_ARGUMENT', `${spec}: expected hf:owner/name or hf:owner/name@revision`);
  }
  return { name: match[1], revision: match[2] ?? 'main' };
}

const refPath = (folder: string, revision: string) => join(folder, 'refs', encodeURIComponent(revision));

async function readText(path: string): Promise<string | null> {
  try {
    return (await readFile(path, 'utf8')).trim();
  } catch {
    return null;
  }
}

/** Whether every file of the manifest is there with its size. */
async function isComplete(snapshot: string): Promise<boolean> {
  try {
    const files = JSON.parse(await readFile(join(snapshot, manifestName), 'utf8')) as RemoteFile[];
    return files.length > 0 && files.every(({ path, size }) => sizeOf(join(snapshot, path)) === size);
  } catch {
    return false;
  }
}

function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? -1;
}

async function loadHub(spec: string, options: ResolveOptions): Promise<Hub> {
  try {
    return (await (options.importHub ?? (() => import('@huggingface/hub')))()) as Hub;
  } catch (error) {
    throw new PluralignError(
      'UNSUPPORTED',
      `${spec}: downloading needs the optional package @huggingface/hub: npm install @huggingface/hub. ` +
        'Or download the model by hand and give its folder',
      { cause: error },
    );
  }
}

async function download(
  spec: string,
  name: string,
  revision: string,
  folder: string,
  options: ResolveOptions,
): Promise<string> {
  const hub = await loadHub(spec, options);
  const fetchWithSignal: typeof fetch = (input, init) =>
    (options.fetch ?? fetch)(input, { ...init, signal: options.signal ?? init?.signal });
  const access = {
    hubUrl: options.hubUrl ?? process.env.HF_ENDPOINT,
    fetch: fetchWithSignal,
    ...(process.env.HF_TOKEN && { accessToken: process.env.HF_TOKEN }),
  };
  try {
    const { sha } = await hub.modelInfo({ name, revision, additionalFields: ['sha'], ...access });
    if (!/^[0-9a-f]{40}$/.test(sha)) throw new PluralignError('IO', `${spec}: the hub answered with no commit id`);
    const snapshot = join(folder, sha);
    if (!(await isComplete(snapshot))) {
      const listed: RemoteFile[] = [];
      for await (const entry of hub.listFiles({ repo: name, revision: sha, ...access })) {
        if (entry.type === 'file') listed.push({ path: entry.path, size: entry.size, sha256: entry.lfs?.oid });
      }
      const files = chooseFiles(spec, listed);
      await makeFolder(snapshot);
      await fetchFiles(hub, { repo: name, revision: sha, ...access }, snapshot, files, options);
      await writeFileAtomic(join(snapshot, manifestName), JSON.stringify(files));
    }
    await makeFolder(join(folder, 'refs'));
    await writeFileAtomic(refPath(folder, revision), sha);
    return snapshot;
  } catch (error) {
    throw translate(error, spec, folder, options.signal);
  }
}

/** Configuration, tokenizer and weights; of weights `model.safetensors` where it is there, else the shards. */
function chooseFiles(spec: string, listed: RemoteFile[]): RemoteFile[] {
  const single = listed.filter(({ path }) => path === 'model.safetensors');
  const weights = single.length
    ? single
    : listed.filter(({ path }) => path === 'model.safetensors.index.json' || /^model-[\w-]+\.safetensors$/.test(path));
  if (!listed.some(({ path }) => path === 'config.json')) {
    throw new PluralignError('NOT_FOUND', `${spec}: has no config.json; it is no transformers model`);
  }
  if (weights.length === 0) {
    throw new PluralignError('UNSUPPORTED', `${spec}: has no model.safetensors; other weight formats are not read`);
  }
  return [...listed.filter(({ path }) => wanted.has(path)), ...weights];
}

interface Access {
  repo: string;
  revision: string;
  hubUrl: string | undefined;
  fetch: typeof fetch;
  accessToken?: string;
}

async function fetchFiles(
  hub: Hub,
  access: Access,
  snapshot: string,
  files: RemoteFile[],
  options: ResolveOptions,
): Promise<void> {
  const size = files.reduce((sum, file) => sum + file.size, 0);
  let before = 0;
  for (const file of files) {
    const report = (fileReceived: number) =>
      options.onProgress?.({
        file: file.path,
        fileReceived,
        fileSize: file.size,
        received: before + fileReceived,
        size,
      });
    const target = join(snapshot, file.path);
    if (sizeOf(target) === file.size) report(file.size);
    else await fetchFile(hub, access, target, file, report);
    before += file.size;
  }
}

async function fetchFile(
  hub: Hub,
  access: Access,
  target: string,
  file: RemoteFile,
  report: (received: number) => void,
): Promise<void> {
  const blob = await hub.downloadFile({ ...access, path: file.path });
  if (!blob)
    throw new PluralignError('NOT_FOUND', `${access.repo}: ${file.path}: the hub lists it but has no such file`);
  const temporary = temporaryName(target);
  const hash = createHash('sha256');
  let received = 0;
  try {
    const handle = await open(temporary, 'wx');
    try {
      for await (const chunk of blob.stream()) {
        await handle.writeFile(chunk);
        hash.update(chunk);
        received += chunk.byteLength;
        report(received);
      }
      await handle.sync();
    } finally {
      await handle.close();
    }
    if (received !== file.size || (file.sha256 && hash.digest('hex') !== file.sha256)) {
      throw new PluralignError(
        'IO',
        `${file.path}: arrived damaged (${received} bytes, expected ${file.size}${file.sha256 ? ' with its SHA-256' : ''}); ` +
          'try again',
      );
    }
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw error;
  }
}

const offlineCodes = new Set([
  'ENOTFOUND',
  'EAI_AGAIN',
  'ECONNREFUSED',
  'ECONNRESET',
  'ENETUNREACH',
  'EHOSTUNREACH',
  'ETIMEDOUT',
  'UND_ERR_CONNECT_TIMEOUT',
  'UND_ERR_SOCKET',
]);

/** Why the network failed, or null where the failure is another one. */
function offlineReason(error: unknown): string | null {
  // The library ends a broken stream with the bare message.
  if (typeof error === 'string') return /fetch failed|terminated/.test(error) ? error : null;
  for (let e = error as { code?: unknown; cause?: unknown; message?: string } | undefined; e; e = e.cause as typeof e) {
    if (typeof e.code === 'string' && offlineCodes.has(e.code)) return e.code;
  }
  return error instanceof TypeError && error.message === 'fetch failed' ? 'fetch failed' : null;
}

function translate(error: unknown, spec: string, folder: string, signal?: AbortSignal): unknown {
  if (error instanceof PluralignError || offlineReason(error) !== null) return error;
  if (signal?.aborted) return new PluralignError('ABORTED', `${spec}: the download was stopped`, { cause: error });
  const status = (error as { statusCode?: unknown }).statusCode;
  if (status === 401 || status === 403 || status === 404) {
    return new PluralignError(
      'NOT_FOUND',
      `${spec}: the hub has no such model or revision for you (status ${status}). Check the name; for a private or gated ` +
        'model accept its terms and set HF_TOKEN',
      { cause: error },
    );
  }
  if (typeof status === 'number') {
    return new PluralignError('IO', `${spec}: the hub answered with status ${status}; try again later`, {
      cause: error,
    });
  }
  return ioError('download into', folder, error);
}
