// Builds and runs the C++ tests. `--sanitize[=address,undefined]` builds them under sanitizers; other arguments choose
// tests by a part of their name.
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { compile, coreSources, emulatedCudaSources, operatorSources, root } from '../compile.mjs';

const args = process.argv.slice(2);
const sanitize = args.find((a) => a === '--sanitize' || a.startsWith('--sanitize='));
const sanitizers = sanitize ? sanitize.split('=')[1] || 'address,undefined' : '';
const suffix =
  sanitizers === '' ? '' : sanitizers === 'address,undefined' ? '-sanitize' : `-${sanitizers.replace(/\W/g, '-')}`;
try {
  const program = await compile({
    folder: join(root, `build/cpp-tests${suffix}`),
    target: 'pluralign_tests',
    defines: { PLURALIGN_SANITIZE: sanitizers, CMAKE_BUILD_TYPE: 'RelWithDebInfo' },
    sources: [
      ...coreSources(),
      ...emulatedCudaSources(),
      ...readdirSync(join(root, 'native/test'))
        .filter((f) => f.endsWith('.cc'))
        .map((f) => `native/test/${f}`),
      ...operatorSources(),
    ],
    flags: sanitizers ? [`-fsanitize=${sanitizers}`, '-fno-sanitize-recover=all', '-fno-omit-frame-pointer'] : [],
  });
  const run = spawnSync(
    program,
    args.filter((a) => a !== sanitize),
    { stdio: 'inherit' },
  );
  if (run.signal) console.error(`pluralign_tests: killed by ${run.signal}`);
  process.exitCode = run.status ?? 1;
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
