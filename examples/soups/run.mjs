#!/usr/bin/env node
/**
 * Wishes about short stories (cheerful or sad, short or long, rich or simple words): an expert for each, mixes of them, and
 * what they are compared with. Prints, over seeds, the table of mixes by hypervolume and who wins on the eight combinations.
 * Stopped, the same command goes on where it was.
 *
 * usage: node examples/soups/run.mjs --model DIR --text stories.txt --output DIR
 *   [--seeds 3] [--size small|full] [--jobs 2 (seeds at a time, a thread each)] [--combinations 3 (seeds that compare all eight)]
 *   [--print (what is finished so far)]
 */
import { writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { asArguments, runJobs } from './jobs.mjs';
import { options, sizeOf, writePrompts } from './settings.mjs';
import { table } from './table.mjs';

const { values } = parseArgs({ options });
sizeOf(values.size);
writePrompts({ ...values, output: resolve(values.output) });
const seeds = Array.from({ length: Number(values.seeds) }, (_, i) => [...asArguments(values), '--seed', String(i)]);
if (!values.print) await runJobs(fileURLToPath(new URL('seed.mjs', import.meta.url)), seeds, Number(values.jobs));

const text = table(values);
console.log(text);
writeFileSync(join(resolve(values.output), 'table.txt'), `${text}\n`);
