// Says which glibc each built binary needs; exit status 1 where a shipped one needs more than glibc 2.28.
import { existsSync, readdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { glibcLimit } from '../prebuild.mjs';
import { compareVersions, floor } from './glibc.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));
const prebuilds = join(root, 'prebuilds');
const local = join(root, 'build/Release/pluralign.node');
const shipped = existsSync(prebuilds)
  ? readdirSync(prebuilds, { recursive: true })
      .filter((f) => f.endsWith('.glibc.node'))
      .map((f) => join(prebuilds, f))
  : [];

for (const path of [...(existsSync(local) ? [local] : []), ...shipped.sort()]) {
  const { version, symbols, unprovided } = floor(path);
  const held = path !== local;
  const bad = held && (compareVersions(version, glibcLimit) > 0 || unprovided.length > 0);
  if (bad) process.exitCode = 1;
  const why = bad
    ? ` (limit ${glibcLimit}; ${[...symbols, ...unprovided.map((s) => `${s} from nowhere`)].join(', ')})`
    : '';
  console.log(`${relative(root, path)}: glibc ${version}${held ? '' : ', not shipped'}${why}`);
}
