// Training on processors that lack AVX-512, or AVX2 as well, emulated by QEMU: three DPO steps end where the same instruction set
// ends on this processor. Needs qemu-x86_64, dist/ and a built addon; emulated, JavaScript is only interpreted.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const cli = join(root, 'dist/cli/main.js');
const fixture = join(root, 'test/fixtures/parity-qwen3');
const work = mkdtempSync(join(tmpdir(), 'pluralign-processors-'));
const processors = [
  { cpu: 'Haswell', isa: 'avx2' },
  { cpu: 'Nehalem', isa: 'generic' },
];

/** Trains into a new folder of this name and returns the adapter's numbers. */
function train(name, command, env = {}) {
  const config = join(work, `${name}.json`);
  const output = join(work, name);
  writeFileSync(
    config,
    JSON.stringify({
      method: 'dpo',
      model: join(fixture, 'model'),
      data: { train: join(fixture, 'prefs.jsonl') },
      adapter: { init_from: join(fixture, 'adapter') },
      train: { steps: 3, batch_size: 4, learning_rate: 1e-3, schedule: 'constant', shuffle: false, dtype: 'float32' },
      output,
    }),
  );
  const [program, ...args] = [...command, process.execPath, '--jitless', cli, 'train', config];
  const run = spawnSync(program, args, { encoding: 'utf8', env: { ...process.env, ...env } });
  if (run.status !== 0) throw new Error(`${run.signal ?? `exit status ${run.status}`}\n${run.stdout}${run.stderr}`);
  const file = readFileSync(join(output, 'adapter/adapter_model.safetensors'));
  const numbers = file.subarray(8 + Number(file.readBigUInt64LE(0)));
  return new Float32Array(numbers.buffer.slice(numbers.byteOffset, numbers.byteOffset + numbers.byteLength));
}

let failed = 0;
try {
  for (const { cpu, isa } of processors)
    try {
      const here = train(`${isa}-here`, ['env'], { PLURALIGN_ISA: isa });
      const there = train(`${isa}-there`, ['qemu-x86_64', '-cpu', cpu]);
      const apart = here.reduce((most, x, i) => Math.max(most, Math.abs(x - there[i])), 0);
      if (here.length === 0 || !(apart < 1e-6))
        throw new Error(`adapters are ${apart} apart over ${here.length} numbers`);
      console.log(`${cpu}: three steps, ${here.length} numbers at most ${apart} apart from ${isa} on this processor`);
    } catch (error) {
      ++failed;
      console.error(`${cpu}: ${error.message}`);
    }
} finally {
  rmSync(work, { recursive: true, force: true });
}
console.log(`${processors.length - failed} passed, ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;
