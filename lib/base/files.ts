import { randomBytes } from 'node:crypto';
import * as fsp from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { PluralignError } from '../native/errors.js';

/** What writes need of `node:fs/promises`; tests hand in one that fails. */
export type FileSystem = Pick<
  typeof fsp,
  'link' | 'mkdir' | 'open' | 'readdir' | 'readFile' | 'rename' | 'rm' | 'stat'
>;

const reasons: Record<string, string> = {
  ENOSPC: 'no space left on the disk; free some and try again',
  EDQUOT: 'the disk quota is used up; free some space and try again',
  EFBIG: 'the file would be larger than this system allows',
  EACCES: 'permission denied',
  EPERM: 'not permitted',
  EROFS: 'the file system is read-only',
  EMFILE: 'too many open files',
  ENOTDIR: 'a part of the path is a file, not a folder',
  EISDIR: 'it is a folder',
  EEXIST: 'a file, or a link to nothing, stands in the way',
  ENOENT: 'it does not exist',
};

/** The system's error code (`ENOSPC` …), or ''. */
export function errnoOf(error: unknown): string {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' ? code : '';
}

/** A failure of the file system as code `IO`, in words; an error that is one of ours already stays as it is. */
export function ioError(action: string, path: string, error: unknown): PluralignError {
  if (error instanceof PluralignError) return error;
  const code = errnoOf(error);
  const why = reasons[code] ?? (error instanceof Error ? error.message : String(error));
  return new PluralignError('IO', `cannot ${action} ${path}: ${why}${code ? ` (${code})` : ''}`, { cause: error });
}

/**
 * Makes a folder and those above it that are missing. Throws the system's error: Node's own recursive mkdir says ENOENT where
 * a file system is read-only, and never returns where one takes no folders, as /proc.
 */
export async function makeFolder(path: string, fs: Pick<FileSystem, 'mkdir' | 'stat'> = fsp): Promise<void> {
  const make = async (above: (error: unknown) => Promise<void>) => {
    try {
      await fs.mkdir(path);
    } catch (error) {
      if ((await fs.stat(path).catch(() => undefined))?.isDirectory()) return;
      await above(error);
    }
  };
  await make(async (error) => {
    const parent = dirname(path);
    if (errnoOf(error) !== 'ENOENT' || parent === path) throw error;
    await makeFolder(parent, fs);
    await make(async (again) => {
      throw again;
    });
  });
}

/** Flushes a folder's entries, so that a rename in it survives a power cut. Does nothing where folders cannot be opened. */
export async function syncFolder(folder: string, fs: FileSystem = fsp): Promise<void> {
  let handle: fsp.FileHandle;
  try {
    handle = await fs.open(folder, 'r');
  } catch (error) {
    if (['EISDIR', 'EPERM', 'EACCES'].includes(errnoOf(error))) return;
    throw error;
  }
  try {
    await handle.sync();
  } catch (error) {
    if (!['EINVAL', 'EPERM', 'EBADF', 'ENOTSUP'].includes(errnoOf(error))) throw error;
  } finally {
    await handle.close();
  }
}

/** A name in the same folder that no other writer uses. */
export function temporaryName(path: string): string {
  return join(dirname(path), `.${basename(path)}.${process.pid}.${randomBytes(4).toString('hex')}.tmp`);
}

/** Writes to a temporary name in the same folder, fsyncs and renames: readers see the old file or the whole new one. */
export async function writeAtomic(
  path: string,
  write: (handle: fsp.FileHandle) => Promise<void>,
  options: { fs?: FileSystem } = {},
): Promise<void> {
  const fs = options.fs ?? fsp;
  const temporary = temporaryName(path);
  try {
    const handle = await fs.open(temporary, 'wx');
    try {
      await write(handle);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await fs.rename(temporary, path);
    await syncFolder(dirname(path), fs);
  } catch (error) {
    await fs.rm(temporary, { force: true }).catch(() => {});
    throw ioError('write', path, error);
  }
}

/** `writeAtomic` of data that is at hand. */
export function writeFileAtomic(
  path: string,
  data: string | Uint8Array,
  options: { fs?: FileSystem } = {},
): Promise<void> {
  return writeAtomic(path, (handle) => handle.writeFile(data), options);
}
