#!/usr/bin/env node
/**
 * Wishes about short stories (cheerful or sad, short or long, rich or simple words): an expert for each, mixes of them, and
 * what they are compared with. Prints, over seeds, the table of mixes by hypervolume and who wins on the eight combinations.
 * Stopped, the same command goes on where it was.
 *
 * usage: node examples/soups/run.mjs --model DIR --text stories.txt --output DIR
 *   [--seeds 3] [--size small|full] [--jobs 2 (seeds at a time, a thread each)] [--combinations 3 (seeds that compare all eight)]
 */
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { options, sizeOf, writePrompts } from './settings.mjs';
import { table } from './table.mjs';

const { values } = parseArgs({ options });
sizeOf(values.size);
writePrompts({ ...values, output: resolve(values.output) });
const script = fileURLToPath(new URL('seed.mjs', import.meta.url));
const left = Array.from({ length: Number(values.seeds) }, (_, i) => i);
const running = new Set();
for (const signal of ['SIGINT', 'SIGTERM'])
  process.once(signal, () => {
    for (const child of running) child.kill(signal);
  });

async function work() {
  for (let seed = left.shift(); seed !== undefined; seed = left.shift()) {
    const given = Object.entries(values).flatMap(([key, value]) => [`--${key}`, value]);
    const child = spawn(process.execPath, [script, ...given, '--seed', String(seed)], { stdio: 'inherit' });
    running.add(child);
    const code = await new Promise((done) => child.once('close', done));
    running.delete(child);
    if (code !== 0) {
      left.length = 0;
      throw new Error(`seed ${seed} stopped; the same command goes on with it`);
    }
  }
}
await Promise.all(Array.from({ length: Math.max(1, Number(values.jobs)) }, work)).catch((error) => {
  console.error(error.message);
  process.exit(1);
});

const text = table(values);
console.log(text);
writeFileSync(join(resolve(values.output), 'table.txt'), `${text}\n`);
