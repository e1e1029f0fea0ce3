#!/usr/bin/env node
/**
 * Low-rank rewards on features beside PyTorch, in turn on the same random data: one full-batch evaluation of the loss and
 * its gradient, and one pass of mini-batches with Adam. Then how time grows with pairs and memory with voters and rank.
 *
 * usage: PLURALIGN_PYTHON=python node bench/peers/features.mjs [--rounds 5] [--threads 2] [--only cost|growth] [--cpu] [--json]
 *
 * --cpu: seconds that each side computed for, in place of those that passed; with --threads 1 the ratio holds on a machine
 * that others use too, where two threads of PyTorch wait for one another.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { bilinearLoss } from '../../dist/features/bilinear.js';
import { project, projectBack } from '../../dist/features/linalg.js';
import { LowRankBatches } from '../../dist/features/models/batches.js';
import { useThreads } from '../../dist/features/native.js';
import { addon } from '../../dist/native/loader.js';

const here = dirname(fileURLToPath(import.meta.url));
const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '5' },
    threads: { type: 'string', default: '2' },
    python: { type: 'string', default: process.env.PLURALIGN_PYTHON ?? 'python3' },
    only: { type: 'string' },
    cpu: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
  },
});
const [rounds, threads] = [Number(values.rounds), Number(values.threads)];
const batch = 8192;
const shape = { items: 20_000, features: 512, rank: 8, pairs: 1_000_000, voters: 10_000 };
useThreads(threads);

const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];

/** Random features, and pairs whose voters have as many each as can be. */
function make({ items, features, pairs, voters }) {
  let state = 1;
  const word = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  const x = Float32Array.from({ length: items * features }, () => word() + word() + word() + word() - 2);
  const places = Int32Array.from({ length: 2 * pairs }, () => Math.floor(word() * items));
  const annotator = Int32Array.from({ length: pairs }, (_, v) => Math.floor((v * voters) / pairs));
  return {
    table: { features: x, n: items, d: features },
    votes: {
      annotators: Array.from({ length: voters }, (_, u) => `u${u}`),
      annotator,
      offsets: Int32Array.from({ length: pairs + 1 }, (_, v) => 2 * v),
      items: places,
      stages: new Int32Array(pairs).fill(1),
      weights: new Float64Array(pairs).fill(1),
      margins: new Float64Array(pairs),
      rows: Int32Array.from({ length: pairs }, (_, v) => v),
      m: pairs,
    },
  };
}

const small = (length) => Float64Array.from({ length }, (_, i) => 0.1 * Math.sin(i + 1));

/** As a fit calls it, float64: items projected, votes, gradients of the factor, the mean and everyone's coordinates. */
function fullBatch({ table, votes }, rank) {
  const { features, n, d } = table;
  const [factor, mean, users] = [small(d * rank), small(d), small(votes.annotators.length * rank)];
  return () => {
    const side = { base: project(features, n, d, mean, 1), points: project(features, n, d, factor, rank) };
    const gradient = {
      base: new Float64Array(n),
      points: new Float64Array(n * rank),
      users: new Float64Array(users.length),
    };
    bilinearLoss(votes, side, users, rank, gradient);
    projectBack(features, n, d, gradient.points, rank, new Float64Array(d * rank));
    projectBack(features, n, d, gradient.base, 1, new Float64Array(d));
  };
}

function miniBatch({ table, votes }, rank, order) {
  const options = { batch, learningRate: 1e-3, epochs: 1, order, l2: 1, seed: 0 };
  const batches = new LowRankBatches(table, votes, rank, options, small(table.d * rank));
  return () => batches.epoch();
}

const clock = () => {
  const { user, system } = process.cpuUsage();
  return values.cpu ? (user + system) / 1e6 : performance.now() / 1000;
};
const timed = (body) => {
  const start = clock();
  body();
  return clock() - start;
};

function cost() {
  const data = make(shape);
  const folder = mkdtempSync(join(tmpdir(), 'features-'));
  const bytes = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength);
  writeFileSync(join(folder, 'features.f32'), bytes(data.table.features));
  writeFileSync(join(folder, 'pairs.i32'), bytes(data.votes.items));
  writeFileSync(join(folder, 'voters.i32'), bytes(data.votes.annotator));
  writeFileSync(join(folder, 'shape.json'), JSON.stringify(shape));
  const ours = {
    'full batch': fullBatch(data, shape.rank),
    'mini-batches, blocks of items': miniBatch(data, shape.rank, 'blocks'),
    'mini-batches, at random': miniBatch(data, shape.rank, 'random'),
  };
  const load = loadavg()[0];
  const seconds = {};
  const note = (name, value) => {
    seconds[name] = [...(seconds[name] ?? []), value];
  };
  const wide = new Float32Array(64e6).fill(1);
  try {
    for (let round = 0; round < rounds; round++) {
      for (const [name, body] of Object.entries(ours)) {
        if (round === 0) body();
        note(name, timed(body));
      }
      note('memory', timed(() => addon().bilinear.read({ x: wide, threads })) / wide.byteLength);
      const run = spawnSync(
        values.python,
        [join(here, 'features_torch.py'), folder, `${threads}`, '1', `${batch}`, values.cpu ? 'cpu' : ''],
        {
          encoding: 'utf8',
        },
      );
      if (run.status !== 0) throw new Error(`${values.python}: ${run.stderr || run.error}`);
      for (const [name, value] of Object.entries(JSON.parse(run.stdout))) note(`torch ${name}`, value);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
  const medians = Object.fromEntries(Object.entries(seconds).map(([name, list]) => [name, median(list)]));
  const best = (kind) =>
    Math.min(...Object.entries(medians).flatMap(([name, value]) => (name.startsWith(`torch ${kind}`) ? [value] : [])));
  // A full batch has to read the features twice, and the pairs' places and voters' coordinates and their gradients once.
  const least = (2 * shape.items * shape.features * 4 + 8 * shape.pairs + 2 * 8 * shape.voters * 16) * medians.memory;
  return {
    shape,
    threads,
    load,
    rounds,
    medians,
    ratios: Object.fromEntries(
      Object.keys(ours).map((name) => [name, best(name === 'full batch' ? 'full' : 'mini') / medians[name]]),
    ),
    memory: { bytes_a_second: 1 / medians.memory, share_of_limit: least / medians['full batch'] },
  };
}

/** Time against pairs at 100 a voter, and memory against voters × rank. */
function growth() {
  const pairs = [250_000, 500_000, 1_000_000, 2_000_000, 4_000_000].map((count) => {
    const data = make({ ...shape, pairs: count, voters: count / 100 });
    const [full, mini] = [fullBatch(data, shape.rank), miniBatch(data, shape.rank, 'blocks')];
    const times = [full, mini].map((body) => {
      body();
      globalThis.gc?.();
      return median(Array.from({ length: rounds }, () => timed(body)));
    });
    return { pairs: count, full: times[0], mini: times[1] };
  });
  const memory = [];
  for (const voters of [25_000, 50_000, 100_000]) {
    for (const rank of [8, 16, 32]) {
      // A process of its own: what an earlier one left would blur the figure.
      const run = spawnSync(process.execPath, [
        '--expose-gc',
        fileURLToPath(import.meta.url),
        '--only',
        `${voters}x${rank}`,
      ]);
      memory.push({ voters, rank, ...JSON.parse(`${run.stdout}`) });
    }
  }
  return { pairs, memory };
}

/** Bytes that mini-batches keep for voters of one vote each: beyond those of the table and the votes. */
function memoryOf(voters, rank) {
  const data = make({ items: 1000, features: 32, pairs: voters, voters });
  globalThis.gc();
  const held = () => process.memoryUsage().arrayBuffers + process.memoryUsage().heapUsed;
  const before = held();
  const batches = new LowRankBatches(
    data.table,
    data.votes,
    rank,
    { batch, order: 'random', l2: 1, seed: 0, learningRate: 1e-3 },
    small(32 * rank),
  );
  batches.epoch();
  globalThis.gc();
  return { bytes: held() - before, kept: batches.users.length };
}

/** Least squares through points [x, y]. */
function slope(points) {
  const mean = (of) => points.reduce((sum, point) => sum + of(point), 0) / points.length;
  const [mx, my] = [mean(([x]) => x), mean(([, y]) => y)];
  return mean(([x, y]) => (x - mx) * (y - my)) / mean(([x]) => (x - mx) ** 2);
}

const milliseconds = (seconds) => `${(1000 * seconds).toFixed(0)} ms`.padStart(8);
const [voters, rank] = (values.only ?? '').split('x').map(Number);
if (rank) {
  console.log(JSON.stringify(memoryOf(voters, rank)));
  process.exit(0);
}
const result = {
  ...(values.only === 'growth' ? {} : cost()),
  ...(values.only === 'cost' ? {} : { growth: growth() }),
};
if (values.json) console.log(JSON.stringify(result));
else {
  if (result.medians) {
    const { items, features, rank: k, pairs, voters: N } = shape;
    console.log(`${N} voters, ${pairs} pairs over ${items} items of ${features} features, rank ${k} and a mean`);
    console.log(
      `${threads} threads, ${values.cpu ? 'time computed, ' : ''}medians of ${rounds} rounds in turn, load before ${result.load.toFixed(1)}`,
    );
    for (const [name, value] of Object.entries(result.medians)) {
      if (name === 'memory') continue;
      const ratio = result.ratios[name];
      const beside = ratio ? `  ${ratio.toFixed(1)} times as fast as PyTorch's fastest` : '';
      console.log(`${milliseconds(value)}  ${name.startsWith('torch') ? '' : 'pluralign '}${name}${beside}`);
    }
    const { bytes_a_second: rate, share_of_limit: share } = result.memory;
    console.log(
      `memory is read at ${(rate / 1e9).toFixed(1)} GB/s: a full batch is at ${(100 * share).toFixed(0)} % of that limit`,
    );
  }
  if (result.growth) {
    const how = values.cpu ? ', time computed' : '';
    console.log(`\npairs      full batch  mini-batches (${threads} threads${how})`);
    for (const { pairs, full, mini } of result.growth.pairs)
      console.log(`${String(pairs).padEnd(9)} ${milliseconds(full)}    ${milliseconds(mini)}`);
    const exponent = (of) => slope(result.growth.pairs.map((row) => [Math.log(row.pairs), Math.log(of(row))]));
    console.log(`mini-batches: time as pairs to the power ${exponent((row) => row.mini).toFixed(2)}`);
    const line = result.growth.pairs.map((row) => [row.pairs, row.full]);
    const each = slope(line);
    const base = line.reduce((sum, [m, t]) => sum + (t - each * m) / line.length, 0);
    const off = Math.max(...line.map(([m, t]) => Math.abs(t - base - each * m) / t));
    console.log(
      `full batch: ${milliseconds(base).trim()} for the items and ${(1e9 * each).toFixed(0)} ns a pair, within ${(100 * off).toFixed(0)} %`,
    );
    console.log('\nvoters  rank  memory beyond table and votes');
    for (const { voters: N, rank: k, bytes } of result.growth.memory)
      console.log(`${String(N).padEnd(7)} ${String(k).padEnd(5)} ${(bytes / 2 ** 20).toFixed(1)} MiB`);
  }
}
