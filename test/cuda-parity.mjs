// Parity of one device with float64 PyTorch, and with the CPU, from the compiled package alone: the fixtures of test/fixtures, three
// training steps of each, log-probabilities and the gradient norm of every tensor. Prints a line for each; exit status 1
// where one is off. usage: node test/cuda-parity.mjs [device; default cuda]
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Bank, groupsOf, Model, pack, pairLoss, readRows, spreadGradient, sumTokens } from '../dist/index.js';

const device = process.argv[2] ?? 'cuda';
const fixtures = fileURLToPath(new URL('fixtures', import.meta.url));
const policies = [
  { adapter: 0, grad: true },
  { adapter: -1, grad: false },
];
const adamw = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: null };

async function open(dir, where, dtype = 'float32') {
  const model = await Model.load(join(dir, 'model'), { dtype, device: where });
  const bank = await Bank.fromPeft(model.shape, [{ name: 'adapter', dir: join(dir, 'adapter') }]);
  const { rows } = await readRows(join(dir, 'prefs.jsonl'));
  const { groups } = await groupsOf(rows, model.tokenizer, { maxLength: 256 });
  return { model, bank, groups };
}

/** Three DPO steps: sums of log-probabilities at the first, losses, gradient norms, parameters at the end. */
async function steps(dir, where, golden, dtype) {
  const { model, bank, groups } = await open(dir, where, dtype);
  const n = groups.length;
  const out = { sums: null, tensors: null, losses: [], norms: [], parameters: bank.parameters };
  for (let step = 0; step < golden.steps; step++) {
    const p = pack(groups, { policies, read: 'logps' });
    const { values } = await model.score(p, bank, 'logps', { keep: true });
    const sums = sumTokens(values, p.offsets);
    out.sums ??= sums;
    const at = (policy, c) => Float64Array.from({ length: n }, (_, i) => sums[policy * 2 * n + 2 * i + c]);
    const loss = pairLoss(
      {
        ...{ chosen: at(0, 0), rejected: at(0, 1), refChosen: at(1, 0), refRejected: at(1, 1) },
        chosenTokens: Float64Array.from(groups, (g) => g.completions[0].length),
        rejectedTokens: Float64Array.from(groups, (g) => g.completions[1].length),
      },
      { type: 'sigmoid', beta: golden.beta },
    );
    const d = new Float64Array(4 * n);
    for (let i = 0; i < n; i++) {
      d[2 * i] = loss.dChosen[i];
      d[2 * i + 1] = loss.dRejected[i];
    }
    bank.zeroGrad();
    await model.backward(p, bank, spreadGradient(d, p.offsets));
    out.tensors ??= bank.gradNormsByTensor();
    out.losses.push(loss.loss);
    out.norms.push(await bank.step({ ...adamw, learningRate: golden.lr }));
  }
  model.dispose();
  return out;
}

const plain = (name) => name.replace('base_model.model.', '').replace('.weight', '');
const apart = (a, b) => Math.abs(a - b);
let failed = 0;
let passed = 0;

function line(name, found, limit) {
  const good = found < limit;
  if (good) passed++;
  else failed++;
  console.log(`${good ? 'ok  ' : 'FAIL'} ${name}: ${found.toExponential(1)} (below ${limit})`);
}

for (const name of readdirSync(fixtures).filter((f) => f.startsWith('parity-') && !f.includes('reward'))) {
  const dir = join(fixtures, name);
  if (!existsSync(join(dir, 'golden.json'))) continue;
  const golden = JSON.parse(readFileSync(join(dir, 'golden.json'), 'utf8'));
  const mine = await steps(dir, device, golden, 'float32');
  const n = golden.rows.length;
  const keys = ['logp_chosen', 'logp_rejected', 'ref_logp_chosen', 'ref_logp_rejected'];
  const sums = golden.rows.flatMap((row, i) =>
    keys.map((key, j) => apart(mine.sums[(j >> 1) * 2 * n + 2 * i + (j & 1)], row[key])),
  );
  line(`${name}, log-probabilities`, Math.max(...sums), 1e-4);
  const tensors = new Map([...mine.tensors].map(([key, norm]) => [key.split('@')[0], norm]));
  const relative = Object.entries(golden.grad_norm_by_tensor).map(
    ([key, norm]) => apart(tensors.get(plain(key)), norm) / norm,
  );
  line(`${name}, gradient norms of ${relative.length} tensors`, Math.max(...relative), 1e-3);
  line(`${name}, losses of three steps`, Math.max(...mine.losses.map((x, i) => apart(x, golden.losses[i]))), 1e-5);
  const cpu = await steps(dir, 'cpu', golden, 'float32');
  let squares = 0;
  for (let i = 0; i < cpu.parameters.length; i++) squares += (cpu.parameters[i] - mine.parameters[i]) ** 2;
  line(`${name}, adapter after three steps beside the CPU's`, Math.sqrt(squares / cpu.parameters.length), 1e-6);
  const half = await steps(dir, device, golden, 'bf16');
  line(
    `${name}, log-probabilities in bfloat16, relative`,
    Math.max(...golden.rows.map((row, i) => apart(half.sums[2 * i], row.logp_chosen) / Math.abs(row.logp_chosen))),
    1e-2,
  );
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;
