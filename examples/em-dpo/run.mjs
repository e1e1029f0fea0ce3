// Three planted tastes vote on stories; EM finds who has which and trains a policy for each.
//   npm run build && node examples/em-dpo/run.mjs [--seeds 0,1,2,3,4] [--model ../shared/models/tinystories-656k]
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { evaluateModel, Model, train } from '../../dist/index.js';
import { tell, vote } from './votes.mjs';

const { values: given } = parseArgs({
  options: {
    seeds: { type: 'string', default: '0,1,2,3,4' },
    model: { type: 'string', default: '../shared/models/tinystories-656k' },
    output: { type: 'string' },
  },
});
const output = given.output ?? mkdtempSync(join(tmpdir(), 'pluralign-em-dpo-'));
const groups = { short: 24, happy: 20, animals: 16 };
const tastes = Object.keys(groups);

const put = (path, rows) => writeFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
const percent = (x) => `${(100 * x).toFixed(1)} %`.padStart(9);

/** The type that most annotators of a taste were given. */
function typesOf(run, rows) {
  const tasteOf = new Map(rows.map((row) => [row.annotator, row.group]));
  const votes = Object.fromEntries(tastes.map((taste) => [taste, [0, 0, 0]]));
  for (const line of readFileSync(join(run, 'responsibilities.csv'), 'utf8').trim().split('\n').slice(1)) {
    const [annotator, ...values] = line.split(',');
    const gamma = values.slice(0, 3).map(Number);
    votes[tasteOf.get(annotator)][gamma.indexOf(Math.max(...gamma))]++;
  }
  return Object.fromEntries(tastes.map((taste) => [taste, votes[taste].indexOf(Math.max(...votes[taste])) + 1]));
}

const model = await Model.load(given.model);
console.log(
  `60 annotators (${tastes.map((t) => `${t} ${groups[t]}`).join(', ')}), 20 pairs each, every fifth 5; held out 10 each\n`,
);
console.log('seed  Rand index  taste     its type   plain DPO    gain');
const found = [];
const gains = [];
for (const seed of given.seeds.split(',').map(Number)) {
  const dir = join(output, `seed-${seed}`);
  mkdirSync(dir, { recursive: true });
  const votes = vote(await tell(model, seed), groups, { seed });
  const data = { train: join(dir, 'train.jsonl'), eval: join(dir, 'eval.jsonl') };
  put(data.train, votes.train);
  put(data.eval, votes.eval);
  const settings = { batch_size: 16, learning_rate: 5e-4, seed };
  const common = { model: given.model, data, adapter: { r: 16, alpha: 32 }, loss: { beta: 0.2 } };
  const run = join(dir, 'em');
  const em = { types: 3, rounds: 5, compare_one: false };
  const { em: result } = await train(
    { ...common, method: 'em-dpo', em, train: settings, output: run },
    { quiet: true },
  );
  const typed = await evaluateModel({ run, data: [data.eval] });
  // Plain DPO gets the epoch that does best on the held-out votes.
  const epoch = Math.ceil(votes.train.length / settings.batch_size);
  const plain = await train(
    {
      ...common,
      method: 'dpo',
      train: {
        ...settings,
        epochs: 5,
        eval_every: epoch,
        save_every: epoch,
        keep_checkpoints: 6,
        early_stopping: { metric: 'eval_accuracy', patience: 9 },
      },
      output: join(dir, 'dpo'),
    },
    { quiet: true },
  );
  const types = typesOf(run, votes.train);
  found.push(result.adjusted_rand_index);
  for (const [i, taste] of tastes.entries()) {
    const own = typed.policies[`type_${types[taste]}`].groups[taste].accuracy;
    const one = plain.eval.groups[taste].accuracy;
    gains.push(own - one);
    const head = i === 0 ? `${seed}`.padEnd(6) + result.adjusted_rand_index.toFixed(3).padEnd(12) : ' '.repeat(18);
    console.log(`${head}${taste.padEnd(8)}${percent(own)}  ${percent(one)}  ${percent(own - one)}`);
  }
}
const mean = gains.reduce((a, b) => a + b, 0) / gains.length;
console.log(`\nadjusted Rand index of at least 0.9: ${found.filter((x) => x >= 0.9).length} of ${found.length} seeds`);
console.log(
  `held-out accuracy, a taste's own policy minus plain DPO: mean ${percent(mean).trim()}, least ${percent(Math.min(...gains)).trim()}`,
);
console.log(`runs: ${output}`);
