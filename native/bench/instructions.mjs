// Instruction counts of small cases under valgrind's callgrind, held to instructions.json: a guard against lost fast paths
// that an idle or a busy machine reads alike. Its processor has no AVX-512: generic and AVX2 code are counted.
//
// node native/bench/instructions.mjs [--update]
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { compile, coreSources, findCompiler, root } from '../compile.mjs';

/** Share of the expected count that may come or go: under the table's own compiler, and under another. */
const tolerance = { same: 0.03, other: 0.25 };
const sets = ['generic', 'avx2'];
const table = fileURLToPath(new URL('instructions.json', import.meta.url));

const version = (command) => spawnSync(command, ['--version'], { encoding: 'utf8' }).stdout?.split('\n')[0].trim();

const build = () =>
  compile({
    folder: join(root, 'build/cpp-tests'),
    target: 'pluralign_instructions',
    defines: { PLURALIGN_SANITIZE: '', CMAKE_BUILD_TYPE: 'RelWithDebInfo' },
    sources: [...coreSources(), 'native/bench/cases.cc', 'native/bench/instructions.cc'],
  });

/** Instructions of every case, by name. */
function count(program) {
  const folder = mkdtempSync(join(tmpdir(), 'pluralign-instructions-'));
  try {
    const options = ['--tool=callgrind', '--collect-atstart=no', `--callgrind-out-file=${join(folder, 'out')}`];
    const ran = spawnSync('valgrind', [...options, program, ...sets], { encoding: 'utf8', maxBuffer: 1 << 26 });
    if (ran.status !== 0) throw new Error(ran.stderr);
    const counts = {};
    for (const file of readdirSync(folder).sort()) {
      const text = readFileSync(join(folder, file), 'utf8');
      const name = /^desc: Trigger: Client Request: (.+)$/m.exec(text)?.[1];
      if (name) counts[name] = Number(/^(?:totals|summary): (\d+)$/m.exec(text)[1]);
    }
    return counts;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function compare(counts, expected, conditions) {
  const others = Object.keys(conditions).filter((name) => conditions[name] !== expected.conditions[name]);
  const allowed = others.length === 0 ? tolerance.same : tolerance.other;
  for (const name of others)
    console.log(
      `${name}: ${conditions[name]}; the table's is ${expected.conditions[name]}: ${100 * allowed} % allowed`,
    );
  let failed = 0;
  const names = new Set([...Object.keys(expected.counts), ...Object.keys(counts)]);
  for (const name of names) {
    const [found, wanted] = [counts[name], expected.counts[name]];
    if (Math.abs(found / wanted - 1) <= allowed) continue;
    ++failed;
    const change = 100 * (found / wanted - 1);
    if (Number.isNaN(change)) console.log(`${name}: ${found ?? 'not run'} where ${wanted ?? 'nothing'} is expected`);
    else console.log(`${name}: ${found} instructions for ${wanted}, ${change > 0 ? '+' : ''}${change.toFixed(1)} %`);
  }
  if (failed > 0) console.log('Where that is meant: node native/bench/instructions.mjs --update');
  console.log(`${names.size - failed} passed, ${failed} failed`);
  return failed === 0;
}

async function run(update) {
  const valgrind = version('valgrind');
  if (!valgrind || process.arch !== 'x64') {
    console.log(
      `instruction counts are left out: they need valgrind on x64, and this is ${valgrind ?? 'no valgrind'}, ${process.arch}`,
    );
    return true;
  }
  const conditions = { compiler: version(findCompiler()), valgrind };
  const counts = count(await build());
  if (!update && existsSync(table)) return compare(counts, JSON.parse(readFileSync(table, 'utf8')), conditions);
  const sorted = Object.fromEntries(Object.entries(counts).sort(([a], [b]) => (a < b ? -1 : 1)));
  writeFileSync(table, `${JSON.stringify({ conditions, counts: sorted }, null, 2)}\n`);
  console.log(`${Object.keys(counts).length} counts written`);
  return true;
}

try {
  process.exitCode = (await run(process.argv.includes('--update'))) ? 0 : 1;
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
