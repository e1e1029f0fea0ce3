#!/usr/bin/env node
/**
 * Tokens a second of generation: pluralign and transformers' generate in turn, same model, prompts, lengths, dtype and
 * threads; and sequences under as many adapters against the same sequences under one, with the time of a step against the
 * time that reading base and adapters from memory takes, and against that of the base's multiplications, at the rates that
 * this machine shows when asked for nothing else. Medians over rounds.
 *
 * usage: PLURALIGN_PYTHON=python node bench/peers/generate.mjs --model DIR [--dtype float32|bf16] [--batch 1,16] [--new 64]
 *          [--prompt 16] [--rounds 5] [--threads 2] [--adapters 64] [--rank 8] [--json]
 */
import { spawn } from 'node:child_process';
import { loadavg } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { adapterConfig, Bank, generateRequests, Model, Random } from '../../dist/index.js';
import { addon } from '../../dist/native/loader.js';

const here = dirname(fileURLToPath(import.meta.url));
const text = (value) => ({ type: 'string', default: value });
const { values } = parseArgs({
  options: {
    model: { type: 'string' },
    dtype: text('float32'),
    batch: text('1,16'),
    new: text('64'),
    prompt: text('16'),
    rounds: text('5'),
    threads: text('2'),
    adapters: text('0'),
    rank: text('8'),
    python: text(process.env.PLURALIGN_PYTHON ?? ''),
    json: { type: 'boolean' },
  },
});
if (!values.model) {
  console.error(
    '--model DIR is needed; PLURALIGN_PYTHON (or --python) names a Python with transformers for the other side',
  );
  process.exit(2);
}
const [fresh, length, rounds, threads, adapters, rank] = ['new', 'prompt', 'rounds', 'threads', 'adapters', 'rank'].map(
  (key) => Number(values[key]),
);

const short = Math.max(1, Math.floor(fresh / 4)); // what is longer takes is steps alone
const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
const random = new Random(7);
const model = await Model.load(values.model, { dtype: values.dtype, threads });
const ids = (n) => Int32Array.from({ length: n }, () => 3 + random.below(Math.min(model.config.vocabSize, 2000) - 3));

/** Every sequence to its full length, as the other side is told: an EOS does not end it. */
const endless = Object.create(model, { config: { value: { ...model.config, eosIds: [] } } });

async function ours(prompts, seed, bank = null, policyOf = () => -1, maxNewTokens = fresh) {
  const requests = prompts.map((prompt, i) => ({
    prompt,
    policy: policyOf(i),
    seed: seed + i,
    temperature: 1,
    maxNewTokens,
  }));
  const [started, cpu] = [performance.now(), process.cpuUsage()];
  const out = await generateRequests(endless, bank, requests, { text: 'none', batch: prompts.length });
  const { user, system } = process.cpuUsage(cpu);
  const tokens = out.reduce((sum, { tokens }) => sum + tokens.length, 0);
  return { seconds: (performance.now() - started) / 1000, cpu: (user + system) / 1e6, tokens };
}

function peer() {
  const dtype = values.dtype === 'bf16' ? 'bfloat16' : 'float32';
  const argv = [join(here, 'hf_generate.py'), values.model, '--dtype', dtype, '--threads', String(threads)];
  const child = spawn(values.python, argv, { stdio: ['pipe', 'pipe', 'ignore'] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => (await lines.next()).value;
  return {
    ready: async () => {
      for (let line = await next(); line !== 'ready'; line = await next())
        if (line === undefined) throw new Error('the peer did not start');
    },
    run: async (prompts, seed) => {
      child.stdin.write(`${JSON.stringify({ prompts: prompts.map((p) => [...p]), new: fresh, seed })}\n`);
      return JSON.parse(await next());
    },
    // Until it is gone: what a process does to end takes a core from the limits that are measured next.
    stop: () =>
      new Promise((resolve) => {
        child.once('exit', resolve);
        child.stdin.end();
      }),
  };
}

/** Bytes a second that are read from memory, and operations a second in registers, with these threads. */
async function limits() {
  const timing = { threads, runs: 5, seconds: 0.05, cold: false };
  const [rows, width] = [1 << 14, 4096];
  const read = await addon().bench.operator({ ...timing, name: 'read', rows, width, dtype: 'float32' });
  const peak = await addon().bench.peak({ ...timing, dtype: values.dtype === 'bf16' ? 'bfloat16' : 'float32' });
  return { bytes: (4 * rows * width) / median(read), operations: median(peak) };
}

/** Weights that a step multiplies by: all but the embedding, unless that is the head too. */
function multiplied({
  hiddenSize: hidden,
  intermediateSize: intermediate,
  layers,
  heads,
  kvHeads,
  headDim,
  vocabSize,
}) {
  const attention = 2 * hidden * headDim * (heads + kvHeads);
  return layers * (attention + 3 * hidden * intermediate) + vocabSize * hidden;
}

const mega = (bytes) => (bytes / 1e6).toFixed(0);
const rate = ({ tokens, seconds }) => tokens / seconds;
const cost = ({ tokens, cpu }) => (1e6 * cpu) / tokens;
const results = [];
const theirs = values.python ? peer() : null;
await theirs?.ready();
for (const batch of values.batch.split(',').map(Number)) {
  const samples = { ours: [], theirs: [] };
  for (let round = -1; round < rounds; round++) {
    const prompts = Array.from({ length: batch }, () => ids(length));
    const sides = [
      ['ours', () => ours(prompts, round * 1000)],
      ...(theirs ? [['theirs', () => theirs.run(prompts, round + 1)]] : []),
    ];
    for (const [name, run] of round % 2 ? sides : sides.reverse()) {
      const result = await run();
      if (round >= 0) samples[name].push(result);
    }
  }
  const of = (name, f) => (samples[name].length ? median(samples[name].map(f)) : null);
  results.push({
    what: `batch ${batch}`,
    tokens_per_second: { ours: of('ours', rate), theirs: of('theirs', rate) },
    cpu_us_per_token: { ours: of('ours', cost), theirs: of('theirs', cost) },
    ratio: theirs ? median(samples.ours.map((o, i) => rate(o) / rate(samples.theirs[i]))) : null,
    cpu_ratio: theirs ? median(samples.ours.map((o, i) => cost(samples.theirs[i]) / cost(o))) : null,
  });
}
await theirs?.stop();
if (adapters > 0) {
  const names = Array.from({ length: adapters }, (_, i) => `a${i}`);
  const bank = Bank.create(model.shape, adapterConfig({ r: rank, alpha: rank }), names, { seed: 1 });
  for (let i = 0; i < bank.parameters.length; i++) bank.parameters[i] += 0.02 * random.normal();
  const samples = { many: [], one: [], base: [] };
  const steps = { many: [], one: [], base: [] };
  const limit = await limits();
  for (let round = -1; round < rounds; round++) {
    const prompts = Array.from({ length: adapters }, () => ids(length));
    const sides = [
      ['many', (i) => i],
      ['one', () => 0],
      ['base', () => -1],
    ];
    for (const [name, policyOf] of round % 2 ? sides : sides.reverse()) {
      const result = await ours(prompts, round * 1000, bank, policyOf);
      const start = await ours(prompts, round * 1000, bank, policyOf, short);
      if (round < 0) continue;
      samples[name].push(result);
      steps[name].push((result.seconds - start.seconds) / (fresh - short));
    }
  }
  const of = (name) => median(samples[name].map(rate));
  const size = values.dtype === 'bf16' ? 2 : 4;
  const weights = multiplied(model.config);
  const bytes = { base: size * weights, adapters: size * bank.parameters.length };
  const reading = (bytes.base + bytes.adapters) / limit.bytes;
  const multiplying = (2 * weights * adapters) / limit.operations;
  const step = Object.fromEntries(Object.entries(steps).map(([name, list]) => [name, median(list)]));
  results.push({
    what: `${adapters} sequences under ${adapters} adapters (r ${rank}), under one, under none`,
    tokens_per_second: { many: of('many'), one: of('one'), base: of('base') },
    cpu_us_per_token: Object.fromEntries(Object.entries(samples).map(([name, list]) => [name, median(list.map(cost))])),
    ratio: median(samples.many.map((m, i) => rate(m) / rate(samples.one[i]))),
    cpu_ratio: median(samples.many.map((m, i) => cost(samples.one[i]) / cost(m))),
    step_seconds: step,
    bytes,
    limits: { bytes_per_second: limit.bytes, operations_per_second: limit.operations },
    step_over_reading: step.many / reading,
    step_over_multiplying: step.many / multiplying,
  });
}
const report = {
  model: values.model,
  dtype: values.dtype,
  prompt: length,
  new: fresh,
  threads,
  rounds,
  load: loadavg()[0],
  results,
};
if (values.json) console.log(JSON.stringify(report));
else {
  console.log(
    `${values.model}, ${values.dtype}, prompts of ${length}, ${fresh} new tokens, ${threads} threads, load ${report.load.toFixed(1)}`,
  );
  for (const { what, tokens_per_second, cpu_us_per_token, ratio, cpu_ratio, ...more } of results) {
    const side = ([name, value]) =>
      value === null ? '' : `${name} ${value.toFixed(0)} tokens/s, ${cpu_us_per_token[name].toFixed(0)} µs CPU a token`;
    const end = ratio === null ? '' : `; ratio ${ratio.toFixed(2)}, by CPU time ${cpu_ratio.toFixed(2)}`;
    console.log(`${what}: ${Object.entries(tokens_per_second).map(side).filter(Boolean).join('; ')}${end}`);
    if (!more.bytes) continue;
    const { step_seconds: step, bytes, limits: at } = more;
    const ms = (seconds) => `${(1000 * seconds).toFixed(seconds < 0.01 ? 2 : 1)} ms`;
    console.log(
      `a step: ${ms(step.many)}, under one ${ms(step.one)}, under none ${ms(step.base)}; base (${mega(bytes.base)} MB) and ` +
        `adapters (${mega(bytes.adapters)} MB) at ${(at.bytes_per_second / 1e9).toFixed(1)} GB/s from memory: ` +
        `${more.step_over_reading.toFixed(2)} times reading them; the base's multiplications at ` +
        `${(at.operations_per_second / 1e9).toFixed(0)} GFLOP/s: ${more.step_over_multiplying.toFixed(2)} times them`,
    );
  }
}
model.dispose();
