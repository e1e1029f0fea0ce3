import { randomBytes } from 'node:crypto';
import * as fsp from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { errnoOf, ioError, temporaryName } from '../base/files.js';
import { PluralignError } from '../native/errors.js';

export const lockName = '.lock';

/** Who holds a run folder. `started` tells a process from a later one that was given the same number. */
interface Holder {
  pid: number;
  started: string | null;
  host: string;
  token: string;
}

export interface RunLock {
  release(): Promise<void>;
}

/**
 * When a process started, as the system counts it, or null where that cannot be known. Undefined: no such process (one that
 * has ended but was not yet collected by its parent counts as ended).
 */
async function startOf(pid: number): Promise<string | null | undefined> {
  if (process.platform === 'linux') {
    try {
      const stat = await fsp.readFile(`/proc/${pid}/stat`, 'utf8');
      // The name in parentheses may hold anything; fields count from behind it: state is the first, start time the 20th.
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      if (fields[0] === 'Z' || fields[0] === 'X') return undefined;
      const boot = await fsp.readFile('/proc/sys/kernel/random/boot_id', 'utf8').catch(() => '');
      return `${fields[19]} ${boot.trim()}`;
    } catch (error) {
      if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ESRCH') return undefined;
    }
  }
  try {
    process.kill(pid, 0);
    return null;
  } catch (error) {
    return errnoOf(error) === 'ESRCH' ? undefined : null;
  }
}

async function isStale(holder: Holder): Promise<boolean> {
  // Processes of another machine cannot be seen from here.
  if (holder.host !== hostname()) return false;
  const started = await startOf(holder.pid);
  if (started === undefined) return true;
  return started !== null && holder.started !== null && started !== holder.started;
}

async function readHolder(path: string): Promise<Holder | null | undefined> {
  try {
    const holder = JSON.parse(await fsp.readFile(path, 'utf8'));
    return typeof holder?.pid === 'number' ? holder : null;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

/** Creates the lock with its content in one step: a reader never sees half of it. False where it exists. */
async function create(path: string, content: string): Promise<boolean> {
  const temporary = temporaryName(path);
  await fsp.writeFile(temporary, content, { flag: 'wx' });
  try {
    await fsp.link(temporary, path);
    return true;
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') return false;
    // File systems without links.
    try {
      await fsp.writeFile(path, content, { flag: 'wx' });
      return true;
    } catch (again) {
      if (errnoOf(again) === 'EEXIST') return false;
      throw again;
    }
  } finally {
    await fsp.rm(temporary, { force: true });
  }
}

/** Removes a dead process's lock; of several that try, one does, and none removes a living one's. */
async function breakStale(path: string): Promise<void> {
  const turn = `${path}.turn`;
  if (!(await create(turn, String(process.pid)))) {
    const age = await fsp.stat(turn).then(
      (stat) => Date.now() - stat.mtimeMs,
      () => 0,
    );
    // A turn takes milliseconds: whoever took this one is dead.
    if (age > 10_000) await fsp.rm(turn, { force: true });
    await new Promise((resolve) => setTimeout(resolve, 50));
    return;
  }
  try {
    const holder = await readHolder(path);
    if (holder !== undefined && (holder === null || (await isStale(holder)))) await fsp.rm(path, { force: true });
  } finally {
    await fsp.rm(turn, { force: true });
  }
}

/** Takes the run folder for this process; code BUSY where a living process has it. A dead one's lock is taken over. */
export async function lockRun(dir: string): Promise<RunLock> {
  const path = join(dir, lockName);
  const started = await startOf(process.pid);
  const own: Holder = {
    pid: process.pid,
    started: started ?? null,
    host: hostname(),
    token: randomBytes(8).toString('hex'),
  };
  try {
    for (let attempt = 0; attempt < 400; attempt++) {
      if (await create(path, JSON.stringify(own))) {
        return {
          release: async () => {
            if ((await readHolder(path))?.token === own.token) await fsp.rm(path, { force: true });
          },
        };
      }
      const holder = await readHolder(path);
      if (holder && !(await isStale(holder))) {
        const elsewhere = holder.host === hostname() ? '' : ` on ${holder.host}`;
        throw new PluralignError(
          'BUSY',
          `${dir}: another run (process ${holder.pid}${elsewhere}) is writing here; wait for it or choose another output` +
            (elsewhere ? `; if it is dead, delete ${path}` : ''),
        );
      }
      if (holder !== undefined) await breakStale(path);
    }
  } catch (error) {
    throw ioError('lock', dir, error);
  }
  throw new PluralignError('BUSY', `${dir}: the lock ${path} keeps changing hands; try again`);
}
