// Throws damaged row files at the readers: `node test/fuzz/rows.mjs --seconds N [--seed S]`, after `npm run build:ts`.
// Fails, and keeps the file, on an error that is no PluralignError, on a hang, and where memory runs out.
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';

const hangSeconds = 20;
const fixtures = fileURLToPath(new URL('../fixtures/rows/', import.meta.url));
const library = new URL('../../dist/data/index.js', import.meta.url);

async function supervise() {
  const { values } = parseArgs({ options: { seconds: { type: 'string' }, seed: { type: 'string' } } });
  const seconds = Number(values.seconds ?? 10);
  const seed = Number(values.seed ?? Date.now() % 2 ** 31);
  if (!existsSync(library)) fail(`${fileURLToPath(library)} is absent; run npm run build:ts first`);
  const folder = mkdtempSync(join(tmpdir(), 'pluralign-fuzz-'));
  const cases = new Int32Array(new SharedArrayBuffer(4));
  const worker = new Worker(new URL(import.meta.url), {
    workerData: { seconds, seed, folder, cases },
    argv: [],
    resourceLimits: { maxOldGenerationSizeMb: 1024 },
  });
  const kept = () => `seed ${seed}, case ${cases[0]}; the file is in ${folder}: ${readdirSync(folder).join(', ')}`;
  let seen = -1;
  let since = Date.now();
  const watch = setInterval(() => {
    if (cases[0] !== seen) {
      seen = cases[0];
      since = Date.now();
    } else if (Date.now() - since > hangSeconds * 1000) {
      fail(`hang of more than ${hangSeconds} s; ${kept()}`);
    }
  }, 500);
  worker.on('error', (error) => fail(`${error?.stack ?? error}\n${kept()}`));
  worker.on('message', ({ rejected, accepted, slowest }) => {
    clearInterval(watch);
    console.log(
      `${cases[0]} cases in ${seconds} s, seed ${seed}: ${accepted} read, ${rejected} refused, slowest ${slowest.toFixed(0)} ms`,
    );
    rmSync(folder, { recursive: true, force: true });
  });
}

function fail(message) {
  console.error(message);
  process.exit(1);
}

async function attack({ seconds, seed, folder, cases }) {
  const { groupsOf, readRows, splitRows } = await import(library);
  const random = generator(seed);
  const seeds = validFiles();
  const tokenizer = byteTokenizer();
  const end = Date.now() + seconds * 1000;
  let accepted = 0;
  let rejected = 0;
  let slowest = 0;
  mkdirSync(folder, { recursive: true });
  while (Date.now() < end) {
    const [extension, valid] = seeds[random() % seeds.length];
    const path = join(folder, `case.${extension}`);
    writeFileSync(path, mutate(valid, random));
    const start = performance.now();
    try {
      const onBadRow = random() % 2 === 0 ? 'skip' : 'error';
      const { rows } = await readRows(path, { onBadRow, dedupe: random() % 2 === 0, items: random() % 8 === 0 });
      const overLength = random() % 2 === 0 ? 'keep_start' : 'drop';
      await groupsOf(rows, tokenizer, { maxLength: 2 + (random() % 64), overLength });
      splitRows(rows, { by: ['row', 'prompt', 'annotator'][random() % 3], eval: 0.5, seed: random() });
      accepted += 1;
    } catch (error) {
      if (error?.name !== 'PluralignError' || typeof error.code !== 'string' || error.code === 'INTERNAL') throw error;
      rejected += 1;
    }
    slowest = Math.max(slowest, performance.now() - start);
    rmSync(path);
    Atomics.add(cases, 0, 1);
  }
  parentPort.postMessage({ accepted, rejected, slowest });
}

function validFiles() {
  const turns = (text) => [
    { role: 'user', content: 'hi' },
    { role: 'assistant', content: text },
  ];
  const rows = [
    { prompt: 'The sky is', chosen: ' blue.', rejected: ' green.', annotator: 'u7', weight: 0.5, margin: -1 },
    { chosen: 'The sky is blue.', rejected: 'The sky is 😀.', annotator: 7 },
    { chosen: turns('a'), rejected: turns('b'), group: 'g' },
    { prompt: 'p', responses: ['a', 'b', 'c'], ranking: [2, 0, 1] },
    { prompt: 'p', completion: ' c', label: true },
    { messages: turns('é') },
    { text: 'Once upon a time' },
  ];
  const csv = [
    'prompt,chosen,rejected,responses,ranking,completion,label,annotator,weight\r\n',
    '"Q, ""x""\nline", yes,no,,,,,007,0.5\r\n',
    'p,,,"[""a"",""b""]","[1,0]",,,u,\r\n',
    'p,,,,,c,True,u,1e-1\r\n',
  ].join('');
  const files = [
    ['jsonl', Buffer.from(rows.map((row) => `${JSON.stringify(row)}\n`).join(''))],
    ['json', Buffer.from(JSON.stringify({ data: rows }))],
    ['json', Buffer.from(JSON.stringify(rows))],
    ['csv', Buffer.from(csv)],
  ];
  for (const name of readdirSync(fixtures)) {
    if (name.endsWith('.parquet')) files.push(['parquet', readFileSync(join(fixtures, name))]);
  }
  return files;
}

const pieces = ['"', '""', ',', '\n', '\r\n', '[', ']', '{', '}', ':', 'null', '-1', '1e999', '9'.repeat(30), '\\ud800']
  .concat(['"__proto__":{"x":1},', '"ranking":', '"chosen":', '"role":', '[[[[', '\0', '\ufeff', 'true', '\\u0000'])
  .map((text) => Buffer.from(text))
  .concat([
    Buffer.from([0xff, 0xfe]),
    Buffer.from([0xff, 0xff, 0xff, 0xff, 0x0f]),
    Buffer.from([0x80]),
    Buffer.alloc(8),
  ]);

function mutate(valid, random) {
  let bytes = Buffer.from(valid);
  for (let n = 1 + (random() % 6); n > 0; n--) {
    const at = random() % (bytes.length + 1);
    const span = random() % 2 === 0 ? random() % 16 : random() % (bytes.length + 1);
    switch (random() % 8) {
      case 0:
        if (at < bytes.length) bytes[at] = random() & 0xff;
        break;
      case 1:
        if (at < bytes.length) bytes[at] ^= 1 << (random() % 8);
        break;
      case 2:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + span)]);
        break;
      case 3:
        bytes = Buffer.concat([bytes.subarray(0, at), pieces[random() % pieces.length], bytes.subarray(at)]);
        break;
      case 4: {
        const piece = pieces[random() % pieces.length];
        bytes = Buffer.concat([bytes.subarray(0, at), piece, bytes.subarray(at + piece.length)]);
        break;
      }
      case 5:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at, at + span), bytes.subarray(at)]);
        break;
      case 6:
        bytes = bytes.subarray(0, at);
        break;
      default:
        if (random() % 16 === 0) bytes = Buffer.concat([bytes, Buffer.alloc(random() % 100_000, bytes[at] ?? 91)]);
        else if (at < bytes.length) bytes[at] = (bytes[at] + (random() % 3) - 1) & 0xff;
    }
    bytes = Buffer.from(bytes);
  }
  return bytes;
}

/** xorshift32: a seed gives the same cases on every machine. */
function generator(seed) {
  let state = seed | 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

function byteTokenizer() {
  const encode = (text) => Int32Array.from(Buffer.from(text));
  return {
    vocabSize: 256,
    bosId: 1,
    eosId: 2,
    bosToken: null,
    eosToken: null,
    hasChatTemplate: true,
    encode,
    encodeRendered: encode,
    decode: (ids) => Buffer.from(ids).toString(),
    render: (messages, { addGenerationPrompt }) =>
      messages.map(({ role, content }) => `[${role}]${content}`).join('') + (addGenerationPrompt ? '[assistant]' : ''),
  };
}

if (isMainThread) await supervise();
else await attack(workerData);
