// Builds the addon with node-gyp into build/Release. Finds Node's headers without a download where they are installed.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const env = { ...process.env };
const prefix = dirname(dirname(process.execPath));
if (!env.npm_config_nodedir && existsSync(join(prefix, 'include/node/node_api.h'))) env.npm_config_nodedir = prefix;
const gyp = createRequire(import.meta.url).resolve('node-gyp/bin/node-gyp.js');
const verb = existsSync(join(root, 'build/Makefile')) ? ['configure', 'build'] : ['rebuild'];
const run = spawnSync(process.execPath, [gyp, ...verb, '--jobs', String(availableParallelism()), ...process.argv.slice(2)], {
  cwd: root,
  env,
  stdio: ['ignore', 'inherit', 'inherit'],
});
process.exit(run.status ?? 1);
