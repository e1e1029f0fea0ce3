#!/usr/bin/env node
/**
 * pluralign and TRL + PEFT side by side on the CPU: same model, same rows in the same order, same rank, batch, steps,
 * dtype and threads. The two alternate, and who goes first alternates too; the table gives medians over the rounds.
 *
 * usage: PLURALIGN_PYTHON=python node bench/peers/run.mjs --model DIR --rows pairs.jsonl [options]
 */
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { cpus, loadavg, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { stringify } from 'yaml';
import { Random } from '../../dist/base/random.js';

const here = dirname(fileURLToPath(import.meta.url));
const defaults = {
  method: 'dpo',
  rounds: '3',
  batch: '8',
  steps: '20',
  warmup: '3',
  dtype: 'float32',
  threads: '2',
  rank: '16',
  'max-length': '512',
  python: process.env.PLURALIGN_PYTHON ?? 'python3',
  cli: join(here, '../../dist/cli/main.js'),
};
const usage = `usage: node bench/peers/run.mjs --model DIR --rows pairs.jsonl [options]
  --method dpo|reward     --rounds 3     --batch 8      --steps 20 (timed)   --warmup 3 (not timed for the peer)
  --dtype float32|bf16    --threads 2    --rank 16      --max-length 512 (longer rows are left out)
  --cached-reference      both sides score the reference before the clock starts (dpo)
  --shuffled              rows in random order; else as in the file, where neighbours may share prompts and completions
  --autocast              the peer runs bf16 under autocast as well
  --python PYTHON         one with bench/peers/requirements.txt installed (or PLURALIGN_PYTHON)
  --cli FILE              the command line to measure (dist/cli/main.js)
  --only ours|theirs      one side alone
  --json                  one JSON object in place of the table`;

function fail(message) {
  console.error(`${message}\n${usage}`);
  process.exit(2);
}

function readOptions() {
  const text = Object.fromEntries(
    Object.entries(defaults).map(([name, value]) => [name, { type: 'string', default: value }]),
  );
  const flags = Object.fromEntries(
    ['cached-reference', 'shuffled', 'autocast', 'json', 'help'].map((n) => [n, { type: 'boolean' }]),
  );
  let values;
  try {
    const options = {
      ...text,
      ...flags,
      model: { type: 'string' },
      rows: { type: 'string' },
      only: { type: 'string' },
    };
    ({ values } = parseArgs({ options }));
  } catch (error) {
    fail(error.message);
  }
  if (values.help) {
    console.log(usage);
    process.exit(0);
  }
  for (const name of ['model', 'rows']) if (!values[name]) fail(`--${name} is needed`);
  for (const name of ['rounds', 'batch', 'steps', 'warmup', 'threads', 'rank', 'max-length']) {
    const value = Number(values[name]);
    if (!Number.isInteger(value) || value < (name === 'warmup' ? 0 : 1))
      fail(`--${name}: found ${values[name]}, expected a whole number`);
    values[name] = value;
  }
  const choices = { method: ['dpo', 'reward'], dtype: ['float32', 'bf16'], only: [undefined, 'ours', 'theirs'] };
  for (const [name, allowed] of Object.entries(choices)) {
    if (!allowed.includes(values[name]))
      fail(`--${name}: found ${values[name]}, expected ${allowed.filter(Boolean).join(' or ')}`);
  }
  return values;
}

/** Most memory the process had resident, in MB; Linux only. */
async function peakOf(pid) {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  return Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? Number.NaN) / 1024;
}

/** Runs a program to its end; the last line of its stdout that is a JSON object, its peak memory and its wall time. */
async function measure(program, args, env = {}) {
  const start = performance.now();
  const child = spawn(program, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
  let [out, err, peak] = ['', '', 0];
  child.stdout.setEncoding('utf8').on('data', (chunk) => (out += chunk));
  child.stderr.setEncoding('utf8').on('data', (chunk) => (err = (err + chunk).slice(-4000)));
  const timer = setInterval(async () => (peak = Math.max(peak, (await peakOf(child.pid)) || 0)), 50);
  const code = await new Promise((done, failed) => child.on('error', failed).on('close', done)).finally(() =>
    clearInterval(timer),
  );
  if (code !== 0) throw new Error(`${program} ${args.join(' ')}: exit ${code}\n${err}`);
  return { result: JSON.parse(out.slice(out.indexOf('{'))), peak, wall: (performance.now() - start) / 1000 };
}

/** Pairs taken evenly from the whole file, so that lengths are the data's; twice the need, as long ones are left out. */
async function sampleRows(options, folder) {
  const lines = (await readFile(options.rows, 'utf8')).split('\n').filter((line) => line.trim() !== '');
  const need = options.batch * (options.steps + options.warmup);
  const count = Math.min(lines.length, 2 * need);
  const file = join(folder, 'rows.jsonl');
  const taken = Array.from({ length: count }, (_, i) => lines[Math.floor((i * lines.length) / count)]);
  if (options.shuffled) new Random(0, 0x9ee5).shuffle(taken);
  await writeFile(file, taken.map((line) => `${line}\n`).join(''));
  return file;
}

async function ours(options, rows, folder, round) {
  const output = join(folder, `run-${round}`);
  const config = {
    method: options.method,
    model: resolve(options.model),
    data: { train: rows, max_length: options['max-length'], over_length: 'drop' },
    adapter: { r: options.rank, alpha: 2 * options.rank, targets: 'all-linear', dropout: 0 },
    ...(options.method === 'dpo' && {
      loss: { type: 'sigmoid', beta: 0.1, reference: 'base', cache_reference: options['cached-reference'] === true },
    }),
    train: {
      steps: options.warmup + options.steps,
      batch_size: options.batch,
      learning_rate: 1e-4,
      schedule: 'constant',
      max_grad_norm: null,
      dtype: options.dtype,
      device: 'cpu',
      threads: options.threads,
      shuffle: false,
      log_every: 1,
      save_every: null,
    },
    output,
  };
  const file = join(folder, `config-${round}.yaml`);
  await writeFile(file, stringify(config));
  const { result, peak, wall } = await measure(process.execPath, [options.cli, 'train', file, '--json']);
  const metrics = (await readFile(join(output, 'metrics.jsonl'), 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  const losses = metrics.map((entry) => entry.loss).filter((loss) => loss !== undefined);
  return { rate: result.train.samples_per_second, peak, wall, losses };
}

async function theirs(options, rows) {
  const args = ['--model', options.model, '--rows', rows];
  for (const name of ['batch', 'steps', 'warmup', 'dtype', 'threads', 'rank', 'max-length'])
    args.push(`--${name}`, String(options[name]));
  if (options['cached-reference'] && options.method === 'dpo') args.push('--precompute-reference');
  if (options.autocast) args.push('--autocast');
  const { result, wall } = await measure(options.python, [join(here, `trl_${options.method}.py`), ...args]);
  return { rate: result.pairs_per_s, peak: result.peak_rss_mb, wall, losses: result.losses, details: result };
}

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

function summarise(runs) {
  const column = (key) => runs.map((run) => run[key]);
  return {
    pairs_per_s: median(column('rate')),
    pairs_per_s_range: [Math.min(...column('rate')), Math.max(...column('rate'))],
    peak_rss_mb: median(column('peak')),
    wall_s: median(column('wall')),
    first_loss: runs[0].losses[0],
    last_loss: runs[0].losses.at(-1),
  };
}

function table(sides) {
  const digits = (value, n = 1) => (Number.isFinite(value) ? value.toFixed(n) : 'n/a');
  const rows = [['', 'pairs/s', 'range', 'peak RSS MB', 'whole run s', 'first loss', 'last loss']];
  for (const [name, s] of Object.entries(sides)) {
    const range = s.pairs_per_s_range.map((v) => digits(v, 2)).join('–');
    rows.push([
      name,
      digits(s.pairs_per_s, 2),
      range,
      digits(s.peak_rss_mb, 0),
      digits(s.wall_s),
      digits(s.first_loss, 4),
      digits(s.last_loss, 4),
    ]);
  }
  const [a, b] = [sides.pluralign, sides['TRL + PEFT']];
  if (a && b) {
    rows.push([
      'ratio',
      digits(a.pairs_per_s / b.pairs_per_s, 2),
      '',
      digits(a.peak_rss_mb / b.peak_rss_mb, 2),
      digits(a.wall_s / b.wall_s, 2),
      '',
      '',
    ]);
  }
  const widths = rows[0].map((_, i) => Math.max(...rows.map((row) => row[i].length)));
  return rows
    .map((row) => row.map((cell, i) => (i ? cell.padStart(widths[i]) : cell.padEnd(widths[i]))).join('  '))
    .join('\n');
}

async function conditions(options, peer, load) {
  const config = JSON.parse(await readFile(join(options.model, 'config.json'), 'utf8'));
  const shape = `${config.model_type}, ${config.num_hidden_layers} layers, hidden ${config.hidden_size}, heads ${config.num_attention_heads}/${config.num_key_value_heads ?? config.num_attention_heads}, intermediate ${config.intermediate_size}, vocabulary ${config.vocab_size}`;
  return {
    model: shape,
    method: options.method + (options['cached-reference'] ? ', reference scored beforehand' : ''),
    ...(peer && {
      mean_tokens: peer.mean_tokens,
      prefix_share: peer.prefix_share,
      padding_share_of_the_peer: peer.padding_share,
      versions: peer.versions,
    }),
    rank: options.rank,
    dtype: options.dtype + (options.autocast ? ' (peer: autocast)' : ''),
    batch: options.batch,
    steps: `${options.steps} after ${options.warmup}`,
    rows: options.shuffled ? 'shuffled' : "in the file's order",
    rounds: options.rounds,
    threads: options.threads,
    cpu: `${cpus()[0]?.model.trim()}, ${cpus().length} logical`,
    // above about 0.3 something else was running, and the figures are worth little
    load_average_before: load,
    node: process.version,
    date: new Date().toISOString().slice(0, 10),
  };
}

async function main() {
  const options = readOptions();
  const folder = await mkdtemp(join(tmpdir(), 'pluralign-peers-'));
  try {
    const load = loadavg()[0];
    const rows = await sampleRows(options, folder);
    const runs = { ours: [], theirs: [] };
    for (let round = 0; round < options.rounds; round++) {
      const order = round % 2 ? ['theirs', 'ours'] : ['ours', 'theirs'];
      for (const side of order.filter((name) => !options.only || name === options.only)) {
        const run = side === 'ours' ? await ours(options, rows, folder, round) : await theirs(options, rows);
        runs[side].push(run);
        console.error(
          `round ${round + 1}/${options.rounds} ${side}: ${run.rate?.toFixed(2)} pairs/s, ${run.wall.toFixed(1)} s`,
        );
      }
    }
    const sides = {};
    if (runs.ours.length) sides.pluralign = summarise(runs.ours);
    if (runs.theirs.length) sides['TRL + PEFT'] = summarise(runs.theirs);
    const stated = await conditions(options, runs.theirs[0]?.details, load);
    if (options.json) {
      console.log(JSON.stringify({ conditions: stated, sides }));
      return;
    }
    for (const [name, value] of Object.entries(stated)) {
      const round = (v) => (typeof v === 'number' && !Number.isInteger(v) ? Number(v.toFixed(3)) : v);
      const shown =
        typeof value === 'object'
          ? Object.entries(value)
              .map(([k, v]) => `${k} ${round(v)}`)
              .join(', ')
          : round(value);
      console.log(`${name.replaceAll('_', ' ')}: ${shown}`);
    }
    console.log(`\n${table(sides)}`);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

await main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
