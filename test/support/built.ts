import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));

function newest(folder: string): number {
  const entries = readdirSync(folder, { withFileTypes: true, recursive: true }).filter((e) => e.isFile());
  return Math.max(0, ...entries.map((e) => statSync(join(e.parentPath, e.name)).mtimeMs));
}

/** Compiles lib/ into dist/ where one of these folders of it is newer than what was compiled. */
export function buildIfStale(parts: readonly string[]): void {
  const stale = parts.some((part) => {
    const dist = join(root, 'dist', part);
    return !existsSync(dist) || newest(dist) < newest(join(root, 'lib', part));
  });
  // the status is not looked at: types are another check's business, and tsc writes its files all the same
  if (stale) spawnSync('npm', ['run', 'build:ts'], { cwd: root });
}
