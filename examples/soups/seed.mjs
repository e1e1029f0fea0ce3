#!/usr/bin/env node
/** The runs of one seed (`--seed N`, else as run.mjs, which starts one process a seed). Stopped, it goes on where it was. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { train } from '../../dist/index.js';
import { options, runsOf, writePrompts } from './settings.mjs';

const { values } = parseArgs({ options: { ...options, seed: { type: 'string' } } });
const controller = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => controller.abort());
const data = writePrompts({ ...values, output: resolve(values.output) });
const spent = join(resolve(values.output), `spent-${values.seed}.json`);
const before = existsSync(spent) ? JSON.parse(readFileSync(spent, 'utf8')).seconds : 0;
process.on('exit', () => {
  const { user, system } = process.cpuUsage();
  writeFileSync(spent, JSON.stringify({ seconds: before + (user + system) / 1e6 }));
});
for (const config of Object.values(runsOf(values, data, Number(values.seed))))
  if (!existsSync(join(config.output, 'soups.json')))
    await train(config, { resume: true, stop: controller.signal, quiet: true });
