#!/usr/bin/env node
/**
 * One GPU, pluralign and PyTorch + transformers + PEFT on it, taking turns: DPO steps of the shapes of 135M, 1B and 8B models with
 * random weights (LoRA r 16 on every linear, bfloat16), grouped low-rank products, attention and
 * generation under 64 adapters. Each line is printed as soon as it is known, as JSON; the last ones compare.
 *
 * usage: node bench/peers/cuda.mjs step 135m|1b|8b|tiny [options] | lora | attention | generate
 *   --seconds 120    for everything, models' start included     --device cuda (cpu: to try the script)
 *   --python PYTHON  one with torch, transformers, peft (or PLURALIGN_PYTHON)
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, statfsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { deviceTests } from '../../native/compile.mjs';

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: 'string', default: '120' },
    device: { type: 'string', default: 'cuda' },
    python: { type: 'string', default: process.env.PLURALIGN_PYTHON ?? 'python3' },
    side: { type: 'string' },
  },
});
const [part, shapeName = '135m'] = positionals;
const here = fileURLToPath(import.meta.url);
const begin = Date.now();
const left = () => Number(options.seconds) - (Date.now() - begin) / 1000;

/** Shapes, and how many pairs of each mix of lengths make a step. */
const shapes = {
  tiny: { vocab: 512, hidden: 64, ff: 160, layers: 2, heads: 4, kv: 2, tied: true, short: 4, long: 2 },
  '135m': { vocab: 49152, hidden: 576, ff: 1536, layers: 30, heads: 9, kv: 3, tied: true, short: 64, long: 8 },
  '1b': { vocab: 128256, hidden: 2048, ff: 8192, layers: 16, heads: 32, kv: 8, tied: true, short: 64, long: 8 },
  '8b': { vocab: 128256, hidden: 4096, ff: 14336, layers: 32, heads: 32, kv: 8, tied: false, short: 64, long: 8 },
};
const rank = 16;

/** Lengths of a mix: `short` as the pairs of arguments in ukp (prompt 28, completions 20 to 170), `long` as those of chats. */
const mixes = {
  short: { prompt: [28, 28], completion: [20, 170] },
  long: { prompt: [512, 2048], completion: [64, 384] },
};

/** Rows of random tokens, the same for both sides. */
function rowsOf(shape, mix, pairs) {
  let state = 12345;
  const next = () => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return state / 0x7fffffff;
  };
  const length = ([low, high]) => Math.round(low * (high / low) ** next());
  const ids = (n) => Array.from({ length: n }, () => 1 + Math.floor(next() * (shape.vocab - 2)));
  return Array.from({ length: pairs }, () => [
    ids(length(mixes[mix].prompt)),
    ids(length(mixes[mix].completion)),
    ids(length(mixes[mix].completion)),
  ]);
}

const config = (s) => ({
  ...{ vocab_size: s.vocab, hidden_size: s.hidden, intermediate_size: s.ff, num_hidden_layers: s.layers },
  ...{ num_attention_heads: s.heads, num_key_value_heads: s.kv, tie_word_embeddings: s.tied },
  ...{ max_position_embeddings: 8192, rms_norm_eps: 1e-5 },
});
const ownConfig = (s) => ({
  ...{ vocabSize: s.vocab, hiddenSize: s.hidden, intermediateSize: s.ff, layers: s.layers, heads: s.heads },
  ...{ kvHeads: s.kv, tied: s.tied, maxPositions: 8192 },
});

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
const emit = (record) => console.log(JSON.stringify(record));

/** In memory where there is room: weights of 8 billion are written once and read once. */
function scratch() {
  if (!existsSync('/dev/shm')) return {};
  const { bavail, bsize } = statfsSync('/dev/shm');
  return bavail * bsize > 24e9 ? { TMPDIR: '/dev/shm' } : {};
}

/** A program's lines of JSON, passed on as they are; none of it ends the rest. */
function lines(command, args, input) {
  const child = spawnSync(command, args, {
    ...{ input: JSON.stringify(input), encoding: 'utf8', maxBuffer: 1 << 28, stdio: ['pipe', 'pipe', 'inherit'] },
    ...{ timeout: Math.ceil(Math.max(1, left())) * 1000, killSignal: 'SIGKILL', env: { ...process.env, ...scratch() } },
  });
  const records = (child.stdout ?? '').split('\n').flatMap((line) => (line.startsWith('{') ? [JSON.parse(line)] : []));
  for (const record of records) emit(record);
  if (child.status !== 0) {
    emit({ part, error: child.error?.message ?? `${command} ended with ${child.signal ?? child.status}`, args });
    process.exitCode = 1;
  }
  return records;
}
const torch = (job) =>
  lines(options.python, [fileURLToPath(new URL('cuda_torch.py', import.meta.url)), options.device], job);
const ours = (job) =>
  lines(process.execPath, [here, part, shapeName, '--device', options.device, '--side', 'ours'], job);

async function openModel(shape) {
  const { SyntheticModel } = await import('../../dist/bench/synthetic.js');
  const { chooseDevice } = await import('../../dist/native/device.js');
  const flag = new Int32Array(1);
  const chosen = await chooseDevice(options.device);
  return SyntheticModel.open({ config: ownConfig(shape) }, { dtype: 'bf16', threads: 4, flag, chosen });
}

/** Median milliseconds of a body for some seconds. */
async function time(body, seconds, most = 50) {
  const each = [];
  for (let i = 0; i < 2; i++) await body();
  const start = performance.now();
  do {
    const before = performance.now();
    await body();
    each.push(performance.now() - before);
  } while (performance.now() - start < seconds * 1000 && each.length < most);
  return median(each);
}

/** Our DPO steps of one job: alone, and four policies and the reference beside five runs. */
async function ownSteps({ shape, jobs, seconds, together }) {
  const model = await openModel(shape);
  const large = options.device === 'cpu' ? 1024 : 16384;
  for (const { mix, rows } of jobs) {
    const groups = rows.map(([prompt, chosen, rejected], index) => ({
      ...{ index, kind: 'pair', weight: 1, origin: { file: 'random', line: index + 1 } },
      ...{ prompt: Int32Array.from(prompt), completions: [Int32Array.from(chosen), Int32Array.from(rejected)] },
    }));
    const bank = model.bank(1);
    const both = model.passes(groups, [0], true, large);
    const ms = await time(() => model.dpo(both, bank), seconds);
    const { weights, device, activations } = model.native.memory();
    const tokens = both.reduce((n, p) => n + p.native.tokens.length, 0) / 2;
    const read = rows.reduce((n, [, c, r]) => n + c.length + r.length, 0);
    const linear =
      shape.layers * (shape.hidden * (2 * shape.hidden + (2 * shape.kv * shape.hidden) / shape.heads + 3 * shape.ff));
    // Two forward passes and one backward pass to the inputs; of the head, logits once more for its gradient.
    const flops = 2 * linear * tokens * 3 + 2 * shape.vocab * shape.hidden * read * 4;
    emit({
      ...{ side: 'pluralign', part: 'step', mix, pairs: rows.length, passes: both.length, ms },
      ...{ pairs_per_s: (rows.length / ms) * 1e3, tokens_per_s: (tokens / ms) * 1e3, tflop_per_s: flops / ms / 1e9 },
      memory_mb: (device > 0 ? device - weights : activations) / 1e6,
    });
    if (!together || mix !== 'short') continue;
    const four = model.bank(4);
    const whole = model.passes(groups, [0, 1, 2, 3], true, large);
    const alone = model.passes(groups, [0], false, large);
    const base = model.passes(groups, [], true, large);
    const one = await time(() => model.dpo(whole, four), seconds / 2);
    const five = await time(async () => {
      const reference = await model.reference(base, bank);
      for (let k = 0; k < 4; k++) await model.dpo(alone, bank, reference);
    }, seconds / 2);
    emit({ side: 'pluralign', part: 'together', policies: 4, ms: one, of_five_runs: one / five });
  }
}

function steps() {
  const shape = shapes[shapeName];
  const jobs = ['short', 'long'].map((mix) => ({ mix, rows: rowsOf(shape, mix, shape[mix]) }));
  const seconds = Math.min(8, left() / 20);
  const mine = ours({ shape, jobs, seconds, together: shapeName !== '8b' });
  for (const { mix, rows } of jobs) {
    // As much at a time as fits: padded batches of all pairs, and the same without padding.
    const theirs = [];
    for (const packed of [false, true])
      theirs.push(
        ...torch({
          part: 'step',
          config: config(shape),
          rows,
          rank,
          batch: packed ? Math.min(rows.length, 16) : rows.length,
          packed,
          seconds,
        }),
      );
    const a = mine.find((r) => r.part === 'step' && r.mix === mix);
    const steps = theirs.filter((r) => r.part === 'step');
    if (!a || steps.length === 0) continue;
    const b = steps.reduce((x, y) => (x.pairs_per_s > y.pairs_per_s ? x : y));
    const limit = theirs.find((r) => r.part === 'limits')?.tflop_per_s;
    emit({
      ...{ part: 'compare', model: shapeName, mix, ratio: a.pairs_per_s / b.pairs_per_s, against: b.name },
      ...{ memory: a.memory_mb / b.memory_mb, share_of_dense_rate: limit ? a.tflop_per_s / limit : null },
    });
  }
}

async function program(only) {
  const binary = await deviceTests();
  const { cudaLibraries } = await import('../../dist/native/device.js');
  const file = `${process.env.TMPDIR ?? '/tmp'}/pluralign-times-${process.pid}.jsonl`;
  const args = [cudaLibraries()[0], '--times', '--only', only, '--seconds', '0.3', '--json', file];
  const child = spawnSync(binary, args, { stdio: 'inherit', timeout: Math.ceil(Math.max(1, left())) * 1000 });
  if (child.status !== 0) process.exitCode = 1;
  const records = readFileSync(file, 'utf8')
    .trim()
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line));
  for (const record of records) emit({ side: 'pluralign', ...record });
  return records;
}

/** The batches of lora_cases() in native/test/operators/products.cc: their names there and the rows of each adapter. */
function batches() {
  const skewed = (n) =>
    n === 0 ? [] : [Math.max(1, Math.floor(n / 3)), ...skewed(n - Math.max(1, Math.floor(n / 3)))];
  const even = (n, k) => Array.from({ length: k }, (_, i) => Math.floor((n * (i + 1)) / k) - Math.floor((n * i) / k));
  const ways = {
    identical: (n) => [n],
    uniform: (n) => even(n, Math.ceil(Math.sqrt(n))),
    skewed,
    distinct: (n) => even(n, n),
  };
  const list = [1, 8, 32, 64].flatMap((n) =>
    Object.entries(ways).flatMap(([kind, of]) =>
      n === 1 && kind !== 'identical' ? [] : [{ op: `lora ${kind}`, counts: of(n) }],
    ),
  );
  for (const k of [1, 4, 64]) list.push({ op: 'lora training', counts: even(8192, k) });
  return list;
}

async function lora() {
  const mine = options.device === 'cpu' ? [] : (await program('lora')).filter((r) => r.dtype === 'bfloat16');
  const wanted = batches();
  const theirs = torch({
    part: 'lora',
    shapes: wanted.map(({ counts }) => ({ in: 4096, out: 4096, rank, counts })),
    seconds: 0.3,
  });
  const limit = theirs.find((r) => r.part === 'limits')?.gb_per_s;
  for (const { op, counts } of wanted) {
    const rows = counts.reduce((a, b) => a + b, 0);
    const a = mine.find((r) => r.op === op && r.shape === `${rows} x 4096 -> 4096, ${counts.length} of rank ${rank}`);
    const same = theirs.filter((r) => r.ms && JSON.stringify(r.shape.counts) === JSON.stringify(counts));
    if (!a || same.length === 0) continue;
    const b = same.reduce((x, y) => (x.ms < y.ms ? x : y));
    emit({
      part: 'compare',
      op,
      rows,
      adapters: counts.length,
      ratio: b.ms / a.forward_ms,
      against: b.name,
      share_of_bandwidth: a.gb_per_s / limit,
    });
  }
}

async function attention() {
  const mine =
    options.device === 'cpu' ? [] : (await program('attention, whole')).filter((r) => r.dtype === 'bfloat16');
  const list = [
    { heads: 32, kv_heads: 8, dim: 128, batch: 8, length: 1024 },
    { heads: 32, kv_heads: 8, dim: 128, batch: 1, length: 8192 },
    { heads: 9, kv_heads: 3, dim: 64, batch: 8, length: 1024 },
  ];
  const theirs = torch({ part: 'attention', shapes: list, seconds: 0.3 });
  for (const shape of list) {
    const { heads, kv_heads, dim, batch, length } = shape;
    const a = mine.find(
      (r) => r.op === `attention, whole ${length}` && r.shape === `${batch * length} x ${heads} x ${kv_heads} x ${dim}`,
    );
    const b = theirs.find((r) => r.part === 'attention' && JSON.stringify(r.shape) === JSON.stringify(shape));
    if (!a || !b) continue;
    emit({
      part: 'compare',
      op: 'attention',
      ...shape,
      forward: b.forward_ms / a.forward_ms,
      both: b.both_ms / (a.forward_ms + a.backward_ms),
    });
  }
}

/** One sequence for each of 64 adapters, and for the base alone. */
async function ownTexts({ shape, adapters, prompt, fresh, seconds }) {
  const model = await openModel(shape);
  const { addon } = await import('../../dist/native/loader.js');
  for (const [name, bank] of [
    ['base', null],
    ['adapters', model.bank(adapters)],
  ]) {
    const ms = await time(
      async () => {
        const generation = addon().createGeneration(model.native, {
          rows: adapters,
          memory: 8e9,
          stopTokens: new Int32Array(0),
        });
        const add = Array.from({ length: adapters }, (_, id) => ({
          ...{ id, prompt: Int32Array.from({ length: prompt }, (_, t) => (id * 31 + t * 7) % shape.vocab) },
          ...{ adapters: Int32Array.of(bank ? id : -1), weights: Float32Array.of(1), mix: 'reverse-kl', alpha: 1 },
          ...{ maxNewTokens: fresh, seed: id, temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 },
        }));
        await generation.run(bank?.native() ?? null, { add, remove: new Int32Array(0), steps: fresh + 1 });
      },
      seconds,
      5,
    );
    emit({ side: 'pluralign', part: 'generate', name, ms, tokens_per_s: ((adapters * fresh) / ms) * 1e3 });
  }
}

function texts() {
  const shape = shapes[options.device === 'cpu' ? 'tiny' : '1b'];
  const [adapters, prompt, fresh, seconds] = [
    options.device === 'cpu' ? 4 : 64,
    64,
    options.device === 'cpu' ? 4 : 64,
    5,
  ];
  const mine = ours({ shape, adapters, prompt, fresh, seconds });
  const theirs = torch({ part: 'generate', config: config(shape), adapters, rank, prompt, new: fresh, seconds });
  for (const name of ['base', 'adapters']) {
    const [a, b] = [mine, theirs].map((all) => all.find((r) => r.part === 'generate' && r.name === name));
    if (a && b)
      emit({ part: 'compare', op: 'generate', name, sequences: adapters, ratio: a.tokens_per_s / b.tokens_per_s });
  }
}

if (options.side) {
  const job = JSON.parse(readFileSync(0, 'utf8'));
  await (part === 'step' ? ownSteps(job) : ownTexts(job));
} else if (part === 'step' && shapes[shapeName]) steps();
else if (part === 'lora') await lora();
else if (part === 'attention') await attention();
else if (part === 'generate') texts();
else {
  console.error(
    'usage: node bench/peers/cuda.mjs step 135m|1b|8b|tiny | lora | attention | generate [--seconds N] [--device D]',
  );
  process.exit(2);
}
