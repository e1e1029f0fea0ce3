#!/usr/bin/env node
/**
 * Dense products and grouped low-rank ones beside the libraries one would call instead: OpenBLAS and oneDNN (products.cc,
 * compiled here with `c++ … -lopenblas -ldnnl`, where both are installed) and PyTorch (products_torch.py, where
 * PLURALIGN_PYTHON has it). Each contender is a process of its own, so that each has its own settings; they take turns, the
 * first of a turn changes, medians count. One thread is timed by its processor time, more by the clock.
 *
 * usage: node bench/peers/products.mjs dense|lora [--threads 1] [--rounds 5] [--seconds 0.05] [--python PYTHON]
 *          [--only TEXT] [--json]
 *
 * dense: our weights packed beforehand, as frozen ones are, and in every call; oneDNN's both ways, too. OpenBLAS by the kernels
 *   that it chooses, by those of AVX-512 (it knows newer processors than itself as older ones), and, against our AVX2 path,
 *   held to AVX2.
 * lora: 64 requests of 1, 16 or 64 rows, adapter popularity as in Punica (Chen et al. 2023), against the best of calls
 *   segment by segment (ours, OpenBLAS, oneDNN, PyTorch) and of gathered factors (ours, PyTorch's bmm).
 *
 * --only: shapes that contain it.
 */
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { cpus, loadavg, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { popularities, requestsByAdapter } from '../../dist/bench/ops.js';
import { addon } from '../../dist/native/loader.js';

const here = dirname(fileURLToPath(import.meta.url));
const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
};
const geometric = (values) => Math.exp(values.reduce((sum, v) => sum + Math.log(v), 0) / values.length);

// Our side, in a process that answers as the others do.

async function timeOurs(line, threads) {
  const [what, way, ...words] = line.split(' ');
  const timing = { threads, runs: 1, cold: false, abort: new Int32Array(new SharedArrayBuffer(4)) };
  if (what === 'linear') {
    const [type, m, k, n, seconds] = words;
    const dtype = type === 'bf16' ? 'bfloat16' : 'float32';
    const shape = { m: Number(m), k: Number(k), n: Number(n) };
    const took = addon().bench.gemm({ ...timing, ...shape, dtype, seconds: Number(seconds), packed: way === 'packed' });
    return median(await took);
  }
  const [width, r, rowsEach, backward, ...counts] = words.map(Number);
  let row = 0;
  const segments = counts.flatMap((count) => {
    row += count * rowsEach;
    return [row - count * rowsEach, row];
  });
  const took = addon().bench.groupedLora({
    ...timing,
    seconds: 0,
    cold: true,
    in: width,
    out: width,
    r,
    adapterCount: counts.length,
    segments: Int32Array.from(segments),
    adapters: Int32Array.from(counts, (_, i) => i),
    dtype: 'float32',
    backward: backward === 1,
    method: way,
    rowsEach,
  });
  return median(await took);
}

async function serve(threads) {
  process.stdout.write(`pluralign, ${addon().cpu().isa}\n`);
  for await (const line of createInterface({ input: process.stdin }))
    process.stdout.write(`${1e9 * (await timeOurs(line, threads))}\n`);
}

// The driver.

/** A process that is sent lines and answers each. */
class Contender {
  static async start(command, args, env) {
    const child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', 'inherit'] });
    const failed = new Promise((_, reject) => {
      child.on('error', reject);
      child.on('exit', (code) => reject(new Error(`${command} ended with ${code}`)));
    });
    failed.catch(() => {});
    const answers = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    const read = async () => (await Promise.race([answers.next(), failed])).value;
    return Object.assign(new Contender(), { child, read, name: await read() });
  }

  async time(line) {
    this.child.stdin.write(`${line}\n`);
    const answer = await this.read();
    return answer === 'none' ? null : Number(answer) / 1e9;
  }

  stop() {
    this.child.removeAllListeners('exit');
    this.child.kill();
  }
}

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: 'string', default: '1' },
    rounds: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '0.05' },
    python: { type: 'string', default: process.env.PLURALIGN_PYTHON },
    only: { type: 'string', default: '' },
    json: { type: 'boolean', default: false },
  },
});
const threads = Number(options.threads);

async function contenders(folder) {
  const limits = Object.fromEntries(
    ['OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'].map((name) => [name, options.threads]),
  );
  const self = fileURLToPath(import.meta.url);
  const all = {
    ours: await Contender.start(process.execPath, [self, 'serve', '--threads', options.threads], limits),
    avx2: await Contender.start(process.execPath, [self, 'serve', '--threads', options.threads], {
      ...limits,
      PLURALIGN_ISA: 'avx2',
    }),
  };
  const program = join(folder, 'products');
  const source = join(here, 'products.cc');
  const made = spawnSync(process.env.CXX ?? 'c++', [
    '-std=c++20',
    '-O2',
    source,
    '-o',
    program,
    '-lopenblas',
    '-ldnnl',
  ]);
  if (made.status === 0) {
    all.libraries = await Contender.start(program, [options.threads], limits);
    for (const [name, type] of [
      ['blas512', 'SkylakeX'],
      ['blas2', 'Haswell'],
    ])
      all[name] = await Contender.start(program, [options.threads], { ...limits, OPENBLAS_CORETYPE: type });
  } else {
    process.stderr.write(`OpenBLAS and oneDNN are left out:\n${made.stderr}`);
  }
  if (options.python)
    all.torch = await Contender.start(options.python, [join(here, 'products_torch.py'), options.threads], limits);
  else process.stderr.write('PyTorch is left out: PLURALIGN_PYTHON names no Python\n');
  return all;
}

/** Median seconds of each way [contender, way]; null where there is no such way. */
async function inTurn(all, ways, lineOf) {
  const times = ways.map(() => []);
  for (let round = 0; round < Number(options.rounds); round++)
    for (let i = 0; i < ways.length; i++) {
      const at = (i + round) % ways.length;
      const [who, way] = ways[at];
      // Threads of the one before may still be waiting for work on the processor.
      if (threads > 1) await new Promise((resolve) => setTimeout(resolve, 60));
      const took = await all[who]?.time(lineOf(way));
      if (took != null) times[at].push(took);
    }
  return times.map((seconds) => (seconds.length === 0 ? null : median(seconds)));
}

const best = (values) => {
  const there = values.filter((v) => v !== null);
  return there.length === 0 ? null : Math.min(...there);
};
const print = (record, cells) => console.log(options.json ? JSON.stringify(record) : `| ${cells.join(' | ')} |`);
const rule = (names) => {
  if (!options.json) console.log(`| ${names.join(' | ')} |\n|${names.map(() => '---|').join('')}`);
};

const layers = [
  [576, 1536],
  [1536, 576],
  [2048, 2048],
  [576, 49152],
];

async function peak(dtype, isa) {
  const before = process.env.PLURALIGN_ISA;
  if (isa) process.env.PLURALIGN_ISA = isa;
  const timing = { threads, runs: 5, seconds: 0.05, cold: false, abort: new Int32Array(new SharedArrayBuffer(4)) };
  const rate = median(await addon().bench.peak({ ...timing, dtype: dtype === 'bf16' ? 'bfloat16' : 'float32' }));
  if (isa && before === undefined) delete process.env.PLURALIGN_ISA;
  else if (isa) process.env.PLURALIGN_ISA = before;
  return rate;
}

/** A table of one comparison, and its geometric mean over shapes of 256 rows and more. */
async function denseTable(all, { title, type, ours, isa, peers }) {
  console.log(`\n${title}`);
  rule(['rows × in → out', 'GFLOP/s', 'share of peak', 'packing each time', ...Object.keys(peers), 'times the best']);
  const top = await peak(type, isa);
  const large = [];
  for (const [k, n] of layers)
    for (const m of [1, 32, 256, 2048]) {
      const shape = `${m}×${k}→${n}`;
      if (!shape.includes(options.only)) continue;
      const columns = Object.values(peers);
      const ways = [[ours, 'packed'], [ours, 'each'], ...columns.flat()];
      const took = await inTurn(all, ways, (way) => `linear ${way} ${type} ${m} ${k} ${n} ${options.seconds}`);
      const rate = (seconds) => (seconds === null ? null : (2e-9 * m * n * k) / seconds);
      const [packed, each, ...others] = took;
      const found = columns.map((of) => rate(best(others.splice(0, of.length))));
      const ratio = rate(packed) / Math.max(...found);
      if (m >= 256 && Number.isFinite(ratio)) large.push({ shape, ratio });
      const whole = (v) => (v === null ? '' : v.toFixed(0));
      const share = (1e9 * rate(packed)) / top;
      print({ title, shape, type, gflops: rate(packed), share, each: rate(each), peers: found, ratio }, [
        shape,
        whole(rate(packed)),
        share.toFixed(2),
        whole(rate(each)),
        ...found.map(whole),
        ratio.toFixed(2),
      ]);
    }
  if (large.length === 0) return;
  const worst = large.reduce((a, b) => (b.ratio < a.ratio ? b : a));
  console.log(
    `\n${type}, 256 rows and more: geometric mean ${geometric(large.map((l) => l.ratio)).toFixed(2)} of the best, worst ` +
      `${worst.ratio.toFixed(2)} (${worst.shape}); peak ${(top / 1e9).toFixed(0)} GFLOP/s`,
  );
}

async function dense(all) {
  const onednn = ['onednn', 'onednn-matmul', 'onednn-inner'].map((way) => ['libraries', way]);
  const blas = (who) => ['openblas', 'openblas-transposed'].map((way) => [who, way]);
  const torch = [['torch', 'torch']];
  const tables = [
    { title: 'bfloat16', type: 'bf16', ours: 'ours', peers: { oneDNN: onednn, PyTorch: torch } },
    {
      title: 'float32',
      type: 'f32',
      ours: 'ours',
      peers: { OpenBLAS: [...blas('libraries'), ...blas('blas512')], oneDNN: onednn, PyTorch: torch },
    },
    {
      title: 'float32, both held to AVX2',
      type: 'f32',
      ours: 'avx2',
      isa: 'avx2',
      peers: { OpenBLAS: blas('blas2') },
    },
  ];
  for (const table of tables) await denseTable(all, table);
}

async function lora(all) {
  const ways = [
    ['ours', 'grouped'],
    ['ours', 'loop'],
    ['ours', 'gather'],
    ['libraries', 'openblas'],
    ['blas512', 'openblas'],
    ['libraries', 'onednn'],
    ['torch', 'torch'],
    ['torch', 'torch-bmm'],
  ];
  rule(['shape', 'ms', 'loop', 'gather', 'OpenBLAS', 'oneDNN', 'PyTorch', 'PyTorch bmm', 'times the best']);
  const ratios = { forward: [], backward: [] };
  for (const direction of ['forward', 'backward'])
    for (const [width, r] of [576, 2048, 4096].flatMap((width) => [8, 16, 64].map((r) => [width, r])))
      for (const each of [1, 16, 64])
        for (const popularity of popularities) {
          const counts = requestsByAdapter(popularity, 64);
          const shape = `${64 * each}×${width} r${r} ${popularity} ${direction}`;
          if (!shape.includes(options.only)) continue;
          const backward = direction === 'backward' ? 1 : 0;
          const took = await inTurn(
            all,
            ways,
            (way) => `lora ${way} ${width} ${r} ${each} ${backward} ${counts.join(' ')}`,
          );
          const [ours, loop, gather, blas, blas512, ...rest] = took;
          const peers = [loop, gather, best([blas, blas512]), ...rest];
          const ratio = best(peers) / ours;
          ratios[direction].push({ shape, ratio });
          const ms = (s) => (s === null ? '' : (1e3 * s).toPrecision(3));
          print({ shape, ours, peers, ratio }, [shape, ms(ours), ...peers.map(ms), ratio.toFixed(2)]);
        }
  for (const [direction, lines] of Object.entries(ratios)) {
    if (lines.length === 0) continue;
    const low = lines.filter((l) => l.ratio < 0.95).sort((a, b) => a.ratio - b.ratio);
    console.log(
      `\n${direction}: geometric mean ${geometric(lines.map((l) => l.ratio)).toFixed(2)} of the best over ${lines.length} ` +
        `shapes, ${low.length} below 0.95${low.length ? `: ${low.map((l) => `${l.shape} ${l.ratio.toFixed(2)}`).join(', ')}` : ''}`,
    );
  }
}

if (positionals[0] === 'serve') {
  await serve(threads);
} else {
  const work = { dense, lora }[positionals[0]];
  if (!work) {
    console.error('usage: node bench/peers/products.mjs dense|lora [--threads 1] [--rounds 5] [--python PYTHON]');
    process.exit(2);
  }
  const folder = mkdtempSync(join(tmpdir(), 'pluralign-products-'));
  const all = {};
  try {
    Object.assign(all, await contenders(folder));
    console.log(
      `${cpus()[0]?.model.trim()}, ${threads} threads, medians of ${options.rounds}, load before ${loadavg()[0].toFixed(1)}, ` +
        `${new Date().toISOString().slice(0, 10)}`,
    );
    for (const [name, { name: version }] of Object.entries(all)) console.log(`${name}: ${version}`);
    await work(all);
  } finally {
    for (const one of Object.values(all)) one.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}
