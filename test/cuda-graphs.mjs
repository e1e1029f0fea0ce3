// Generation whose steps are replayed from CUDA graphs beside the same steps launched one by one (PLURALIGN_CUDA_GRAPHS=1 and 0, a
// process for each): tokens and log-probabilities to the bit, over the parity fixtures; then milliseconds a step of random weights.
// Prints a line for each; exit status 1 where one is off.
// usage: node test/cuda-graphs.mjs [device; default cuda] [--shapes 135m,1b; none: ''] [--seconds 60]
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    shapes: { type: 'string', default: '135m,1b' },
    seconds: { type: 'string', default: '60' },
    side: { type: 'boolean', default: false },
  },
});
const [device = 'cuda'] = positionals;
const here = fileURLToPath(import.meta.url);
const fixtures = fileURLToPath(new URL('fixtures', import.meta.url));
const shapes = {
  '135m': { vocabSize: 49152, hiddenSize: 576, intermediateSize: 1536, layers: 30, heads: 9, kvHeads: 3 },
  '1b': { vocabSize: 128256, hiddenSize: 2048, intermediateSize: 8192, layers: 16, heads: 32, kvHeads: 8 },
};
const names = options.shapes.split(',').filter(Boolean);

/** Prompts of one to many tokens, under base, adapter and mixture, drawn on the device and by the host, that end one after another. */
const requests = (vocabulary) =>
  Array.from({ length: 7 }, (_, i) => ({
    prompt: Int32Array.from({ length: [1, 3, 17, 70][i % 4] }, (_, t) => 3 + ((i * 37 + t * 11) % (vocabulary - 3))),
    policy: i % 4 === 2 ? { adapters: [0, -1], weights: [0.7, 0.3] } : i % 2 ? 0 : -1,
    maxNewTokens: 8 + (i % 5) * 3,
    temperature: i % 3 ? 0.9 : 0,
    topK: i === 4 ? 5 : 0,
    seed: i,
  }));

/** Everything that sequences say, some at a time and so that some come while others run. */
async function say(native, bank, list, rows) {
  const { addon } = await import('../dist/native/loader.js');
  const generation = addon().createGeneration(native, { rows, memory: 1 << 28, stopTokens: new Int32Array(0) });
  const said = list.map(() => ({ tokens: [], logps: [] }));
  let add = list;
  let out;
  do {
    out = await generation.run(bank?.native() ?? null, { add, remove: new Int32Array(0), steps: 3 });
    add = [];
    for (let i = 0, at = 0; i < out.ids.length; at = out.ends[i++]) {
      said[out.ids[i]].tokens.push(...out.tokens.subarray(at, out.ends[i]));
      said[out.ids[i]].logps.push(...out.logps.subarray(at, out.ends[i]));
    }
  } while (out.left > 0);
  return { said, replayed: out.replayed };
}

async function checks() {
  const { Bank, Model } = await import('../dist/index.js');
  const { nativeSequence } = await import('../dist/generation/request.js');
  for (const name of readdirSync(fixtures).filter((f) => f.startsWith('parity-') && !f.includes('reward'))) {
    const dir = join(fixtures, name);
    if (!existsSync(join(dir, 'model/config.json'))) continue;
    for (const dtype of ['float32', 'bf16']) {
      const model = await Model.load(join(dir, 'model'), { dtype, device });
      const bank = await Bank.fromPeft(model.shape, [{ name: 'adapter', dir: join(dir, 'adapter') }]);
      const list = requests(model.shape.vocabSize).map((request, i) => nativeSequence(i, request));
      console.log(JSON.stringify({ check: `${name}, ${dtype}`, ...(await say(model.native, bank, list, 5)) }));
      model.dispose();
    }
  }
}

/** Milliseconds a step, the median of stretches of 8 steps, of so many sequences under as many adapters or the base. */
async function times() {
  const { SyntheticModel } = await import('../dist/bench/synthetic.js');
  const { chooseDevice } = await import('../dist/native/device.js');
  const { addon } = await import('../dist/native/loader.js');
  const chosen = await chooseDevice(device);
  const steps = 8;
  const stretches = 12;
  for (const shape of names) {
    // A model of a billion is written and read once more; half of the time is left for it, or it is left out.
    if (performance.now() > Number(options.seconds) * 500) break;
    const model = await SyntheticModel.open(
      { config: { ...shapes[shape], maxPositions: 4096 } },
      { dtype: 'bf16', threads: 4, flag: new Int32Array(1), chosen },
    );
    for (const [sequences, adapters] of [
      [1, 0],
      [1, 1],
      [8, 8],
      [64, 0],
      [64, 64],
    ]) {
      const bank = adapters > 0 ? model.bank(adapters) : null;
      const generation = addon().createGeneration(model.native, {
        ...{ rows: sequences, memory: 4e9, stopTokens: new Int32Array(0) },
      });
      const run = (count, add = []) =>
        generation.run(bank?.native() ?? null, { add, remove: new Int32Array(0), steps: count });
      const add = Array.from({ length: sequences }, (_, id) => ({
        ...{ id, prompt: Int32Array.from({ length: 64 }, (_, t) => (id * 31 + t * 7) % shapes[shape].vocabSize) },
        ...{ adapters: Int32Array.of(bank ? id : -1), weights: Float32Array.of(1), mix: 'reverse-kl', alpha: 1 },
        ...{ maxNewTokens: 512, seed: id, temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 },
      }));
      await run(8, add);
      const each = [];
      let out;
      for (let i = 0; i < stretches; i++) {
        const before = performance.now();
        out = await run(steps);
        each.push((performance.now() - before) / steps);
      }
      const ms = each.toSorted((a, b) => a - b)[each.length >> 1];
      console.log(JSON.stringify({ time: shape, sequences, adapters, ms, replayed: out.replayed }));
    }
    model.native.dispose();
  }
}

/** What a process with graphs on or off printed. */
function side(graphs, seconds) {
  const args = [here, device, '--side', '--shapes', options.shapes, '--seconds', String(seconds)];
  const child = spawnSync(process.execPath, args, {
    ...{ encoding: 'utf8', maxBuffer: 1 << 28, stdio: ['ignore', 'pipe', 'inherit'] },
    ...{ timeout: seconds * 1000, killSignal: 'SIGKILL', env: { ...process.env, PLURALIGN_CUDA_GRAPHS: graphs } },
  });
  const lines = (child.stdout ?? '').split('\n').flatMap((text) => (text.startsWith('{') ? [JSON.parse(text)] : []));
  return {
    lines,
    error: child.status === 0 ? null : (child.error?.message ?? `ended with ${child.signal ?? child.status}`),
  };
}

if (options.side) {
  await checks();
  await times();
} else {
  let [passed, failed] = [0, 0];
  const line = (name, good, found) => {
    good ? passed++ : failed++;
    console.log(`${good ? 'ok  ' : 'FAIL'} ${name}: ${found}`);
  };
  const [on, off] = ['1', '0'].map((graphs) => side(graphs, Number(options.seconds) / 2));
  for (const [name, { error }] of Object.entries({ 'with graphs': on, without: off }))
    if (error) line(`generation ${name}`, false, error);
  const words = (record) => JSON.stringify(record?.said);
  for (const a of on.lines.filter((record) => record.check)) {
    const b = off.lines.find((record) => record.check === a.check);
    const equal = b !== undefined && words(a) === words(b);
    line(
      `${a.check}, replayed as launched`,
      equal && a.replayed > 0 && b.replayed === 0,
      `${a.said.length} sequences ${equal ? 'to the bit' : 'differ'}, ${a.replayed} steps replayed`,
    );
  }
  for (const a of on.lines.filter((record) => record.time)) {
    const b = off.lines.find((r) => r.time === a.time && r.sequences === a.sequences && r.adapters === a.adapters);
    if (!b) continue;
    const ratio = b.ms / a.ms;
    console.log(JSON.stringify({ ...a, ms_launched: b.ms, ratio }));
    console.log(
      `${a.time}, ${a.sequences} sequences, ${a.adapters} adapters: ${a.ms.toFixed(3)} ms a step replayed, ` +
        `${b.ms.toFixed(3)} launched, ${ratio.toFixed(2)} times`,
    );
  }
  console.log(`${passed} passed, ${failed} failed`);
  process.exitCode = failed > 0 ? 1 : 0;
}
