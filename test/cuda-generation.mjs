// Generation on one device beside the CPU: greedy text of the fixtures in float32, base and adapters side by side in one batch, and
// log-probabilities of sampled tokens. Prints a line for each; exit status 1 where one is off.
// usage: node test/cuda-generation.mjs [device; default cuda]
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Bank, generateRequests, Model } from '../dist/index.js';

const device = process.argv[2] ?? 'cuda';
const fixtures = fileURLToPath(new URL('fixtures', import.meta.url));
let [passed, failed] = [0, 0];

function line(name, good, found) {
  good ? passed++ : failed++;
  console.log(`${good ? 'ok  ' : 'FAIL'} ${name}: ${found}`);
}

/** Prompts of one to many tokens under the base, the adapter and a mixture of both, as greedy text and sampled. */
function requests(vocabulary, sampled) {
  return Array.from({ length: 9 }, (_, i) => ({
    prompt: Int32Array.from({ length: [1, 3, 17, 70][i % 4] }, (_, t) => 3 + ((i * 37 + t * 11) % (vocabulary - 3))),
    policy: i % 3 === 2 ? { adapters: [0, -1], weights: [0.7, 0.3] } : i % 2 ? 0 : -1,
    maxNewTokens: 12,
    temperature: sampled ? 0.9 : 0,
    seed: i,
  }));
}

async function texts(dir, where, sampled, dtype) {
  const model = await Model.load(join(dir, 'model'), { dtype, device: where });
  try {
    const bank = await Bank.fromPeft(model.shape, [{ name: 'adapter', dir: join(dir, 'adapter') }]);
    return await generateRequests(model, bank, requests(model.shape.vocabSize, sampled), { text: 'none' });
  } finally {
    model.dispose();
  }
}

const same = (a, b) => a.length === b.length && a.every((x, i) => x === b[i]);

for (const name of readdirSync(fixtures).filter((f) => f.startsWith('parity-') && !f.includes('reward'))) {
  const dir = join(fixtures, name);
  if (!existsSync(join(dir, 'model/config.json'))) continue;
  for (const sampled of [false, true]) {
    const [mine, theirs] = [await texts(dir, device, sampled, 'float32'), await texts(dir, 'cpu', sampled, 'float32')];
    const equal = mine.filter((text, i) => same(text.tokens, theirs[i].tokens)).length;
    line(
      `${name}, ${sampled ? 'sampled' : 'greedy'} as on the CPU`,
      equal === mine.length,
      `${equal} of ${mine.length} sequences`,
    );
    const off = Math.max(
      ...mine.flatMap((text, i) => Array.from(text.logps, (x, t) => Math.abs(x - theirs[i].logps[t]))),
    );
    line(`${name}, log-probabilities`, off < 1e-4, `${off.toExponential(1)} (below 1e-4)`);
  }
  // Texts part where rounding decides between two tokens; up to there, log-probabilities are the same but for it.
  const [half, whole] = [await texts(dir, device, false, 'bf16'), await texts(dir, 'cpu', false, 'bf16')];
  const shared = half.map(({ tokens }, i) => {
    const parts = Array.from(tokens).findIndex((id, t) => id !== whole[i].tokens[t]);
    return parts < 0 ? tokens.length : parts;
  });
  const norm = (values) => Math.hypot(...values);
  const of = (all) => all.flatMap(({ logps }, i) => Array.from(logps.slice(0, shared[i])));
  const known = of(whole);
  const part = norm(of(half).map((x, i) => x - known[i])) / norm(known);
  line(
    `${name}, bfloat16 as on the CPU`,
    part < 0.01 && known.length >= half.length && half.every(({ logps }) => logps.every(Number.isFinite)),
    `log-probabilities of ${known.length} common tokens within ${part.toExponential(1)} (below 1e-2)`,
  );
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;
