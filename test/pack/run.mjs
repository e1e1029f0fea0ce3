// What a user gets: packs the package, installs the tarball without install scripts into an empty folder with an empty
// HOME, and uses it there. Needs dist/ (npm run build:ts) and prebuilds/ (npm run build:prebuilds). An argument names a tarball
// to test in place of packing one; --keep leaves the tarball at pluralign.tgz here.
import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const args = process.argv.slice(2);
const keep = args.includes('--keep');
const given = args.find((a) => !a.startsWith('--'));
const work = realpathSync(mkdtempSync(join(tmpdir(), 'pluralign-pack-')));
const [home, project] = [join(work, 'home'), join(work, 'project')];
let passed = 0;
let failed = 0;

function report(name, error) {
  if (error) {
    ++failed;
    console.log(`FAILED ${name}\n${String(error.stack ?? error).replace(/^/gm, '    ')}`);
  } else {
    ++passed;
    console.log(`ok ${name}`);
  }
}

function check(name, body) {
  try {
    const result = body();
    report(name);
    return result;
  } catch (error) {
    report(name, error);
  }
}

// npm passes its configuration down in the environment; a user's shell has none of it, only how to reach the registry.
const env = { HOME: home, USERPROFILE: home };
for (const [key, value] of Object.entries(process.env))
  if (
    !(key in env) &&
    (!/^npm_/i.test(key) || /^npm_config_(registry|.*proxy|cafile)$/i.test(key)) &&
    !/^PLURALIGN_/.test(key)
  )
    env[key] = value;

function npm(folder, ...rest) {
  const run = spawnSync('npm', rest, {
    cwd: folder,
    env,
    encoding: 'utf8',
    shell: process.platform === 'win32',
    maxBuffer: 1 << 26,
  });
  assert.equal(run.status, 0, `npm ${rest.join(' ')}\n${run.stdout}${run.stderr}${run.error ?? ''}`);
  return run.stdout;
}

try {
  mkdirSync(home);
  mkdirSync(project);
  const tarball = check('npm pack', () => {
    if (given) return resolve(given);
    const [{ filename }] = JSON.parse(npm(root, 'pack', '--json', '--ignore-scripts', '--pack-destination', work));
    return join(work, filename);
  });
  if (tarball) {
    check('npm install --ignore-scripts', () => {
      writeFileSync(join(project, 'package.json'), '{"private":true,"type":"module"}\n');
      npm(project, 'install', '--ignore-scripts', '--no-audit', '--no-fund', tarball);
    });
    const installed = join(project, 'node_modules/pluralign');
    check('the tarball holds what runs and nothing else', () => {
      const files = spawnSync('tar', ['tzf', tarball], { encoding: 'utf8' }).stdout.trim().split('\n');
      const names = files.map((f) => f.trim().replace(/^package\//, ''));
      for (const wanted of [
        'package.json',
        'README.md',
        'LICENSE',
        'dist/index.js',
        'dist/index.d.ts',
        'dist/kernels.js',
        'docs/configuration.md',
      ])
        assert.ok(names.includes(wanted), `${wanted} is missing`);
      const prebuilds = `prebuilds/${process.platform}-${process.arch}/`;
      assert.ok(
        names.some((f) => f.startsWith(prebuilds) && f.endsWith('.node')),
        `nothing in ${prebuilds}: npm run build:prebuilds`,
      );
      const odd = names.filter(
        (f) => !/^(dist|prebuilds|assets)\/|^docs\/\w+\.md$/.test(f) && !/^(package\.json|README\.md|LICENSE)$/.test(f),
      );
      assert.deepEqual(odd, []);
    });
    check('installing runs no script of ours', () => {
      const { scripts = {}, gypfile } = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8'));
      for (const name of ['preinstall', 'install', 'postinstall']) assert.equal(scripts[name], undefined, name);
      assert.equal(gypfile, false);
      const lock = JSON.parse(readFileSync(join(project, 'node_modules/.package-lock.json'), 'utf8'));
      const scripted = Object.entries(lock.packages).filter(([, p]) => p.hasInstallScript);
      assert.deepEqual(
        scripted.map(([name]) => name),
        [],
      );
    });
    cpSync(join(root, 'test/fixtures/parity-llama-old'), join(work, 'fixture'), { recursive: true });
    copyFileSync(fileURLToPath(new URL('consumer.mjs', import.meta.url)), join(project, 'consumer.mjs'));
    const run = spawnSync(process.execPath, ['consumer.mjs', join(work, 'fixture')], {
      cwd: project,
      env,
      encoding: 'utf8',
    });
    const results = run.stdout
      .split('\n')
      .filter((l) => l.startsWith('{"name"'))
      .map((l) => JSON.parse(l));
    for (const { name, error } of results) report(name, error);
    if (run.status !== 0 || results.length === 0)
      report('the consumer ends well', `status ${run.status ?? run.signal}\n${run.stdout}${run.stderr}`);
    if (keep) copyFileSync(tarball, join(root, 'pluralign.tgz'));
  }
} finally {
  rmSync(work, { recursive: true, force: true });
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;
