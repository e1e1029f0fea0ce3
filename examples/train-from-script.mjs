// Training from a script, whole and by parts, on the demo's model.   npm run build && node examples/train-from-script.mjs
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  adapterConfig,
  Bank,
  groupsOf,
  Model,
  pack,
  pairLoss,
  readRows,
  spreadGradient,
  sumTokens,
  train,
} from '../dist/index.js';

const folder = mkdtempSync(join(tmpdir(), 'pluralign-'));
const modelDir = fileURLToPath(new URL('../assets/demo-model', import.meta.url));
const votes = [
  ['Anna went to the lake.', ' She smiled all day.', ' She cried all day.', 'sunny'],
  ['Ben lost his kite.', ' A friend found it and he laughed.', ' It never came back.', 'sunny'],
];
const rowsFile = join(folder, 'rows.jsonl');
writeFileSync(
  rowsFile,
  votes
    .map(([prompt, chosen, rejected, annotator]) => `${JSON.stringify({ prompt, chosen, rejected, annotator })}\n`)
    .join(''),
);

// The whole job in one call.
const summary = await train(
  {
    method: 'dpo',
    model: modelDir,
    data: { train: rowsFile },
    adapter: { r: 4, alpha: 8 },
    train: { steps: 5, batch_size: 2, learning_rate: 1e-3 },
    output: join(folder, 'run'),
  },
  { quiet: true },
);
console.log('train():', summary.train.loss.toFixed(4), summary.paths.adapter);

// The same by parts: score → loss → backward → step.
const model = await Model.load(modelDir);
const bank = Bank.create(model.shape, adapterConfig({ r: 4, alpha: 8 }), ['mine'], { seed: 0 });
const { rows } = await readRows(rowsFile);
const { groups } = await groupsOf(rows, model.tokenizer, { maxLength: 256 });
const policies = [
  { adapter: 0, grad: true },
  { adapter: -1, grad: false },
];
const batch = pack(groups, { policies, read: 'logps' });
const n = groups.length;
for (let step = 0; step < 5; step++) {
  const { values } = await model.score(batch, bank, 'logps', { keep: true });
  const sums = sumTokens(values, batch.offsets);
  const at = (policy, completion) => Float64Array.from(groups, (_, i) => sums[2 * n * policy + 2 * i + completion]);
  const lengths = (completion) => Float64Array.from(groups, (g) => g.completions[completion].length);
  const loss = pairLoss(
    {
      chosen: at(0, 0),
      rejected: at(0, 1),
      refChosen: at(1, 0),
      refRejected: at(1, 1),
      chosenTokens: lengths(0),
      rejectedTokens: lengths(1),
    },
    { type: 'sigmoid', beta: 0.1 },
  );
  const dSums = new Float64Array(sums.length);
  groups.forEach((_, i) => {
    dSums[2 * i] = loss.dChosen[i];
    dSums[2 * i + 1] = loss.dRejected[i];
  });
  bank.zeroGrad();
  await model.backward(batch, bank, spreadGradient(dSums, batch.offsets));
  const norm = await bank.step({
    learningRate: 1e-3,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weightDecay: 0,
    maxGradNorm: 1,
  });
  console.log(`step ${step + 1}: loss ${loss.loss.toFixed(4)}, gradient norm ${norm.toFixed(4)}`);
}
model.dispose();
