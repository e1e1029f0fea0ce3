#!/usr/bin/env node
/**
 * Tokens a second of generation: pluralign and transformers' generate in turn, same model, prompts, lengths, dtype and
 * threads; and sequences under as many adapters against the same sequences under one. Medians over rounds.
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

const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];
const random = new Random(7);
const model = await Model.load(values.model, { dtype: values.dtype, threads });
const ids = (n) => Int32Array.from({ length: n }, () => 3 + random.below(Math.min(model.config.vocabSize, 2000) - 3));

/** Every sequence to its full length, as the other side is told: an EOS does not end it. */
const endless = Object.create(model, { config: { value: { ...model.config, eosIds: [] } } });

async function ours(prompts, seed, bank = null, policyOf = () => -1) {
  const requests = prompts.map((prompt, i) => ({
    prompt,
    policy: policyOf(i),
    seed: seed + i,
    temperature: 1,
    maxNewTokens: fresh,
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
    stop: () => child.stdin.end(),
  };
}

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
theirs?.stop();
if (adapters > 0) {
  const names = Array.from({ length: adapters }, (_, i) => `a${i}`);
  const bank = Bank.create(model.shape, adapterConfig({ r: rank, alpha: rank }), names, { seed: 1 });
  for (let i = 0; i < bank.parameters.length; i++) bank.parameters[i] += 0.02 * random.normal();
  const samples = { many: [], one: [], base: [] };
  for (let round = -1; round < rounds; round++) {
    const prompts = Array.from({ length: adapters }, () => ids(length));
    const sides = [
      ['many', (i) => i],
      ['one', () => 0],
      ['base', () => -1],
    ];
    for (const [name, policyOf] of round % 2 ? sides : sides.reverse()) {
      const result = await ours(prompts, round * 1000, bank, policyOf);
      if (round >= 0) samples[name].push(result);
    }
  }
  const of = (name) => median(samples[name].map(rate));
  results.push({
    what: `${adapters} sequences under ${adapters} adapters (r ${rank}), under one, under none`,
    tokens_per_second: { many: of('many'), one: of('one'), base: of('base') },
    cpu_us_per_token: Object.fromEntries(Object.entries(samples).map(([name, list]) => [name, median(list.map(cost))])),
    ratio: median(samples.many.map((m, i) => rate(m) / rate(samples.one[i]))),
    cpu_ratio: median(samples.many.map((m, i) => cost(samples.one[i]) / cost(m))),
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
  for (const { what, tokens_per_second, cpu_us_per_token, ratio, cpu_ratio } of results) {
    const side = ([name, value]) =>
      value === null ? '' : `${name} ${value.toFixed(0)} tokens/s, ${cpu_us_per_token[name].toFixed(0)} µs CPU a token`;
    const end = ratio === null ? '' : `; ratio ${ratio.toFixed(2)}, by CPU time ${cpu_ratio.toFixed(2)}`;
    console.log(`${what}: ${Object.entries(tokens_per_second).map(side).filter(Boolean).join('; ')}${end}`);
  }
}
model.dispose();
