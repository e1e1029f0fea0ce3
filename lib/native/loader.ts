import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Addon } from './addon.js';
import { PluralignError } from './errors.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const require = createRequire(import.meta.url);

function libc(): string {
  if (process.platform !== 'linux') return '';
  const header = (process.report?.getReport() as { header?: { glibcVersionRuntime?: string } } | undefined)?.header;
  return header?.glibcVersionRuntime ? 'glibc' : 'musl';
}

/** Where the addon may lie, best first: a local build, then the prebuilt binary of this platform. */
export function candidates(): string[] {
  const prebuilds = join(root, 'prebuilds', `${process.platform}-${process.arch}`);
  const tags = process.platform === 'linux' ? [`pluralign.${libc()}.node`, 'pluralign.node'] : ['pluralign.node'];
  return [join(root, 'build/Release/pluralign.node'), ...tags.map((t) => join(prebuilds, t))];
}

/** Where the addon was found. */
let loadedFrom: string | undefined;

function load(): Addon {
  const failures: string[] = [];
  for (const path of candidates()) {
    if (!existsSync(path)) {
      failures.push(`${path}: not there`);
      continue;
    }
    try {
      const found = require(path) as Addon;
      found.useErrorClass(PluralignError);
      loadedFrom = path;
      return found;
    } catch (error) {
      failures.push(`${path}: ${(error as Error).message}`);
    }
  }
  throw new PluralignError(
    'NO_BINARY',
    `no native addon for ${process.platform}-${process.arch}${libc() && `-${libc()}`} (Node ${process.versions.node}).\n` +
      `${failures.map((f) => `  ${f}`).join('\n')}\n` +
      'Build it from a checkout with: npm ci && npm run build (needs a C++20 compiler, make and Python 3).',
  );
}

let loaded: Addon | undefined;

/** The native addon, loaded on first use. Throws `NO_BINARY` with every path that was tried. */
export function addon(): Addon {
  loaded ??= load();
  return loaded;
}

/** The file of the addon, loaded on first use. Throws as `addon`. */
export function addonFile(): string {
  addon();
  return loadedFrom!;
}
